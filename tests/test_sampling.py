from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from wsss_nb.cam import class_activation_map, global_average_pool, global_max_pool
from wsss_nb.sampling import (
    classification_loss,
    draw_pixels,
    expected_image_level_loss,
    image_level_loss,
    image_level_loss_with_logits,
    importance_sample,
    sampling_probabilities,
)

EPS = 1e-3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_cam(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.softmax(2 * torch.randn(shape, generator=seeded(seed), dtype=dtype), dim=1)


def random_labels(seed: int, B: int, K: int) -> Tensor:
    labels = torch.randint(0, 2, (B, K), generator=seeded(seed))
    labels[:, 0] = 1
    return labels


def bce(p: float, y: int) -> float:
    """One class's term of Eq. 3 by the release's route: probability to logit, then the soft margin."""
    logit = math.log(p * (1 - EPS) + EPS) - math.log(1 - p * (1 - EPS))
    return math.log1p(math.exp(-logit)) if y else math.log1p(math.exp(logit))


# --- Eq. 4


def test_eq4_by_hand():
    cam = torch.tensor([[[[0.3, 0.1], [0.0, 0.4]], [[0.2, 0.2], [0.2, 0.2]]]])
    expected = torch.tensor([[[[0.375, 0.125], [0.0, 0.5]], [[0.25, 0.25], [0.25, 0.25]]]])
    torch.testing.assert_close(sampling_probabilities(cam), expected)


def test_eq4_of_an_all_zero_map_is_uniform_and_its_neighbours_stay_as_they_are():
    cam = torch.tensor([[[[0.0, 0.0, 0.0, 0.0]], [[0.5, 0.0, 0.5, 0.0]]]])
    expected = torch.tensor([[[[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.0, 0.5, 0.0]]]])
    torch.testing.assert_close(sampling_probabilities(cam), expected)


def test_eq4_carries_no_gradient():
    assert not sampling_probabilities(torch.rand(1, 2, 3, 3, requires_grad=True)).requires_grad


def test_draws_follow_eq4_by_a_chi_square_test():
    cam = random_cam(0, (2, 3, 5, 7), torch.float32)
    draws = 40_000
    pixels = draw_pixels(cam, draws, seeded(1))
    probabilities = cam.double().flatten(2) / cam.double().flatten(2).sum(dim=2, keepdim=True)
    for b in range(2):
        for k in range(3):
            counts = np.bincount(pixels[b, k].numpy(), minlength=35)
            expected = draws * probabilities[b, k].numpy()
            assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
            # The test has the power to tell one class's map, or a uniform draw, from another's.
            other = draws * probabilities[b, (k + 1) % 3].numpy()
            assert chisquare(counts, other * counts.sum() / other.sum()).pvalue < 1e-12
            assert chisquare(counts).pvalue < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_draws_of_half_precision_maps_follow_eq4_too(dtype):
    """Also where one value alone is below what a cumulative sum in half precision could still add."""
    cam = torch.full((1, 1, 50, 50), 2**-10, dtype=dtype)
    cam[0, 0, 0, 0] = 1
    pixels = draw_pixels(cam, 200_000, seeded(2)).flatten().numpy()
    expected = 200_000 * cam.double().flatten().numpy() / cam.double().sum().item()
    assert chisquare(np.bincount(pixels, minlength=2500), expected).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_draws_of_an_all_zero_map_are_uniform(dtype):
    pixels = draw_pixels(torch.zeros(1, 1, 4, 5, dtype=dtype), 20_000, seeded(3))
    assert chisquare(np.bincount(pixels.flatten().numpy(), minlength=20)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_samples", [3, None])
def test_all_zero_and_all_one_maps_train_without_nan(dtype, weight, num_samples):
    for value in (0.0, 1.0):
        cam = torch.full((2, 3, 4, 4), value, dtype=dtype, requires_grad=True)
        loss = classification_loss(cam, torch.tensor([[1, 0, 1], [1, 1, 0]]), weight, num_samples)
        loss.backward()
        # The worst answer costs log((1 + e) / e), the right one log(1 + e).
        wrong = 2 / 3 if value == 0 else 1 / 3
        expected = wrong * math.log((1 + EPS) / EPS) + (1 - wrong) * math.log(1 + EPS)
        assert loss.item() == pytest.approx(expected, rel=1e-3)
        assert cam.grad.isfinite().all() and (cam.grad != 0).any()


def test_draws_are_independent_between_classes_and_images():
    cam = torch.ones(2, 2, 1, 2)
    pixels = draw_pixels(cam, 20_000, seeded(4)).flatten(0, 1).double().numpy()
    correlation = np.corrcoef(pixels) - np.eye(4)
    assert np.abs(correlation).max() < 0.03


def test_a_pixel_of_probability_zero_is_never_drawn():
    cam = torch.zeros(1, 1, 8, 8)
    cam[0, 0, [2, 5], [3, 0]] = torch.tensor([0.7, 1e-6])
    assert set(draw_pixels(cam, 50_000, seeded(5)).flatten().tolist()) <= {2 * 8 + 3, 5 * 8}


@pytest.mark.parametrize("at", [0, 1, 62, 63])
def test_a_single_active_pixel_is_always_drawn_wherever_it_is(at):
    cam = torch.zeros(1, 1, 8, 8)
    cam.view(-1)[at] = 1e-30
    assert (draw_pixels(cam, 1000, seeded(6)) == at).all()


def test_draws_at_the_very_ends_of_the_unit_interval_stay_on_active_pixels(monkeypatch):
    cam = torch.tensor([[[[0.0, 0.1, 0.2, 0.0]]]])
    for value, pixel in ((0.0, 1), (1.0, 2)):  # 1.0 stands for a product that rounds up to the total
        monkeypatch.setattr(torch, "rand", lambda shape, value=value, **_: torch.full(shape, value).double())
        assert draw_pixels(cam).item() == pixel


def test_draws_are_with_replacement():
    assert draw_pixels(torch.ones(1, 1, 1, 2), 50, seeded(0)).unique().numel() == 2


# --- generators


def test_equal_generators_draw_equally_and_the_global_state_is_not_touched():
    cam = random_cam(1, (2, 3, 6, 6))
    state = torch.get_rng_state()
    first, second = importance_sample(cam, 5, seeded(7)), importance_sample(cam, 5, seeded(7))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, importance_sample(cam, 5, seeded(8)))


def test_a_generator_moves_on_between_calls():
    cam, generator = random_cam(1, (2, 3, 6, 6)), seeded(7)
    assert not torch.equal(draw_pixels(cam, 5, generator), draw_pixels(cam, 5, generator))


def test_without_a_generator_the_global_seed_counts():
    cam = random_cam(1, (2, 3, 6, 6))
    torch.manual_seed(11)
    first = draw_pixels(cam, 5)
    torch.manual_seed(11)
    assert torch.equal(first, draw_pixels(cam, 5))


# --- sampled predictions and their gradient


def test_samples_are_the_maps_values_at_the_drawn_pixels():
    cam = random_cam(2, (2, 3, 4, 5))
    pixels, samples = draw_pixels(cam, 6, seeded(1)), importance_sample(cam, 6, seeded(1))
    assert samples.shape == (2, 3, 6)
    for b, k, s in np.ndindex(2, 3, 6):
        i, j = divmod(pixels[b, k, s].item(), 5)
        assert samples[b, k, s] == cam[b, k, i, j]


def test_gradient_goes_to_the_drawn_values_and_not_through_the_draw():
    cam = random_cam(3, (2, 3, 4, 4)).requires_grad_()
    importance_sample(cam, 9, seeded(2)).sum().backward()
    pixels = draw_pixels(cam, 9, seeded(2))
    counts = torch.zeros(2, 3, 16, dtype=torch.float64).scatter_add_(2, pixels, torch.ones(2, 3, 9).double())
    assert torch.equal(cam.grad.flatten(2), counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_larger_than_their_dtypes_range(dtype):
    cam = torch.ones(1, 2, 300, 300, dtype=dtype)  # the sum, 90,000, is infinite in float16
    cam[0, 1, :, :] = 0
    cam[0, 1, 299, 299] = 1
    pixels = draw_pixels(cam, 2000, seeded(0))
    assert pixels[0, 0].double().mean().item() == pytest.approx(45_000, rel=0.05)
    assert (pixels[0, 1] == 300 * 300 - 1).all()
    assert importance_sample(cam, 3, seeded(0)).dtype == dtype
    torch.testing.assert_close(sampling_probabilities(cam)[0, 0, 0, 0].item(), 1 / 90_000)


# --- Eq. 3


def test_eq3_by_hand():
    probabilities, labels = torch.tensor([[0.9, 0.2, 0.6]], dtype=torch.float64), torch.tensor([[1, 0, 0]])
    expected = (bce(0.9, 1) + bce(0.2, 0) + bce(0.6, 0)) / 3
    assert image_level_loss(probabilities, labels).item() == pytest.approx(expected, rel=1e-12)
    unguarded = -(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3
    assert image_level_loss(probabilities, labels, eps=1e-12).item() == pytest.approx(unguarded, rel=1e-9)


@pytest.mark.parametrize("background", [True, False])
def test_eq3_is_the_releases_soft_margin_of_guarded_logits(background):
    probabilities, labels = torch.rand(4, 7, generator=seeded(0)).double(), random_labels(1, 4, 7)
    logits = torch.log(probabilities * (1 - EPS) + EPS) - torch.log(1 - probabilities * (1 - EPS))
    first = 0 if background else 1
    expected = F.multilabel_soft_margin_loss(logits[:, first:], labels[:, first:].double())
    actual = image_level_loss(probabilities, labels, background=background)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_eq3_of_many_draws_is_the_mean_over_the_draws():
    samples, labels = torch.rand(3, 4, 5, generator=seeded(2)).double(), random_labels(2, 3, 4)
    each = torch.stack([image_level_loss(samples[..., s], labels) for s in range(5)])
    torch.testing.assert_close(image_level_loss(samples, labels), each.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_eq3_at_certainty_is_finite_and_exact_and_still_has_a_gradient(dtype):
    probabilities = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([[1, 1, 0, 0]])
    loss = image_level_loss(probabilities, labels)
    wrong, right = math.log((1 + EPS) / EPS), math.log(1 + EPS)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx((wrong + right) / 2, rel=1e-6)
    loss.backward()
    assert probabilities.grad.dtype == dtype
    slopes = torch.tensor([-(1 - EPS) / EPS, -(1 - EPS), 1 - EPS, (1 - EPS) / EPS]) / 4
    torch.testing.assert_close(probabilities.grad[0].float(), slopes, rtol=1e-2, atol=0)


def test_eq3_gradient():
    probabilities = (0.05 + 0.9 * torch.rand(2, 3, 4, generator=seeded(3)).double()).requires_grad_()
    labels = random_labels(3, 2, 3)
    assert torch.autograd.gradcheck(lambda p: image_level_loss(p, labels, background=False), (probabilities,))


def test_logit_loss_is_torchs_soft_margin():
    logits, labels = 3 * torch.randn(4, 6, generator=seeded(4)).double(), random_labels(4, 4, 6)
    torch.testing.assert_close(
        image_level_loss_with_logits(logits, labels), F.multilabel_soft_margin_loss(logits, labels.double())
    )
    torch.testing.assert_close(
        image_level_loss_with_logits(logits, labels, background=False),
        F.multilabel_soft_margin_loss(logits[:, 1:], labels[:, 1:].double()),
    )


# --- expectation over the draw


def test_expectation_by_hand():
    cam = torch.tensor([[[[0.75, 0.25]], [[0.2, 0.6]]]], dtype=torch.float64)
    labels = torch.tensor([[1, 0]])
    background = 0.75 * bce(0.75, 1) + 0.25 * bce(0.25, 1)
    foreground = 0.25 * bce(0.2, 0) + 0.75 * bce(0.6, 0)
    loss = expected_image_level_loss(cam, labels)
    assert loss.item() == pytest.approx((background + foreground) / 2, rel=1e-12)
    without = expected_image_level_loss(cam, labels, background=False)
    assert without.item() == pytest.approx(foreground, rel=1e-12)


@pytest.mark.parametrize("background", [True, False])
def test_expectation_and_its_gradient_are_the_limit_of_a_hundred_thousand_draws(background):
    cam, labels, draws = random_cam(5, (1, 3, 4, 4)).requires_grad_(), torch.tensor([[1, 0, 1]]), 100_000
    exact = classification_loss(cam, labels, 1.0, num_samples=None, background=background)
    (exact_gradient,) = torch.autograd.grad(exact, cam)
    sampled = classification_loss(cam, labels, 1.0, num_samples=draws, background=background, generator=seeded(6))
    (sampled_gradient,) = torch.autograd.grad(sampled, cam)
    first = 0 if background else 1
    with torch.no_grad():
        drawn = importance_sample(cam, draws, seeded(7))[:, first:]
        each = torch.stack([image_level_loss(drawn[..., [s]], labels[:, first:]) for s in range(2000)])
    assert abs(sampled.item() - exact.item()) < 4 * each.std().item() / math.sqrt(draws)
    # The count of a pixel is binomial, so its relative error is sqrt((1 - p) / (p n)).
    p = sampling_probabilities(cam)
    tolerance = 5 * ((1 - p) / (p * draws)).sqrt() * exact_gradient.abs()
    assert ((sampled_gradient - exact_gradient).abs() <= tolerance).all()


def test_expectation_gradient_treats_the_probabilities_of_eq4_as_constants():
    cam, labels = random_cam(8, (2, 3, 3, 2)).requires_grad_(), random_labels(8, 2, 3)
    (gradient,) = torch.autograd.grad(expected_image_level_loss(cam, labels), cam)
    p, y = sampling_probabilities(cam), labels[:, :, None, None].double()
    a = cam.detach()
    slope = -y * (1 - EPS) / (a * (1 - EPS) + EPS) + (1 - y) * (1 - EPS) / (1 - a * (1 - EPS))
    torch.testing.assert_close(gradient, p * slope / 6, rtol=1e-10, atol=0)


def test_expectation_of_all_zero_and_half_precision_maps_is_finite():
    cam = torch.zeros(1, 2, 3, 3, dtype=torch.float16, requires_grad=True)
    loss = expected_image_level_loss(cam, torch.tensor([[1, 0]]))
    expected = (math.log((1 + EPS) / EPS) + math.log(1 + EPS)) / 2
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert cam.grad.isfinite().all()


# --- Eq. 5


def test_eq5_by_hand():
    # No draw can take the second pixel.
    cam = torch.tensor([[[[0.8, 0.0]], [[0.3, 0.0]]]], dtype=torch.float64)
    labels = torch.tensor([[1, 0]])
    at_first = (bce(0.8, 1) + bce(0.3, 0)) / 2
    for weight in (0.0, 0.3, 1.0):
        assert classification_loss(cam, labels, weight).item() == pytest.approx(at_first, rel=1e-12)
    loss = classification_loss(cam, labels, 0.3, background=False)  # the max-pooling term keeps its background
    assert loss.item() == pytest.approx(0.7 * at_first + 0.3 * bce(0.3, 0), rel=1e-12)


@pytest.mark.parametrize("num_samples", [1, 4, None])
@pytest.mark.parametrize("background", [True, False])
def test_eq5_mixes_max_pooling_and_sampling(num_samples, background):
    cam, labels = random_cam(9, (2, 4, 5, 5)), random_labels(9, 2, 4)
    pooled = image_level_loss(global_max_pool(cam), labels)
    if num_samples is None:
        sampled = expected_image_level_loss(cam, labels, background=background)
    else:
        sampled = image_level_loss(importance_sample(cam, num_samples, seeded(1)), labels, background=background)
    for weight in (0.0, 0.25, 0.8, 1.0):
        loss = classification_loss(cam, labels, weight, num_samples, background=background, generator=seeded(1))
        torch.testing.assert_close(loss, (1 - weight) * pooled + weight * sampled, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_samples", [4, None])
def test_eq5_takes_the_guard_of_eq3(num_samples):
    """Down to Eq. 3 to the letter, which has none."""
    cam, labels = 0.1 + 0.8 * random_cam(9, (2, 4, 5, 5)), random_labels(9, 2, 4)
    drawn = importance_sample(cam, 4, seeded(1))
    p = sampling_probabilities(cam).flatten(2)

    def cross_entropy(values: Tensor) -> Tensor:
        y = labels[..., None].double()
        return -(y * values.log() + (1 - y) * (1 - values).log())

    each = cross_entropy(drawn).mean(2) if num_samples else (p * cross_entropy(cam.flatten(2))).sum(2)
    expected = 0.3 * cross_entropy(global_max_pool(cam)[..., None]).mean() + 0.7 * each.mean()
    loss = classification_loss(cam, labels, 0.7, num_samples, generator=seeded(1), eps=1e-12)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match=r"eps: expected 0 < eps < 0\.5, got 0\.5"):
        classification_loss(cam, labels, 0.7, num_samples, eps=0.5)


def test_eq5_with_the_releases_average_pooling():
    logits, labels = torch.randn(2, 4, 3, 3, generator=seeded(10)).double(), random_labels(10, 2, 4)
    cam = class_activation_map(logits)
    loss = classification_loss(
        cam, labels, 0.8, 100, pooling="average", logits=logits, background=False, generator=seeded(3)
    )
    pooled = F.multilabel_soft_margin_loss(global_average_pool(logits)[:, 1:], labels[:, 1:].double())
    sampled = image_level_loss(importance_sample(cam, 100, seeded(3)), labels, background=False)
    torch.testing.assert_close(loss, 0.2 * pooled + 0.8 * sampled, rtol=1e-12, atol=0)


def test_eq5_gradient():
    logits = torch.randn(2, 3, 3, 3, generator=seeded(11)).double().requires_grad_()
    labels = random_labels(11, 2, 3)

    def loss(logits: Tensor) -> Tensor:
        return classification_loss(class_activation_map(logits), labels, 0.0)

    assert torch.autograd.gradcheck(loss, (logits,))
    pixels = draw_pixels(class_activation_map(logits), 2, seeded(4))

    def sampled(logits: Tensor) -> Tensor:  # the draw held fixed, as the backward pass holds it
        return image_level_loss(class_activation_map(logits).flatten(2).gather(2, pixels), labels)

    (expected,) = torch.autograd.grad(sampled(logits), logits)
    drawn = classification_loss(class_activation_map(logits), labels, 1.0, 2, generator=seeded(4))
    (actual,) = torch.autograd.grad(drawn, logits)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(sampled, (logits,))


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("options", [{}, {"pooling": "average"}], ids=["max", "average"])
def test_eq5_gradcheck_with_the_draws_of_a_generator(background, options):
    """The same seed for every evaluation: the draws stay where they are, their values move."""
    logits = torch.randn(2, 3, 3, 4, generator=seeded(14)).double().requires_grad_()
    labels = random_labels(14, 2, 3)

    def loss(logits: Tensor) -> Tensor:
        pooled = {**options, "logits": logits} if options else {}
        cam = class_activation_map(logits)
        return classification_loss(cam, labels, 0.6, 4, background=background, generator=seeded(5), **pooled)

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("background", [True, False])
def test_eq3_gradcheck(background):
    labels = torch.tensor([[1, 0, 1], [1, 1, 0]])
    inside = torch.rand(2, 3, 4, generator=seeded(15)).double() * 0.9 + 0.05
    for probabilities in (inside[..., 0], inside):
        function = partial(image_level_loss, labels=labels, background=background)
        assert torch.autograd.gradcheck(function, (probabilities.clone().requires_grad_(),))
    logits = torch.randn(2, 3, generator=seeded(16)).double().requires_grad_()
    function = partial(image_level_loss_with_logits, labels=labels, background=background)
    assert torch.autograd.gradcheck(function, (logits,))


def test_eq5_without_sampling_draws_nothing():
    generator = seeded(12)
    state = generator.get_state()
    classification_loss(random_cam(0, (1, 2, 3, 3)), torch.tensor([[1, 1]]), 0.0, generator=generator)
    assert torch.equal(generator.get_state(), state)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.floats(0, 1), classes=st.integers(2, 5))
def test_eq5_lies_between_a_perfect_and_a_worst_prediction(seed, weight, classes):
    cam, labels = random_cam(seed, (1, classes, 3, 4)), random_labels(seed, 1, classes)
    loss = classification_loss(cam, labels, weight, num_samples=2, generator=seeded(seed)).item()
    assert math.log(1 + EPS) <= loss <= math.log((1 + EPS) / EPS)
    # A map's maximum bounds every draw from above, so it is never the worse guess for a present class.
    everything = torch.ones_like(labels)
    assert (
        classification_loss(cam, everything, 0.0).item()
        <= classification_loss(cam, everything, 1.0, num_samples=None).item() + 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_eq5_in_half_precision_is_near_float64(dtype):
    cam, labels = random_cam(13, (2, 4, 6, 6)).to(dtype).requires_grad_(), random_labels(13, 2, 4)
    loss = classification_loss(cam, labels, 0.5, num_samples=None)
    exact = classification_loss(cam.detach().double(), labels, 0.5, num_samples=None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert cam.grad.dtype == dtype and cam.grad.isfinite().all()


# --- errors


@pytest.mark.parametrize("weight", [-0.1, 1.2, float("nan")])
def test_a_weight_outside_the_unit_interval_is_refused(weight):
    with pytest.raises(ValueError, match=r"weight: expected 0 <= weight <= 1, got (-0\.1|1\.2|nan)"):
        classification_loss(torch.ones(1, 2, 2, 2), torch.ones(1, 2), weight)


def test_wrong_options_are_refused():
    cam, labels = torch.ones(1, 2, 2, 2), torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"pooling: expected one of max, average or module:function, got 'mean'"):
        classification_loss(cam, labels, 0.5, pooling="mean")
    with pytest.raises(ValueError, match=r"logits: expected \(B, K, H, W\) with pooling='average', got None"):
        classification_loss(cam, labels, 0.5, pooling="average")
    with pytest.raises(ValueError, match=r"cam: expected \(B, K, H, W\), got \(2, 2, 2\)"):
        classification_loss(cam[0], labels, 0.5)
    with pytest.raises(ValueError, match=r"eps: expected 0 < eps < 0\.5, got 0"):
        image_level_loss(torch.ones(1, 2), labels, eps=0)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_labels_of_another_shape_are_refused(weight):
    with pytest.raises(ValueError, match=r"labels: expected \(B, K\) = \(8, 21\), got \(8, 20\)"):
        classification_loss(torch.ones(8, 21, 2, 2), torch.ones(8, 20), weight)


@pytest.mark.parametrize("num_samples", [0, -3, 1.5, True, np.bool_(True), np.float64(3), np.int64(0), "3"])
def test_a_wrong_number_of_draws_is_refused(num_samples):
    with pytest.raises(ValueError, match=r"num_samples: expected an integer of at least 1, got"):
        draw_pixels(torch.ones(1, 2, 2, 2), num_samples)


def test_numpys_integers_are_numbers_of_draws():
    cam = random_cam(1, (2, 3, 6, 6))
    assert torch.equal(draw_pixels(cam, np.int64(5), seeded(7)), draw_pixels(cam, 5, seeded(7)))
    loss = classification_loss(cam, random_labels(1, 2, 3), 1.0, np.uint8(2), generator=seeded(7))
    assert loss == classification_loss(cam, random_labels(1, 2, 3), 1.0, 2, generator=seeded(7))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_maps_that_are_no_probabilities_are_refused_not_sampled(bad):
    cam = torch.ones(1, 2, 2, 2)
    cam[0, 1, 1, 0] = bad
    with pytest.raises(ValueError, match=r"cam: expected finite values of at least 0, got values from"):
        draw_pixels(cam)


@pytest.mark.parametrize("bad", [1.2, 1.01, -0.01, float("inf")])
def test_predictions_that_are_no_probabilities_are_refused(bad):
    labels = torch.tensor([[1, 0]])
    for probabilities in (torch.tensor([[0.2, bad]]), torch.tensor([[[0.2, 0.3], [0.9, bad]]])):
        message = rf"probabilities: expected values in \[0, 1\], got values from .*{'' if bad < 0 else f'to {bad:g}'}$"
        with pytest.raises(ValueError, match=message):
            image_level_loss(probabilities, labels)
    if 0 < bad < math.inf:
        cam = torch.full((1, 2, 3, 3), bad)
        for weight, num_samples in ((0.0, 1), (0.5, 1), (1.0, 4), (1.0, None)):
            with pytest.raises(ValueError, match=rf"cam: expected values in \[0, 1\], got .* to {bad:g}$"):
                classification_loss(cam, labels, weight, num_samples)


@pytest.mark.parametrize("bad", [255, -1, 1.5, float("nan")])
def test_labels_that_say_more_than_present_or_absent_are_refused(bad):
    cam, labels = torch.full((1, 2, 3, 3), 0.5), torch.tensor([[1, bad]])
    message = rf"labels: expected values in \[0, 1\], got values from .*{'-1 to' if bad == -1 else f'to {bad:g}'}"
    for loss in (
        lambda: image_level_loss(cam[..., 0, 0], labels),
        lambda: image_level_loss_with_logits(cam[..., 0, 0], labels),
        lambda: expected_image_level_loss(cam, labels),
        lambda: classification_loss(cam, labels, 1.0, 2, background=False),
    ):
        with pytest.raises(ValueError, match=message):
            loss()


def test_labels_between_absent_and_present_mix_the_two():
    p = torch.tensor([[0.9]], dtype=torch.float64)
    loss = image_level_loss(p, torch.tensor([[0.25]]))
    assert loss.item() == pytest.approx(0.25 * bce(0.9, 1) + 0.75 * bce(0.9, 0), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("eps", [EPS, 1e-6])
def test_a_probability_rounded_to_just_above_one_counts_as_one_and_keeps_its_gradient(dtype, eps):
    above = 1 + torch.finfo(dtype).eps
    labels = torch.tensor([[1, 0]])

    def results(value: float) -> list[Tensor]:
        p = torch.full((1, 2), value, dtype=dtype, requires_grad=True)
        cam = torch.full((1, 2, 2, 2), value, dtype=dtype, requires_grad=True)
        found = []
        for leaf, loss in (
            (p, image_level_loss(p, labels, eps)),
            (cam, classification_loss(cam, labels, 0.5, 3, generator=seeded(0), eps=eps)),
            (cam, classification_loss(cam, labels, 0.5, None, eps=eps)),
        ):
            found += [loss.detach(), *torch.autograd.grad(loss, leaf)]
        return found

    assert torch.tensor(above, dtype=dtype) > 1
    for rounded, one in zip(results(above), results(1.0), strict=True):
        assert torch.equal(rounded, one) and (rounded != 0).any() and not rounded.isnan().any()


def test_nan_reaches_the_loss_where_nothing_is_drawn():
    """The training loop looks at the loss and says that it is not finite."""
    assert image_level_loss(torch.tensor([[math.nan, 0.5]]), torch.tensor([[1, 0]])).isnan()
    cam = torch.full((1, 2, 2, 2), math.nan)
    assert classification_loss(cam, torch.tensor([[1, 0]]), 0.0).isnan()


def test_maps_and_predictions_of_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"cam: expected a non-empty \(B, K, H, W\) tensor, got \(2, 3, 3\)"):
        importance_sample(torch.ones(2, 3, 3))
    with pytest.raises(ValueError, match=r"cam: expected a floating-point tensor, got torch\.int64"):
        sampling_probabilities(torch.ones(1, 2, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"probabilities: expected \(B, K\) or \(B, K, S\), got \(3,\)"):
        image_level_loss(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"logits: expected \(B, K\), got \(1, 2, 1\)"):
        image_level_loss_with_logits(torch.ones(1, 2, 1), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"background: expected K of at least 2 without background, got 1"):
        image_level_loss(torch.ones(3, 1), torch.ones(3, 1), background=False)


def test_a_draw_waits_for_a_gpu_once_and_so_does_the_loss_of_what_is_drawn(waits):
    cam = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    drawn = importance_sample(cam, 4)
    assert waits == ["tolist"]
    image_level_loss(drawn, torch.ones(2, 3))
    assert waits == ["tolist", "tolist"]
