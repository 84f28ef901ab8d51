"""Augmented and cached views: seeded, aligned with their targets, the same whoever loads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb.data import VOCFolder, make_synthetic
from wsss_nb.models import create_cam_net
from wsss_nb.stages.config import ViewsConfig
from wsss_nb.stages.loaders import AugmentedViews, training_views
from wsss_nb.stages.views import CachedViews, Wanted


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


def test_config_decides_which_views(folder: VOCFolder, net: torch.nn.Module) -> None:
    assert isinstance(training_views(folder, net, AUGMENTED, 2), AugmentedViews)
    cached = ViewsConfig(cached=True, sizes=((96, 96),))
    assert isinstance(training_views(folder, net, cached, 2), CachedViews)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_a_function_of_its_seed_whoever_loads_it(
    folder: VOCFolder, net: torch.nn.Module, workers: int
) -> None:
    reference = list(AugmentedViews(folder, net, AUGMENTED, 2).epoch(7))
    config = AUGMENTED.model_copy(update={"loader_workers": workers})
    again = list(AugmentedViews(folder, net, config, 2).epoch(7))
    assert len(again) == 3
    for one, two in zip(reference, again, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
    other = next(AugmentedViews(folder, net, AUGMENTED, 2).epoch(8))
    assert not torch.equal(reference[0].images, other.images)


def test_every_image_is_seen_once_with_its_own_labels(folder: VOCFolder, net: torch.nn.Module) -> None:
    seen = torch.cat([batch.labels for batch in AugmentedViews(folder, net, AUGMENTED, 2).epoch(1)])
    wanted = torch.from_numpy(np.stack(list(folder.labels().values()))).float()
    assert sorted(seen.tolist()) == sorted(wanted.tolist())


def test_view_two_is_view_one_resized(folder: VOCFolder, net: torch.nn.Module) -> None:
    batch = next(AugmentedViews(folder, net, AUGMENTED, 2, Wanted(small_scale=0.5)).epoch(0))
    assert batch.images.shape[-2:] == (64, 64)
    assert batch.small_images is not None and batch.small_images.shape[-2:] == (32, 32)
    # align_corners: the corners of both views are the same pixels
    assert torch.allclose(batch.small_images[..., 0, 0], batch.images[..., 0, 0], atol=1e-6)
    assert torch.allclose(batch.small_images[..., -1, -1], batch.images[..., -1, -1], atol=1e-6)


@pytest.mark.parametrize("target_size", ["image", "map"])
def test_targets_follow_their_images(folder: VOCFolder, net: torch.nn.Module, target_size: str) -> None:
    """With brightness as the target, image and target stay aligned through scale, flip and crop."""
    # no colour changes for the classification kind; the segmentation kind's HSV shift is small
    config = AUGMENTED.model_copy(update={"jitter": None})

    def bright(name: str, size: tuple[int, int]) -> torch.Tensor:
        grey = torch.from_numpy(folder.image(name).mean(2))
        assert tuple(grey.shape) == size
        return (grey > 128).long()

    views = AugmentedViews(folder, net, config, 6, Wanted(target=bright, target_size=target_size))  # type: ignore[arg-type]
    batch = next(views.epoch(3))
    assert batch.target is not None
    grey = batch.images.mean(1) * 255
    if target_size == "map":
        assert batch.target.shape[-2:] == (16, 16)
        grey = torch.nn.functional.interpolate(grey[:, None], (16, 16), mode="nearest-exact")[:, 0]
    inside = batch.target != 255
    clear = inside & ((grey - 128).abs() > 30)
    agreement = ((grey > 128).long() == batch.target)[clear].float().mean()
    assert clear.sum() > 200
    assert agreement > 0.97


def test_cached_views_mirror_image_and_target_together(folder: VOCFolder, net: torch.nn.Module) -> None:
    def left_half(name: str, size: tuple[int, int]) -> torch.Tensor:
        grey = torch.from_numpy(folder.image(name).mean(2)).float()[None, None]
        return torch.nn.functional.interpolate(grey, size, mode="area")[0, 0].long()

    config = ViewsConfig(cached=True, sizes=((96, 96),))
    views = CachedViews(folder, net, config, 6, Wanted(target=left_half))
    batch = next(views.epoch(0))
    assert batch.target is not None
    difference = (batch.images.mean(1) * 255 - batch.target).abs()
    assert difference.max() < 1.5


def test_kept_views_belong_to_the_weights_that_made_them(folder: VOCFolder, tmp_path: Path) -> None:
    config = ViewsConfig(cached=True, sizes=((32, 32),), flip=False)

    def features(change: float) -> torch.Tensor:
        net = create_cam_net("efficientnet_lite0", 6).eval()
        net.backbone.get_parameter("_conv_stem.weight").data.mul_(1 + change)
        return CachedViews(folder, net, config, 2, cache=tmp_path).views[(32, 32), False][1]

    first, again = features(0), features(0)
    assert torch.equal(first, again) and len(list(tmp_path.glob("*.pt"))) == 1
    other = features(0.01)
    assert not torch.equal(first, other) and len(list(tmp_path.glob("*.pt"))) == 2
