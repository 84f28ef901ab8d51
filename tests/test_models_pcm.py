"""The pixel correlation module against NumPy, and SEAM's winner-take-all maps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wsss_nb.models.pcm as module
from wsss_nb.models import create_cam_net, create_seam_net, pixel_correlation, winner_take_all


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are too small to share among threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def by_hand(maps: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The module's formula with loops, float64."""
    batch, classes, height, width = maps.shape
    x = maps.reshape(batch, classes, -1).astype(np.float64)
    g = features.reshape(batch, features.shape[1], -1).astype(np.float64)
    out = np.zeros_like(x)
    for b in range(batch):
        f = [g[b, :, i] / (np.sqrt((g[b, :, i] ** 2).sum()) + 1e-5) for i in range(height * width)]
        for j in range(height * width):
            a = np.array([max(0.0, float(f[i] @ f[j])) for i in range(height * width)])
            a = a / (a.sum() + 1e-5)
            out[b, :, j] = x[b] @ a
    return out.reshape(maps.shape)


def test_three_pixels_by_hand():
    """Pixels 1 and 2 look alike, pixel 3 is orthogonal, so it keeps its value and they share theirs."""
    maps = torch.tensor([[[[1.0, 0.0, 5.0]]]], dtype=torch.float64)
    features = torch.tensor([[[[1.0, 2.0, 0.0]], [[0.0, 0.0, 3.0]]]], dtype=torch.float64)
    revised = pixel_correlation(maps, features)
    torch.testing.assert_close(
        revised, torch.tensor([[[[0.5, 0.5, 5.0]]]], dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_opposite_features_do_not_count_negatively():
    maps = torch.tensor([[[[1.0, 3.0]]]])
    features = torch.tensor([[[[1.0, -1.0]]]])
    torch.testing.assert_close(pixel_correlation(maps, features), maps, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 2, 1, 6), (3, 21, 3, 3)])
def test_equals_numpy(shape):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape, generator=generator)
    features = torch.randn((shape[0], 9, *shape[2:]), generator=generator)
    expected = by_hand(maps.numpy(), features.numpy())
    np.testing.assert_allclose(pixel_correlation(maps, features).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_blocks_do_not_change_the_result(monkeypatch):
    maps, features = torch.randn(2, 3, 6, 5), torch.randn(2, 4, 6, 5)
    whole = pixel_correlation(maps, features.requires_grad_())
    monkeypatch.setattr(module, "_MAX_BLOCK", 2 * 30 * 7)
    with torch.no_grad():
        torch.testing.assert_close(pixel_correlation(maps, features), whole.detach(), rtol=1e-5, atol=1e-6)


def test_memory_is_bounded_without_gradients(monkeypatch):
    sizes = []
    relu = module.F.relu
    monkeypatch.setattr(module.F, "relu", lambda x, inplace=False: (sizes.append(x.numel()), relu(x))[1])
    monkeypatch.setattr(module, "_MAX_BLOCK", 1000)
    with torch.no_grad():
        pixel_correlation(torch.rand(1, 2, 10, 10), torch.rand(1, 2, 10, 10))
    assert sum(sizes) == 100 * 100 and max(sizes) <= 1000


def test_gradients_of_maps_and_features():
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    features = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pixel_correlation, (maps, features))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_is_an_average_that_ignores_the_order_of_pixels(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand((1, 2, height, width), generator=generator, dtype=torch.float64)
    features = torch.randn((1, 3, height, width), generator=generator, dtype=torch.float64)
    revised = pixel_correlation(maps, features)
    assert (revised >= 0).all() and (revised.amax((2, 3)) <= maps.amax((2, 3))).all()
    order = torch.randperm(height * width, generator=generator)
    shuffled = pixel_correlation(
        maps.flatten(2)[:, :, order].view_as(maps), features.flatten(2)[:, :, order].view_as(features)
    )
    torch.testing.assert_close(shuffled.flatten(2), revised.flatten(2)[:, :, order])


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"features: expected .* \(1, 2, 4, 4\), got \(1, 2, 4, 5\)"):
        pixel_correlation(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 5))


def test_winner_take_all_by_hand():
    logits = torch.tensor([[[[7.0, 7.0, 7.0]], [[4.0, 2.0, -1.0]], [[1.0, 10.0, 0.0]]]], requires_grad=True)
    expected = torch.tensor([[[[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]])
    maps = winner_take_all(logits)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
    assert not maps.requires_grad


def test_winner_take_all_of_absent_classes_is_background():
    maps = winner_take_all(torch.full((1, 3, 4, 4), -2.0))
    assert torch.equal(maps[:, 0], torch.ones(1, 4, 4))
    assert torch.equal(maps[:, 1:], torch.zeros(1, 2, 4, 4))


def test_cam_net_revises_logits_and_seam_net_revises_normalised_maps():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 48)
    cam_net, seam_net = create_cam_net("tiny", 4).eval(), create_seam_net("tiny", 4).eval()
    seam_net.load_state_dict(cam_net.state_dict())
    with torch.no_grad():
        cam, seam = cam_net(images), seam_net(images)
        taps = cam_net.backbone.taps(cam_net.frozen(images))
        small = torch.nn.functional.interpolate(
            (images - 0.5) / 0.25, (8, 12), mode="bilinear", align_corners=True
        )
        parts = [small, cam_net.f8_3(taps.conv4).clamp_min(0), cam_net.f8_4(taps.conv5).clamp_min(0)]
        features = cam_net.f9(torch.cat(parts, dim=1)).numpy()
    assert torch.equal(cam.logits, seam.logits)
    np.testing.assert_allclose(cam.revised, by_hand(cam.logits.numpy(), features), rtol=1e-3, atol=1e-4)
    maps = winner_take_all(cam.logits).numpy()
    np.testing.assert_allclose(seam.revised, by_hand(maps, features), rtol=1e-3, atol=1e-4)
    assert seam.revised.min() >= 0 and seam.revised.max() <= 1


def test_revised_maps_train_the_backbone_only_through_the_logits():
    images = torch.rand(1, 3, 32, 32)
    seam = create_seam_net("tiny", 4)
    seam(images).revised.square().sum().backward()
    assert all(p.grad is None for p in seam.backbone.parameters())
    assert seam.fc8.weight.grad is None
    for layer in (seam.f8_3, seam.f8_4, seam.f9):
        assert layer.weight.grad.abs().max() > 0

    cam = create_cam_net("tiny", 4, dropout=0.0)
    logits, _ = cam(images)
    _, revised = cam(images)
    features = cam.frozen(images)
    taps = cam.backbone.taps(features)
    for tap in taps:
        tap.retain_grad()
    small = cam.revise(cam.fc8(taps.conv6).detach().requires_grad_(), taps, images)
    small.square().sum().backward()
    assert all(tap.grad is None for tap in taps)
    cam.zero_grad(set_to_none=True)
    revised.square().sum().backward()
    assert cam.fc8.weight.grad.abs().max() > 0
    assert cam.backbone.stem.weight.grad.abs().max() > 0
    assert logits.requires_grad
