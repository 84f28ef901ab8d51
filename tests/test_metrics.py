from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score

from wsss_nb.counts import boundary, confusion_matrix, contour_f, contour_matches, contour_radius, iou, mean_iou
from wsss_nb.metrics import ContourFScore, MeanIoU, PartCoverage

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "contour.npz") as file:
        return {name: file[name] for name in file}


def blobs(seed: int, height: int, width: int, num_classes: int, void: bool = False) -> np.ndarray:
    """Smooth random regions of some classes, with a void ring around them on request."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((num_classes, height, width)), (0, 4, 4))
    label_map = noise.argmax(0).astype(np.uint8)
    label_map[ndimage.gaussian_filter(rng.standard_normal((height, width)), 6) > 0] = 0
    if void:
        edge = ndimage.morphological_gradient(label_map, size=(3, 3)) > 0
        label_map[edge] = 255
    return label_map


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    edge = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            right, below = min(x + 1, width - 1), min(y + 1, height - 1)
            neighbours = [mask[y, right], mask[below, x]]
            if right > x and below > y:
                neighbours.append(mask[below, right])
            edge[y, x] = any(mask[y, x] != other for other in neighbours)
    return edge


def slow_matches(prediction, target, num_classes, tolerance=0.008, void="background"):
    """Every class, dilation of the whole map by the disk: the definition, nothing left out."""
    prediction, target = prediction.copy(), target.copy()
    if void == "masked":
        prediction[target == 255] = 0
    radius = int(np.ceil(tolerance * np.sqrt(prediction.shape[0] ** 2 + prediction.shape[1] ** 2)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x * x + y * y <= radius * radius
    rows = []
    for label in range(1, num_classes):
        true, found = boundary(target == label), boundary(prediction == label)
        near_found, near_true = ndimage.binary_dilation(found, disk), ndimage.binary_dilation(true, disk)
        rows.append([(true & near_found).sum(), (found & near_true).sum(), true.sum(), found.sum()])
    return np.array(rows)


def slow_f(matches: np.ndarray) -> np.ndarray:
    scores = []
    for true_hit, found_hit, true, found in np.asarray(matches, float):
        if true == 0 or found == 0:
            scores.append(1.0 if true == found else 0.0)
        else:
            recall, precision = true_hit / true, found_hit / found
            both = precision + recall
            scores.append(2 * precision * recall / both if both else 0.0)
    return np.array(scores)


# ---------------------------------------------------------------- boundary and radius


def test_boundary_by_hand():
    mask = np.zeros((5, 6), bool)
    mask[2:4, 2:5] = True
    expected = [[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert boundary(mask).astype(int).tolist() == expected


def test_boundary_at_the_last_row_and_column_compares_along_the_edge_only():
    mask = np.zeros((4, 4), bool)
    mask[2:, 2:] = True
    assert boundary(mask).astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    corner = np.zeros((3, 3), bool)
    corner[2, 2] = True
    assert boundary(corner).astype(int).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 0]]


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_boundary_equals_the_pixel_loop(seed, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    np.testing.assert_array_equal(boundary(mask), slow_boundary(mask))
    np.testing.assert_array_equal(boundary(~mask), boundary(mask))


@pytest.mark.parametrize(
    ("size", "tolerance", "radius"),
    [((375, 500), 0.008, 5), ((213, 320), 0.008, 4), ((96, 96), 0.008, 2), ((9, 9), 0.008, 1), ((9, 9), 3, 3)],
)
def test_contour_radius(size, tolerance, radius):
    assert contour_radius(*size, tolerance) == radius


# ---------------------------------------------------------------- contour matches


def test_contour_matches_equal_the_golden_counts(golden):
    for i in range(int(golden["n"])):
        counts = contour_matches(golden[f"pred_{i}"], golden[f"gt_{i}"], 21)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, golden["matches"][i])


@pytest.mark.parametrize("void", ["background", "masked"])
@pytest.mark.parametrize(("height", "width"), [(64, 91), (120, 40), (31, 200)])
def test_contour_matches_equal_disk_dilation(height, width, void):
    for seed in range(4):
        prediction = blobs(seed, height, width, 5)
        target = np.roll(blobs(seed, height, width, 5, void=True), (seed, 2), (0, 1))
        for tolerance in (0.008, 0.03):
            counts = contour_matches(prediction, target, 6, tolerance, void)
            expected = slow_matches(prediction, target, 6, tolerance, void)
            np.testing.assert_array_equal(counts, expected)
            assert expected[:, 2:].sum() > 0


@given(st.integers(0, 10_000), st.integers(1, 24), st.integers(1, 24), st.sampled_from([0.008, 0.1, 0.4]))
@settings(max_examples=60, deadline=None)
def test_contour_matches_of_noise_equal_disk_dilation(seed, height, width, tolerance):
    rng = np.random.default_rng(seed)
    target = rng.choice(np.array([0, 0, 0, 1, 2, 255], np.uint8), (height, width))
    prediction = rng.choice(np.array([0, 0, 0, 1, 3], np.uint8), (height, width))
    before = prediction.copy(), target.copy()
    for void in ("background", "masked"):
        expected = slow_matches(prediction, target, 4, tolerance, void)
        np.testing.assert_array_equal(contour_matches(prediction, target, 4, tolerance, void), expected)
    np.testing.assert_array_equal((prediction, target), before)


def test_a_distance_of_exactly_the_radius_matches_and_one_more_does_not():
    # 375 x 500 has radius 5; a vertical edge at column 100 against one 5 or 6 columns further.
    target = np.zeros((375, 500), np.uint8)
    target[:, 100:] = 1
    for shift, share in ((5, 375), (6, 0)):
        prediction = np.zeros_like(target)
        prediction[:, 100 + shift :] = 1
        assert contour_matches(prediction, target, 2).tolist() == [[share, share, 375, 375]]


def test_tensors_and_wide_dtypes_give_the_same_counts():
    prediction, target = blobs(3, 40, 50, 4), blobs(4, 40, 50, 4, void=True)
    expected = contour_matches(prediction, target, 4)
    as_tensors = contour_matches(torch.from_numpy(prediction), torch.from_numpy(target).long(), 4)
    np.testing.assert_array_equal(as_tensors, expected)
    np.testing.assert_array_equal(contour_matches(prediction.astype(np.int32), target, 4), expected)


def test_the_void_ring_changes_the_score():
    """A perfect prediction: the object, whose outermost 4 pixels the target leaves void."""
    y, x = np.mgrid[:80, :100]
    distance = np.hypot(y - 40, x - 50)
    target = (distance < 25).astype(np.uint8)
    ringed = np.where(abs(distance - 25) < 4, 255, target).astype(np.uint8)

    def score(void, truth):
        metric = ContourFScore(2, void=void)
        metric.update(target, truth)
        return metric.compute()["contour_f"]

    assert contour_radius(80, 100) == 2
    assert score("background", target) == 1
    assert score("background", ringed) == 0  # the true contour moved inwards by 4 > 2 pixels
    assert score("masked", ringed) == 1


ZEROS = np.zeros((4, 4), int)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ZEROS[:3], ZEROS, 3), r"prediction: expected the shape of target \(4, 4\), got \(3, 4\)"),
        ((ZEROS[None], ZEROS[None], 3), r"prediction: expected \(H, W\), got \(1, 4, 4\)"),
        ((ZEROS + 3, ZEROS, 3), r"prediction: expected class ids 0\.\.2, got 3"),
        ((ZEROS + 255, ZEROS, 3), r"prediction: expected class ids 0\.\.2, got 255"),
        ((ZEROS, ZEROS + 254, 3), r"target: expected class ids 0\.\.2 or 255, got 254"),
        ((ZEROS, ZEROS - 1, 3), r"target: expected class ids 0\.\.2 or 255, got -1"),
        ((ZEROS + 0.0, ZEROS, 3), r"prediction: expected integer class ids, got float64"),
        ((ZEROS, ZEROS, 1), r"num_classes: expected 2\.\.255 .*, got 1"),
        ((ZEROS, ZEROS, 256), r"num_classes: expected 2\.\.255 .*, got 256"),
        ((ZEROS, ZEROS, 3, 0.0), r"tolerance: expected a finite number above 0, got 0\.0"),
        ((ZEROS, ZEROS, 3, float("nan")), r"tolerance: expected a finite number above 0, got nan"),
        ((ZEROS, ZEROS, 3, float("inf")), r"tolerance: expected a finite number above 0, got inf"),
        ((ZEROS, ZEROS, 3, 0.008, "ring"), r"void: expected one of \('background', 'masked'\), got 'ring'"),
    ],
)
def test_contour_matches_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        contour_matches(*arguments)


# ---------------------------------------------------------------- contour F


def test_contour_f_by_hand():
    counts = np.array([[8, 5, 10, 10], [0, 0, 0, 0], [0, 0, 7, 0], [0, 0, 0, 7], [0, 0, 3, 3], [4, 4, 4, 4]])
    expected = [2 * 0.8 * 0.5 / 1.3, 1, 0, 0, 0, 1]
    np.testing.assert_allclose(contour_f(counts), expected, rtol=1e-14)
    assert contour_f(counts.reshape(2, 3, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"matches: expected \(..., 4\), got \(4, 3\)"):
        contour_f(np.zeros((4, 3)))


def test_pooled_scores_equal_the_golden_ones(golden):
    metric = ContourFScore(21)
    for i in range(int(golden["n"])):
        metric.update(golden[f"pred_{i}"], golden[f"gt_{i}"])
    scores = metric.compute()
    np.testing.assert_array_equal(scores["matches"], golden["matches"].sum(0))
    np.testing.assert_allclose(scores["f"], golden["f_per_class"], rtol=1e-14)
    assert scores["contour_f"] == pytest.approx(float(golden["f_mean"]), rel=1e-14)
    assert isinstance(scores["contour_f"], float)


def split(num_images: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = []
    for seed in range(num_images):
        target = blobs(seed, 48, 64, 4, void=True)
        pairs.append((np.roll(blobs(seed, 48, 64, 4), seed, 1), target))
    pairs[0][0][pairs[0][0] == 3] = 0
    return pairs


@pytest.mark.parametrize("void", ["background", "masked"])
def test_f_is_that_of_sums_over_images(void):
    metric, total = ContourFScore(6, void=void), np.zeros((5, 4))
    for prediction, target in split():
        metric.update(prediction, target)
        total += slow_matches(prediction, target, 6, void=void)
    np.testing.assert_allclose(metric.compute()["f"], slow_f(total), rtol=1e-12)
    assert metric.compute()["f"][4] == 1  # class 5 occurs nowhere


def test_present_only_leaves_out_classes_that_the_targets_do_not_have():
    target, prediction = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    target[10:20, 10:20] = 1
    prediction[10:20, 14:24] = 1
    prediction[0, 0] = 2  # a false pixel: F of class 2 is 0; classes 3 and 4 occur nowhere: F = 1
    everything, present = ContourFScore(5), ContourFScore(5, present_only=True)
    for metric in (everything, present):
        metric.update(prediction, target)
    f = everything.compute()["f"]
    assert 0 < f[0] < 1
    assert f[1:].tolist() == [0, 1, 1]
    assert everything.compute()["contour_f"] == pytest.approx((f[0].item() + 2) / 4)
    assert present.compute()["contour_f"] == pytest.approx(f[0].item())
    np.testing.assert_array_equal(present.compute()["f"], f)


def test_a_class_that_fills_one_map_and_is_absent_from_the_other_has_no_boundary_on_either_side():
    """As in DAVIS's code: the contour score cannot see it, mIoU does."""
    full, empty = np.ones((12, 9), np.uint8), np.zeros((12, 9), np.uint8)
    for prediction, target in ((full, empty), (empty, full)):
        for void in ("background", "masked"):
            assert contour_matches(prediction, target, 2, void=void).tolist() == [[0, 0, 0, 0]]
        metric, iou = ContourFScore(2), MeanIoU(2)
        metric.update(prediction, target)
        iou.update(prediction, target)
        assert metric.compute()["contour_f"] == 1 and iou.compute()["miou"] == 0
    almost = full.copy()
    almost[0, 0] = 0  # the smallest boundary ends it: found in one map only
    assert contour_f(contour_matches(almost, empty, 2)).tolist() == [0]


