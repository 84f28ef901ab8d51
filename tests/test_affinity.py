from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_nb.affinity import (
    AffinityLabels,
    affinity_labels,
    affinity_loss,
    fitting_radius,
    pair_affinity,
    pair_indices,
    pair_offsets,
    random_walk,
    random_walk_dense,
)
from wsss_nb.fast.walk import _power_coefficients

GOLDEN = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as file:
        return {key: file[key] for key in file}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_pairs(radius: int, height: int, width: int) -> list[list[tuple[int, int]]]:
    """Pairs per offset from the definition: loops over rows and columns, nothing shared with the library."""
    offsets = [(0, dx) for dx in range(1, radius)]
    for dy in range(1, radius):
        offsets += [(dy, dx) for dx in range(-radius + 1, radius) if dx * dx + dy * dy < radius * radius]
    return [
        [
            (y * width + x, (y + dy) * width + x + dx)
            for y in range(height - radius + 1)
            for x in range(radius - 1, width - radius + 1)
        ]
        for dy, dx in offsets
    ]


def dense_affinity(pairs: torch.Tensor, radius: int, height: int, width: int) -> np.ndarray:
    dense = np.eye(height * width)
    for values, row in zip(pairs.double().numpy(), slow_pairs(radius, height, width), strict=True):
        for value, (i, j) in zip(values, row, strict=True):
            dense[i, j] = dense[j, i] = value
    return dense


def dense_walk(scores: np.ndarray, dense: np.ndarray, beta: float, log_t: int) -> np.ndarray:
    transition = dense**beta
    transition = transition / transition.sum(0, keepdims=True)
    walked = scores.reshape(len(scores), -1) @ np.linalg.matrix_power(transition, 2**log_t)
    return walked.reshape(scores.shape)


# ---------------------------------------------------------------- pairs


def test_radius_five_has_the_34_published_directions():
    offsets = pair_offsets(5)
    assert len(offsets) == 34
    assert offsets[:5] == ((0, 1), (0, 2), (0, 3), (0, 4), (1, -4))
    everything = {(0, 0), *offsets, *((-dy, -dx) for dy, dx in offsets)}
    disk = {(y, x) for y in range(-4, 5) for x in range(-4, 5) if x * x + y * y < 25}
    assert everything == disk
    assert len(everything) == 69


@pytest.mark.parametrize(("radius", "height", "width"), [(2, 5, 5), (2, 6, 9), (3, 7, 8), (5, 11, 14), (5, 12, 11)])
def test_pair_indices_equal_the_loops(radius, height, width):
    start, end = pair_indices(radius, height, width)
    expected = slow_pairs(radius, height, width)
    assert end.shape == (len(expected), len(start))
    for row, pairs in zip(end.tolist(), expected, strict=True):
        assert list(zip(start.tolist(), row, strict=True)) == pairs


@pytest.mark.parametrize(
    ("radius", "size", "expected"),
    [(5, (11, 11), 5), (5, (10, 40), 4), (5, (8, 12), 3), (5, (5, 99), 2), (2, (5, 5), 2), (3, (56, 56), 3)],
)
def test_fitting_radius_shrinks_on_small_maps_as_in_the_release(radius, size, expected):
    assert fitting_radius(radius, *size) == expected
    assert pair_indices(radius, *size)[1].shape[0] == len(pair_offsets(expected))
    assert affinity_labels(np.zeros(size, np.uint8), radius).negative.shape[0] == len(pair_offsets(expected))
    assert pair_affinity(torch.zeros(1, 2, *size), radius).shape[1] == len(pair_offsets(expected))


def test_maps_and_radii_that_hold_no_pair_are_refused():
    with pytest.raises(ValueError, match="height, width: expected a map of at least 5 x 5, got 4 x 30"):
        pair_indices(5, 4, 30)
    for radius in (1, 2.0, -3, True, np.float64(3), np.int64(1)):
        with pytest.raises(ValueError, match="radius: expected an integer of at least 2, got"):
            pair_offsets(radius)


# ---------------------------------------------------------------- labels


