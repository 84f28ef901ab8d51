from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torch import Tensor

from wsss_nb.cam import class_activation_map, condition_on_labels, global_average_pool, global_max_pool


def maps(*values: list[list[float]]) -> Tensor:
    """One image, one (H, W) list per class."""
    return torch.tensor([values])


def random_cam(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(shape, generator=generator, dtype=dtype), dim=1)


# --- Eq. 1


def test_eq1_by_hand():
    logits = maps([[0.0, math.log(3)]], [[0.0, 0.0]])
    expected = maps([[0.5, 0.75]], [[0.5, 0.25]])
    torch.testing.assert_close(class_activation_map(logits), expected)


def test_eq1_is_scipys_softmax_over_the_classes():
    logits = np.random.default_rng(0).normal(scale=30, size=(2, 5, 3, 4))
    np.testing.assert_allclose(
        class_activation_map(torch.from_numpy(logits)).numpy(), softmax(logits, axis=1), rtol=1e-12, atol=1e-300
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_eq1_keeps_half_precision_and_survives_large_logits(dtype):
    cam = class_activation_map(torch.tensor([60000.0, -60000.0, 0.0], dtype=dtype).view(1, 3, 1, 1))
    assert cam.dtype == dtype
    assert cam.flatten().tolist() == [1, 0, 0]


# --- pooling


def test_max_pool_by_hand_takes_the_maximum_of_each_class_and_image():
    cam = torch.cat([maps([[0.9, 0.2]], [[0.1, 0.8]]), maps([[0.3, 0.4]], [[0.7, 0.6]])])
    torch.testing.assert_close(global_max_pool(cam), torch.tensor([[0.9, 0.8], [0.4, 0.7]]))


def test_max_pool_sends_its_gradient_to_the_first_maximum_only():
    cam = maps([[0.2, 0.8], [0.8, 0.1]]).requires_grad_()
    global_max_pool(cam).sum().backward()
    assert cam.grad.tolist() == maps([[0.0, 1.0], [0.0, 0.0]]).tolist()


def test_average_pool_by_hand_gives_logits_not_probabilities():
    logits = maps([[10.0, 30.0]], [[-2.0, 0.0]])
    assert global_average_pool(logits).tolist() == [[20, -1]]


def test_average_pool_spreads_its_gradient_evenly():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    global_average_pool(logits).sum().backward()
    torch.testing.assert_close(logits.grad, torch.full_like(logits, 1 / 20))


# --- conditioning on labels


def test_conditioning_by_hand():
    cam = maps([[0.2, 0.5]], [[0.2, 0.0]], [[0.6, 0.5]])
    conditioned = condition_on_labels(cam, torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(conditioned, maps([[0.5, 1.0]], [[0.5, 0.0]], [[0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32])
def test_conditioning_takes_background_as_present_and_leaves_the_labels_alone(dtype):
    cam = random_cam(0, (2, 3, 4, 4))
    without = torch.tensor([[0, 1, 0], [0, 0, 1]]).to(dtype)
    before = without.clone()
    with_background = torch.tensor([[1, 1, 0], [1, 0, 1]])
    assert torch.equal(condition_on_labels(cam, without), condition_on_labels(cam, with_background))
    assert torch.equal(without, before)


def test_conditioning_with_all_classes_present_changes_only_by_the_guard():
    cam = random_cam(1, (2, 4, 5, 3))
    torch.testing.assert_close(condition_on_labels(cam, torch.ones(2, 4)), cam, rtol=1.1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_conditioning_of_a_pixel_with_nothing_left_is_zero_not_nan(dtype):
    conditioned = condition_on_labels(maps([[0.0]], [[0.0]], [[1.0]]).to(dtype), torch.tensor([[1, 1, 0]]))
    assert conditioned.dtype == dtype
    assert conditioned.flatten().tolist() == [0, 0, 0]


def test_conditioning_in_half_precision_keeps_what_is_left_of_tiny_activations():
    cam = maps([[6e-5]], [[6e-5]], [[1.0]]).half()
    conditioned = condition_on_labels(cam, torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(conditioned.flatten(), torch.tensor([0.5, 0.5, 0.0]).half(), rtol=1e-3, atol=0)


def test_conditioning_gradient():
    cam = random_cam(2, (1, 3, 2, 2)).requires_grad_()
    labels = torch.tensor([[1, 0, 1]])
    assert torch.autograd.gradcheck(lambda a: condition_on_labels(a, labels), (cam,))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    present=st.lists(st.booleans(), min_size=1, max_size=6),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_conditioning_leaves_distributions_over_the_present_classes(seed, present, size):
    labels = torch.tensor([[True, *present]])
    cam = random_cam(seed, (1, labels.shape[1], *size))
    conditioned = condition_on_labels(cam, labels)
    assert (conditioned[~labels] == 0).all()
    kept = cam[labels].sum(dim=0)
    torch.testing.assert_close(conditioned.sum(dim=1)[0], kept / (kept + 1e-8))
    # The proportions between present classes are those of the map.
    torch.testing.assert_close(conditioned[labels] * cam[:, 0], cam[labels] * conditioned[:, 0])


# --- errors


@pytest.mark.parametrize("function", [class_activation_map, global_average_pool])
@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 3, 4, 4), (1, 2, 3, 4, 5)])
def test_logits_of_wrong_shape_are_refused(function, shape):
    with pytest.raises(ValueError, match=r"logits: expected a non-empty \(B, K, H, W\) tensor, got \("):
        function(torch.zeros(shape))


def test_max_pool_refuses_wrong_shapes_and_integers():
    with pytest.raises(ValueError, match=r"cam: expected a non-empty \(B, K, H, W\) tensor, got \(3, 4, 4\)"):
        global_max_pool(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"cam: expected a floating-point tensor, got torch\.uint8"):
        global_max_pool(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_conditioning_refuses_labels_of_another_shape():
    with pytest.raises(ValueError, match=r"labels: expected \(B, K\) = \(8, 21\), got \(8, 20\)"):
        condition_on_labels(torch.zeros(8, 21, 2, 2), torch.zeros(8, 20))