def test_a_class_that_fills_the_image_has_no_contour_but_is_present():
    metric = ContourFScore(3, present_only=True)
    metric.update(np.ones((6, 6), int), np.ones((6, 6), int))
    assert metric.compute()["contour_f"] == 1
    nothing = ContourFScore(3, present_only=True)
    nothing.update(np.zeros((6, 6), int), np.zeros((6, 6), int))
    assert np.isnan(nothing.compute()["contour_f"])


def test_batches_equal_single_images():
    pairs = split(3)
    singles, batch = ContourFScore(5), ContourFScore(5)
    for prediction, target in pairs:
        singles.update(prediction, target)
    batch.update(*(torch.from_numpy(np.stack(maps)) for maps in zip(*pairs, strict=True)))
    np.testing.assert_array_equal(batch.compute()["matches"], singles.compute()["matches"])
    assert batch.compute()["contour_f"] < 1
    with pytest.raises(ValueError, match=r"expected \(H, W\) or \(B, H, W\), got \(8,\)"):
        batch.update(np.zeros(8, int), np.zeros(8, int))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, r"num_classes: expected 2\.\.255"),
        ({"num_classes": 3, "void": "none"}, "void: expected one of"),
    ],
)
def test_contour_f_score_refuses_bad_options_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ContourFScore(**options)