def test_labels_equal_the_golden_ones():
    golden = load("affinity_labels.npz")
    labels = affinity_labels(golden["label"])
    for name in labels._fields:
        value = getattr(labels, name)
        assert value.dtype == torch.float32
        np.testing.assert_array_equal(value.numpy(), golden[name])


@given(st.integers(0, 10_000), st.integers(5, 9), st.integers(5, 9))
@settings(max_examples=30, deadline=None)
def test_labels_equal_the_loops(seed, height, width):
    label_map = np.random.default_rng(seed).choice([0, 0, 1, 2, 255], (height, width)).astype(np.uint8)
    radius = fitting_radius(3, height, width)
    flat = label_map.ravel().tolist()
    expected = np.zeros((3, len(pair_offsets(radius)), (height - radius + 1) * (width - 2 * radius + 2)))
    for d, row in enumerate(slow_pairs(radius, height, width)):
        for n, (i, j) in enumerate(row):
            if 255 in (flat[i], flat[j]):
                continue
            expected[2 if flat[i] != flat[j] else 1 if flat[i] else 0, d, n] = 1
    np.testing.assert_array_equal(torch.stack(affinity_labels(label_map, 3)).numpy(), expected)
    batch = np.stack([label_map[::-1], label_map]).astype(np.int64)
    np.testing.assert_array_equal(torch.stack(affinity_labels(batch, 3)).numpy()[:, 1], expected)


def test_label_maps_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match=r"label_map: expected \(H, W\) or \(B, H, W\), got \(9,\)"):
        affinity_labels(np.zeros(9, np.uint8))
    with pytest.raises(ValueError, match=r"label_map: expected integer class ids, got torch\.float64"):
        affinity_labels(np.zeros((9, 9)))


# ---------------------------------------------------------------- affinity


def naive_affinity(features: torch.Tensor, radius: int) -> torch.Tensor:
    start, end = pair_indices(radius, *features.shape[2:])
    flat = features.flatten(2)
    return torch.exp(-(flat[:, :, start].unsqueeze(2) - flat[:, :, end]).abs().mean(1))


def test_pair_affinity_by_hand():
    features = torch.zeros(1, 2, 5, 5)
    features[0, :, 0, 2] = torch.tensor([1.0, 3.0])  # mean absolute difference to its neighbours: 2
    affinity = pair_affinity(features, radius=2)
    start, end = pair_indices(2, 5, 5)
    touched = (start == 2) | (end == 2)
    torch.testing.assert_close(affinity[0][touched], torch.full((int(touched.sum()),), math.exp(-2)))
    assert affinity[0][~touched].eq(1).all()


@pytest.mark.parametrize(("radius", "height", "width"), [(5, 12, 15), (3, 9, 7), (5, 8, 12)])
def test_pair_affinity_value_and_gradient_equal_the_gathered_form(radius, height, width):
    features = (4 * rand(2, 6, height, width) - 2).requires_grad_()
    weight = rand(*pair_affinity(features, radius).shape, seed=1)
    mine, naive = pair_affinity(features, radius), naive_affinity(features, radius)
    torch.testing.assert_close(mine, naive)
    gradient = torch.autograd.grad((mine * weight).sum(), features)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad((naive * weight).sum(), features)[0])
    assert gradient.abs().max() > 1e-3


