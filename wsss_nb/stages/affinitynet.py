"""Stage 2: CRF maps of the CAMs, AffinityNet on the pairs they are sure of, random walk to pseudo-labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.affinity import affinity_labels, affinity_loss, pair_affinity
from wsss_nb.crf import CRFConfig, dense_crf_many, resolve_backend
from wsss_nb.data import VOCFolder, save_label_map, to_tensor
from wsss_nb.errors import InputError
from wsss_nb.files import atomic_path
from wsss_nb.models import create_affinity_net, fixed_weights
from wsss_nb.pseudo_labels import add_background, normalize_maximum, parse_background_rule, walk_cam
from wsss_nb.stages.config import AffinityNetConfig, CRFStageConfig
from wsss_nb.stages.engine import prepare_network
from wsss_nb.stages.loaders import training_views
from wsss_nb.stages.loop import History, progress, train
from wsss_nb.stages.processes import processes
from wsss_nb.stages.steps import pick_device
from wsss_nb.stages.views import Wanted, training_precision
from wsss_nb.stages.weights import load_trained, start_from
from wsss_nb.workers import Workers, finished_results

__all__ = [
    "confident_labels",
    "crf_config",
    "crf_maps",
    "image_affinity",
    "load_affinitynet",
    "load_cam_file",
    "resolved_crf",
    "train_affinitynet",
    "walk",
    "write_pseudo_labels",
]

CHECKPOINT = "checkpoint.pt"
_NO_SCORE = 1e-5
CRF_TASK = 32
"""Images of one task on a cluster."""


def load_cam_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Class ids (n,) and foreground CAM float32 (n, H, W) of an ``infer_cams`` file, as stage 2 takes it; n = 0 where
    an image has no class but background.

    That is winner-take-all and with a maximum of 1 per class, whether stage 1 wrote it so or not: (1 - max)^alpha
    is no background for maps that nowhere come near 1. The release does so when it writes its CAMs.
    """
    try:
        with np.load(path) as file:
            cam = normalize_maximum(file["cam"].astype(np.float32), winner_take_all=True)
            return file["classes"], cam
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: expected a CAM file of stage 1, got {error}") from error


def crf_config(config: CRFStageConfig) -> CRFConfig:
    """The CRF's own parameter object."""
    return CRFConfig(**config.model_dump(exclude={"backend"}))


def resolved_crf(config: CRFStageConfig, workers: Workers = 0) -> CRFStageConfig:
    """``config`` with the backend that it stands for where the CRF is computed.

    For "auto" a cluster is asked by a task: the machine that starts a run may have a GPU where the cluster has none.
    What is named is found, or missed, by the tasks themselves.

    Raises:
        InputError: the backend cannot be had.
    """
    name = config.backend
    try:
        if isinstance(workers, int):
            return config.model_copy(update={"backend": resolve_backend(name)})
    except ImportError as error:
        raise InputError(f"crf.{error}") from error
    if name == "auto":
        ((_, name),) = finished_results(resolve_backend, {"backend": (name,)}, workers, "CRF", gpu=True)
    return config.model_copy(update={"backend": name})


def _scores(cam: np.ndarray, alpha: float) -> np.ndarray:
    rule = parse_background_rule(f"power:{alpha}")
    return add_background(torch.from_numpy(cam), rule).numpy()


def crf_maps(
    folder: VOCFolder,
    cams: Path,
    config: AffinityNetConfig,
    out: Path,
    workers: Workers,
) -> None:
    """Dense CRF on every CAM twice, with the background amplified and weakened: ``out/NAME.npz``.

    Background (1 - max)^alpha with ``alpha_amplified`` (2 in the paper) and ``alpha_weakened`` (4). Runs in worker
    processes; files that exist are kept. Each file holds ``classes`` (0 first), ``amplified`` and ``weakened``
    (n + 1, H, W) float16. On a cluster the tasks read and write the files of some images each.

    Raises:
        InputError: the CRF's backend cannot be had, or a CAM is missing.
    """
    mine = processes().share(folder.names)
    todo = [name for name in mine if not (out / f"{name}.npz").exists()]
    parameters = resolved_crf(config.crf, workers)
    backend = parameters.backend
    if not isinstance(workers, int):
        config = config.model_copy(update={"crf": parameters})  # the same for all tasks
        parts = [todo[start : start + CRF_TASK] for start in range(0, len(todo), CRF_TASK)]
        tasks = {f"{part[0]} to {part[-1]}": (folder.subset(part), cams, config, out, 0) for part in parts}
        for _ in progress(
            finished_results(crf_maps, tasks, workers, "CRF", gpu=backend == "cuda"), "CRF", len(tasks)
        ):
            pass
        return
    alphas = (config.alpha_amplified, config.alpha_weakened)

    def jobs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name in todo:
            image, cam = folder.image(name), load_cam_file(cams / f"{name}.npz")[1]
            for alpha in alphas:
                yield image, _scores(cam, alpha)

    results = dense_crf_many(jobs(), crf_config(parameters), workers, backend)
    for name in progress(todo, "CRF"):
        amplified, weakened = next(results), next(results)
        classes = np.concatenate([[0], load_cam_file(cams / f"{name}.npz")[0]])
        with atomic_path(out / f"{name}.npz") as temporary:
            np.savez_compressed(
                temporary,
                classes=classes,
                amplified=amplified.astype(np.float16),
                weakened=weakened.astype(np.float16),
            )
    processes().wait()