# ---------------------------------------------------------------- mIoU


def test_mean_iou_by_hand():
    metric = MeanIoU(4)
    metric.update(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 255]]))
    metric.update(np.array([[2]]), np.array([[0]]))
    scores = metric.compute()
    assert scores["confusion"].tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(scores["iou"], [1 / 3, 1 / 2, 0, np.nan])
    assert scores["miou"] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)  # class 3 does not count


def test_mean_iou_equals_the_golden_counts(golden):
    metric = MeanIoU(21)
    for i in range(int(golden["n"])):
        metric.update(golden[f"pred_{i}"], golden[f"gt_{i}"])
    scores = metric.compute()
    np.testing.assert_array_equal(scores["confusion"], golden["confusion"])
    occurs = golden["confusion"].sum(0) + golden["confusion"].sum(1) > 0
    np.testing.assert_allclose(scores["iou"][occurs], golden["iou"][occurs], rtol=1e-9)
    assert np.isnan(scores["iou"]).tolist() == (~occurs).tolist()


@given(st.integers(0, 10_000), st.integers(2, 22))
@settings(max_examples=25, deadline=None)
def test_mean_iou_is_pooled_and_equals_scikit_learn(seed, num_classes):
    rng = np.random.default_rng(seed)
    metric, predictions, targets = MeanIoU(num_classes), [], []
    for _ in range(3):
        shape = tuple(rng.integers(1, 9, 2))
        prediction = rng.integers(0, num_classes, shape).astype(np.uint8)
        target = np.where(rng.random(shape) < 0.2, 255, rng.integers(0, num_classes, shape)).astype(np.uint8)
        metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
        predictions.append(prediction.ravel())
        targets.append(target.ravel())
    true, found = np.concatenate(targets), np.concatenate(predictions)
    valid = true != 255
    if not valid.any():
        assert np.isnan(metric.compute()["miou"])
        return
    expected = sklearn_confusion(true[valid], found[valid], labels=range(num_classes))
    scores = metric.compute()
    np.testing.assert_array_equal(scores["confusion"], expected)
    hit, union = np.diag(expected), expected.sum(0) + expected.sum(1) - np.diag(expected)
    assert scores["miou"] == pytest.approx((hit[union > 0] / union[union > 0]).mean(), rel=1e-12)
    assert mean_iou(expected) == pytest.approx(scores["miou"], rel=1e-12)
    occur = np.flatnonzero(union)
    each = jaccard_score(true[valid], found[valid], labels=occur, average=None, zero_division=0)
    np.testing.assert_allclose(scores["iou"][occur], each, rtol=1e-12)
    assert scores["miou"] == pytest.approx(each.mean(), rel=1e-12)