def test_pair_affinity_gradcheck():
    features = (2 * rand(2, 3, 6, 7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pair_affinity(x, 3), (features,))


def test_identical_pixels_have_affinity_one_and_no_gradient():
    features = torch.full((1, 3, 11, 11), 0.7, requires_grad=True)
    affinity = pair_affinity(features)
    assert affinity.eq(1).all()
    affinity.sum().backward()
    assert features.grad.eq(0).all()


def test_backward_keeps_only_features_and_affinities():
    saved = []
    features = torch.rand(1, 64, 20, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        affinity = pair_affinity(features)
    assert sum(saved) == features.numel() + affinity.numel()
    affinity.mean().backward()


def test_half_precision_features():
    features = rand(1, 8, 12, 12)
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        affinity = pair_affinity(features.to(dtype))
        assert affinity.dtype == dtype
        torch.testing.assert_close(affinity.double(), pair_affinity(features), atol=tolerance, rtol=0)


def test_features_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match=r"features: expected floating \(B, C, H, W\), got \(3, 9, 9\)"):
        pair_affinity(torch.zeros(3, 9, 9))
    with pytest.raises(ValueError, match=r"got \(1, 3, 9, 9\) torch\.int64"):
        pair_affinity(torch.zeros(1, 3, 9, 9, dtype=torch.int64))


# ---------------------------------------------------------------- loss


def test_affinity_loss_by_hand():
    affinity = torch.tensor([[[0.5, 0.2, 0.9, 0.1, 0.3]]], dtype=torch.float64)
    labels = AffinityLabels(
        torch.tensor([[[1.0, 0, 0, 0, 0]]]), torch.tensor([[[0, 1.0, 1.0, 0, 0]]]), torch.tensor([[[0, 0, 0, 1.0, 0]]])
    )
    expected = (
        -math.log(0.5) / 4 + (-math.log(0.2) - math.log(0.9)) / 2 / 4 - math.log(1 - 0.1) / 2
    )  # the last pair is ignored
    assert affinity_loss(affinity, labels).item() == pytest.approx(expected, abs=1e-4)


def test_the_counts_of_a_whole_batch_make_the_parts_add_up():
    """Two processes with an image each: the sum of their losses is that of the two images together."""
    generator = torch.Generator().manual_seed(0)
    affinity = torch.rand(2, 34, 32, generator=generator, dtype=torch.float64)
    maps = torch.randint(0, 3, (2, 12, 12), generator=generator)
    maps[0, :, :6] = 0  # another number of pairs of each kind
    labels = affinity_labels(maps)
    counts = torch.stack([kind.sum() for kind in labels])
    parts = [
        affinity_loss(affinity[i : i + 1], AffinityLabels(*(kind[i : i + 1] for kind in labels)), counts=counts)
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), affinity_loss(affinity, labels))
    alone = affinity_loss(affinity[:1], AffinityLabels(*(kind[:1] for kind in labels)))
    assert abs(alone - parts[0]) > 0.01


def test_affinity_loss_without_pairs_is_zero_and_extremes_stay_finite():
    affinity = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    nothing = torch.zeros(1, 1, 2)
    assert affinity_loss(affinity, AffinityLabels(nothing, nothing, nothing)).item() == 0
    wrong = AffinityLabels(torch.tensor([[[1.0, 0]]]), nothing, torch.tensor([[[0, 1.0]]]))
    loss = affinity_loss(affinity, wrong)
    assert loss.item() == pytest.approx(0.75 * -math.log(1e-5), rel=1e-2)
    loss.backward()
    assert affinity.grad.isfinite().all()
    assert affinity.grad[0, 0, 0] < 0 < affinity.grad[0, 0, 1]


def test_affinity_loss_refuses_labels_of_another_shape():
    labels = affinity_labels(np.zeros((2, 12, 12), np.uint8))
    with pytest.raises(ValueError, match=r"labels\.background: expected \(1, 34, 32\), got \(2, 34, 32\)"):
        affinity_loss(pair_affinity(torch.zeros(1, 2, 12, 12)), labels)


# ---------------------------------------------------------------- random walk


def test_random_walk_equals_the_golden_dense_power():
    golden = load("affinity.npz")
    start, end = pair_indices(5, 8, 12)
    pairs = torch.from_numpy(golden["dense"])[start[None], end]
    walked = random_walk(torch.from_numpy(golden["cam"]), pairs, float(golden["beta"]), int(golden["log_t"]))
    assert walked.dtype == torch.float32
    np.testing.assert_allclose(walked, golden["random_walk"], atol=2e-6)
    # What the golden dense matrix holds beside the pairs: a unit diagonal, symmetry, zeros.
    np.testing.assert_array_equal(dense_affinity(pairs, 3, 8, 12).astype(np.float32), golden["dense"])


