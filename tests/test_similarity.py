from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import wsss_nb.fast.pairwise as pairwise
from wsss_nb.similarity import (
    FeatureSimilarityLoss,
    dissimilarity,
    feature_similarity,
    feature_similarity_loss,
    spatial_weight,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Result(NamedTuple):
    loss: float
    cam: np.ndarray
    mu: float
    sigma: float
    gross: float  # the loss if no two of its terms could cancel


def oracle(cam, image, mu: float, sigma: float, normalization: str = "pixels", guard: float = 0.0) -> Result:
    """Eq. 6-8 and their derivatives over all pairs, one image after the other, in float64 NumPy."""
    cam, image = (np.asarray(x, dtype=np.float64) for x in (cam, image))
    B, K, H, W = cam.shape
    n = H * W
    scale = 1 / (B * n) if normalization == "pixels" else 1 / (B * n**2)
    y, x = np.divmod(np.arange(n), W)
    r2 = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    w = np.exp(-r2 / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    loss = d_mu = d_sigma = gross = 0.0
    d_cam = np.zeros((B, K, n))
    for b in range(B):
        a, v = cam[b].reshape(K, n).T, image[b].reshape(-1, n).T
        delta = np.minimum(np.abs(v[:, None] - v).mean(axis=2), 1)
        with np.errstate(divide="ignore"):
            f = np.tanh(mu + np.log((delta + guard) / (1 - delta + guard)))
        difference = a[:, None] - a
        g = (difference**2).sum(axis=2) / 2
        loss -= (w * g * f).sum() * scale
        gross += (w * g * np.abs(f)).sum() * scale
        d_mu -= (w * g * (1 - f**2)).sum() * scale
        d_sigma -= (w * (r2 / sigma**3 - 2 / sigma) * g * f).sum() * scale
        d_cam[b] = -2 * scale * np.einsum("ij,ijk->ki", w * f, difference)
    return Result(loss, d_cam.reshape(cam.shape), d_mu, d_sigma, gross)


def ours(cam: Tensor, image: Tensor, mu: float, sigma: float, normalization="pixels") -> Result:
    cam = cam.detach().clone().requires_grad_()
    scalars = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (mu, sigma)]
    loss = feature_similarity_loss(cam, image, *scalars, normalization)
    d_cam, d_mu, d_sigma = torch.autograd.grad(loss, (cam, *scalars))
    return Result(loss.item(), d_cam.double().numpy(), d_mu.item(), d_sigma.item(), math.nan)


def assert_equal(actual: Result, expected: Result, rtol: float) -> None:
    """Values to rtol; the gradient for the map to rtol of its largest element."""
    for name in ("loss", "mu", "sigma"):
        assert getattr(actual, name) == pytest.approx(getattr(expected, name), rel=rtol, abs=1e-300), name
    largest = np.abs(expected.cam).max()
    np.testing.assert_allclose(actual.cam, expected.cam, rtol=rtol, atol=rtol * largest)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(seed: int, B: int, K: int, H: int, W: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """A soft map and a piecewise smooth image, so that both small and large differences occur."""
    generator = seeded(seed)
    cam = torch.softmax(2 * torch.randn(B, K, H, W, generator=generator, dtype=torch.float64), dim=1)
    coarse = torch.rand(B, 3, -(-H // 4), -(-W // 4), generator=generator, dtype=torch.float64)
    image = F.interpolate(coarse, size=(H, W), mode="nearest")
    noise = 0.05 * torch.rand(B, 3, H, W, generator=generator, dtype=torch.float64)
    return cam.to(dtype), (image * 0.9 + noise).to(dtype)


# --- Eq. 7 and 8, piece by piece


def test_dissimilarity_by_hand():
    black, white, grey = torch.zeros(3), torch.ones(3), torch.tensor([0.5, 0.25, 0.0])
    assert dissimilarity(black, white) == 1
    assert dissimilarity(grey, grey) == 0
    assert dissimilarity(grey, black) == 0.25
    pixels = torch.stack([black, white, grey])
    expected = torch.tensor([[0.0, 1.0, 0.25], [1.0, 0.0, 0.75], [0.25, 0.75, 0.0]])
    assert torch.equal(dissimilarity(pixels[:, None], pixels), expected)
    with pytest.raises(ValueError, match=r"b: expected \(\.\.\., C\) as in a = \(3,\), got \(4,\)"):
        dissimilarity(black, torch.zeros(4))


@pytest.mark.parametrize("mu", [-4.0, 0.0, 2.5, 6.0])
def test_eq8_closed_form_is_the_tanh_of_the_logit(mu):
    delta = torch.linspace(1e-6, 1 - 1e-6, 1001, dtype=torch.float64)
    logit = torch.log(delta) - torch.log1p(-delta)
    torch.testing.assert_close(feature_similarity(delta, mu), torch.tanh(mu + logit), rtol=1e-9, atol=1e-12)
    crossing = torch.tensor(1 / (1 + math.exp(mu)), dtype=torch.float64)
    assert feature_similarity(crossing, mu).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("mu", [-1000.0, -40.0, 0.0, 2.5, 40.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eq8_is_exact_at_its_ends_for_any_mu(mu, dtype):
    assert feature_similarity(torch.tensor([0.0, 1.0], dtype=dtype), mu).tolist() == [-1, 1]


def test_eq8_derivative_for_mu_is_one_minus_f_squared():
    delta = torch.linspace(0, 1, 101, dtype=torch.float64)
    mu = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda m: feature_similarity(delta, m), mu)
    torch.testing.assert_close(jacobian, 1 - feature_similarity(delta, mu).square(), rtol=1e-12, atol=1e-15)


def test_eq7_by_hand_and_its_mass():
    offsets = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    expected = [1 / (50 * math.pi), math.exp(-0.5) / (50 * math.pi)]
    np.testing.assert_allclose(spatial_weight(offsets, 5.0).numpy(), expected, rtol=1e-14)
    axis = torch.arange(-40, 41, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    assert spatial_weight(plane, 4.0).sum().item() == pytest.approx(1, rel=1e-12)
    with pytest.raises(ValueError, match=r"offsets: expected \(\.\.\., 2\), got \(5, 3\)"):
        spatial_weight(torch.zeros(5, 3), 1.0)


@pytest.mark.parametrize("sigma", [2.5, 0.5])
def test_eq7_of_whole_pixels_is_that_of_the_same_floats(sigma):
    whole = torch.tensor([[3, 4], [0, 0], [0, 1]])
    expected = np.exp(-np.array([25, 0, 1]) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    for offsets in (whole, whole.to(torch.int8)):
        weight = spatial_weight(offsets, sigma)
        assert weight.dtype == torch.float32
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)
    several = spatial_weight(whole[:1].double(), torch.tensor([1.0, 5.0]))
    assert several[1] == spatial_weight(whole[0].double(), 5.0)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e-4, 1e-20, 1e5, 1e160, math.inf, math.nan])
def test_a_sigma_that_cannot_be_computed_with_is_refused(sigma):
    cam, image = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    for value in (sigma, torch.tensor(sigma, dtype=torch.float64)):
        for function in (
            lambda value: spatial_weight(torch.zeros(1, 2), value),
            lambda value: feature_similarity_loss(cam, image, 2.5, value),
            lambda value: FeatureSimilarityLoss(sigma=value),
        ):
            with pytest.raises(ValueError) as error:
                function(value)
            assert str(error.value) == f"sigma: expected a number in [0.001, 10000], got {sigma:g}"
    with pytest.raises(ValueError, match=r"sigma: expected a number in .*, got -1"):
        spatial_weight(torch.zeros(2, 2), torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("sigma", [1e-3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_sigmas_range_can_be_computed_with(sigma, dtype):
    cam, image = example(16, 1, 3, 12, 11, dtype)
    result, expected = ours(cam, image, 2.5, sigma), oracle(cam, image, 2.5, sigma)
    assert result.loss == pytest.approx(expected.loss, abs=2e-6 * expected.gross)
    assert result.sigma == pytest.approx(expected.sigma, rel=1e-4, abs=1e-5 * expected.gross / sigma)
    np.testing.assert_allclose(result.cam, expected.cam, rtol=0, atol=4e-6 * np.abs(expected.cam).max())


# --- Eq. 6 against all pairs


def test_eq6_by_hand_on_two_pixels():
    cam = torch.tensor([[[[0.9, 0.4]], [[0.1, 0.6]]]], dtype=torch.float64)
    image = torch.tensor([0.5, 0.8], dtype=torch.float64).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    w, g, f = math.exp(-1 / 8) / (8 * math.pi), 0.25, math.tanh(1.0 + math.log(0.3 / 0.7))
    pairs = 2  # (1, 2) and (2, 1)
    loss = feature_similarity_loss(cam, image, mu=1.0, sigma=2.0)
    assert loss.item() == pytest.approx(-pairs * w * g * f / 2, rel=1e-12)
    loss = feature_similarity_loss(cam, image, mu=1.0, sigma=2.0, normalization="pairs")
    assert loss.item() == pytest.approx(-pairs * w * g * f / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "mu", "sigma"),
    [
        ((1, 2, 5, 5), 2.5, 5.0),
        ((2, 4, 9, 7), 2.5, 5.0),
        ((1, 91, 6, 5), 2.5, 2.0),
        ((3, 3, 1, 17), 0.0, 1.5),
        ((1, 5, 33, 1), 1.0, 3.0),
        ((1, 2, 1, 450), 2.5, 5.0),  # several tiles in a row, those far apart skipped
        ((1, 2, 300, 1), 2.5, 2.0),
        ((2, 3, 31, 47), 2.5, 5.0),  # sizes that no tile divides
        ((1, 3, 40, 29), -3.0, 1.0),
        ((1, 3, 29, 29), 6.0, 0.5),
        ((1, 3, 20, 21), 2.5, 0.15),  # next to nothing but direct neighbours counts
        ((1, 3, 20, 21), 2.5, 20.0),
        ((1, 2, 2, 2), 2.5, 5.0),
    ],
)
@pytest.mark.parametrize("normalization", ["pixels", "pairs"])
def test_value_and_gradients_equal_all_pairs(shape, mu, sigma, normalization):
    cam, image = example(0, *shape)
    expected = oracle(cam, image, mu, sigma, normalization)
    assert_equal(ours(cam, image, mu, sigma, normalization), expected, rtol=1e-9)
    single = ours(cam.float(), image.float(), mu, sigma, normalization)
    expected = oracle(cam.float(), image.float(), mu, sigma, normalization)
    assert single.loss == pytest.approx(expected.loss, abs=2e-6 * expected.gross)
    assert single.mu == pytest.approx(expected.mu, rel=1e-4, abs=1e-30)
    assert single.sigma == pytest.approx(expected.sigma, rel=1e-4, abs=1e-5 * expected.gross / sigma)
    np.testing.assert_allclose(single.cam, expected.cam, rtol=0, atol=4e-6 * np.abs(expected.cam).max())


@pytest.mark.parametrize("K", [2, 21, 91])
def test_float32_equals_all_pairs_to_one_in_a_million(K):
    """At the release's mu and sigma."""
    cam, image = example(K, 2, K, 16, 19, torch.float32)
    assert_equal(ours(cam, image, 2.5, 5.0), oracle(cam, image, 2.5, 5.0), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    K=st.integers(2, 91),
    mu=st.floats(-4, 6),
    sigma=st.floats(0.5, 20),
    normalization=st.sampled_from(["pixels", "pairs"]),
)
def test_any_map_within_the_documented_range_equals_all_pairs(seed, size, K, mu, sigma, normalization):
    K = min(K, max(2, 4000 // (size[0] * size[1])))  # the oracle holds every difference of every class
    cam, image = example(seed, 1, K, *size)
    result, expected = (ours(cam, image, mu, sigma, normalization), oracle(cam, image, mu, sigma, normalization))
    unit = expected.gross + 1e-300
    assert result.loss == pytest.approx(expected.loss, abs=1e-9 * unit)
    assert result.mu == pytest.approx(expected.mu, rel=1e-6, abs=1e-9 * unit)
    assert result.sigma == pytest.approx(expected.sigma, rel=1e-6, abs=1e-9 * unit / sigma)
    np.testing.assert_allclose(result.cam, expected.cam, rtol=0, atol=1e-6 * np.abs(expected.cam).max())


def test_more_than_one_chunk_of_tiles_gives_the_same(monkeypatch):
    cam, image = example(1, 3, 2, 31, 31)
    whole = ours(cam, image, 2.5, 3.0)
    monkeypatch.setattr(pairwise, "_CPU_PAIRS", 1)
    assert_equal(ours(cam, image, 2.5, 3.0), whole, rtol=1e-12)


def test_a_map_that_differs_only_beyond_the_window_is_worth_nothing():
    cam = torch.zeros(1, 2, 1, 600, dtype=torch.float64)
    cam[:, 0, :, :10], cam[:, 1, :, 590:] = 1, 1
    cam[:, 0, :, 10:590] = torch.linspace(1, 0, 580, dtype=torch.float64)
    image = torch.rand(1, 3, 1, 600, generator=seeded(0)).double()
    assert_equal(ours(cam, image, 2.5, 2.0), oracle(cam, image, 2.5, 2.0), rtol=1e-9)


def test_one_pixel_has_no_pair():
    result = ours(torch.ones(1, 3, 1, 1).double(), torch.rand(1, 3, 1, 1).double(), 2.5, 5.0)
    assert (result.loss, result.mu, result.sigma) == (0, 0, 0)
    assert (result.cam == 0).all()


def test_identical_pixels_only_attract():
    cam, _ = example(2, 2, 3, 20, 17)
    image = torch.full((2, 3, 20, 17), 0.3, dtype=torch.float64)
    result = ours(cam, image, 2.5, 3.0)
    expected = oracle(cam, image, 2.5, 3.0)
    assert_equal(result, expected, rtol=1e-9)
    assert result.loss == pytest.approx(expected.gross, rel=1e-9)  # every f is -1
    assert result.mu == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_black_and_white_pixels_attract_their_like_and_repel_the_other(dtype):
    cam, _ = example(3, 1, 4, 18, 30, dtype)
    image = (torch.arange(18)[:, None] + torch.arange(30)).remainder(2).to(dtype).expand(1, 3, 18, 30)
    result, expected = ours(cam, image, 2.5, 3.0), oracle(cam, image, 2.5, 3.0)
    rtol = 1e-9 if dtype == torch.float64 else 1e-5
    assert result.loss == pytest.approx(expected.loss, abs=rtol * expected.gross)
    assert result.mu == pytest.approx(0, abs=1e-6 * expected.gross)  # f is -1 or +1, where it is flat in mu
    np.testing.assert_allclose(result.cam, expected.cam, atol=rtol * np.abs(expected.cam).max())


@pytest.mark.parametrize("mu", [-500.0, -40.0, 40.0, 500.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_mu_stays_finite_and_right(mu, dtype):
    cam, image = example(4, 1, 3, 9, 9, dtype)
    image[..., :2] = 0
    image[..., 2:4] = 1
    image[..., 4:6] = 0.5
    result, expected = ours(cam, image, mu, 2.0), oracle(cam, image, mu, 2.0)
    assert result.loss == pytest.approx(expected.loss, abs=1e-5 * expected.gross)
    assert np.isfinite(result.cam).all() and np.isfinite([result.mu, result.sigma]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_and_images_are_computed_in_float32(dtype):
    cam, image = example(5, 2, 4, 15, 13, dtype)
    cam.requires_grad_()
    loss = feature_similarity_loss(cam, image, 2.5, 3.0)
    loss.backward()
    single = cam.detach().float().requires_grad_()
    expected = feature_similarity_loss(single, image.float(), 2.5, 3.0)
    expected.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert cam.grad.dtype == dtype
    assert torch.equal(cam.grad, single.grad.to(dtype))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_equals_all_pairs_up_to_the_rounding_of_its_gradient(dtype, rounding):
    cam, image = example(5, 1, 21, 16, 19, dtype)
    result, expected = ours(cam, image, 2.5, 3.0), oracle(cam.double(), image.double(), 2.5, 3.0)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert result.mu == pytest.approx(expected.mu, rel=1e-6)
    assert result.sigma == pytest.approx(expected.sigma, rel=1e-5)
    smallest = torch.finfo(dtype).smallest_normal * rounding  # half a step where numbers are subnormal
    atol = smallest + 2e-6 * np.abs(expected.cam).max()
    np.testing.assert_allclose(result.cam, expected.cam, rtol=rounding, atol=atol)


@pytest.mark.parametrize("scale", [1.0, 1024.0, 65536.0])
@pytest.mark.parametrize("normalization", ["pixels", "pairs"])
def test_half_precision_maps_get_their_gradient_rounded_once_under_any_loss_scale(normalization, scale):
    """Single elements are far below float16's smallest number; a loss scale is there to lift them above it."""
    cam, image = example(17, 2, 21, 56, 56, torch.float16)
    single = cam.float().requires_grad_()
    mu, sigma = (torch.tensor(value, dtype=torch.float16, requires_grad=True) for value in (2.5, 3.0))
    (scale * feature_similarity_loss(cam.requires_grad_(), image, mu, sigma, normalization)).backward()
    (scale * feature_similarity_loss(single, image.float(), 2.5, 3.0, normalization)).backward()
    assert torch.equal(cam.grad, single.grad.half()) and cam.grad.isfinite().all()
    if scale == 65536:
        assert (cam.grad != 0).float().mean() > 0.99
        exact = ours(cam.detach().float(), image.float(), 2.5, 3.0, normalization)
        for value, expected in ((mu.grad, exact.mu), (sigma.grad, exact.sigma)):
            assert value.dtype == torch.float16 and value.item() == pytest.approx(scale * expected, rel=2e-3)


def test_autocast_does_not_lower_the_precision():
    cam, image = example(6, 1, 3, 20, 20, torch.float32)
    expected = feature_similarity_loss(cam, image, 2.5, 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(feature_similarity_loss(cam, image, 2.5, 3.0), expected)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_golden_vectors_of_the_release(index):
    with np.load(GOLDEN / f"fsl_{index}.npz") as golden:
        image, cam, loss, d_cam = (golden[k] for k in ("image", "activations", "loss", "grad_activations"))
        mu, sigma, d_mu, d_sigma = (golden[k].item() for k in ("mu", "sigma", "grad_mu", "grad_sigma"))
    # With the release's guard the oracle is the release, g and normaliser apart: the factor of two.
    guarded = oracle(cam, image, mu, sigma, guard=1e-5)
    assert 2 * guarded.loss == pytest.approx(loss, abs=2e-6 * guarded.gross)
    np.testing.assert_allclose(2 * guarded.cam, d_cam, atol=1e-5 * np.abs(d_cam).max())
    assert 2 * guarded.mu == pytest.approx(d_mu, rel=1e-5)
    assert 2 * guarded.sigma == pytest.approx(d_sigma, rel=1e-4)
    # Without the guard the release is met to 1e-3.
    result = ours(torch.from_numpy(cam), torch.from_numpy(image), mu, sigma)
    assert 2 * result.loss == pytest.approx(loss, abs=1e-3 * guarded.gross)
    np.testing.assert_allclose(2 * result.cam, d_cam, atol=1e-3 * np.abs(d_cam).max())
    assert 2 * result.mu == pytest.approx(d_mu, rel=1e-3)
    assert 2 * result.sigma == pytest.approx(d_sigma, rel=1e-3)


# --- gradients


def test_gradcheck():
    cam, image = example(7, 2, 3, 4, 5)
    mu, sigma = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.5, 1.2))
    cam.requires_grad_()

    def loss(*inputs: Tensor) -> Tensor:
        return feature_similarity_loss(inputs[0], image, *inputs[1:])

    assert torch.autograd.gradcheck(loss, (cam, mu, sigma))


def test_gradients_scale_with_what_comes_from_above_and_reach_only_who_asks():
    cam, image = example(8, 1, 3, 8, 8)
    mu = torch.tensor([2.5], requires_grad=True)  # float32, one element, not a scalar
    (3 * feature_similarity_loss(cam, image, mu, 2.0)).backward()
    expected = oracle(cam, image, 2.5, 2.0)
    assert mu.grad.shape == (1,) and mu.grad.dtype == torch.float32
    assert mu.grad.item() == pytest.approx(3 * expected.mu, rel=1e-6)
    assert not cam.requires_grad
    sigma = torch.tensor(2.0, requires_grad=True)
    feature_similarity_loss(cam, image, 2.5, sigma).backward()
    assert sigma.grad.item() == pytest.approx(expected.sigma, rel=1e-6)


def test_without_gradients_it_is_a_plain_number():
    cam, image = example(8, 1, 3, 8, 8)
    with torch.no_grad():
        loss = feature_similarity_loss(cam.requires_grad_(), image, 2.5, 2.0)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(oracle(cam.detach(), image, 2.5, 2.0).loss, rel=1e-9)


def test_nothing_but_the_gradients_is_saved():
    cam, image = example(9, 2, 3, 30, 30)
    saved: list[int] = []
    mu, sigma = (torch.tensor(v, requires_grad=True) for v in (2.5, 5.0))

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        feature_similarity_loss(cam.requires_grad_(), image, mu, sigma)
    assert sum(saved) == cam.numel() + 2


def test_descending_the_loss_moves_a_blurred_contour_to_the_edge():
    H, W, edge = 12, 24, 15
    image = torch.full((1, 3, H, W), 0.2)
    image[..., edge:] = 0.8
    ramp = torch.sigmoid((torch.arange(W) - 11.5) / 2).expand(1, 1, H, W)  # crosses 1/2 left of the edge
    logits = torch.cat([torch.zeros_like(ramp), torch.logit(ramp)], dim=1).requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=30.0)
    for _ in range(60):
        optimizer.zero_grad()
        feature_similarity_loss(torch.softmax(logits, dim=1), image, 2.5, 3.0).backward()
        optimizer.step()
    foreground = torch.softmax(logits, dim=1)[0, 1].detach()
    assert (foreground[:, edge:] > 0.9).all()
    assert (foreground[:, :edge] < 0.5).all()


# --- properties


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    mu=st.floats(-6, 8),
    sigma=st.floats(0.3, 12),
)
def test_invariances(seed, size, mu, sigma):
    cam, image = example(seed, 2, 3, *size)

    def loss(cam: Tensor, image: Tensor, normalization="pixels") -> float:
        return feature_similarity_loss(cam, image, mu, sigma, normalization).item()

    value, gross = loss(cam, image), oracle(cam, image, mu, sigma).gross

    def same(other: float) -> bool:
        return abs(other - value) <= 1e-10 * gross

    assert abs(value) <= gross * (1 + 1e-10)
    assert same(loss(cam.flip(1), image))  # classes are interchangeable
    assert same(loss(cam, image.flip(1)))  # so are colour channels
    assert same(loss(cam, 1 - image))  # only differences of colours count
    assert same(loss(cam.flip(3), image.flip(3)))
    assert same(loss(cam.mT, image.mT))
    assert same(loss(cam + torch.tensor([5.0, -1.0, 2.0]).view(1, 3, 1, 1), image))
    assert same(loss(2 * cam, image) / 4)  # g is quadratic
    assert same((loss(cam[:1], image[:1]) + loss(cam[1:], image[1:])) / 2)  # mean over the batch
    assert same(loss(cam, image, "pairs") * size[0] * size[1])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_constant_maps_cost_nothing_and_feel_no_force(seed, size):
    _, image = example(seed, 1, 3, *size)
    result = ours(torch.tensor([0.2, 0.7, 0.1]).double().view(1, 3, 1, 1).expand(1, 3, *size), image, 2.5, 5.0)
    assert abs(result.loss) < 1e-25
    assert np.abs(result.cam).max() < 1e-14


# --- cost


@pytest.fixture
def visited(monkeypatch) -> Callable[[int, float], int]:
    """Pairs of pixels whose weights the loss of a square map computes, for its edge and sigma."""
    counts: list[int] = []
    original = pairwise._pair_weights

    def counting(x_i, x_j, w, mu, out, p):
        counts.append(out.numel())
        original(x_i, x_j, w, mu, out, p)

    def count(edge: int, sigma: float) -> int:
        counts.clear()
        feature_similarity_loss(*example(0, 1, 2, edge, edge, torch.float32), 2.5, sigma)
        return sum(counts)

    monkeypatch.setattr(pairwise, "_pair_weights", counting)
    return count


def bound_on_pairs(edge: int, sigma: float) -> float:
    """Half a window of 5.5 sigma and a tile on either side, for each pixel."""
    return edge**2 * (2 * 5.5 * sigma + 2 * 14) ** 2 / 2


def test_work_grows_with_pixels_not_with_pixels_squared(visited):
    counts = [visited(edge, 2.0) for edge in (56, 112, 224)]
    assert counts[2] < bound_on_pairs(224, 2.0)
    assert counts[1] < 5 * counts[0]  # all pairs would be 16 times as many
    assert counts[2] < 5 * counts[1]


def test_work_grows_with_the_window(visited):
    counts = {sigma: visited(112, sigma) for sigma in (1.0, 2.5, 5.0, 10.0)}
    for sigma, count in counts.items():
        assert count < bound_on_pairs(112, sigma)
    assert 2 * counts[1.0] < counts[2.5] and 2 * counts[2.5] < counts[5.0]  # a fixed window: the same for all
    assert 4 * counts[2.5] < counts[10.0] < 112**4 / 2


MEMORY = """
import resource, torch
from wsss_nb.similarity import feature_similarity_loss
torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def run(edge):
    cam = torch.rand(1, 21, edge, edge, requires_grad=True)
    mu, sigma = torch.tensor(2.5, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    feature_similarity_loss(cam, torch.rand(1, 3, edge, edge), mu, sigma).backward()
run(8)
before = peak()
run(224)
print(peak() - before)
"""


def test_a_map_of_224_by_224_needs_no_more_than_100_mb():
    process = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(process.stdout) < 100  # all pairs of one such matrix alone would be 10 GB


@pytest.mark.parametrize("learned", [False, True])
def test_it_waits_for_a_gpu_once(waits, learned):
    cam, image = example(0, 1, 3, 6, 7, torch.float32)
    cam.requires_grad_()
    module = FeatureSimilarityLoss(learnable=learned)
    module(cam, image).backward()
    assert waits == ["tolist"]
    assert not learned or module.raw_mu.grad is not None


# --- image sizes and errors


def test_a_larger_image_is_resized_with_aligned_corners():
    cam, _ = example(10, 2, 3, 5, 6)
    image = torch.rand(2, 3, 17, 40, generator=seeded(1)).double()
    small = F.interpolate(image, size=(5, 6), mode="bilinear", align_corners=True)
    torch.testing.assert_close(small[..., 0, 0], image[..., 0, 0])
    expected = oracle(cam, small, 2.5, 2.0).loss
    assert feature_similarity_loss(cam, image, 2.5, 2.0).item() == pytest.approx(expected, rel=1e-9)


def test_wrong_maps_and_images_are_refused():
    cam, image = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    for bad, text in (
        (cam[0], r"cam: expected floats \(B, K, H, W\), got torch\.float32 \(3, 8, 8\)"),
        (cam.long(), r"cam: expected floats \(B, K, H, W\), got torch\.int64 \(2, 3, 8, 8\)"),
        (cam[:, :0], r"cam: expected floats \(B, K, H, W\), got torch\.float32 \(2, 0, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=text):
            feature_similarity_loss(bad, image, 2.5, 5.0)
    for bad, text in (
        (image[:1], r"image: expected floats \(B, 3, h, w\), B = 2, got torch\.float32 \(1, 3, 8, 8\)"),
        (image[0], r"image: expected floats \(B, 3, h, w\), B = 2, got torch\.float32 \(3, 8, 8\)"),
        ((255 * image).byte(), r"image: expected floats .* got torch\.uint8"),
        (255 * image, r"image: expected values in \[0, 1\], got values from .* to 25"),
        (image - 0.5, r"image: expected values in \[0, 1\], got values from -0\.4"),
        (image * math.nan, r"image: expected values in \[0, 1\], got values from nan to nan"),
        (image[..., :7], r"image: expected at least the map's size \(8, 8\), got \(8, 7\)"),
    ):
        with pytest.raises(ValueError, match=text):
            feature_similarity_loss(cam, bad, 2.5, 5.0)


def test_wrong_parameters_are_refused():
    cam, image = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"mu: expected one finite number, got nan"):
        feature_similarity_loss(cam, image, math.nan, 5.0)
    with pytest.raises(ValueError, match=r"mu: expected one number, got \[1\.0, 2\.0\]"):
        feature_similarity_loss(cam, image, torch.tensor([1.0, 2.0]), 5.0)
    with pytest.raises(ValueError, match=r"sigma: expected one number, got \[1\.0, 2\.0\]"):
        feature_similarity_loss(cam, image, 2.5, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"normalization: expected one of pixels, pairs, release, got 'batch'"):
        feature_similarity_loss(cam, image, 2.5, 5.0, "batch")


# --- the module


def test_fixed_module_is_the_function_and_has_nothing_to_learn():
    cam, image = example(11, 2, 3, 9, 9, torch.float32)
    module = FeatureSimilarityLoss(1.5, 3.0, normalization="pairs")
    assert torch.equal(module(cam, image), feature_similarity_loss(cam, image, 1.5, 3.0, "pairs"))
    assert list(module.parameters()) == []
    assert (module.mu.item(), module.sigma.item()) == (1.5, 3.0)


@pytest.mark.parametrize(("mu", "sigma"), [(2.5, 5.0), (2.6, 4.9), (-3.9, 0.51), (5.99, 19.9), (0.0, 1.0)])
def test_learned_values_start_exactly_where_they_are_told(mu, sigma):
    module = FeatureSimilarityLoss(mu, sigma, learnable=True)
    assert module.mu.item() == torch.tensor(mu).item()
    assert module.sigma.item() == torch.tensor(sigma).item()


def test_learned_values_get_the_losss_gradient_in_their_own_units():
    cam, image = example(12, 1, 3, 10, 10, torch.float32)
    module = FeatureSimilarityLoss(2.5, 3.0, learnable=True)
    assert {name for name, _ in module.named_parameters()} == {"raw_mu", "raw_sigma"}
    module(cam, image).backward()
    expected = oracle(cam, image, 2.5, 3.0)
    assert module.raw_mu.grad.item() == pytest.approx(expected.mu, rel=1e-4)
    assert module.raw_sigma.grad.item() == pytest.approx(expected.sigma, rel=1e-4)


def test_learning_lowers_the_loss_by_moving_mu_and_sigma():
    cam, image = example(13, 1, 3, 12, 12, torch.float32)
    module = FeatureSimilarityLoss(1.0, 2.0, learnable=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = module(cam, image)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert (np.diff(losses) < 0).all()
    assert module.mu.item() > 1.05


@settings(max_examples=60, deadline=None)
@given(raw=st.floats(width=32, allow_nan=True, allow_infinity=True), start=st.floats(-3.9, 5.9))
def test_learned_values_never_leave_their_range_nor_become_nan(raw, start):
    module = FeatureSimilarityLoss(start, 3.0, learnable=True)
    with torch.no_grad():
        module.raw_mu.fill_(raw)
        module.raw_sigma.fill_(raw)
    assert -4 <= module.mu.item() <= 6
    assert 0.5 <= module.sigma.item() <= 20
    (module.mu + module.sigma).backward()
    assert module.raw_mu.grad.isfinite() and module.raw_sigma.grad.isfinite()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_learned_values_survive_gradients_that_are_not_finite(bad):
    cam, image = example(14, 1, 3, 6, 6, torch.float32)
    module = FeatureSimilarityLoss(learnable=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    (bad * module(cam, image)).backward()
    optimizer.step()
    assert (module.mu.item(), module.sigma.item()) == (2.5, 5.0)
    module(cam * math.nan, image).backward()
    optimizer.step()
    assert (module.mu.item(), module.sigma.item()) == (2.5, 5.0)


def test_learned_values_run_to_their_bounds_at_worst_and_the_loss_stays_finite():
    cam, image = example(15, 1, 3, 10, 10, torch.float32)
    module = FeatureSimilarityLoss(learnable=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e6, momentum=0.9)
    for _ in range(10):
        optimizer.zero_grad()
        loss = module(cam, image)
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert module.mu.item() == 6
    assert module.sigma.item() in (0.5, 20)


OPTIMIZERS = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=3.0),
    "rmsprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr=lr, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("lr", [10.0, 1e5, 1e30, math.inf])
def test_no_learning_rate_takes_learned_values_out_of_their_range(optimizer, lr):
    """Huge steps to and fro, parameters that overflow to infinity and NaN, gradients that overflow."""
    module = FeatureSimilarityLoss(learnable=True)
    stepper = OPTIMIZERS[optimizer](module.parameters(), lr)
    raws = []
    for step in range(10):
        cam, image = example(step, 1, 3, 7, 7, torch.float32)
        stepper.zero_grad()
        loss = module(cam, image)
        assert loss.isfinite()
        (loss * (1, -1e5, 1e30, -1e38)[step % 4]).backward()
        stepper.step()
        assert -4 <= module.mu.item() <= 6  # false for NaN
        assert 0.5 <= module.sigma.item() <= 20
        raws.append(module.raw_mu.item())
    assert max(abs(raw) for raw in raws) > 1 or not np.isfinite(raws).all(), "the steps were not large"


def test_state_dict_and_copies_carry_the_values_over():
    module = FeatureSimilarityLoss(1.0, 2.0, learnable=True)
    with torch.no_grad():
        module.raw_mu.fill_(0.7)
    other = FeatureSimilarityLoss(learnable=True)
    other.load_state_dict(module.state_dict())
    for twin in (other, copy.deepcopy(module)):
        assert torch.equal(twin.mu, module.mu) and torch.equal(twin.sigma, module.sigma)


def test_wrong_module_settings_are_refused():
    with pytest.raises(ValueError, match=r"mu: expected -4\.0 < mu < 6\.0 to be learned, got 7\.0"):
        FeatureSimilarityLoss(mu=7.0, learnable=True)
    with pytest.raises(ValueError, match=r"sigma: expected 0\.5 < sigma < 20\.0 to be learned, got 0\.5"):
        FeatureSimilarityLoss(sigma=0.5, learnable=True)
    for bounds in ((0, 20), (0.5, 1e5)):
        with pytest.raises(ValueError) as error:
            FeatureSimilarityLoss(sigma_range=bounds)
        assert str(error.value) == f"sigma_range: expected bounds in [0.001, 10000], got {bounds}"
    for name in ("mu_range", "sigma_range"):
        for bound in (math.inf, math.nan):
            with pytest.raises(ValueError, match=rf"{name}: expected finite bounds, got \(0\.5, {bound}\)"):
                FeatureSimilarityLoss(learnable=True, **{name: (0.5, bound)})
    with pytest.raises(ValueError, match=r"mu: expected one finite number, got inf"):
        FeatureSimilarityLoss(mu=math.inf)
    with pytest.raises(ValueError, match=r"normalization: expected one of pixels, pairs, release, got 'sum'"):
        FeatureSimilarityLoss(normalization="sum")


def test_learned_values_without_gradients_are_the_same() -> None:
    module = FeatureSimilarityLoss(mu=2.0, sigma=4.0, learnable=True)
    with torch.no_grad():
        assert (module.mu.item(), module.sigma.item()) == (2.0, 4.0)
        assert not module.mu.requires_grad
