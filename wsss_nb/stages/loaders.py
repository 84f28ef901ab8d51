"""Which views a stage trains on: those computed once, or fresh augmentations every epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsss_nb.data import VOCFolder, to_tensor
from wsss_nb.data.transforms import (
    IMAGENET_MEAN,
    CamAugmentation,
    SegmentationAugmentation,
    seeded_generator,
)
from wsss_nb.stages.config import ViewsConfig
from wsss_nb.stages.processes import processes
from wsss_nb.stages.views import (
    Batch,
    CachedViews,
    Wanted,
    label_tensor,
    training_precision,
)
from wsss_nb.workers import WorkerDiedError

__all__ = ["AugmentedViews", "training_views"]

Augmentation = Literal["classification", "segmentation"]
BLACK = (0.0, 0.0, 0.0)


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Sample (epoch seed, index) -> augmented image and target; the draws depend on nothing but these two."""

    def __init__(
        self,
        folder: VOCFolder,
        config: ViewsConfig,
        kind: Augmentation,
        wanted: Wanted,
        grid: tuple[int, int],
    ) -> None:
        self.folder, self.kind, self.wanted, self.grid = folder, kind, wanted, grid
        self.segmentation = SegmentationAugmentation(config.crop, config.zoom, config.flip, config.hsv)
        # the releases crop the images of stage 2 before they normalise them, those of stage 1 afterwards
        fill = IMAGENET_MEAN if wanted.scores is None else BLACK
        self.classification = CamAugmentation(
            config.crop, config.long_side, config.flip, config.jitter, fill=fill
        )

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:
        seed, index = sample
        name = self.folder.names[index]
        image = to_tensor(self.folder.image(name))
        size = (image.shape[1], image.shape[2])
        generator = seeded_generator(seed, index)
        if self.wanted.scores is not None:
            scores, labels_of = self.wanted.scores(name)
            image, scores = self.classification(image, generator, scores)
            return image, labels_of(F.adaptive_avg_pool2d(scores, self.grid))
        wanted = self.wanted.target
        target = torch.zeros(size, dtype=torch.long) if wanted is None else wanted(name, size)
        if self.kind == "segmentation":
            return self.segmentation(image, target, generator)
        return self.classification(image, generator, target)


class AugmentedViews:
    """Fresh augmentations of every image in every epoch.

    "classification" (CAM net, AffinityNet): long side drawn from ``config.long_side`` where it is given, flip, colour
    jitter, random crop.
    "segmentation" (DeepLab): size times a draw from ``config.zoom``, HSV shift, random crop, flip. Draws are seeded per
    image and epoch, so that neither the number of loader workers nor a resumed run changes them. View 2 of the siamese
    pair is view 1 resized (bilinear, align_corners). Arguments as for :class:`CachedViews`.
    """

    def __init__(
        self,
        folder: VOCFolder,
        net: Any,
        config: ViewsConfig,
        batch_size: int,
        wanted: Wanted = Wanted(),
    ) -> None:
        self.net, self.wanted = net, wanted
        self.device = next(net.parameters()).device
        self.batch_size = min(batch_size, len(folder.names))
        self.steps = max(1, len(folder.names) // self.batch_size)
        self.labels = label_tensor(folder.labels(), folder.names)
        self.workers = config.loader_workers
        self.data = _Augmented(
            folder,
            config,
            "segmentation" if wanted.target_size == "image" else "classification",
            wanted,
            (-(-config.crop // net.stride), -(-config.crop // net.stride)),
        )

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Batches of one epoch, a pure function of ``seed``; this process's rows of them.

        Raises:
            WorkerDiedError: a process that loads images ended.
        """
        first, last = processes().rows(self.batch_size)
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed)).tolist()
        batches = [order[i * self.batch_size :][first:last] for i in range(self.steps)]
        samples = [[(seed, index) for index in batch] for batch in batches]
        pinned = self.device.type == "cuda"
        # targets are read by closures, which only fork hands over
        context = "fork" if self.workers and sys.platform == "linux" else None
        loader = DataLoader(
            self.data, batch_sampler=samples, num_workers=self.workers, pin_memory=pinned,
            multiprocessing_context=context,
        )  # fmt: skip
        loaded = iter(loader)
        for indices in batches:
            try:
                images, target = next(loaded)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise WorkerDiedError(
                    "loading images: a worker process died (out of memory?); the last checkpoint is kept, the same "
                    "command carries on"
                ) from error
            labels = self.labels[indices].pin_memory() if pinned else self.labels[indices]
            yield self._batch(images.to(self.device, non_blocking=True), labels, target)

    def _batch(self, images: Tensor, labels: Tensor, target: Tensor) -> Batch:
        features = self._frozen(images)
        small_images, small_features, labels_of_stage = None, None, None
        if self.wanted.small_scale is not None:
            size = [max(8, round(side * self.wanted.small_scale)) for side in images.shape[-2:]]
            small_images = F.interpolate(images, size, mode="bilinear", align_corners=True)
            small_features = self._frozen(small_images)
        if self.wanted.target is not None:
            labels_of_stage = target.to(self.device, non_blocking=True)
            if self.wanted.target_size == "map" and self.wanted.scores is None:
                grid = [-(-side // self.net.stride) for side in images.shape[-2:]]
                maps = F.interpolate(labels_of_stage[:, None].float(), grid, mode="nearest-exact")
                labels_of_stage = maps[:, 0].long()
        labels = labels.to(self.device, non_blocking=True)
        return Batch(images, features, labels, small_images, small_features, labels_of_stage)

    def _frozen(self, images: Tensor) -> Tensor:
        with torch.no_grad(), training_precision(self.device, self.wanted.precision):
            features: Tensor = self.net.frozen(images)
            return features


def training_views(
    folder: VOCFolder,
    net: Any,
    config: ViewsConfig,
    batch_size: int,
    wanted: Wanted = Wanted(),
    *,
    cache: Path | None = None,
) -> CachedViews | AugmentedViews:
    """:class:`CachedViews` or :class:`AugmentedViews`, as ``config.cached`` says."""
    if config.cached:
        return CachedViews(folder, net, config, batch_size, wanted, cache=cache)
    return AugmentedViews(folder, net, config, batch_size, wanted)
