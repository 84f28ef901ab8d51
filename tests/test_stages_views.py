"""Cached and augmented views: seeded, aligned with their targets, the same whoever loads them; and precision."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wsss_nb.data import VOCFolder, make_synthetic
from wsss_nb.models import create_cam_net
from wsss_nb.stages import views as module
from wsss_nb.stages.config import ViewsConfig
from wsss_nb.stages.views import AugmentedViews, Batch, BatchSpec, CachedViews, autocast, training_views
from wsss_nb.system.errors import WorkerDiedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> VOCFolder:
    root = tmp_path_factory.mktemp("data") / "fish"
    make_synthetic(root, num_train=6, num_val=1)
    return VOCFolder(root, "train")


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_cam_net("tiny", 6).eval()


AUGMENTED = ViewsConfig(crop=64, long_side=(80, 112))
CACHED = ViewsConfig(cached=True, sizes=((48, 64), (96, 96)))


def labels_of(folder: VOCFolder) -> Tensor:
    return torch.from_numpy(np.stack(list(folder.labels().values()))).float()


def test_the_settings_decide_which_views(folder: VOCFolder, net: Any) -> None:
    assert isinstance(training_views(folder, net, AUGMENTED, 2), AugmentedViews)
    assert isinstance(training_views(folder, net, CACHED, 2), CachedViews)


def test_precisions_by_their_result() -> None:
    a = torch.ones(2, 2)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        with autocast(torch.device("cpu"), name):
            assert (a @ a).dtype == dtype


# Cached views


def by_pillow(folder: VOCFolder, size: tuple[int, int]) -> Tensor:
    """All images of a split at another size, by Pillow's antialiased bilinear filter, to a grey level."""
    images = [
        Image.fromarray(folder.image(name)).resize(size[::-1], Image.Resampling.BILINEAR) for name in folder.names
    ]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("flip", [True, False])