@pytest.mark.parametrize(
    ("radius", "height", "width", "beta", "log_t"),
    [(2, 5, 6, 8, 6), (3, 7, 9, 1.0, 3), (5, 11, 13, 8, 6), (5, 14, 11, 0.5, 0), (4, 20, 10, 2, 5)],
)
def test_random_walk_equals_the_dense_power(radius, height, width, beta, log_t):
    directions, count = len(pair_offsets(radius)), (height - radius + 1) * (width - 2 * radius + 2)
    pairs, scores = rand(directions, count), rand(4, height, width, seed=1)
    walked = random_walk(scores, pairs, beta, log_t)
    expected = dense_walk(scores.numpy(), dense_affinity(pairs, radius, height, width), beta, log_t)
    np.testing.assert_allclose(walked.numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(random_walk_dense(scores, pairs, beta, log_t).numpy(), expected, rtol=1e-10)
    assert abs(expected - scores.numpy()).max() > 0.01


@pytest.mark.parametrize("log_t", range(11))
def test_the_power_is_the_sum_of_its_chebyshev_polynomials(log_t):
    x = np.linspace(-1, 1, 2001)
    for tail in (2e-16, 1e-7, 1e-3):
        coefficients = _power_coefficients(2**log_t, tail)
        error = abs(np.polynomial.chebyshev.chebval(x, coefficients) - x ** (2**log_t)).max()
        assert error < max(tail, 1e-13)
    assert len(_power_coefficients(64, 1e-7)) < 45


def test_a_long_walk_with_a_strong_pull_equals_the_dense_power():
    """Affinities near 0 and 1: eigenvalues close to both ends of [-1, 1], 256 steps."""
    pairs, scores = rand(4, 7 * 7).round() * 0.999, rand(2, 8, 9, seed=3)
    expected = dense_walk(scores.numpy(), dense_affinity(pairs, 2, 8, 9), 8, 8)
    np.testing.assert_allclose(random_walk(scores, pairs, log_t=8).numpy(), expected, rtol=1e-10)
    in_float = random_walk(scores.float(), pairs.float(), log_t=8)
    np.testing.assert_allclose(in_float.numpy(), expected, atol=5e-5)


def test_many_classes_are_walked_in_blocks_with_the_same_result():
    pairs, scores = rand(4, 39 * 58), rand(300, 40, 60, seed=1)
    together = random_walk(scores, pairs, log_t=1)
    alone = torch.cat([random_walk(score[None], pairs, log_t=1) for score in scores[::60]])
    assert scores.numel() > 2**19
    torch.testing.assert_close(together[::60], alone)


def test_a_walk_without_affinity_stays_and_with_full_affinity_averages():
    scores = rand(3, 12, 12)
    torch.testing.assert_close(random_walk(scores, torch.zeros(34, 32)), scores)
    walked = random_walk(scores, torch.ones(34, 32))
    inner = walked[:, :, 4:8]  # every pixel of these columns has neighbours on all sides
    assert (inner.amax((1, 2)) - inner.amin((1, 2))).max() < 0.05 < (scores.amax((1, 2)) - scores.amin((1, 2))).min()


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_walk_keeps_constants_bounds_and_is_linear(seed):
    pairs, scores = rand(34, 8 * 7, seed=seed), rand(2, 12, 15, seed=seed + 1)
    walked = random_walk(scores, pairs)
    torch.testing.assert_close(random_walk(torch.ones(1, 12, 15).double(), pairs)[0], torch.ones(12, 15).double())
    assert walked.min() >= scores.min() - 1e-12
    assert walked.max() <= scores.max() + 1e-12
    torch.testing.assert_close(random_walk(scores[:1] + 2 * scores[1:], pairs)[0], walked[0] + 2 * walked[1])


def test_absent_classes_stay_zero_and_do_not_change_the_others():
    scores, pairs = rand(5, 12, 12), rand(34, 32)
    scores[[1, 3]] = 0
    walked = random_walk(scores, pairs)
    assert walked[[1, 3]].eq(0).all()
    torch.testing.assert_close(walked[[0, 2, 4]], random_walk(scores[[0, 2, 4]], pairs))
    assert random_walk(torch.zeros(3, 12, 12), pairs).eq(0).all()


def test_types_dtypes_and_inputs():
    scores, pairs = rand(2, 12, 12), rand(34, 32)
    before = scores.clone(), pairs.clone()
    expected = random_walk(scores, pairs)
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        walked = random_walk(scores.to(dtype), pairs.float())
        assert walked.dtype == dtype
        torch.testing.assert_close(walked.double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(scores, before[0])
    torch.testing.assert_close(pairs, before[1])
    assert not random_walk(scores.requires_grad_(), pairs).requires_grad


@pytest.mark.parametrize(
    ("scores", "pairs", "options", "message"),
    [
        ((12, 12), (34, 32), {}, r"scores: expected floating \(K, H, W\), got \(12, 12\)"),
        ((2, 12, 12), (34, 31), {}, r"affinity: expected \(D, n\) = \(34, 32\) for a 12 x 12 map, got \(34, 31\)"),
        ((2, 12, 12), (144, 144), {}, r"affinity: expected \(D, n\) = \(34, 32\) .*, got \(144, 144\)"),
        ((2, 12, 12), (1, 34, 32), {}, r"affinity: expected \(D, n\) = \(34, 32\) .*, got \(1, 34, 32\)"),
        ((2, 8, 12), (34, 999), {}, r"affinity: expected \(D, n\) = \(12, 48\) .*, got \(34, 999\)"),
        ((2, 12, 12), (34, 32), {"beta": 0}, r"beta: expected a number above 0, got 0"),
        ((2, 12, 12), (34, 32), {"log_t": -1}, r"log_t: expected an integer in \[0, 16\], got -1"),
        ((2, 12, 12), (34, 32), {"log_t": 1.5}, r"log_t: expected an integer in \[0, 16\], got 1\.5"),
        ((2, 12, 12), (34, 32), {"log_t": True}, r"log_t: expected an integer in \[0, 16\], got True"),
        ((2, 12, 12), (34, 32), {"log_t": np.int64(17)}, r"log_t: expected an integer in \[0, 16\], got .*17"),
    ],
)
def test_random_walk_says_what_is_wrong(scores, pairs, options, message):
    with pytest.raises(ValueError, match=message):
        random_walk(torch.zeros(scores), torch.zeros(pairs), **options)


def test_values_out_of_range_are_refused():
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"affinity: expected values in \[0, 1\]"):
            random_walk(torch.zeros(2, 12, 12), torch.zeros(34, 32).index_fill(0, torch.tensor([3]), bad))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scores: expected finite values, got 144 that are not"):
            random_walk(torch.zeros(2, 12, 12).index_fill(0, torch.tensor([1]), bad), torch.zeros(34, 32))


def test_numpys_integers_are_integers():
    """Also the narrow ones, which could not hold 2^log_t or 2 radius."""
    features = torch.rand(1, 3, 300, 12, generator=torch.Generator().manual_seed(0))
    pairs = pair_affinity(features, radius=np.uint8(5))
    assert torch.equal(pairs, pair_affinity(features, radius=5))
    assert fitting_radius(np.int8(100), 300, 300) == 100 and pair_offsets(np.int64(2)) == pair_offsets(2)
    scores = features[0]
    assert torch.equal(random_walk(scores, pairs[0], log_t=np.int8(7)), random_walk(scores, pairs[0], log_t=7))


def test_a_full_size_walk_takes_less_than_200_mb():
    code = (
        "import resource, torch; from wsss_nb.affinity import random_walk; torch.set_num_threads(1);"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "random_walk(torch.rand(2, 12, 12), torch.rand(34, 32)); before = peak();"
        "random_walk(torch.rand(21, 375, 500), torch.rand(34, 371 * 492), log_t=3); print(peak() - before)"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    scale = 1024 if sys.platform == "darwin" else 1  # ru_maxrss is in bytes there
    assert float(output) / scale < 200
