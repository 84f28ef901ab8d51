"""Where batches come from: views of the training images, computed once or augmented afresh every epoch."""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wsss_nb.data import transforms
from wsss_nb.data.transforms import to_tensor
from wsss_nb.data.voc import VOCFolder
from wsss_nb.stages.config import ViewsConfig
from wsss_nb.system.code_version import code_version
from wsss_nb.system.errors import WorkerDiedError
from wsss_nb.system.files import atomic_path, json_hash
from wsss_nb.system.processes import processes
from wsss_nb.system.progress import progress

__all__ = [
    "AugmentedViews", "Batch", "BatchSpec", "CachedViews", "Views", "autocast", "scaled_size", "training_views",
    "unfinished"
]  # fmt: skip

Size = tuple[int, int]
View = tuple[Size, bool]
BLACK = (0.0, 0.0, 0.0)
CHUNK = 16  # images decoded and sent through the frozen part at once


class Batch(NamedTuple):
    """What a training step sees; ``small`` is view 2 of the siamese pair and ``target`` a stage's own labels."""

    images: Tensor  # (B, 3, h, w) in [0, 1]
    features: Tensor  # the network's frozen part of the images
    labels: Tensor  # (B, K), background = 1
    small_images: Tensor | None = None
    small_features: Tensor | None = None
    target: Tensor | None = None

    def second_view(self) -> tuple[Tensor, Tensor]:
        """Images and features of view 2.

        Raises:
            ValueError: there is none.
        """
        if self.small_images is None or self.small_features is None:
            raise ValueError("batch: expected view 2 (small_images, small_features), got none")
        return self.small_images, self.small_features


class BatchSpec(NamedTuple):
    """What a batch holds beside images and image-level labels; ``target`` or ``scores``, where a stage has its own labels.

    Attributes:
        precision: of the frozen part, "float32", "bfloat16" or "float16" (autocast).
        small_scale: also view 2 of the siamese pair, at this fraction of view 1.
        target: name, size of the image -> labels (h, w) of that size, cropped and mirrored along with the image.
        scores: name -> scores (C, H, W), cropped and mirrored along with the image, and what makes labels (h, w) of their
            averages over the cells of the map.
    """

    precision: str = "float32"
    small_scale: float | None = None
    target: Callable[[str, Size], Tensor] | None = None
    scores: Callable[[str], tuple[Tensor, Callable[[Tensor], Tensor]]] | None = None


def autocast(device: torch.device, precision: str) -> Any:
    """The autocast context of a stage."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def scaled_size(size: Sequence[int], scale: float, least: int) -> Size:
    """Rows and columns of an image at another scale, each at least ``least``."""
    return max(least, round(size[0] * scale)), max(least, round(size[1] * scale))


def unfinished(folder: VOCFolder, out: Path, suffix: str) -> list[str]:
    """This process's share of the images that ``out`` has no file of yet."""
    return [name for name in processes().shard(folder.names) if not (out / f"{name}{suffix}").exists()]


