"""One training step of the paper's profile, stage by stage: images per second, memory, the loss's share, hours in all.

Images and labels are random and the weights are not ImageNet's: neither changes what a step costs. A step is the frozen
part, all losses, gradients and the optimiser; loading and augmenting images runs beside it and is not in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.references import all_pairs_loss
from wsss_nb.models import create_affinity_net, create_deeplab
from wsss_nb.run.profiles import Profile
from wsss_nb.similarity import FeatureSimilarityLoss, feature_similarity_loss
from wsss_nb.stages.affinitynet import affinitynet_loss
from wsss_nb.stages.cam import build_cam_net, cam_loss
from wsss_nb.stages.config import TrainingConfig
from wsss_nb.stages.deeplab import deeplab_loss
from wsss_nb.stages.loop import build_optimizer
from wsss_nb.stages.views import Batch, autocast

__all__ = ["STAGES", "Precision", "hours_of", "out_of_memory", "steps_of", "summary", "training_row"]

Stage = Literal["cam", "affinitynet", "deeplab"]
Precision = Literal["float32", "bfloat16", "float16"]
STAGES: tuple[Stage, ...] = ("cam", "affinitynet", "deeplab")
IMAGES = 10_582  # train_aug
CLASSES = 21
WARM_UP = 3


def steps_of(config: TrainingConfig, images: int = IMAGES) -> int:
    """Steps of a whole training; the last incomplete batch of an epoch is dropped.

    Example:
        >>> steps_of(TrainingConfig(epochs=8, batch_size=8))
        10576
    """
    return getattr(config, "iterations", None) or config.epochs * (images // config.batch_size)


def hours_of(seconds: dict[str, float], profile: Profile, images: int = IMAGES) -> dict[str, float]:
    """Hours of training on one such device, from the seconds of a step of each stage; inference and CRF not counted."""
    return {stage: steps_of(getattr(profile, stage), images) * seconds[stage] / 3600 for stage in seconds}


def out_of_memory(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """``work()``, or ``out_of_memory`` with the reason where the GPU's memory does not suffice."""
    try:
        return work()
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
    finally:  # what the work held is gone by now, or goes with the error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return {"out_of_memory": reason}


