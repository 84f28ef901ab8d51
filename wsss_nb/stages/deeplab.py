"""Stage 3: DeepLab-v1 on the pseudo-labels; multi-scale inference and dense CRF at test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.crf import dense_crf_many
from wsss_nb.data import VOCFolder, read_label_map, save_label_map, to_tensor
from wsss_nb.models import create_deeplab, fixed_weights
from wsss_nb.similarity import feature_similarity_loss
from wsss_nb.stages.affinitynet import crf_config, resolved_crf
from wsss_nb.stages.config import DeepLabConfig
from wsss_nb.stages.engine import prepare_network
from wsss_nb.stages.loaders import training_views
from wsss_nb.stages.loop import History, progress, train
from wsss_nb.stages.processes import processes
from wsss_nb.stages.steps import pick_device
from wsss_nb.stages.views import Wanted, training_precision
from wsss_nb.stages.weights import load_trained, start_from
from wsss_nb.workers import Workers

__all__ = ["load_deeplab", "predict", "train_deeplab", "write_predictions"]

CHECKPOINT = "checkpoint.pt"


def _build(backbone: str, num_classes: int, seed: int, weights: Path | None) -> Any:
    torch.manual_seed(seed)
    net = create_deeplab(backbone, num_classes)
    if weights is not None:
        start_from(net, weights)
    return net.to(pick_device())


def train_deeplab(
    folder: VOCFolder,
    backbone: str,
    config: DeepLabConfig,
    seed: int,
    pseudo_labels: Path,
    out: Path,
    weights: Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Cross-entropy (255 ignored) between the upsampled logits and ``pseudo_labels/NAME.png``.

    The extended release adds ``similarity_weight`` times the feature-similarity loss of the softmax, scaled as in stage 1.
    """
    net = _build(backbone, folder.num_classes, seed, weights)
    prepare_network(net, config)
    device = pick_device()

    def target(name: str, size: tuple[int, int]) -> Tensor:
        labels = torch.from_numpy(read_label_map(pseudo_labels / f"{name}.png").astype(np.float32))
        return F.interpolate(labels[None, None], size, mode="nearest")[0, 0].long()

    wanted = Wanted(config.precision, target=target, target_size="image")
    loader = training_views(folder, net, config.views, config.batch_size, wanted)

    def objective(batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        with training_precision(device, config.precision):
            scores = net.from_frozen(batch.features, batch.images).float()
        logits = F.interpolate(scores, batch.target.shape[-2:], mode="bilinear", align_corners=True)
        segmentation = F.cross_entropy(logits, batch.target, ignore_index=255)
        if batch.correction is not None:  # a part without any label has mean 0/0
            segmentation = torch.where(batch.correction[0] > 0, batch.correction[0] * segmentation, 0)
        losses = {"segmentation": segmentation}
        if config.similarity_weight > 0:
            similarity = feature_similarity_loss(scores.softmax(1), batch.images, config.mu, config.sigma)
            losses["similarity"] = 2 * config.similarity_weight * similarity
        return losses

    def counts(batch: Any) -> Tensor:
        return (batch.target != 255).sum()[None]

    return train(
        nn.ModuleDict({"net": net}), loader, objective, groups=net.parameter_groups(), config=config.optimizer,
        epochs=config.epochs, iterations=config.iterations, precision=config.precision, accumulate=config.accumulate,
        counts=counts, seed=seed, checkpoint=out / CHECKPOINT,
        on_epoch=on_epoch, description="DeepLab",
    )  # fmt: skip


def load_deeplab(backbone: str, num_classes: int, checkpoint: Path) -> Any:
    """The trained DeepLab, in eval mode."""
    net = _build(backbone, num_classes, 0, None)
    return load_trained(net, checkpoint)


@torch.inference_mode()
def predict(net: Any, image: np.ndarray, config: DeepLabConfig) -> np.ndarray:
    """Class probabilities float32 (K, H, W): softmax of the logits averaged over scales and flips.

    Images are resized by ``config.interpolation``, neither antialiased nor clamped, as the release does (OpenCV's cubic).
    """
    tensor = to_tensor(image)[None].to(next(net.parameters()).device)
    size = tensor.shape[-2:]
    views = []
    with fixed_weights(), training_precision(tensor.device, config.precision):
        for scale in config.scales:
            wanted = (max(16, round(size[0] * scale)), max(16, round(size[1] * scale)))
            scaled = (
                tensor
                if scale == 1
                else F.interpolate(tensor, wanted, mode=config.interpolation, align_corners=False)
            )
            for mirrored in (False, True) if config.flip else (False,):
                logits = net(scaled.flip(-1) if mirrored else scaled).float()
                logits = logits.flip(-1) if mirrored else logits
                views.append(F.interpolate(logits, size, mode="bilinear", align_corners=True)[0])
    return torch.stack(views).mean(0).softmax(0).cpu().numpy()


def write_predictions(
    net: Any, folder: VOCFolder, config: DeepLabConfig, out: Path, workers: Workers
) -> None:
    """Label maps of the split, ``out/NAME.png``, with the CRF in ``workers``; files that exist are kept.

    No image-level labels are used: this is the final segmentation.

    Raises:
        InputError: the CRF's backend cannot be had.
    """
    mine = processes().share(folder.names)
    todo = [name for name in mine if not (out / f"{name}.png").exists()]

    def jobs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name in todo:
            image = folder.image(name)
            yield image, predict(net, image, config)

    if config.crf is None:
        results: Iterator[np.ndarray] = (probabilities for _, probabilities in jobs())
    else:
        crf = resolved_crf(config.crf)  # here, for "cuda" computes in this process
        results = dense_crf_many(jobs(), crf_config(crf), workers, crf.backend)
    with fixed_weights():
        for name, scores in progress(
            zip(todo, results, strict=True), f"segmentation {folder.split}", len(todo)
        ):
            save_label_map(out / f"{name}.png", scores.argmax(0).astype(np.uint8))
    processes().wait()