class Views(ABC):
    """What a training sees of its images: ``steps`` batches an epoch, of ``batch_size`` images over all processes."""

    def __init__(
        self, folder: VOCFolder, net: Any, config: ViewsConfig, batch_size: int, spec: BatchSpec = BatchSpec(),
        cache: Path | None = None
    ) -> None:  # fmt: skip
        self.folder, self.net, self.config, self.spec = folder, net, config, spec
        self.device = next(net.parameters()).device
        self.batch_size = min(batch_size, len(folder.names))
        self.steps = len(folder.names) // self.batch_size
        self.labels = torch.from_numpy(np.stack(list(folder.labels().values()))).float()  # (N, K)
        self._prepare(cache)

    @abstractmethod
    def _prepare(self, cache: Path | None) -> None:
        """Get ready once, before the first epoch."""

    @abstractmethod
    def epoch(self, seed: int) -> Iterator[Batch]:
        """Batches of one epoch, a pure function of ``seed``; this process's rows of them."""

    def _grid(self, size: Sequence[int]) -> Size:
        """Rows and columns of the network's map of an image."""
        return -(-size[0] // self.net.stride), -(-size[1] // self.net.stride)

    def _frozen(self, images: Tensor) -> Tensor:
        with torch.no_grad(), autocast(self.device, self.spec.precision):
            return self.net.frozen(images)


class CachedViews(Views):
    """Every image at each size, plain and mirrored, with the frozen part of the network computed once.

    Of a network without a frozen part these are the normalised images, and no file keeps them. Memory grows with the views;
    of the files themselves a few are held at a time.

    The images of a batch are the RGB averages over the cells of the map (area interpolation), which is what the
    feature-similarity loss and the PCM look at. A batch shows one size; each image is mirrored or not by a coin.

    Args:
        folder: the training images; only images and image-level labels are read.
        net: a network with ``frozen``.
        config: sizes and flips.
        batch_size: images a step; the last incomplete batch of an epoch is dropped.
        spec: what else the stage needs.
        cache: folder that keeps the views for other runs on the same images and frozen weights.
    """

    def _prepare(self, cache: Path | None) -> None:
        sizes, scale = self.config.sizes, self.spec.small_scale
        self.mirrors = (False, True) if self.config.flip else (False,)
        self.small = {size: scaled_size(size, scale, 8) for size in sizes if scale}
        self.labels = self.labels.to(self.device)
        self.net.eval()
        wanted = list(product(sorted({*sizes, *self.small.values()}), self.mirrors))
        self.views = self._kept(wanted, cache) if cache else self._computed(wanted)
        if self.spec.target or self.spec.scores:
            for size, mirror in product(sizes, self.mirrors):
                maps = torch.stack([self._target(name, size) for name in self.folder.names])
                self.views[size, mirror] += ((maps.flip(-1) if mirror else maps).to(self.device),)

    def _target(self, name: str, size: Size) -> Tensor:
        if self.spec.scores is not None:
            scores, labels_of = self.spec.scores(name)
            return labels_of(F.adaptive_avg_pool2d(scores, self._grid(size)))
        assert self.spec.target is not None
        return self.spec.target(name, size)

    def _kept(self, wanted: Sequence[View], cache: Path) -> dict[View, tuple[Tensor, ...]]:
        """Images at map size and frozen features of each view, from ``cache`` where they are there."""
        backbone = self.net.backbone
        if not backbone.frozen_modules():
            return self._computed(wanted)
        digest = hashlib.sha256()
        for tensor in nn.ModuleList(backbone.frozen_modules()).state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        facts = {
            "code": code_version("wsss_nb.stages.views", type(backbone).__module__), "net": type(backbone).__name__,
            "weights": digest.hexdigest(), "stride": self.net.stride, "images": self.folder.split_hash(),
            "names": list(self.folder.names), "precision": self.spec.precision
        }  # fmt: skip
        keys = {view: json_hash({**facts, "size": view[0], "mirror": view[1]})[:16] for view in wanted}
        paths = {view: cache / f"{key}.pt" for view, key in keys.items()}
        made = self._computed([view for view in wanted if not paths[view].exists()])
        for view, (images, features) in made.items():
            with atomic_path(paths[view]) as temporary:
                torch.save({"images": images, "features": features}, temporary)
        states = {view: torch.load(path, map_location=self.device, weights_only=True) for view, path in paths.items()}
        return {view: (state["images"], state["features"]) for view, state in states.items()}

    def _computed(self, wanted: Sequence[View]) -> dict[View, tuple[Tensor, ...]]:
        made: dict[View, tuple[list[Tensor], list[Tensor]]] = {view: ([], []) for view in wanted}
        names = self.folder.names if wanted else ()
        options: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
        for start in progress(range(0, len(names), CHUNK), "views"):
            images = [to_tensor(self.folder.image(name))[None] for name in names[start : start + CHUNK]]
            for size, mirror in wanted:
                batch = torch.cat([F.interpolate(image, size, **options) for image in images])
                batch = batch.clamp(0, 1).to(self.device)
                batch = batch.flip(-1) if mirror else batch
                small, features = made[size, mirror]
                small.append(F.interpolate(batch, self._grid(size), mode="area"))
                features.append(self._frozen(batch))
        return {view: (torch.cat(small), torch.cat(features)) for view, (small, features) in made.items()}

    def _rows(self, size: Size, index: Tensor, mirrored: Tensor) -> list[Tensor]:
        """What is kept of some images at a size; of their mirrored views where a coin said so."""
        pairs = zip(self.views[size, False], self.views[size, self.mirrors[-1]], strict=True)
        coin = [mirrored.view(-1, *[1] * missing) for missing in range(4)]
        return [torch.where(coin[plain.ndim - 1], other[index], plain[index]) for plain, other in pairs]

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Batches of one epoch, a pure function of ``seed``; this process's rows of them."""
        first, last = processes().rows(self.batch_size)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.labels), generator=generator)
        for step in range(self.steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            size = self.config.sizes[int(torch.randint(len(self.config.sizes), (), generator=generator))]
            mirrored = torch.rand(len(index), generator=generator) < 0.5
            index, mirrored = (drawn[first:last].to(self.device) for drawn in (index, mirrored))
            images, features, *target = self._rows(size, index, mirrored)
            small = self._rows(self.small[size], index, mirrored)[:2] if self.small else (None, None)
            yield Batch(images, features, self.labels[index], *small, *target)


class AugmentedViews(Views, Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Fresh augmentations of every image in every epoch.

    CAM net and AffinityNet: long side drawn from ``config.long_side`` where it is given, flip, colour jitter, random crop.
    DeepLab (``spec.target``): size times a draw from ``config.zoom``, HSV shift, random crop, flip. Draws are seeded per
    image and epoch, so that neither the number of loader workers nor a resumed run changes them. View 2 of the siamese
    pair is view 1 resized (bilinear, align_corners). Arguments as for :class:`CachedViews`.
    """

    def _prepare(self, cache: Path | None) -> None:
        config = self.config
        self.grid = self._grid((config.crop, config.crop))
        # the releases crop the images of stage 2 before they normalise them, those of stage 1 afterwards
        fill = BLACK if self.spec.scores else transforms.IMAGENET_MEAN
        self.augment: Any = transforms.CamAugmentation(config.crop, config.long_side, config.flip, config.jitter, fill)
        if self.spec.target:
            self.augment = transforms.SegmentationAugmentation(config.crop, config.zoom, config.flip, config.hsv)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Sample (epoch seed, index) -> augmented image, labels, target; the draws depend on nothing but these two."""
        seed, index = sample
        name, generator = self.folder.names[index], transforms.seeded_generator(seed, index)
        image = to_tensor(self.folder.image(name))
        if self.spec.scores is not None:
            scores, labels_of = self.spec.scores(name)
            image, scores = self.augment(image, scores, generator)
            return image, self.labels[index], labels_of(F.adaptive_avg_pool2d(scores, self.grid))
        size = (image.shape[1], image.shape[2])
        target = self.spec.target(name, size) if self.spec.target else torch.zeros(size, dtype=torch.long)
        image, target = self.augment(image, target, generator)
        return image, self.labels[index], target

    def __getstate__(self) -> dict[str, Any]:
        """Without the network, for the processes that load images."""
        return {**vars(self), "net": None}

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Batches of one epoch, a pure function of ``seed``; this process's rows of them.

        Raises:
            WorkerDiedError: a process that loads images ended.
        """
        first, last = processes().rows(self.batch_size)
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed)).tolist()
        batches = [order[step * self.batch_size :][first:last] for step in range(self.steps)]
        workers = self.config.loader_workers
        options: dict[str, Any] = {"num_workers": workers, "pin_memory": self.device.type == "cuda"}
        if workers and sys.platform == "linux":
            options["multiprocessing_context"] = "fork"  # targets are read by closures, which only fork hands over
        samples = [[(seed, index) for index in batch] for batch in batches]
        loaded = iter(DataLoader(self, batch_sampler=samples, **options))
        for _ in samples:
            try:
                parts = next(loaded)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                advice = "the last checkpoint is kept, the same command carries on"
                raise WorkerDiedError(f"loading images: a worker process died (out of memory?); {advice}") from error
            images, labels, target = (part.to(self.device, non_blocking=True) for part in parts)
            batch = Batch(images, self._frozen(images), labels)
            if self.spec.small_scale is not None:
                size = scaled_size(images.shape[-2:], self.spec.small_scale, 8)
                small = F.interpolate(images, size, mode="bilinear", align_corners=True)
                batch = batch._replace(small_images=small, small_features=self._frozen(small))
            yield batch._replace(target=target) if self.spec.target or self.spec.scores else batch


def training_views(
    folder: VOCFolder, net: Any, config: ViewsConfig, batch_size: int, spec: BatchSpec = BatchSpec(),
    cache: Path | None = None
) -> Views:  # fmt: skip
    """:class:`CachedViews` or :class:`AugmentedViews`, as ``config.cached`` says."""
    views = CachedViews if config.cached else AugmentedViews
    return views(folder, net, config, batch_size, spec, cache)
