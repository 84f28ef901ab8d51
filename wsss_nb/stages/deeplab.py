"""Stage 3: DeepLab-v1 on the pseudo-labels; multi-scale inference and dense CRF at test."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.crf import dense_crf_many, resolved_crf
from wsss_nb.data.transforms import to_tensor
from wsss_nb.data.voc import VOCFolder, read_label_map, save_label_map
from wsss_nb.models.backbone import folded_batch_norm
from wsss_nb.models.deeplab import create_deeplab
from wsss_nb.similarity import feature_similarity_loss
from wsss_nb.stages.config import DeepLabConfig
from wsss_nb.stages.loop import History, load_trained, new_network, train
from wsss_nb.stages.views import Batch, BatchSpec, autocast, scaled_size, training_views, unfinished
from wsss_nb.system.config import VOID
from wsss_nb.system.processes import processes
from wsss_nb.system.progress import progress
from wsss_nb.system.workers import Workers

__all__ = ["deeplab_loss", "deeplab_protocol", "load_deeplab", "predict", "train_deeplab", "write_predictions"]


def deeplab_loss(net: Any, batch: Batch, config: DeepLabConfig) -> dict[str, Tensor]:
    """Cross-entropy (255 ignored) between the upsampled logits and the pseudo-labels.

    The extended release adds the feature-similarity loss of the softmax (Eq. 6), scaled as in stage 1. Several processes
    divide by the number of labelled pixels of the whole batch.
    """
    world = processes()
    with autocast(world.device, config.precision):
        scores = net(batch.images, batch.features).float()
    assert batch.target is not None
    logits = F.interpolate(scores, batch.target.shape[-2:], mode="bilinear", align_corners=True)
    count = world.per_process((batch.target != VOID).sum())
    if count is None and (batch.target == VOID).all():
        segmentation = 0.0 * logits.sum()  # no pixel teaches anything
    elif count is None:
        segmentation = F.cross_entropy(logits, batch.target, ignore_index=VOID)
    else:
        segmentation = F.cross_entropy(logits, batch.target, ignore_index=VOID, reduction="sum") / count.clamp(min=1)
    losses = {"segmentation": segmentation}
    if config.fsl_weight > 0:
        similarity = feature_similarity_loss(scores.softmax(1), batch.images, config.mu, config.sigma, "release")
        losses["similarity"] = config.fsl_weight * similarity
    return losses


def train_deeplab(
    folder: VOCFolder, backbone: str, config: DeepLabConfig, seed: int, pseudo_labels: Path, out: Path,
    init_checkpoint: Path | None = None, on_epoch: Callable[[History], None] | None = None
) -> History:  # fmt: skip
    """Train DeepLab on ``pseudo_labels/NAME.png``; resumes from ``out/checkpoint.pt``."""
    net = new_network(partial(create_deeplab, backbone, folder.num_classes), seed, init_checkpoint)

    def target(name: str, size: tuple[int, int]) -> Tensor:
        labels = torch.from_numpy(read_label_map(pseudo_labels / f"{name}.png").astype(np.float32))
        return F.interpolate(labels[None, None], size, mode="nearest")[0, 0].long()

    def loss(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return deeplab_loss(net, batch, config)

    spec = BatchSpec(config.precision, target=target)
    loader = training_views(folder, net, config.views, config.batch_size, spec)
    return train(
        nn.ModuleDict({"net": net}), loader, loss, config=config, iterations=config.iterations, seed=seed, out=out,
        on_epoch=on_epoch, description="DeepLab"
    )  # fmt: skip


def load_deeplab(backbone: str, num_classes: int, checkpoint: Path) -> Any:
    """The trained DeepLab, in eval mode."""
    return load_trained(new_network(partial(create_deeplab, backbone, num_classes), seed=0), checkpoint)


@torch.inference_mode()
def predict(net: Any, image: np.ndarray, config: DeepLabConfig) -> np.ndarray:
    """Class probabilities float32 (K, H, W): softmax of the logits averaged over scales and flips.

    Images are resized by ``config.interpolation``, neither antialiased nor clamped, as the release does (OpenCV's cubic).
    """
    tensor = to_tensor(image)[None].to(next(net.parameters()).device)
    size = tensor.shape[-2:]
    views = []
    with folded_batch_norm(), autocast(tensor.device, config.precision):
        for scale in config.scales:
            sides = scaled_size(size, scale, 16)
            scaled = (
                tensor if scale == 1 else F.interpolate(tensor, sides, mode=config.interpolation, align_corners=False)
            )
            for mirrored in (False, True) if config.flip else (False,):
                logits = net(scaled.flip(-1) if mirrored else scaled).float()
                logits = logits.flip(-1) if mirrored else logits
                views.append(F.interpolate(logits, size, mode="bilinear", align_corners=True)[0])
    return torch.stack(views).mean(0).softmax(0).cpu().numpy()


def write_predictions(net: Any, folder: VOCFolder, config: DeepLabConfig, out: Path, workers: Workers) -> None:
    """Label maps of the split, ``out/NAME.png``, with the CRF in ``workers``; files that exist are kept.

    No image-level labels are used: this is the final segmentation.

    Raises:
        InputError: the CRF's backend cannot be had.
    """
    todo = unfinished(folder, out, ".png")

    def jobs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name in todo:
            image = folder.image(name)
            yield image, predict(net, image, config)

    if config.crf is None:
        results: Iterator[np.ndarray] = (probabilities for _, probabilities in jobs())
    else:
        results = dense_crf_many(jobs(), resolved_crf(config.crf), workers)  # resolved here, where "cuda" computes
    with folded_batch_norm():
        pairs = zip(todo, results, strict=True)
        for name, scores in progress(pairs, f"segmentation {folder.split}", len(todo)):
            save_label_map(out / f"{name}.png", scores.argmax(0).astype(np.uint8))
    processes().barrier()


def deeplab_protocol(config: DeepLabConfig) -> dict[str, Any]:
    """What label maps of :func:`write_predictions` were made with."""
    crf = None if config.crf is None else resolved_crf(config.crf).model_dump(mode="json")
    return {
        "stage": "deeplab", "background": "network", "crf": crf, "scales": list(config.scales), "flips": config.flip,
        "image_labels": False
    }  # fmt: skip