def test_cached_batches_written_out(folder: VOCFolder, net: Any, flip: bool) -> None:
    """Order, sizes and coins of an epoch are drawn in this order from one generator; values by Pillow."""

    def grey(name: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return torch.from_numpy(folder.image(name)).float().mean(2)[None], lambda means: means[0].long()

    config = CACHED.model_copy(update={"flip": flip})
    spec = BatchSpec(small_scale=0.5, scores=grey)
    found = list(CachedViews(folder, net, config, 4, spec).epoch(5))
    assert len(found) == 1, "the incomplete batch of 2 is dropped"
    (batch,) = found
    generator = torch.Generator().manual_seed(5)
    index = torch.randperm(6, generator=generator)[:4]
    size = config.sizes[int(torch.randint(2, (), generator=generator))]
    mirrored = (torch.rand(4, generator=generator) < 0.5) & flip
    assert mirrored.any() == flip and not mirrored.all()

    def turned(maps: Tensor) -> Tensor:
        return torch.stack([x.flip(-1) if turn else x for x, turn in zip(maps[index], mirrored, strict=True)])

    half = (size[0] // 2, size[1] // 2)
    for images, features, wanted in (
        (batch.images, batch.features, size),
        (batch.small_images, batch.small_features, half),
    ):
        expected = turned(by_pillow(folder, wanted))
        assert features is not None and features.shape == expected.shape
        # Tiny freezes nothing: its frozen part is the normalisation
        assert (features * 0.25 + 0.5 - expected).abs().max() < 1.01 / 255
        cells = expected.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
        assert images is not None and (images - cells).abs().max() < 1.01 / 255
    assert torch.equal(batch.labels, labels_of(folder)[index])
    grid = (size[0] // 4, size[1] // 4)
    assert batch.target is not None
    means = [F.adaptive_avg_pool2d(grey(name)[0], grid)[0].long() for name in folder.names]
    assert torch.equal(batch.target, turned(torch.stack(means)))


def test_a_batch_is_no_larger_than_the_data_and_a_view_no_smaller_than_8(folder: VOCFolder, net: Any) -> None:
    views = CachedViews(folder, net, CACHED, 100, BatchSpec(small_scale=0.01))
    assert views.batch_size == 6 and views.steps == 1 and set(views.small.values()) == {(8, 8)}


def test_few_images_are_held_at_a_time(folder: VOCFolder, net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CachedViews(folder, net, CACHED, 2).views
    alive, most, to_tensor = [0], [0], module.to_tensor

    def gone() -> None:
        alive[0] -= 1

    class Watched:
        def __init__(self, image: np.ndarray) -> None:
            self.tensor = to_tensor(image)

        def __getitem__(self, key: None) -> Tensor:
            tensor = self.tensor[key].clone()
            weakref.finalize(tensor, gone)
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return tensor

    monkeypatch.setattr(module, "to_tensor", Watched)
    monkeypatch.setattr(module, "CHUNK", 1)
    parts = CachedViews(folder, net, CACHED, 2).views
    assert most[0] <= 2, "a part and the next"
    for view, pair in whole.items():
        assert all(torch.equal(one, other) for one, other in zip(pair, parts[view], strict=True))


def test_kept_views_belong_to_sizes_images_and_the_weights_that_made_them(
    folder: VOCFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    image = VOCFolder.image
    monkeypatch.setattr(VOCFolder, "image", lambda self, name: read.append(name) or image(self, name))
    base = ViewsConfig(cached=True, sizes=((32, 32),), flip=False)

    def features(change: float = 0.0, images: VOCFolder = folder, **settings: Any) -> tuple[Tensor, int, int]:
        read.clear()
        net = create_cam_net("efficientnet_lite0", 6).eval()
        net.backbone.get_parameter("_conv_stem.weight").data.mul_(1 + change)
        config = base.model_copy(update=settings)
        found = CachedViews(images, net, config, 2, cache=tmp_path).views[(32, 32), False][1]
        return found, len(read), len(list(tmp_path.glob("*.pt")))

    first, *counts = features()
    assert counts == [6, 1]
    again, *counts = features()
    assert counts == [0, 1] and torch.equal(first, again), "found"
    assert features(sizes=((32, 32), (40, 40)))[1:] == (6, 2), "one view more"
    assert features(flip=True)[1:] == (6, 3)
    other, *counts = features(change=0.01)
    assert counts == [6, 4] and not torch.equal(first, other)
    fewer, *counts = features(images=folder.subset(folder.names[:4]))
    assert counts == [4, 5] and len(fewer) == 4


def test_without_a_frozen_part_nothing_is_kept(folder: VOCFolder, net: Any, tmp_path: Path) -> None:
    CachedViews(folder, net, CACHED, 2, cache=tmp_path)
    assert not list(tmp_path.iterdir())


# Augmented views


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_a_function_of_its_seed_whoever_loads_it(folder: VOCFolder, net: Any, workers: int) -> None:
    reference = list(AugmentedViews(folder, net, AUGMENTED, 2).epoch(7))
    config = AUGMENTED.model_copy(update={"loader_workers": workers})
    again = list(AugmentedViews(folder, net, config, 2).epoch(7))
    assert len(again) == 3
    for one, two in zip(reference, again, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
        torch.testing.assert_close(one.features, (one.images - 0.5) / 0.25)
    assert not torch.equal(reference[0].images, next(AugmentedViews(folder, net, AUGMENTED, 2).epoch(8)).images)
    seen = torch.cat([batch.labels for batch in reference])
    assert sorted(seen.tolist()) == sorted(labels_of(folder).tolist()), "every image once, with its own labels"


def test_view_two_is_view_one_resized(folder: VOCFolder, net: Any) -> None:
    batch = next(AugmentedViews(folder, net, AUGMENTED, 2, BatchSpec(small_scale=0.5)).epoch(0))
    assert batch.images.shape[-2:] == (64, 64)
    assert batch.small_images is not None and batch.small_images.shape[-2:] == (32, 32)
    # align_corners: the corners of both views are the same pixels
    for corner in (0, -1):
        torch.testing.assert_close(batch.small_images[..., corner, corner], batch.images[..., corner, corner])


def first_batch(folder: VOCFolder, net: Any, config: ViewsConfig, spec: BatchSpec) -> tuple[Batch, Tensor]:
    batch = next(AugmentedViews(folder, net, config, 6, spec).epoch(3))
    assert batch.target is not None
    return batch, batch.target


def test_targets_follow_their_images(folder: VOCFolder, net: Any) -> None:
    """With brightness as the target, image and target stay aligned through scale, flip and crop."""

    def bright(name: str, size: tuple[int, int]) -> Tensor:
        grey = torch.from_numpy(folder.image(name).mean(2))
        assert tuple(grey.shape) == size
        return (grey > 128).long()

    batch, target = first_batch(folder, net, AUGMENTED, BatchSpec(target=bright))  # its HSV shift is small
    grey = batch.images.mean(1) * 255
    clear = (target != 255) & ((grey - 128).abs() > 30)
    assert clear.sum() > 200
    assert ((grey > 128).long() == target)[clear].float().mean() > 0.97


def test_scores_are_averaged_over_cells_after_the_crop(folder: VOCFolder, net: Any) -> None:
    """Stage 2: the image itself as its scores, in a crop larger than the image, which is black outside."""

    def scores(name: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return torch.from_numpy(folder.image(name)).permute(2, 0, 1) / 255, lambda means: (means.mean(0) * 1e4).long()

    config = ViewsConfig(crop=112, long_side=None, jitter=None)
    batch, target = first_batch(folder, net, config, BatchSpec(scores=scores))
    cells = batch.images.mean(1).unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4))
    assert target.shape == (6, 28, 28) and (target - cells * 1e4).abs().max() <= 1.5
    assert (batch.images == 0).all(1).sum((1, 2)).min() >= 112**2 - 96**2
    # the images of stage 1 are padded with the mean that networks turn into zero
    plain = next(AugmentedViews(folder, net, config, 6).epoch(3)).images
    padding = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    assert ((plain - padding).abs() < 1e-6).all(1).sum((1, 2)).min() >= 112**2 - 96**2


def test_a_loader_process_that_dies(folder: VOCFolder, net: Any) -> None:
    views = AugmentedViews(folder, net, ViewsConfig(crop=32, long_side=(48, 48), jitter=None, loader_workers=1), 2)
    image, fourth = folder.image, folder.names[3]

    class Deadly:
        names = folder.names

        def image(self, name: str) -> np.ndarray:
            if name == fourth:
                os.kill(os.getpid(), signal.SIGKILL)
            return image(name)

    views.folder = Deadly()  # type: ignore[assignment]
    with pytest.raises(WorkerDiedError, match=r"loading images: a worker process died .* the last checkpoint is kept"):
        list(views.epoch(0))
