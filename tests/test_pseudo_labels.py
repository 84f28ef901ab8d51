from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_nb.affinity import pair_affinity, pair_indices, walk_cam
from wsss_nb.pseudo_labels import (
    BACKGROUND_RULES,
    BackgroundRule,
    add_background,
    label_map,
    normalize_maximum,
    parse_background_rule,
    winner_take_all,
)


def foreground(seed: int, classes: int = 3, height: int = 5, width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(classes, height, width, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- rules


def test_each_rule_by_hand():
    scores = torch.tensor([[[0.2, 0.0, 0.9]], [[0.3, 0.0, 0.4]]], dtype=torch.float64)
    expected = {
        "complement": [0.5, 1.0, 0.0],  # 1 - 0.5, 1 - 0, and 1 - 1.3 held at 0
        "threshold:0.25": [0.25, 0.25, 0.25],
        "power:2": [0.49, 1.0, 0.01],
        "power:0.5": [0.7**0.5, 1.0, 0.1**0.5],
    }
    for text, background in expected.items():
        result = add_background(scores, text)
        torch.testing.assert_close(result[0], torch.tensor([background], dtype=torch.float64))
        torch.testing.assert_close(result[1:], scores)
    # activations slightly above one, by rounding: 0, not nan
    assert add_background(torch.full((1, 1, 1), 1 + 1e-6), "power:0.5")[0].item() == 0


@given(st.integers(0, 1000), st.sampled_from(["complement", "threshold:0.4", "power:2", "power:24"]))
@settings(max_examples=40, deadline=None)
def test_rules_equal_numpy(seed, text):
    tensor = foreground(seed)
    scores = tensor.numpy()
    value = float(text.partition(":")[2] or 0)
    expected = {
        "complement": np.maximum(0, 1 - scores.sum(0)),
        "threshold": np.full(scores.shape[1:], value),
        "power": (1 - scores.max(0)) ** value,
    }[text.partition(":")[0]]
    np.testing.assert_allclose(add_background(tensor, text)[0], expected, rtol=1e-12)


def test_defaults_and_text():
    assert parse_background_rule("threshold").value == 0.15
    assert parse_background_rule("power").value == 6
    assert parse_background_rule("complement").value is None
    for text in ("complement", "threshold:0.3", "power:24", "power:0.5"):
        rule = parse_background_rule(text)
        assert str(rule) == text
        assert parse_background_rule(str(rule)) == rule
        assert parse_background_rule(rule) is rule and isinstance(rule, BackgroundRule)
    assert set(BACKGROUND_RULES) == {"complement", "threshold", "power"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", r"rule: expected one of \('complement', 'threshold', 'power'\), got 'magic'"),
        ("", "rule: expected one of .*, got ''"),
        ("threshold:high", "rule: expected a number after 'threshold:', got 'high'"),
        ("threshold:", "rule: expected a number after 'threshold:', got ''"),
        ("threshold:1.5", "rule: expected threshold from 0 to 1, got 1.5"),
        ("threshold:-0.1", "rule: expected threshold from 0 to 1, got -0.1"),
        ("power:0", "rule: expected power above 0 to 1000, got 0"),
        ("power:nan", "rule: expected power above 0 to 1000, got nan"),
        ("power:inf", "rule: expected power above 0 to 1000, got inf"),
        ("complement:2", "rule: expected complement without a value, got 2"),
    ],
)
def test_bad_rules_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_background_rule(text)


# ---------------------------------------------------------------- types


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtypes_stay(dtype):
    scores = foreground(0).to(dtype)
    before = scores.clone()
    for text in ("complement", "threshold", "power"):
        assert add_background(scores, text).dtype == dtype
    for flag in (False, True):
        assert normalize_maximum(scores, flag).dtype == dtype
    torch.testing.assert_close(scores, before)


@pytest.mark.parametrize("function", [lambda x: add_background(x, "power"), normalize_maximum, label_map])
def test_other_shapes_and_dtypes_are_refused(function):
    with pytest.raises(ValueError, match=r"expected \(K(-1)?, H, W\), got \(3, 4\)"):
        function(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"got \(2, 0, 4\)"):
        function(torch.zeros(2, 0, 4))
    with pytest.raises(ValueError, match=r"expected a floating dtype, got torch\.uint8"):
        function(torch.zeros(2, 3, 4, dtype=torch.uint8))


def test_an_image_without_a_class_is_background():
    nothing = torch.zeros(0, 3, 4, dtype=torch.float64)
    for text, expected in (("complement", 1), ("power:6", 1), ("threshold:0.2", 0.2)):
        scores = add_background(nothing, text)
        assert scores.dtype == torch.float64 and (scores == torch.full((1, 3, 4), expected, dtype=torch.float64)).all()
        assert label_map(scores).eq(0).all()
    with pytest.raises(ValueError, match=r"scores: expected \(K, H, W\), got \(0, 3, 4\)"):
        label_map(nothing)
    for winners_only in (False, True):
        assert normalize_maximum(nothing, winners_only).shape == (0, 3, 4)
    affinity = pair_affinity(torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0)), radius=3)[0]
    walked = walk_cam(torch.zeros(0, 24, 32), affinity, (6, 8))
    torch.testing.assert_close(walked, torch.ones(1, 24, 32))


