"""The fused kernel behind the dense CRF's messages, through Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from test_crf import oracle, scene
from test_triton_similarity import on_tensor_cores
from torch import Tensor

from wsss_nb.crf import CRFConfig, dense_crf_torch
from wsss_nb.fast.pairwise import fused_kernels

CPU = torch.device("cpu")


def counted(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, int]:
    """Runs in the interpreting process: the result, and how many kernels of Gaussian sums it made."""
    kernels = fused_kernels(CPU)
    trial = mock.patch.object(kernels, "probe")  # is no call of the function
    with trial, mock.patch.object(kernels, "GaussianSum", wraps=kernels.GaussianSum) as spy:
        return function(*arguments, **options), spy.call_count


@pytest.mark.parametrize(
    ("classes", "height", "width", "config"),
    [
        (2, 14, 18, CRFConfig(iterations=3)),
        (5, 13, 11, CRFConfig(iterations=2, bilateral_sxy=4, bilateral_srgb=5, gaussian_sxy=0.5)),
        (91, 6, 7, CRFConfig(iterations=1, bilateral_sxy=32)),
        (3, 1, 70, CRFConfig(iterations=2, bilateral_sxy=3, bilateral_srgb=2, gaussian_sxy=1)),
        (2, 1, 1, CRFConfig()),
    ],
)
def test_marginals_equal_all_pairs_in_float64(interpreter, classes, height, width, config):
    image, probabilities = scene(classes, classes, height, width)
    result, made = interpreter.submit(counted, dense_crf_torch, image, probabilities, config).result()
    assert made == 2  # position alone, position and colour
    np.testing.assert_allclose(result, oracle(image, probabilities, config), rtol=1e-5, atol=1e-5)


def test_only_exact_messages_go_through_the_kernel(interpreter):
    image, probabilities = scene()
    config = CRFConfig(iterations=1)
    exact, made = interpreter.submit(counted, dense_crf_torch, image, probabilities, config, cell=0).result()
    assert made == 2
    merged, made = interpreter.submit(counted, dense_crf_torch, image, probabilities, config, cell=1).result()
    assert made == 0
    np.testing.assert_allclose(merged, dense_crf_torch(image, probabilities, config, cell=1), atol=1e-6)
    np.testing.assert_allclose(exact, dense_crf_torch(image, probabilities, config, cell=0), atol=2e-3)
    # Without the kernels the default is to merge.
    np.testing.assert_array_equal(
        dense_crf_torch(image, probabilities, config), dense_crf_torch(image, probabilities, config, cell=1)
    )


def sums(features: Tensor, values: Tensor) -> tuple[Tensor, int, int]:
    kernel = fused_kernels(CPU).GaussianSum(features)
    return kernel(values), kernel.pairs, len(kernel.first) - 1


def all_pairs(features: Tensor, values: Tensor) -> Tensor:
    f = features.flatten(0, 1).double()
    weights = torch.exp(-0.5 * (f[:, None] - f).square().sum(-1))
    return (values.flatten(1).double() @ weights).view(values.shape)


@pytest.mark.parametrize("labels", [1, 2, 16, 21, 64, 65])
def test_messages_of_any_number_of_labels(interpreter, labels):
    generator = torch.Generator().manual_seed(labels)
    features = 5 * torch.rand(9, 11, 5, generator=generator)
    values = torch.rand(labels, 9, 11, generator=generator)
    result, _, _ = interpreter.submit(sums, features, values).result()
    torch.testing.assert_close(result.double(), all_pairs(features, values), rtol=1e-5, atol=0)


def test_what_tensor_cores_round_off_is_within_the_tolerance(interpreter):
    generator = torch.Generator().manual_seed(0)
    features, values = (4 * torch.rand(12, 11, 5, generator=generator), torch.rand(21, 12, 11, generator=generator))
    result, _, _ = interpreter.submit(on_tensor_cores, sums, features, values).result()
    torch.testing.assert_close(result.double(), all_pairs(features, values), rtol=1e-5, atol=0)


@pytest.mark.parametrize("axes", [2, 5])
def test_tiles_far_apart_are_left_out_and_cost_nothing(interpreter, axes):
    """Four clusters of 64 pixels, mixed up on the map, further apart than a Gaussian reaches."""
    generator = torch.Generator().manual_seed(1)
    cluster = torch.arange(256).remainder(4)[torch.randperm(256, generator=generator)].view(16, 16)
    features = torch.rand(16, 16, axes, generator=generator)
    features[..., axes - 1] += 8.0 * cluster
    values = torch.rand(3, 16, 16, generator=generator)
    values[:, cluster == 2] = torch.inf
    result, pairs, tiles = interpreter.submit(sums, features, values).result()
    assert (pairs, tiles) == (4 * 64**2, 4)
    assert not result[:, cluster == 2].isfinite().any()
    values[:, cluster == 2] = 0
    expected = all_pairs(features, values)
    near = cluster != 2
    torch.testing.assert_close(result[:, near].double(), expected[:, near], rtol=1e-5, atol=0)


def tile_sizes(features: Tensor) -> tuple[Tensor, float]:
    kernels = fused_kernels(CPU)
    order = kernels._compact_order(features)
    return order, max((part.amax(0) - part.amin(0)).max().item() for part in features[order].split(64))


def test_tiles_are_compact(interpreter):
    """A square grid in random order: 64 of its points fit into a square, or one twice as long as wide."""
    grid = torch.cartesian_prod(torch.arange(40.0), torch.arange(40.0))
    points = grid[torch.randperm(1600, generator=torch.Generator().manual_seed(0))]
    order, side = interpreter.submit(tile_sizes, points).result()
    assert torch.equal(order.sort().values, torch.arange(1600))
    assert side <= 13
