"""What the lessons share: a few synthetic fish as tensors, a training that takes seconds, and a growing loss curve."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from wsss_nb.cam import class_activation_map, condition_on_labels
from wsss_nb.data.synthetic import FISH, HEAD, synthetic_sample
from wsss_nb.metrics import ContourFScore, MeanIoU, PartCoverage
from wsss_nb.models.networks import create_cam_net
from wsss_nb.system.workers import fixed_threads
from wsss_nb.teach.pictures import Picture, Pixels, chart

__all__ = ["LossPlot", "draw_fish", "fish_cams", "frozen_features", "render_history", "score_cams", "train_head"]

Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]
History = Sequence[Mapping[str, float]]
_NOT_LOSSES = {"epoch", "step", "seconds", "mu", "sigma"}


class FishBatch(NamedTuple):
    """Synthetic images (N, 3, S, S) in 0..1, labels (N, K), masks and parts (N, S, S), class names (K)."""

    images: Tensor
    labels: Tensor
    masks: Tensor
    parts: Tensor
    names: tuple[str, ...]

    def picture(self, index: int) -> Pixels:
        """One image as (S, S, 3) uint8."""
        return np.asarray((self.images[index] * 255).round().byte().permute(1, 2, 0))

    def paint_parts(self, body: float, head: float) -> Tensor:
        """Maps (N, K, S, S) that are ``head`` and ``body`` on these parts of a class's fish and 0 elsewhere.

        A classifier is surer of heads than of bodies, so this imitates its maps.
        """
        on_class = self.masks[:, None] == torch.arange(self.labels.shape[1])[:, None, None]
        return on_class * torch.where(self.parts == HEAD, head, body)[:, None]


def draw_fish(
    count: int, split: str = "train", seed: int = 0, size: int = 96, num_classes: int = 4, first: int = 0
) -> FishBatch:
    """Draw images of the synthetic data set into memory, from number ``first`` on.

    K = num_classes counts the background.

    Example:
        >>> draw_fish(2).labels.shape
        torch.Size([2, 4])
    """
    places = range(first, first + count)
    samples = [synthetic_sample(seed, split, i, size=size, num_classes=num_classes) for i in places]
    labels = torch.zeros(count, num_classes)
    for row, sample in zip(labels, samples, strict=True):
        row[[0, *sample.classes]] = 1
    images, masks, parts = (
        torch.from_numpy(np.stack([getattr(sample, kind) for sample in samples])) for kind in ("image", "mask", "part")
    )
    names = ("background", *[*FISH][: num_classes - 1])
    return FishBatch((images.permute(0, 3, 1, 2) / 255).contiguous(), labels, masks, parts, names)


def frozen_features(images: Tensor, side: int = 320) -> Tensor:
    """Features of EfficientNet-Lite0's frozen blocks (ImageNet weights) on enlarged images, standardised.

    Args:
        images: (N, 3, S, S) in 0..1.
        side: they are enlarged to this many pixels.

    Returns:
        (N, 112, side / 16, side / 16), each channel with mean 0 and standard deviation 1.
    """
    net = create_cam_net("efficientnet_lite0", 2).eval()
    with torch.inference_mode():
        large = (F.interpolate(part, size=(side, side), mode="bilinear") for part in images.split(16))
        features = torch.cat([net.frozen(part) for part in large])
    mean, std = features.mean((0, 2, 3), keepdim=True), features.std((0, 2, 3), keepdim=True)
    return ((features - mean) / (std + 1e-3)).clone()


@fixed_threads(1)
def train_head(
    loss_of: Loss, features: Tensor, labels: Tensor, *, steps: int = 250, seed: int = 0, head: nn.Module | None = None,
    watch: Callable[[int, nn.Module], None] | None = None
) -> tuple[nn.Module, list[float]]:  # fmt: skip
    """Train a small head (1x1 convolution, ReLU, 1x1 convolution) on image-level labels: AdamW, batches of 16.

    Args:
        loss_of: loss of logits (B, K, h, w) and labels (B, K), given a random generator.
        features: (N, C, h, w), see `frozen_features`.
        labels: (N, K).
        steps: number of batches.
        seed: of the weights, the batches and the draws.
        head: go on with a copy of this one; a fresh one if None.
        watch: called with the step number (0 first, ``steps`` last) and the head.

    Returns:
        The head, features to logits, and the loss of every step.
    """
    torch.manual_seed(seed)
    first, last = nn.Conv2d(features.shape[1], 64, 1), nn.Conv2d(64, labels.shape[1], 1, bias=False)
    trained = nn.Sequential(first, nn.ReLU(), last)
    if head is not None:
        trained.load_state_dict(head.state_dict())
    optimizer = torch.optim.AdamW(trained.parameters(), 3e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for step in range(steps):
        if watch is not None:
            watch(step, trained)
        chosen = torch.randint(len(features), (16,), generator=generator)
        loss = loss_of(trained(features[chosen]), labels[chosen], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if watch is not None:
        watch(steps, trained)
    return trained.requires_grad_(False), losses


def fish_cams(head: nn.Module, features: Tensor, labels: Tensor, size: int = 96) -> Tensor:
    """Maps of Eq. 1, conditioned on the image-level labels, at image size, (N, K, size, size)."""
    with torch.no_grad():
        maps = condition_on_labels(class_activation_map(head(features)), labels)
        return F.interpolate(maps, size=(size, size), mode="bilinear")


def score_cams(maps: Tensor, fish: FishBatch) -> dict[str, float]:
    """Argmax of maps (N, K, S, S) against the masks.

    Returns:
        Fractions of "head", "body" and "background" pixels found, "miou" and "contour_f", all in 0..1.
    """
    found = maps.argmax(1).to(torch.uint8)
    parts, miou, contour = PartCoverage(), MeanIoU(maps.shape[1]), ContourFScore(maps.shape[1])
    parts.update(found, fish.masks, fish.parts)
    miou.update(found, fish.masks)
    contour.update(found, fish.masks)
    return {**parts.compute(), "miou": miou.compute()["miou"], "contour_f": contour.compute()["contour_f"]}


def render_history(history: History, title: str = "training") -> Picture:
    """Every loss against the epoch; the axes start at zero where no loss is negative."""
    figure, axis = plt.subplots(figsize=(5, 2.4), dpi=100)
    epochs, words = [row["epoch"] for row in history], []
    names = [key for key in history[-1] if key not in _NOT_LOSSES]
    for name in names:
        alone = name.endswith("1") and f"{name[:-1]}2" not in names  # the first of two branches, of which there is one
        label = name[:-1] if alone else name
        axis.plot(epochs, [row[name] for row in history], marker="o", markersize=3, label=label)
        words.append(f"{label} {history[0][name]:.3g} to {history[-1][name]:.3g}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set(xlabel="epoch", ylabel="loss (weighted)")
    axis.set_title(title, fontsize=10)
    if axis.get_ylim()[0] > 0:
        axis.set_ylim(bottom=0)
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    return chart(figure, f"Loss curves of {title}, epochs {epochs[0]:g} to {epochs[-1]:g}: {', '.join(words)}.")


class LossPlot:
    """Callable for ``on_epoch``: redraws one persistent image after each epoch; none when headless.

    :meth:`show` ends it and leaves a static picture, also of a training that was done before.
    """

    def __init__(self, title: str = "training") -> None:
        self.title = title
        self.image = ipywidgets.Image(format="png")
        self._shown = bool(os.environ.get("WSSS_NB_HEADLESS"))

    def __call__(self, history: History) -> None:
        """Draw ``history``."""
        self.image.value = render_history(history, self.title).png()
        if not self._shown:
            self._shown = True
            display(self.image)

    def show(self, history: History) -> None:
        """Leave a static picture of ``history`` in the notebook, for readers and headless runs."""
        self.image.close()
        display(render_history(history, self.title))