def confident_labels(path: Path, size: tuple[int, int]) -> Tensor:
    """Labels AffinityNet learns from, (h, w) int64 with 255 = unsure, out of the two CRF maps averaged to ``size``.

    Background where the map with weakened background still says background, foreground where the one with amplified
    background still says foreground (where both do, background, as released); 255 also where there is no score, outside
    a crop.
    """
    maps, labels_of = _crf_scores(path)
    return labels_of(F.adaptive_avg_pool2d(maps, size))


def _crf_scores(path: Path) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Both CRF maps of a file, (2 (n + 1), H, W), and what makes labels of their averages."""
    with np.load(path) as file:
        classes = torch.from_numpy(file["classes"]).long()
        maps = [torch.from_numpy(file[key].astype(np.float32)) for key in ("amplified", "weakened")]

    def labels_of(averages: Tensor) -> Tensor:
        amplified, weakened = (classes[part.argmax(0)] for part in averages.chunk(2))
        unsure = torch.full_like(amplified, 255)
        labels = torch.where(weakened == 0, 0, torch.where(amplified > 0, amplified, unsure))
        return torch.where(averages.sum(0) > _NO_SCORE, labels, unsure)

    return torch.cat(maps), labels_of


def _build(backbone: str, seed: int, weights: Path | None) -> Any:
    torch.manual_seed(seed)
    net = create_affinity_net(backbone)
    if weights is not None:
        start_from(net, weights)
    return net.to(pick_device())


def train_affinitynet(
    folder: VOCFolder,
    backbone: str,
    config: AffinityNetConfig,
    seed: int,
    crf: Path,
    out: Path,
    weights: Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train AffinityNet on the confident pairs of the CRF maps; resumes from ``out/checkpoint.pt``."""
    net = _build(backbone, seed, weights)
    prepare_network(net, config)
    device = pick_device()
    wanted = Wanted(
        config.precision,
        target=lambda name, size: confident_labels(crf / f"{name}.npz", size),
        scores=lambda name: _crf_scores(crf / f"{name}.npz"),
    )
    loader = training_views(folder, net, config.views, config.batch_size, wanted)

    def objective(batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        with training_precision(device, config.precision):
            features = net.from_frozen(batch.features, batch.images).float()
        labels = affinity_labels(batch.target, radius=config.radius)
        pairs = pair_affinity(features, radius=config.radius)
        return {"affinity": affinity_loss(pairs, labels, correction=batch.correction)}

    def counts(batch: Any) -> Tensor:
        return torch.stack([kind.sum() for kind in affinity_labels(batch.target, radius=config.radius)])

    return train(
        nn.ModuleDict({"net": net}), loader, objective, groups=net.parameter_groups(), config=config.optimizer,
        epochs=config.epochs, precision=config.precision, accumulate=config.accumulate, counts=counts, seed=seed,
        checkpoint=out / CHECKPOINT, on_epoch=on_epoch, description="AffinityNet",
    )  # fmt: skip


def load_affinitynet(backbone: str, checkpoint: Path) -> Any:
    """The trained AffinityNet, in eval mode."""
    net = _build(backbone, 0, None)
    return load_trained(net, checkpoint)


@torch.inference_mode()
def image_affinity(net: Any, image: np.ndarray, config: AffinityNetConfig) -> tuple[Tensor, tuple[int, int]]:
    """AffinityNet's pair affinities (D, n) of an image and the (h, w) of the map they belong to."""
    tensor = to_tensor(image)[None].to(next(net.parameters()).device)
    with training_precision(tensor.device, config.precision):
        features = net.from_frozen(net.frozen(tensor), tensor).float()
    if min(features.shape[-2:]) < 5:
        side = min(image.shape[:2])
        raise InputError(
            f"image: expected a shorter side of which AffinityNet makes at least 5 pixels, got {side} pixels"
        )
    return pair_affinity(features, radius=config.radius)[0], (features.shape[-2], features.shape[-1])


def walk(net: Any, image: np.ndarray, cam: np.ndarray, config: AffinityNetConfig) -> Tensor:
    """:func:`~wsss_nb.pseudo_labels.walk_cam` of a CAM (n, H, W) with AffinityNet's affinities: (n + 1, H, W)."""
    affinity, size = image_affinity(net, image, config)
    return walk_cam(
        torch.from_numpy(cam).to(affinity.device), affinity, size,
        alpha=config.alpha_walk, beta=config.beta, log_t=config.log_t,
    )  # fmt: skip


def write_pseudo_labels(
    net: Any, folder: VOCFolder, cams: Path, config: AffinityNetConfig, out: Path
) -> None:
    """Random walk on every image of the split, argmax, ``out/NAME.png``; files that exist are kept."""
    with fixed_weights():
        for name in progress(processes().share(folder.names), f"random walk {folder.split}"):
            if (out / f"{name}.png").exists():
                continue
            classes, cam = load_cam_file(cams / f"{name}.npz")
            best = walk(net, folder.image(name), cam, config).argmax(0).cpu().numpy()
            save_label_map(out / f"{name}.png", np.concatenate([[0], classes])[best].astype(np.uint8))
    processes().wait()
