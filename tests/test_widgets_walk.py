"""Random walk and CRF to play with: the picture's numbers, and the sliders that change it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from wsss_nb import widgets
from wsss_nb.crf import CRFConfig
from wsss_nb.pseudo_labels import walk_cam


@pytest.fixture(scope="module")
def example():
    return widgets.imitated_walk()


def test_scores_are_those_of_the_label_maps(example):
    picture = widgets.render_walk(example, alpha=4, beta=3, log_t=4)
    scores = walk_cam(example.cam, example.affinity, example.size, alpha=4, beta=3, log_t=4)
    before = torch.cat([(1 - example.cam.amax(0, keepdim=True)) ** 4, example.cam])
    for key, values in (("", scores), ("_before", before)):
        labels = values.argmax(0).numpy()
        iou = [
            ((labels == k) & (example.mask == k)).sum() / ((labels == k) | (example.mask == k)).sum()
            for k in range(1, len(before))
        ]
        assert picture.values[f"iou{key}"] == pytest.approx(np.mean(iou))
    assert picture.values["covered"] == pytest.approx((scores.argmax(0) > 0).float().mean().item())
    assert f"contour F {100 * picture.values['contour_f']:.1f}" in picture.alt


def test_the_imitated_walk_teaches_what_the_stage_does(example):
    """From a blurred map to the fish's outline at the given settings; no walk or no edges do not."""
    good = widgets.render_walk(example, alpha=6, beta=8, log_t=6).values
    assert good["iou"] > good["iou_before"] and good["contour_f"] > good["contour_f_before"] + 0.1
    leaking = widgets.render_walk(example, alpha=6, beta=1, log_t=10).values
    assert leaking["contour_f"] < good["contour_f"] - 0.1


def test_ignored_pixels_do_not_count(example):
    void = example.mask.copy()
    void[:, 48:] = 255
    half = widgets.render_walk(dataclasses.replace(example, mask=void)).values
    labels = walk_cam(example.cam, example.affinity, example.size).argmax(0).numpy()[:, :48]
    mask = example.mask[:, :48]
    found = [k for k in range(1, len(example.cam) + 1)]
    iou = [((labels == k) & (mask == k)).sum() / max(((labels == k) | (mask == k)).sum(), 1) for k in found]
    assert half["iou"] == pytest.approx(np.mean(iou))


def test_without_a_mask_there_are_no_scores(example):
    picture = widgets.render_walk(dataclasses.replace(example, mask=None))
    assert set(picture.values) == {"covered"} and "IoU" not in picture.alt


def test_an_image_of_background_only_is_walked_and_not_scored(example):
    nothing = dataclasses.replace(example, cam=example.cam[:0], mask=np.zeros_like(example.mask))
    for crf in (None, CRFConfig(iterations=1)):
        picture = widgets.render_walk(nothing, log_t=2, crf=crf)
        assert picture.values == {"covered": 0} and "IoU" not in picture.alt


def test_the_crf_moves_borders_to_edges_of_the_image(example):
    apart = dataclasses.replace(example, affinity=torch.full_like(example.affinity, 0.1))  # knows no edges
    settings = {"alpha": 4.0, "log_t": 0}
    walk = widgets.render_walk(apart, **settings).values
    crf = CRFConfig(iterations=5, bilateral_sxy=20, gaussian_sxy=2)
    refined = widgets.render_walk(apart, **settings, crf=crf).values
    assert refined["contour_f"] > walk["contour_f"] + 0.1


def test_explorer_updates_one_picture_in_place(example):
    other = dataclasses.replace(example, title="no mask", mask=None)
    explorer = widgets.WalkExplorer([example, other])
    picture, seen = explorer.picture, {explorer.picture.value}
    for control, value in (
        (explorer.alpha, 3.0),
        (explorer.beta, 2.0),
        (explorer.log_t, 2),
        (explorer.example, 1),
    ):
        control.value = value
        assert explorer.picture.value not in seen
        seen.add(explorer.picture.value)
    assert explorer.picture is picture and "IoU" not in explorer.words.value


def test_explorer_begins_with_the_settings_given(example):
    """Its first picture is the plain function's, and so is the one with the CRF, widths without a slider included."""
    crf = CRFConfig(iterations=2, bilateral_sxy=20, bilateral_srgb=9, gaussian_sxy=12, gaussian_compat=20)
    settings = {"alpha": 4.0, "beta": 12.0, "log_t": 2}
    explorer = widgets.WalkExplorer([example], **settings, crf=crf)
    plain = widgets.render_walk(example, **settings)
    assert explorer.picture.value == plain.png() and plain.alt in explorer.words.value
    assert "4 steps of the random walk with alpha 4 and beta 12" in plain.alt
    explorer.crf.value = True
    refined = widgets.render_walk(example, **settings, crf=crf)
    assert explorer.picture.value == refined.png() and refined.alt in explorer.words.value
    assert "after a dense CRF (20 pixels, 9 grey levels, 2 rounds)" in refined.alt
    narrow = widgets.render_walk(example, **settings, crf=dataclasses.replace(crf, gaussian_sxy=3))
    assert narrow.png() != refined.png()


def test_settings_outside_a_slider_widen_it(example):
    explorer = widgets.WalkExplorer([example], alpha=20, beta=0.5, log_t=11, crf=CRFConfig(bilateral_srgb=70))
    assert (explorer.alpha.value, explorer.alpha.max) == (20, 20)
    assert (explorer.beta.value, explorer.beta.min) == (0.5, 0.5)
    assert (explorer.log_t.value, explorer.color.value) == (11, 70)


def test_the_crf_waits_until_a_slider_is_let_go(example):
    explorer = widgets.WalkExplorer([example])
    assert explorer.beta.continuous_update and explorer.color.disabled
    without = explorer.picture.value
    explorer.crf.value = True
    assert not explorer.beta.continuous_update and not explorer.color.continuous_update
    assert not explorer.color.disabled and explorer.picture.value != without
    with_crf = explorer.picture.value
    explorer.color.value = 50.0
    assert explorer.picture.value != with_crf
    explorer.crf.value = False
    assert explorer.beta.continuous_update and explorer.picture.value == without


def test_sliders_can_go_to_their_ends(example):
    explorer = widgets.WalkExplorer([example])
    for control in (explorer.alpha, explorer.beta, explorer.log_t):
        for value in (control.min, control.max):
            control.value = value
            assert "expected" not in explorer.words.value
            assert all(np.isfinite(number) for number in explorer.values.values())
