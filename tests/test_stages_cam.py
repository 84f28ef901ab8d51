"""Stage 1's inference, one image's CAM from its views, and what stage 2 takes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss_nb.errors import InputError
from wsss_nb.models import create_affinity_net
from wsss_nb.stages.affinitynet import image_affinity, load_cam_file
from wsss_nb.stages.cam import build_cam_net, foreground_cam
from wsss_nb.stages.config import AffinityNetConfig, CamConfig, InferenceConfig

CONFIG = CamConfig(siamese=False, dropout=0.0)


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)


@pytest.mark.parametrize("max_normalize", [False, True])
@pytest.mark.parametrize("method", ["paper", "seam"])
def test_an_image_without_labels_has_empty_maps(method: str, max_normalize: bool) -> None:
    config = CONFIG.model_copy(update={"method": method})
    net = build_cam_net("tiny", 4, config, seed=0).eval()
    found = foreground_cam(
        net, image(), np.array([1, 0, 0, 0], np.uint8), config, InferenceConfig(max_normalize=max_normalize)
    )
    assert found.shape == (3, 40, 52) and found.dtype == np.float32 and not found.any()


@pytest.mark.parametrize("paired_pixels", [10**9, 1500, 0])
def test_the_cam_is_the_mean_over_scales_and_flips(
    paired_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a softmax over the present classes alone, which is what labels and renormalisation come to.

    Flips go through the network with their view, alone where the view is large, or all alone.
    """
    monkeypatch.setattr("wsss_nb.stages.cam.PAIRED_PIXELS", paired_pixels)
    net = build_cam_net("tiny", 5, CONFIG, seed=0).eval()
    labels = np.array([1, 0, 1, 0, 1], np.uint8)
    inference = InferenceConfig(scales=(1.0, 0.5), max_normalize=False)
    found = foreground_cam(net, image(), labels, CONFIG, inference)

    tensor = torch.from_numpy(image()).permute(2, 0, 1)[None] / 255
    half = F.interpolate(tensor, (20, 26), mode="bicubic", antialias=True).clamp(0, 1)
    maps = []
    with torch.no_grad():
        for view in (tensor, half):
            plain, mirrored = (
                net(side, revise=False).logits[:, [0, 2, 4]].softmax(1)[:, 1:]
                for side in (view, view.flip(-1))
            )
            maps += [F.interpolate(cam, (40, 52), mode="bilinear") for cam in (plain, mirrored.flip(-1))]
    expected = torch.cat(maps).mean(0).numpy()
    np.testing.assert_allclose(found[[1, 3]], expected, atol=1e-6)
    assert not found[[0, 2]].any() and expected.std() > 1e-3


def test_stage_two_takes_each_pixels_best_class_stretched_to_one(tmp_path: Path) -> None:
    cam = np.array([[[0.2, 0.1]], [[0.1, 0.4]]], np.float16)
    np.savez_compressed(tmp_path / "a.npz", classes=np.array([3, 7]), cam=cam)
    classes, found = load_cam_file(tmp_path / "a.npz")
    assert classes.tolist() == [3, 7] and found.dtype == np.float32
    np.testing.assert_allclose(found, [[[1, 0]], [[0, 1]]], atol=1e-3)
    np.savez_compressed(tmp_path / "b.npz", classes=classes, cam=found.astype(np.float16))
    np.testing.assert_allclose(load_cam_file(tmp_path / "b.npz")[1], found, atol=1e-3)


def test_a_map_too_small_for_pairs_is_refused() -> None:
    net = create_affinity_net("tiny").eval()
    with pytest.raises(
        InputError, match=r"image: expected a shorter side .* at least 5 pixels, got 16 pixels"
    ):
        image_affinity(net, np.zeros((16, 64, 3), np.uint8), AffinityNetConfig())