def training_row(
    stage: Stage,
    profile: Profile,
    device: torch.device,
    precision: Precision,
    *,
    repeats: int = 20,
    size: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """A stage, with the profile's own crop and batch unless told otherwise.

    Returns:
        ``stage``, ``precision``, ``batch_size``, ``size``, ``seconds`` (median of a step), ``images_per_second``,
        ``memory_mb`` (peak, on a GPU), or as :func:`out_of_memory`; of stage 1 also ``similarity_seconds``,
        ``similarity_share`` and, where memory suffices, ``all_pairs_seconds`` (of the same loss over all pairs) and
        ``all_pairs_step_seconds`` (a step with that).
    """
    config: TrainingConfig = getattr(profile, stage).model_copy(update={"precision": precision})
    images, side = batch_size or config.batch_size, size or config.views.crop

    def measured() -> dict[str, Any]:
        step, similarity = _prepared(stage, profile, config, device, images, side)
        seconds, memory = _measured(step, device, repeats)
        row = {"seconds": seconds, "images_per_second": images / seconds, "memory_mb": memory}
        if similarity is None:
            return row
        ours = _measured(partial(similarity, feature_similarity_loss), device, repeats)[0]

        def all_pairs() -> dict[str, Any]:
            pairs = _measured(partial(similarity, all_pairs_loss), device, repeats)[0]
            return {"all_pairs_seconds": pairs, "all_pairs_step_seconds": seconds - ours + pairs}

        beside = out_of_memory(all_pairs)
        if "out_of_memory" in beside:
            beside = {"all_pairs_out_of_memory": beside["out_of_memory"]}
        return row | {"similarity_seconds": ours, "similarity_share": ours / seconds} | beside

    row = {"stage": stage, "precision": precision, "batch_size": images, "size": side}
    return row | out_of_memory(measured)


Loss = Callable[..., Tensor]


def _prepared(
    stage: Stage, profile: Profile, config: Any, device: torch.device, images: int, size: int
) -> tuple[Callable[[], None], Callable[[Loss], None] | None]:
    """A whole step of a stage, and the similarity loss alone with its gradients where the stage has it."""
    backbone = profile.backbone
    generator = torch.Generator(device).manual_seed(0)
    pixels = torch.rand(images, 3, size, size, device=device, generator=generator)
    labels = (torch.rand(images, CLASSES, device=device, generator=generator) < 0.1).float()
    labels[:, 0] = 1
    losses: Callable[[Any, Batch], dict[str, Tensor]]
    similarity = None
    modules = nn.ModuleDict()
    net: Any
    if stage == "cam":
        net = build_cam_net(backbone, CLASSES, config, 0)
        fsl = FeatureSimilarityLoss(config.mu, config.sigma, config.learn_fsl, config.fsl_normalization).to(device)
        modules["similarity"] = fsl
        side = -(-size // net.stride)
        maps = torch.rand(images, CLASSES, side, side, device=device, generator=generator).softmax(1)

        def similarity(loss: Loss) -> None:
            leaf = maps.clone().requires_grad_()
            small = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=True)
            loss(leaf, small, fsl.mu, fsl.sigma).backward()

        def losses(net: Any, batch: Batch) -> dict[str, Tensor]:
            return cam_loss(net, batch, config, fsl, generator)

    elif stage == "affinitynet":
        net, losses = create_affinity_net(backbone, pretrained=False), partial(affinitynet_loss, config=config)
    else:
        net, losses = create_deeplab(backbone, CLASSES, pretrained=False), partial(deeplab_loss, config=config)
    modules["net"] = net.to(device)
    grid = -(-size // net.stride) if stage == "affinitynet" else size
    target = torch.randint(0, CLASSES, (images, grid, grid), device=device, generator=generator)
    optimizer = build_optimizer(net.parameter_groups(), config.optimizer, [])
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    modules.train()

    def step() -> None:
        with autocast(device, config.precision):
            with torch.no_grad():
                features = net.frozen(pixels)
                small = small_features = None
                if stage == "cam" and config.siamese:
                    shape = [max(8, round(size * config.siamese_scale))] * 2
                    small = F.interpolate(pixels, shape, mode="bilinear", align_corners=True)
                    small_features = net.frozen(small)
            found = losses(net, Batch(pixels, features, labels, small, small_features, target))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(torch.stack(list(found.values())).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    return step, similarity


def _measured(work: Callable[[], None], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of a call, to the finished result, and peak memory in MB (0 without a GPU)."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(min(WARM_UP, repeats)):
        work()
    wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    return statistics.median(seconds), peak


def summary(rows: Sequence[dict[str, Any]], profile: Profile) -> str:
    """The rows as a Markdown table, with the hours of all three stages below for each precision."""
    lines = [
        "| stage | precision | batch | images/s | ms a step | peak MB | similarity loss | step with all pairs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        what = f"| {row['stage']} | {row['precision']} | {row['batch_size']} x {row['size']} px |"
        if "out_of_memory" in row:
            lines.append(f"{what} out of memory | | | | |")
            continue
        share = f"{row['similarity_share']:.1%}" if "similarity_share" in row else ""
        pairs = f"{1e3 * row['all_pairs_step_seconds']:.0f} ms" if "all_pairs_step_seconds" in row else ""
        if "all_pairs_out_of_memory" in row:
            pairs = "out of memory"
        lines.append(
            f"{what} {row['images_per_second']:.1f} | {1e3 * row['seconds']:.0f} | {row['memory_mb']:.0f} "
            f"| {share} | {pairs} |"
        )
    for precision in dict.fromkeys(row["precision"] for row in rows):
        found = [row for row in rows if row["precision"] == precision]
        lacking = [row["stage"] for row in found if "out_of_memory" in row]
        if lacking:
            lines.append(f"\n{precision}: no hours, {' and '.join(lacking)} ran out of memory.")
            continue
        hours = hours_of({row["stage"]: row["seconds"] for row in found}, profile)
        each = ", ".join(f"{stage} {value:.1f}" for stage, value in hours.items())
        lines.append(
            f"\n{precision}: {sum(hours.values()):.1f} hours of training on one such device ({each}), inference and CRF "
            "not counted."
        )
    return "\n".join(lines)