def test_confusion_matrix_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match=r"prediction: expected class ids 0..1, got 255"):
        confusion_matrix(np.array([255]), np.array([0]), 2)
    with pytest.raises(ValueError, match=r"target: expected integer class ids, got float32"):
        confusion_matrix(torch.zeros(2, dtype=torch.int64), torch.zeros(2), 2)
    with pytest.raises(ValueError, match=r"prediction: expected the shape of target \(3,\), got \(2,\)"):
        confusion_matrix(np.zeros(2, int), np.zeros(3, int), 2)
    with pytest.raises(ValueError, match=r"num_classes: expected 2\.\.255"):
        MeanIoU(0)


def test_mean_iou_of_many_matrices_and_of_none():
    """Rows: a class that nobody has is left out, a wrong one is 0, without pixels there is no score."""
    confusions = np.array([[[3, 1], [0, 0]], [[0, 2], [0, 0]], [[4, 0], [0, 0]], [[0, 0], [0, 0]]])
    np.testing.assert_array_equal(iou(confusions), [[0.75, 0], [0, 0], [1, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(mean_iou(confusions), [0.375, 0, 1, np.nan])
    assert mean_iou(confusions[:, None]).shape == (4, 1)


def test_counting_needs_no_torch():
    code = "import sys, wsss_nb.counts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- parts of objects


def test_part_coverage_by_hand():
    mask, part = np.array([[0, 0, 3, 3, 3, 3, 255]]), np.array([[0, 0, 2, 2, 1, 1, 2]])
    found = np.array([[0, 3, 3, 3, 3, 1, 3]])
    metric, no_head = PartCoverage(), PartCoverage()
    metric.update(found, mask, part)
    assert metric.compute() == {"head": 1.0, "body": 0.5, "background": 0.5}
    no_head.update(found[:, 4:6], mask[:, 4:6], part[:, 4:6])
    np.testing.assert_equal(no_head.compute(), {"head": np.nan, "body": 0.5, "background": np.nan})


def test_part_coverage_pools_pixels_not_images():
    metric = PartCoverage()
    metric.update(np.array([[1, 1, 1]]), np.array([[1, 1, 1]]), np.array([[2, 2, 2]]))
    metric.update(torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[2]]))
    assert metric.compute()["head"] == pytest.approx(3 / 4)


def test_part_coverage_refuses_other_shapes_and_parts():
    zeros, update = np.zeros((2, 3), int), PartCoverage().update
    with pytest.raises(ValueError, match=r"prediction: expected the shape of mask \(2, 3\), got \(3, 2\)"):
        update(zeros.T, zeros, zeros)
    with pytest.raises(ValueError, match=r"part: expected the shape of mask \(2, 3\), got \(2, 2\)"):
        update(zeros, zeros, zeros[:, :2])
    with pytest.raises(ValueError, match="part: expected 0, 1 or 2, got 3"):
        update(zeros, zeros, zeros + 3)


# ---------------------------------------------------------------- metrics across processes

KINDS = [(MeanIoU, 5, "confusion"), (ContourFScore, 5, "matches"), (MeanIoU, 2, "confusion"), (ContourFScore, 2, "f")]


def few(num_classes: int, num_images: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """:func:`split` with ids below K; K = 2 is one foreground class, whose states have one element."""
    return [
        tuple(np.where(m == 255, m, m.clip(0, num_classes - 1)) for m in pair)  # type: ignore[misc]
        for pair in split(num_images)
    ]


@pytest.mark.parametrize(("kind", "num_classes", "name"), KINDS)
@pytest.mark.parametrize("present_only", [False, True])
def test_states_are_summed_over_processes(kind, num_classes, name, present_only):
    """Two metrics, each with its half of the split, gathered as torch.distributed would do it, and merged."""
    options = {"present_only": present_only} if kind is ContourFScore else {}
    pairs = few(num_classes, 4)
    whole, other, both = (kind(num_classes, **options) for _ in range(3))
    for pair in pairs:
        whole.update(*pair)
    for pair in pairs[:2]:
        other.update(*pair)

    def gather(state, group=None):
        names = [name for name in other._defaults if getattr(mine, name).data_ptr() == state.data_ptr()]
        return [state, getattr(other, names[0])]

    mine = kind(num_classes, **options, dist_sync_fn=gather, distributed_available_fn=lambda: True)
    for pair in pairs[2:]:
        mine.update(*pair)
        both.update(*pair)
    both.merge_state(other)
    expected = whole.compute()
    for found in (mine.compute(), both.compute()):
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])
    assert np.shape(expected[name])[0] == (num_classes if kind is MeanIoU else num_classes - 1)
    assert (np.asarray(expected[name]) != other.compute()[name]).any()


@pytest.mark.parametrize(("kind", "num_classes", "name"), KINDS)
def test_reset_pickle_and_results_that_do_not_change_later(kind, num_classes, name):
    pairs = few(num_classes, 2)
    metric = kind(num_classes)
    metric.update(*pairs[0])
    first = metric.compute()
    before = first[name].copy()
    copy = pickle.loads(pickle.dumps(metric))
    metric.update(*pairs[1])
    np.testing.assert_array_equal(first[name], before)
    assert (metric.compute()[name] != before).any()
    np.testing.assert_array_equal(copy.compute()[name], before)
    metric.reset()
    metric.update(*pairs[0])
    np.testing.assert_array_equal(metric.compute()[name], before)
