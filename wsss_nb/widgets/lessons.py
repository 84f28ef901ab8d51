"""What the lessons share: a few synthetic fish as tensors, and a training that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.cam import class_activation_map, condition_on_labels
from wsss_nb.coverage import PartCoverage
from wsss_nb.data.synthetic import FISH, synthetic_sample
from wsss_nb.metrics import ContourFScore, MeanIoU
from wsss_nb.models import create_cam_net
from wsss_nb.widgets.threads import single_thread

__all__ = ["FishBatch", "draw_fish", "fish_cams", "frozen_features", "score_cams", "train_head"]

Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class FishBatch:
    """Synthetic images (N, 3, S, S) in 0..1, labels (N, K), masks and parts (N, S, S), class names (K)."""

    images: Tensor
    labels: Tensor
    masks: Tensor
    parts: Tensor
    names: tuple[str, ...]

    def picture(self, index: int) -> np.ndarray:
        """One image as (S, S, 3) uint8."""
        return (self.images[index] * 255).round().byte().permute(1, 2, 0).numpy()


def draw_fish(
    count: int, split: str = "train", seed: int = 0, size: int = 96, num_classes: int = 4
) -> FishBatch:
    """Draw images of the synthetic data set into memory; K = num_classes counts the background.

    Example:
        >>> draw_fish(2).labels.shape
        torch.Size([2, 4])
    """
    samples = [synthetic_sample(seed, split, i, size=size, num_classes=num_classes) for i in range(count)]
    labels = torch.zeros(count, num_classes)
    for row, sample in zip(labels, samples, strict=True):
        row[[0, *sample.classes]] = 1
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2) / 255
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples]))
    parts = torch.from_numpy(np.stack([sample.part for sample in samples]))
    names = ("background", *(fish.name for fish in FISH[: num_classes - 1]))
    return FishBatch(images.contiguous(), labels, masks, parts, names)


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


@single_thread()
def train_head(
    loss_of: Loss,
    features: Tensor,
    labels: Tensor,
    *,
    steps: int = 250,
    learning_rate: float = 3e-3,
    batch_size: int = 16,
    seed: int = 0,
    head: nn.Module | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train a small head (1x1 convolution, ReLU, 1x1 convolution) on image-level labels; AdamW.

    Args:
        loss_of: loss of logits (B, K, h, w) and labels (B, K), given a random generator.
        features: (N, C, h, w), see `frozen_features`.
        labels: (N, K).
        steps: number of batches.
        learning_rate: constant.
        batch_size: images in a batch.
        seed: of the weights, the batches and the draws.
        head: go on with a copy of this one; a fresh one if None.
        watch: called with the step number (0 first, ``steps`` last) and the head.

    Returns:
        The head, features to logits, and the loss of every step.
    """
    torch.manual_seed(seed)
    trained = nn.Sequential(
        nn.Conv2d(features.shape[1], 64, 1), nn.ReLU(), nn.Conv2d(64, labels.shape[1], 1, bias=False)
    )
    if head is not None:
        trained.load_state_dict(head.state_dict())
    optimizer = torch.optim.AdamW(trained.parameters(), learning_rate, weight_decay=0.02)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for step in range(steps):
        if watch is not None:
            watch(step, trained)
        chosen = torch.randint(len(features), (batch_size,), generator=generator)
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
