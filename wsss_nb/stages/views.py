"""Where batches come from: views of the training images, computed once or augmented afresh every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.code_version import code_version
from wsss_nb.data import VOCFolder, to_tensor
from wsss_nb.files import atomic_path
from wsss_nb.stages.config import ViewsConfig
from wsss_nb.stages.loop import progress
from wsss_nb.stages.processes import processes
from wsss_nb.stages.steps import step_key

__all__ = ["Batch", "CachedViews", "Target", "Wanted", "label_tensor", "training_precision"]

Target = Callable[[str, tuple[int, int]], Tensor]
Scores = Callable[[str], tuple[Tensor, Callable[[Tensor], Tensor]]]


class Batch(NamedTuple):
    """What a training step sees; ``small`` is view 2 of the siamese pair and ``target`` a stage's own labels."""

    images: Tensor  # (B, 3, h, w) in [0, 1]
    features: Tensor  # the network's frozen part of the images
    labels: Tensor  # (B, K), background = 1
    small_images: Tensor | None = None
    small_features: Tensor | None = None
    target: Tensor | None = None
    correction: Tensor | None = None  # of a part: factors of the losses that are no means over images


@dataclass(frozen=True)
class Wanted:
    """What a stage asks of its views beside images and image-level labels.

    Attributes:
        precision: of the frozen part, "float32", "bfloat16" or "float16" (autocast).
        small_scale: also view 2 of the siamese pair, at this fraction of view 1.
        target: name, size -> (h, w) labels of a stage, cropped and mirrored along with the image.
        target_size: whether ``target`` belongs to the "map" or to the "image".
        scores: name -> scores (C, H, W) and what makes labels (h, w) of their averages over the cells of the map. Where
            it is given, augmented views crop and mirror these in place of ``target``.
    """

    precision: str = "float32"
    small_scale: float | None = None
    target: Target | None = None
    target_size: Literal["map", "image"] = "map"
    scores: Scores | None = None


def label_tensor(labels: dict[str, np.ndarray], names: Sequence[str]) -> Tensor:
    """Image-level labels of ``names`` as float32 (N, K)."""
    return torch.from_numpy(np.stack([labels[name] for name in names])).float()


