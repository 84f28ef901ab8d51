"""The fused kernel of the feature similarity loss, through Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from test_similarity import Result, assert_equal, example, oracle, ours

from wsss_nb.fast import pairwise as _pairwise
from wsss_nb.fast.pairwise import fused_kernels, pairwise_form
from wsss_nb.similarity import FeatureSimilarityLoss, feature_similarity_loss

CPU = torch.device("cpu")


def fused(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs in the interpreting process, where the function has to go through the kernel."""
    kernels = fused_kernels(CPU)
    trial = mock.patch.object(kernels, "probe")  # is no call of the function
    with trial, mock.patch.object(kernels, "pair_sums", wraps=kernels.pair_sums) as spy:
        result = function(*arguments)
    assert spy.called
    return result


def not_fused(function: Callable[..., Any], *arguments: Any, longest: float = 1900) -> Any:
    limit = mock.patch.object(_pairwise, "LONGEST_REACH", longest)
    with limit, mock.patch.object(fused_kernels(CPU), "pair_sums", None):
        return function(*arguments)


def on_tensor_cores(function: Callable[..., Any], *arguments: Any) -> Any:
    """The worst tensor cores may do: after every 8 products the sum is cut to float32, towards zero."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    products = []

    def cut(x: np.ndarray) -> np.ndarray:
        near = x.astype(np.float32)
        return np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float32(0)), near)

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        for factor in (a.data, b.data):
            assert factor.dtype == np.float32
            assert not (factor.view(np.int32) & 0x1FFF).any(), "TF32 cannot hold it"
        sums = d.data
        for k in range(0, a.data.shape[1], 8):
            part = a.data[:, k : k + 8].astype(np.float64) @ b.data[k : k + 8].astype(np.float64)
            sums = cut(sums.astype(np.float64) + part)
        products.append(input_precision)
        return TensorHandle(sums, d.dtype.scalar)

    with mock.patch.object(InterpreterBuilder, "create_dot", dot):
        result = function(*arguments)
    assert products
    return result


CASES = [
    ((1, 2, 5, 5), 2.5, 5.0),
    ((2, 4, 9, 7), 2.5, 5.0),
    ((1, 21, 13, 19), 2.5, 2.0),  # sizes that no tile divides
    ((1, 3, 12, 10), 2.5, 0.15),  # next to nothing but direct neighbours counts
    ((1, 14, 8, 8), 1.0, 20.0),  # one full tile, 16 columns
    ((1, 15, 8, 9), -3.0, 1.0),  # 32 columns
    ((1, 62, 6, 5), 2.5, 2.0),  # 64 columns, all used
    ((1, 63, 6, 5), 2.5, 2.0),  # the last class goes through on its own
    ((1, 91, 5, 6), 6.0, 3.0),
    ((3, 3, 1, 17), 0.0, 1.5),
    ((1, 5, 33, 1), 1.0, 3.0),
    ((1, 2, 1, 150), 2.5, 3.0),  # several tiles in a row, those far apart skipped
    ((1, 2, 150, 2), 2.5, 3.0),
]


@pytest.mark.parametrize(("shape", "mu", "sigma"), CASES)
def test_value_and_gradients_equal_all_pairs_and_the_torch_operator(interpreter, shape, mu, sigma):
    cam, image = example(0, *shape, dtype=torch.float32)
    normalization = "pairs" if shape[1] % 2 else "pixels"
    result = interpreter.submit(fused, ours, cam, image, mu, sigma, normalization).result()
    assert_equal(result, oracle(cam, image, mu, sigma, normalization), rtol=1e-5)
    assert_equal(result, ours(cam, image, mu, sigma, normalization), rtol=1e-4)


def test_what_tensor_cores_round_off_is_within_the_tolerance(interpreter):
    cam, image = example(1, 1, 21, 11, 14, dtype=torch.float32)
    result = interpreter.submit(fused, on_tensor_cores, ours, cam, image, 2.5, 3.0).result()
    assert_equal(result, oracle(cam, image, 2.5, 3.0), rtol=1e-5)


def test_identical_pixels_only_attract(interpreter):
    cam, _ = example(2, 1, 3, 12, 11, dtype=torch.float32)
    image = torch.full((1, 3, 12, 11), 0.3)
    result = interpreter.submit(fused, ours, cam, image, 2.5, 3.0).result()
    expected = oracle(cam, image, 2.5, 3.0)
    assert_equal(result, expected, rtol=1e-5)
    assert result.loss == pytest.approx(expected.gross, rel=1e-5)  # every f is -1
    assert result.mu == 0


@pytest.mark.parametrize("mu", [-500.0, -40.0, 2.5, 40.0, 500.0])
def test_black_white_and_grey_pixels_at_any_mu(interpreter, mu):
    cam, _ = example(3, 1, 4, 10, 9, dtype=torch.float32)
    image = (torch.arange(10)[:, None] + torch.arange(9)).remainder(2).float().repeat(1, 3, 1, 1)
    image[..., 6:] = 0.5
    result = interpreter.submit(fused, ours, cam, image, mu, 2.0).result()
    expected = oracle(cam, image, mu, 2.0)
    assert result.loss == pytest.approx(expected.loss, abs=1e-5 * expected.gross)
    assert result.mu == pytest.approx(expected.mu, rel=1e-5, abs=1e-6 * expected.gross)
    assert result.sigma == pytest.approx(expected.sigma, abs=1e-5 * expected.gross)
    np.testing.assert_allclose(result.cam, expected.cam, atol=1e-5 * np.abs(expected.cam).max())


def test_one_pixel_and_constant_maps_cost_nothing(interpreter):
    _, image = example(4, 1, 2, 9, 9, dtype=torch.float32)
    flat = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1)
    for cam, colours in ((flat, image[..., :1, :1]), (flat.expand(1, 2, 9, 9), image)):
        result = interpreter.submit(fused, ours, cam, colours, 2.5, 5.0).result()
        assert abs(result.loss) < 1e-12
        assert np.abs(result.cam).max() < 1e-12


def half(cam: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = cam.clone().requires_grad_()
    loss = feature_similarity_loss(leaf, image, 2.5, 3.0)
    return loss.detach(), *torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(interpreter, dtype):
    cam, image = example(5, 1, 4, 9, 7, dtype=dtype)
    loss, gradient = interpreter.submit(fused, half, cam, image).result()
    right, expected = interpreter.submit(fused, half, cam.float(), image.float()).result()
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    assert torch.equal(loss, right)
    assert torch.equal(gradient, expected.to(dtype))


def learned(cam: torch.Tensor, image: torch.Tensor) -> Result:
    module = FeatureSimilarityLoss(2.0, 1.5, learnable=True)
    leaf = cam.clone().requires_grad_()
    (3 * module(leaf, image)).backward()
    return Result(
        module(leaf, image).item(), leaf.grad.numpy(), module.raw_mu.grad.item(), module.raw_sigma.grad.item(), 0
    )


def test_learned_mu_and_sigma(interpreter):
    cam, image = example(6, 2, 3, 7, 9, dtype=torch.float32)
    result = interpreter.submit(fused, learned, cam, image).result()
    expected = oracle(cam, image, 2.0, 1.5)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert result.mu == pytest.approx(3 * expected.mu, rel=1e-5)
    assert result.sigma == pytest.approx(3 * expected.sigma, rel=1e-5)
    np.testing.assert_allclose(result.cam, 3 * expected.cam, atol=3e-5 * np.abs(expected.cam).max())


def test_same_input_same_bits_and_no_derivatives_that_nobody_asked_for(interpreter):
    cam, image = example(7, 1, 3, 11, 12, dtype=torch.float32)
    fixed, again, both = (
        interpreter.submit(fused, pairwise_form, cam, image, 2.5, 2.0, scalars).result()
        for scalars in (False, False, True)
    )
    for one, other in zip(fixed, again, strict=True):
        assert torch.equal(one, other)
    assert fixed[2] == 0 and fixed[3] == 0 and both[2] != 0 and both[3] != 0
    assert {tensor.dtype for tensor in (fixed[0], *both[2:])} == {torch.float64}
    torch.testing.assert_close(both[1], fixed[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [2, 3])
def test_tiles_beyond_the_window_are_left_out(interpreter, axis):
    cam, image = example(8, 1, 2, 40, 40, dtype=torch.float32)
    expected = oracle(cam, image, 2.5, 1.0)
    image.narrow(axis, 24, 16).fill_(torch.nan)
    slope = interpreter.submit(fused, pairwise_form, cam, image, 2.5, 1.0, False).result()[1]
    # What NaN reaches is NaN: tiles from pixel 16 on have some within hypot(1, 5.5) pixels.
    d_cam = -slope / cam[0, 0].numel()
    assert d_cam.narrow(axis, 16, 24).isnan().all()
    near = d_cam.narrow(axis, 0, 16).numpy()
    right = expected.cam.take(range(16), axis)
    np.testing.assert_allclose(near, right, atol=1e-5 * np.abs(expected.cam).max())


def test_float64_and_endless_windows_take_the_torch_operator(interpreter):
    cam, image = example(9, 1, 2, 6, 7)
    expected = oracle(cam, image, 2.5, 2.0)
    assert_equal(interpreter.submit(not_fused, ours, cam, image, 2.5, 2.0).result(), expected, rtol=1e-9)
    job = interpreter.submit(not_fused, ours, cam.float(), image.float(), 2.5, 2.0, longest=5)
    assert_equal(job.result(), expected, rtol=1e-5)