# ---------------------------------------------------------------- label maps


def test_label_map_by_hand_and_the_lowest_class_wins_ties():
    scores = torch.tensor([[[0.2, 0.5, 0.3]], [[0.7, 0.5, 0.3]], [[0.1, 0.0, 0.4]]])
    labels = label_map(scores)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[1, 0, 2]]


def test_label_map_refuses_more_classes_than_uint8_holds_beside_void():
    assert label_map(torch.eye(255)[:, None]).max() == 254
    with pytest.raises(ValueError, match="scores: expected at most 255 classes, got 256"):
        label_map(torch.zeros(256, 2, 2))


def test_winner_take_all_by_hand():
    """Along any dimension; of equals all stay, an absent class does not win against a present one."""
    maps = torch.tensor([[0.2, 0.5, 0.0, 0.3], [0.7, 0.5, 0.0, 0.1], [0.1, 0.4, 0.0, 0.3]])
    expected = torch.tensor([[0, 0.5, 0, 0.3], [0.7, 0.5, 0, 0], [0, 0, 0, 0.3]])
    assert torch.equal(winner_take_all(maps, dim=0), expected)
    assert torch.equal(winner_take_all(maps.T[None], dim=2), expected.T[None])
    assert winner_take_all(maps[:0], dim=0).shape == (0, 4)


def test_normalize_maximum_by_hand():
    scores = torch.tensor([[[0.2, 0.4]], [[0.3, 0.1]], [[0.0, 0.0]]], dtype=torch.float64)
    plain = torch.tensor([[[0.2, 0.4]], [[0.3, 0.1]], [[0, 0]]]).double()
    plain = plain / torch.tensor([0.4 + 1e-5, 0.3 + 1e-5, 1e-5]).double()[:, None, None]
    torch.testing.assert_close(normalize_maximum(scores), plain, atol=1e-7, rtol=0)
    winners = normalize_maximum(scores, winners_only=True)
    assert winners[0, 0, 0] == 0
    assert winners[1, 0, 1] == 0
    torch.testing.assert_close(winners[0, 0, 1], plain[0, 0, 1], atol=1e-7, rtol=0)
    torch.testing.assert_close(winners[1, 0, 0], plain[1, 0, 0], atol=1e-7, rtol=0)
    assert winners[2].eq(0).all()


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_with_winner_take_all_a_class_wins_where_it_exceeds_one_half(seed):
    """The evaluation rule of the release: background = 1 - sum of foreground, argmax."""
    scores = normalize_maximum(foreground(seed), winners_only=True)
    labels = label_map(add_background(scores, "complement")).numpy()
    strongest = scores.numpy().max(0)
    expected = np.where(strongest > 0.5, scores.numpy().argmax(0) + 1, 0)
    np.testing.assert_array_equal(labels, expected)


@given(st.integers(0, 1000), st.floats(1, 10), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_a_higher_power_never_gives_more_background(seed, alpha, step):
    scores = foreground(seed)
    weak = label_map(add_background(scores, f"power:{alpha}")) == 0
    strong = label_map(add_background(scores, f"power:{alpha + step}")) == 0
    assert not (strong & ~weak).any()


def test_walk_cam_by_a_dense_matrix():
    """Average, s T^4 with T built pair by pair, resize: every step written out."""
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand(2, 24, 32, generator=generator, dtype=torch.float64)
    h, w = 6, 8
    affinity = pair_affinity(torch.rand(1, 3, h, w, generator=generator, dtype=torch.float64), radius=3)[0]
    left, right = pair_indices(3, h, w)
    weight = torch.eye(h * w, dtype=torch.float64)
    for a, others, values in zip(left.tolist(), right.T.tolist(), affinity.T.tolist(), strict=True):
        for b, value in zip(others, values, strict=True):
            weight[a, b] = weight[b, a] = value**5
    scores = torch.cat([(1 - cam.amax(0, keepdim=True)) ** 3, cam])
    scores = scores.unflatten(1, (h, 4)).unflatten(3, (w, 4)).mean((2, 4)).flatten(1)
    walked = scores @ torch.linalg.matrix_power(weight / weight.sum(0), 4)
    expected = F.interpolate(walked.view(1, 3, h, w), (24, 32), mode="bilinear")[0]
    result = walk_cam(cam, affinity, (h, w), alpha=3, beta=5, log_t=2)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9)
