"""Stage 2: CRF maps of the CAMs, AffinityNet on the pairs they are sure of, random walk to pseudo-labels."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.affinity import affinity_labels, affinity_loss, pair_affinity, walk_cam
from wsss_nb.crf import dense_crf_many, resolved_crf
from wsss_nb.data.transforms import to_tensor
from wsss_nb.data.voc import VOCFolder, save_label_map
from wsss_nb.models.affinity_net import create_affinity_net
from wsss_nb.models.backbone import folded_batch_norm
from wsss_nb.pseudo_labels import add_background, normalize_maximum
from wsss_nb.stages.config import AffinityNetConfig, InferenceConfig
from wsss_nb.stages.loop import History, load_trained, new_network, train
from wsss_nb.stages.views import Batch, BatchSpec, autocast, training_views, unfinished
from wsss_nb.system.config import VOID
from wsss_nb.system.errors import InputError, expecting
from wsss_nb.system.files import atomic_path
from wsss_nb.system.processes import processes
from wsss_nb.system.progress import progress
from wsss_nb.system.workers import Workers, finished_results

__all__ = [
    "affinitynet_loss", "affinitynet_protocol", "confident_labels", "crf_maps", "image_affinity", "load_affinitynet",
    "load_cam_file", "train_affinitynet", "walk", "write_pseudo_labels"
]  # fmt: skip

_NO_SCORE = 1e-5
CRF_TASK = 32
"""Images of one task on a cluster."""


def affinitynet_loss(net: Any, batch: Batch, config: AffinityNetConfig) -> dict[str, Tensor]:
    """Cross-entropy of the affinities of confident pairs (Ahn and Kwak 2018, Sec. 3.2), see ``wsss_nb.affinity``.

    Several processes divide by the numbers of pairs of the whole batch.
    """
    world = processes()
    with autocast(world.device, config.precision):
        features = net(batch.images, batch.features).float()
    assert batch.target is not None
    labels = affinity_labels(batch.target, radius=config.radius)
    pairs = pair_affinity(features, radius=config.radius)
    counts = world.per_process(torch.stack([kind.sum() for kind in labels]))
    return {"affinity": affinity_loss(pairs, labels, counts=counts)}


def load_cam_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Class ids (n,) and foreground CAM float32 (n, H, W) of an ``infer_cams`` file, as stage 2 takes it; n = 0 where
    an image has no class but background.

    That is winner-take-all and with a maximum of 1 per class, whether stage 1 wrote it so or not: (1 - max)^alpha
    is no background for maps that nowhere come near 1. The release does so when it writes its CAMs.
    """
    with expecting("a CAM file of stage 1", path), np.load(path, allow_pickle=False) as file:
        classes, cam = file["classes"], torch.from_numpy(file["cam"].astype(np.float32))
    return classes, normalize_maximum(cam, winners_only=True).numpy()


def crf_maps(folder: VOCFolder, cams: Path, config: AffinityNetConfig, out: Path, workers: Workers) -> None:
    """Dense CRF on every CAM twice, with the background amplified and weakened: ``out/NAME.npz``.

    Background (1 - max)^alpha with ``alpha_amplified`` (2 in the paper) and ``alpha_weakened`` (4). Runs in worker
    processes; files that exist are kept. Each file holds ``classes`` (0 first), ``amplified`` and ``weakened``
    (n + 1, H, W) float16. On a cluster the tasks read and write the files of some images each.

    Raises:
        InputError: the CRF's backend cannot be had, or a CAM is missing.
    """
    todo = unfinished(folder, out, ".npz")
    crf = resolved_crf(config.crf, workers)
    if not isinstance(workers, int):
        config = config.model_copy(update={"crf": crf})  # the same for all tasks
        parts = [todo[start : start + CRF_TASK] for start in range(0, len(todo), CRF_TASK)]
        tasks = {f"{part[0]} to {part[-1]}": (folder.subset(part), cams, config, out, 0) for part in parts}
        written = finished_results(crf_maps, tasks, workers, "CRF", gpu=crf.backend == "cuda")
        list(progress(written, "CRF", len(tasks)))
        return

    def jobs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name in todo:
            image, cam = folder.image(name), load_cam_file(cams / f"{name}.npz")[1]
            for alpha in (config.alpha_amplified, config.alpha_weakened):
                yield image, add_background(torch.from_numpy(cam), f"power:{alpha}").numpy()

    results = dense_crf_many(jobs(), crf, workers)
    for name in progress(todo, "CRF"):
        amplified, weakened = (next(results).astype(np.float16) for _ in range(2))
        classes = np.concatenate([[0], load_cam_file(cams / f"{name}.npz")[0]])
        with atomic_path(out / f"{name}.npz") as temporary:
            np.savez_compressed(temporary, classes=classes, amplified=amplified, weakened=weakened)
    processes().barrier()


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
        unsure = torch.full_like(amplified, VOID)
        labels = torch.where(weakened == 0, 0, torch.where(amplified > 0, amplified, unsure))
        return torch.where(averages.sum(0) > _NO_SCORE, labels, unsure)

    return torch.cat(maps), labels_of