def training_precision(device: torch.device, precision: str) -> Any:
    """The autocast context of a stage."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


class CachedViews:
    """Every image at each size, plain and mirrored, with the frozen part of the network computed once.

    Of a network without a frozen part these are the normalised images, and no file keeps them.

    The images of a batch are the RGB averages over the cells of the map (area interpolation), which is what the
    feature-similarity loss and the PCM look at. A batch shows one size; each image is mirrored or not by a coin.

    Args:
        folder: the training images; only images and image-level labels are read.
        net: a network with ``frozen`` and ``from_frozen``.
        config: sizes and flips.
        batch_size: images a step; the last incomplete batch of an epoch is dropped.
        wanted: what else the stage needs.
        cache: folder that keeps the views for other runs on the same images and frozen weights.
    """

    def __init__(
        self,
        folder: VOCFolder,
        net: Any,
        config: ViewsConfig,
        batch_size: int,
        wanted: Wanted = Wanted(),
        *,
        cache: Path | None = None,
    ) -> None:
        self.device = next(net.parameters()).device
        self.batch_size = min(batch_size, len(folder.names))
        self.steps = max(1, len(folder.names) // self.batch_size)
        self.labels = label_tensor(folder.labels(), folder.names).to(self.device)
        self.sizes = config.sizes
        self.mirrors = (False, True) if config.flip else (False,)
        self.views: dict[tuple[tuple[int, int], bool], tuple[Tensor, Tensor]] = {}
        self.small: dict[tuple[int, int], tuple[int, int]] = {}
        self.targets: dict[tuple[tuple[int, int], bool], Tensor] = {}
        images = [to_tensor(folder.image(name)) for name in folder.names]
        sizes = set(config.sizes)
        if wanted.small_scale is not None:
            self.small = {size: _scaled(size, wanted.small_scale) for size in config.sizes}
            sizes |= set(self.small.values())
        net.eval()
        for size in sorted(sizes):
            for mirror in self.mirrors:
                self.views[size, mirror] = self._cached(
                    cache, net, folder, images, size, mirror, wanted.precision
                )
                if wanted.target is not None and size in config.sizes:
                    grid = (
                        tuple(self.views[size, mirror][0].shape[-2:]) if wanted.target_size == "map" else size
                    )
                    maps = torch.stack([wanted.target(name, (grid[0], grid[1])) for name in folder.names])
                    self.targets[size, mirror] = (maps.flip(-1) if mirror else maps).to(self.device)

    def _cached(
        self, cache: Path | None, net: Any, folder: VOCFolder, images: list[Tensor], size: tuple[int, int], mirror: bool,
        precision: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if cache is None or not net.backbone.frozen_modules():
            return self._views(net, images, size, mirror, precision)
        key = step_key(
            {"code": code_version("wsss_nb.stages.views", "wsss_nb.models"), "net": type(net.backbone).__name__,
             "weights": _weights_hash(net.backbone.frozen_modules()), "stride": net.stride,
             "images": folder.split_hash(), "names": list(folder.names), "size": size, "mirror": mirror,
             "precision": precision}
        )  # fmt: skip
        path = cache / f"{key[:16]}.pt"
        if not path.exists():
            small, features = self._views(net, images, size, mirror, precision)
            with atomic_path(path) as temporary:
                torch.save({"images": small, "features": features}, temporary)
        state = torch.load(path, map_location=self.device, weights_only=True)
        return state["images"], state["features"]

    def _views(
        self, net: Any, images: list[Tensor], size: tuple[int, int], mirror: bool, precision: str
    ) -> tuple[Tensor, Tensor]:
        small: list[Tensor] = []
        features: list[Tensor] = []
        chunk = 16
        with torch.inference_mode(), training_precision(self.device, precision):
            for start in progress(range(0, len(images), chunk), f"views {size[0]}x{size[1]}"):
                resized = [
                    F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)
                    for image in images[start : start + chunk]
                ]
                batch = torch.cat(resized).clamp(0, 1).to(self.device)
                batch = batch.flip(-1) if mirror else batch
                frozen = net.frozen(batch)
                if not small:
                    output = net.from_frozen(frozen[:1], batch[:1])
                    grid = (output if isinstance(output, Tensor) else output[0]).shape[-2:]
                features.append(frozen)
                small.append(F.interpolate(batch, grid, mode="area"))
        return torch.cat(small).float(), torch.cat(features)

    def _pick(self, size: tuple[int, int], index: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        plain = self.views[size, False]
        if len(self.mirrors) == 1:
            return plain[0][index], plain[1][index]
        other = self.views[size, True]
        where = mirrored.view(-1, 1, 1, 1)
        return (
            torch.where(where, other[0][index], plain[0][index]),
            torch.where(where, other[1][index], plain[1][index]),
        )

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Batches of one epoch, a pure function of ``seed``; this process's rows of them."""
        first, last = processes().rows(self.batch_size)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.labels), generator=generator)
        for step in range(self.steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            size = self.sizes[int(torch.randint(len(self.sizes), (), generator=generator))]
            mirrored = torch.rand(len(index), generator=generator) < 0.5
            index, mirrored = (drawn[first:last].to(self.device) for drawn in (index, mirrored))
            images, features = self._pick(size, index, mirrored)
            small_images, small_features = None, None
            if self.small:
                small_images, small_features = self._pick(self.small[size], index, mirrored)
            target = None
            if self.targets:
                target = self.targets[size, False][index]
                if len(self.mirrors) == 2:
                    where = mirrored.view(-1, *[1] * (target.ndim - 1))
                    target = torch.where(where, self.targets[size, True][index], target)
            yield Batch(images, features, self.labels[index], small_images, small_features, target)


def _weights_hash(modules: Sequence[nn.Module]) -> str:
    """SHA-256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(8, round(size[0] * scale)), max(8, round(size[1] * scale))