def train_affinitynet(
    folder: VOCFolder, backbone: str, config: AffinityNetConfig, seed: int, crf: Path, out: Path,
    init_checkpoint: Path | None = None, on_epoch: Callable[[History], None] | None = None
) -> History:  # fmt: skip
    """Train AffinityNet on the confident pairs of the CRF maps; resumes from ``out/checkpoint.pt``."""
    net = new_network(partial(create_affinity_net, backbone), seed, init_checkpoint)
    spec = BatchSpec(config.precision, scores=lambda name: _crf_scores(crf / f"{name}.npz"))
    loader = training_views(folder, net, config.views, config.batch_size, spec)

    def loss(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return affinitynet_loss(net, batch, config)

    modules = nn.ModuleDict({"net": net})
    return train(modules, loader, loss, config=config, seed=seed, out=out, on_epoch=on_epoch, description="AffinityNet")


def load_affinitynet(backbone: str, checkpoint: Path) -> Any:
    """The trained AffinityNet, in eval mode."""
    return load_trained(new_network(partial(create_affinity_net, backbone), seed=0), checkpoint)


@torch.inference_mode()
def image_affinity(net: Any, image: np.ndarray, config: AffinityNetConfig) -> tuple[Tensor, tuple[int, int]]:
    """AffinityNet's pair affinities (D, n) of an image and the (h, w) of the map they belong to."""
    tensor = to_tensor(image)[None].to(next(net.parameters()).device)
    with autocast(tensor.device, config.precision):
        features = net(tensor).float()
    if min(features.shape[-2:]) < 5:
        raise InputError(f"image: expected at least 5 pixels of AffinityNet's map a side, got {tuple(image.shape[:2])}")
    return pair_affinity(features, radius=config.radius)[0], (features.shape[-2], features.shape[-1])


def walk(net: Any, image: np.ndarray, cam: np.ndarray, config: AffinityNetConfig) -> Tensor:
    """:func:`~wsss_nb.affinity.walk_cam` of a CAM (n, H, W) with AffinityNet's affinities: (n + 1, H, W)."""
    affinity, size = image_affinity(net, image, config)
    maps = torch.from_numpy(cam).to(affinity.device)
    return walk_cam(maps, affinity, size, alpha=config.alpha_walk, beta=config.beta, log_t=config.log_t)


def write_pseudo_labels(net: Any, folder: VOCFolder, cams: Path, config: AffinityNetConfig, out: Path) -> None:
    """Random walk on every image of the split, argmax, ``out/NAME.png``; files that exist are kept."""
    with folded_batch_norm():
        for name in progress(unfinished(folder, out, ".png"), f"random walk {folder.split}"):
            classes, cam = load_cam_file(cams / f"{name}.npz")
            best = walk(net, folder.image(name), cam, config).argmax(0).cpu().numpy()
            save_label_map(out / f"{name}.png", np.concatenate([[0], classes])[best].astype(np.uint8))
    processes().barrier()


def affinitynet_protocol(config: AffinityNetConfig, inference: InferenceConfig | None) -> dict[str, Any]:
    """What label maps of :func:`write_pseudo_labels` were made with; ``inference`` made the CAMs, None: not known."""
    views = {} if inference is None else {"scales": list(inference.scales), "flips": inference.flip}
    return {
        "stage": "affinitynet", "background": f"power:{config.alpha_walk:g}", "crf": False, **views,
        "max_normalized": True, "image_labels": True, "beta": config.beta, "log_t": config.log_t
    }  # fmt: skip
