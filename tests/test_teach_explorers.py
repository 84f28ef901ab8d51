"""The explorers: shells that wire widgets to pictures, and what they do with files and errors; the random walk's picture."""

from __future__ import annotations

import datetime
import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from wsss_nb import teach
from wsss_nb.affinity import walk_cam
from wsss_nb.crf import CRFConfig
from wsss_nb.sampling import POOLINGS
from wsss_nb.similarity import MU_RANGE
from wsss_nb.teach import similarity


def _move(explorer, control, value):
    """Set a control as the browser would; the picture's bytes before and after."""
    before = explorer.picture.value
    control.value = value
    return before, explorer.picture.value


def _has_problem(explorer):
    return "#b00020" in explorer.words.value


def test_similarity_explorer_updates_one_picture_in_place():
    explorer = teach.SimilarityExplorer("fish", size=32)
    image = explorer.picture
    for control, value in (
        (explorer.mu, 1.0),
        (explorer.sigma, 6.0),
        (explorer.row, 3),
        (explorer.column, 30),
        (explorer.photo_menu, "cat"),
    ):
        before, after = _move(explorer, control, value)
        assert before != after and explorer.picture is image and not _has_problem(explorer)
    assert 'role="status"' in explorer.words.value
    assert "Feature similarity around pixel (3, 30)" in explorer.words.value
    assert image.tooltip is None, "JupyterLab cannot open an image with a tooltip"


def test_similarity_explorer_descends_as_far_as_asked_and_resets():
    explorer = teach.SimilarityExplorer("fish", size=40)
    start = dict(explorer.values)
    image, foreground, _ = teach.snap_example("fish", 40)
    explorer.steps.value = 5
    assert explorer.values == start, "the slider alone changes nothing"
    explorer.descend.click()
    explorer.steps.value = 3
    explorer.descend.click()
    five = teach.descend(foreground, image, steps=5).maps[-1]
    eight = teach.descend(torch.from_numpy(five), image, steps=3).maps[-1]
    np.testing.assert_allclose(explorer.foreground.numpy(), eight, atol=1e-6)
    assert explorer.values["contour_f"] > start["contour_f"] and explorer.values["loss"] < start["loss"]
    assert explorer.values["contour_f_before"] == start["contour_f"], "the first map's, however often one descends"
    assert "after 8 steps of descent contour F" in explorer.words.value
    explorer.reset.click()
    assert explorer.values == start and "steps" not in explorer.words.value
    explorer.descend.click()
    explorer.photo_menu.value = "cat"
    assert "steps" not in explorer.words.value, "another image has not descended"


def _explorers():
    cam = teach.CamExplorer("cat")
    cam.rule.value = "power"
    return {
        "similarity": (teach.SimilarityExplorer("coffee", size=32), ("mu", "sigma", "row", "column", "steps")),
        "cam": (cam, ("strength", "threshold", "alpha")),
        "walk": (teach.WalkExplorer(), ("alpha", "beta", "log_t")),
    }


def test_sliders_can_go_to_their_ends():
    for explorer, names in _explorers().values():
        for slider in (getattr(explorer, name) for name in names):
            for value in (slider.min, slider.max):
                slider.value = value
                assert not _has_problem(explorer) and all(map(np.isfinite, explorer.values.values()))
    mu = teach.SimilarityExplorer("fish", size=32).mu
    assert (mu.min, mu.max) == MU_RANGE, "where a learned mu stays"


def test_cam_explorer():
    explorer = teach.CamExplorer("coffee")
    assert explorer.class_menu.value == 968 and explorer.alpha.disabled and not explorer.threshold.disabled
    for control, value in (
        (explorer.class_menu, 967),
        (explorer.stride, 32),
        (explorer.normalize, "softmax"),
        (explorer.strength, 0.2),
        (explorer.threshold, 0.7),
        (explorer.rule, "complement"),
        (explorer.pooling, "max"),
        (explorer.photo_menu, "cat"),
    ):
        before, after = _move(explorer, control, value)
        assert before != after and not _has_problem(explorer), control.description
    assert explorer.threshold.disabled and explorer.class_menu.value == 285
    explorer.photo_menu.value = "astronaut"
    assert "iou" not in explorer.values, "no outline, no score"


def test_the_menu_offers_every_class_the_likely_ones_first():
    explorer = teach.CamExplorer("coffee")
    options = explorer.class_menu.options
    assert sorted(index for _, index in options) == list(range(1000))
    assert [index for _, index in options[:4]] == [968, 967, 504, 809] and options[0][0].endswith(" %)")
    rest = [text for text, _ in options if not text.endswith(" %)")]
    assert rest == sorted(rest, key=str.casefold) and 990 <= len(rest) <= 994
    before, after = _move(explorer, explorer.class_menu, 872)
    assert before != after and "activation map of tripod" in explorer.words.value
    explorer.stride.value = 32
    assert explorer.class_menu.value == 872, "a finer look at the same class"
    explorer.photo_menu.value = "cat"
    assert explorer.class_menu.value == 285, "another photograph, another class"


def test_the_pooling_menu_has_the_score_of_each():
    explorer = teach.CamExplorer("coffee")

    def expected(index):
        s = teach.photo_logits("coffee", explorer.stride.value)
        scores = {"average": s.mean((1, 2)), "max": s.flatten(1).max(1).values}
        assert set(scores) <= set(POOLINGS)
        return tuple(
            (f"{k}: logit {v[index]:.1f}, {100 * v.softmax(0)[index]:.1f} %".replace("-", "\u2212"), k)
            for k, v in scores.items()
        )

    assert explorer.pooling.options == expected(968) and explorer.pooling.value == "average"
    explorer.pooling.value = "max"
    assert "A cross marks" in explorer.words.value
    explorer.class_menu.value = 967
    assert explorer.pooling.options == expected(967) and explorer.pooling.value == "max"
    explorer.stride.value = 32
    assert explorer.pooling.options == expected(967) and "A cross marks" in explorer.words.value


def test_cam_explorer_refines_by_crf():
    explorer = teach.CamExplorer("coffee")
    plain = explorer.values["contour_f"]
    explorer.crf.value = True
    assert not _has_problem(explorer) and explorer.values["contour_f"] > plain


def test_the_crf_waits_until_a_slider_is_let_go_and_is_kept_while_it_does_not_change(monkeypatch):
    refine, calls, said = teach.refine_map, [], []
    monkeypatch.setattr("wsss_nb.teach.cam.refine_map", lambda *args: calls.append(args[2]) or refine(*args))
    explorer = teach.CamExplorer("coffee")
    explorer.words.observe(lambda change: said.append(change["new"]), names="value")
    follow = (explorer.threshold, explorer.alpha, explorer.strength)
    assert all(slider.continuous_update for slider in follow)
    explorer.crf.value = True
    assert [slider.continuous_update for slider in follow] == [False, False, True]
    assert calls == ["threshold:0.3"] and "dense CRF \u2026" in said[0] and "a dense CRF" in said[1]
    refined = dict(explorer.values)
    for control, value in ((explorer.strength, 0.1), (explorer.pooling, "max")):
        before, after = _move(explorer, control, value)
        assert before != after and explorer.values == refined and len(calls) == 1, control.description
    for number, (control, value) in enumerate(
        ((explorer.threshold, 0.4), (explorer.normalize, "softmax"), (explorer.class_menu, 967)), start=2
    ):
        control.value = value
        assert len(calls) == number, control.description
    explorer.photo_menu.value = "cat"
    explorer.stride.value = 32
    assert len(calls) == 6 and not _has_problem(explorer)
    explorer.crf.value = False
    assert len(calls) == 6 and all(slider.continuous_update for slider in follow)


def _upload(explorer, name, content):
    """Hand a file over as the browser does."""
    when = datetime.datetime.now(datetime.timezone.utc)
    file = {"name": name, "type": "image/png", "size": len(content), "last_modified": when}
    explorer.upload.value = ({**file, "content": memoryview(content)},)


def _png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def test_cam_explorer_takes_uploads():
    explorer = teach.CamExplorer("cat")
    before = explorer.picture.value
    _upload(explorer, "at work.png", _png(skimage.data.camera()))
    own = explorer.picture.value
    assert own != before and not _has_problem(explorer) and "activation map of tripod" in explorer.words.value
    assert explorer.photo_menu.label == "own photo: at work.png"
    assert explorer.class_menu.label.startswith("tripod  (")
    explorer.photo_menu.value = "cat"
    assert explorer.picture.value == before, "one can go back to the photograph that was shown before"
    explorer.photo_menu.value = "own photo"
    assert explorer.picture.value == own
    _upload(explorer, "bike.png", _png(teach.load_photo("motorcycle").image))
    assert explorer.picture.value != own and explorer.photo_menu.label == "own photo: bike.png"
    assert [name for _, name in explorer.photo_menu.options] == [*teach.PHOTOS, "own photo"]


def test_cam_explorer_says_what_is_wrong_with_an_upload_and_forgets_it():
    explorer = teach.CamExplorer("cat")
    shown = explorer.picture.value
    _upload(explorer, "notes.txt", b"no image")
    assert _has_problem(explorer) and "notes.txt: expected an image file" in explorer.words.value
    assert explorer.picture.value == shown, "the last good picture stays"
    assert explorer.photo_menu.value == "cat" and explorer.upload.value == ()
    before, after = _move(explorer, explorer.stride, 32)
    assert before != after and not _has_problem(explorer)
    _upload(explorer, "notes.txt", b"no image")
    assert _has_problem(explorer), "the same file again"
    explorer.photo_menu.value = "coffee"
    assert not _has_problem(explorer)


def test_sampling_explorer():
    explorer = teach.SamplingExplorer()
    for control, value in ((explorer.num_samples, 300), (explorer.weight, 0.3), (explorer.class_menu, 0)):
        before, after = _move(explorer, control, value)
        assert before != after and not _has_problem(explorer)
    before = explorer.picture.value
    explorer.redraw.click()
    assert explorer.picture.value != before
    two = teach.SamplingExplorer([teach.imitated_example(3), teach.imitated_example(5)])
    before, after = _move(two, two.example, 1)
    assert before != after


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("out of <memory>"), "out of &lt;memory&gt;"),
        (MemoryError(), "MemoryError"),
        (OSError(28, "no space"), "no space"),
        (IndexError("far out"), "far out"),
    ],
)
def test_problems_are_shown_not_raised(monkeypatch, error, words):
    explorer = teach.SimilarityExplorer("coffee", size=32)

    def broken(*arguments, **settings):
        raise error

    monkeypatch.setattr(similarity, "descend", broken)
    monkeypatch.setattr(similarity, "snap_example", broken)
    shown = explorer.picture.value
    for act in (explorer.descend.click, explorer.reset.click, lambda: setattr(explorer.photo_menu, "value", "cat")):
        explorer.say("nothing yet")
        act()
        assert explorer.picture.value == shown and _has_problem(explorer) and words in explorer.words.value
    explorer.say("nothing yet")
    monkeypatch.setattr(explorer, "draw", broken)
    before, after = _move(explorer, explorer.mu, 0.0)
    assert before == after and _has_problem(explorer) and words in explorer.words.value
    sampling = teach.SamplingExplorer([teach.imitated_example(3), teach.imitated_example(5)])
    monkeypatch.setattr(sampling, "load", broken)
    sampling.example.value = 1
    assert _has_problem(sampling) and words in sampling.words.value


# --- the random walk ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example():
    return teach.imitated_walk()


def test_scores_are_those_of_the_label_maps(example):
    picture = teach.render_walk(example, alpha=4, beta=3, log_t=4)
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
    good = teach.render_walk(example, alpha=6, beta=8, log_t=6).values
    assert good["iou"] > good["iou_before"] and good["contour_f"] > good["contour_f_before"] + 0.1
    leaking = teach.render_walk(example, alpha=6, beta=1, log_t=10).values
    assert leaking["contour_f"] < good["contour_f"] - 0.1


def test_ignored_pixels_do_not_count(example):
    void = example.mask.copy()
    void[:, 48:] = 255
    half = teach.render_walk(example._replace(mask=void)).values
    labels = walk_cam(example.cam, example.affinity, example.size).argmax(0).numpy()[:, :48]
    mask = example.mask[:, :48]
    found = [k for k in range(1, len(example.cam) + 1)]
    iou = [((labels == k) & (mask == k)).sum() / max(((labels == k) | (mask == k)).sum(), 1) for k in found]
    assert half["iou"] == pytest.approx(np.mean(iou))


def test_without_a_mask_there_are_no_scores(example):
    picture = teach.render_walk(example._replace(mask=None))
    assert set(picture.values) == {"covered"} and "IoU" not in picture.alt


def test_an_image_of_background_only_is_walked_and_not_scored(example):
    nothing = example._replace(cam=example.cam[:0], mask=np.zeros_like(example.mask))
    for crf in (None, CRFConfig(iterations=1)):
        picture = teach.render_walk(nothing, log_t=2, crf=crf)
        assert picture.values == {"covered": 0} and "IoU" not in picture.alt


def test_the_crf_moves_borders_to_edges_of_the_image(example):
    apart = example._replace(affinity=torch.full_like(example.affinity, 0.1))  # knows no edges
    settings = {"alpha": 4.0, "log_t": 0}
    walk = teach.render_walk(apart, **settings).values
    crf = CRFConfig(iterations=5, bilateral_sxy=20, gaussian_sxy=2)
    refined = teach.render_walk(apart, **settings, crf=crf).values
    assert refined["contour_f"] > walk["contour_f"] + 0.1


def test_walk_explorer_updates_one_picture_in_place(example):
    other = example._replace(title="no mask", mask=None)
    explorer = teach.WalkExplorer([example, other])
    picture, seen = explorer.picture, {explorer.picture.value}
    for control, value in ((explorer.alpha, 3.0), (explorer.beta, 2.0), (explorer.log_t, 2), (explorer.example, 1)):
        control.value = value
        assert explorer.picture.value not in seen
        seen.add(explorer.picture.value)
    assert explorer.picture is picture and "IoU" not in explorer.words.value


def test_walk_explorer_begins_with_the_settings_given(example):
    """Its first picture is the plain function's, and so is the one with the CRF, widths without a slider included."""
    crf = CRFConfig(iterations=2, bilateral_sxy=20, bilateral_srgb=9, gaussian_sxy=12, gaussian_compat=20)
    settings = {"alpha": 4.0, "beta": 12.0, "log_t": 2}
    explorer = teach.WalkExplorer([example], **settings, crf=crf)
    plain = teach.render_walk(example, **settings)
    assert explorer.picture.value == plain.png() and plain.alt in explorer.words.value
    assert "4 steps of the random walk with alpha 4 and beta 12" in plain.alt
    explorer.crf.value = True
    refined = teach.render_walk(example, **settings, crf=crf)
    assert explorer.picture.value == refined.png() and refined.alt in explorer.words.value
    assert "after a dense CRF (20 pixels, 9 grey levels, 2 rounds)" in refined.alt
    narrow = teach.render_walk(example, **settings, crf=crf.model_copy(update={"gaussian_sxy": 3}))
    assert narrow.png() != refined.png()


def test_settings_outside_a_slider_widen_it(example):
    explorer = teach.WalkExplorer([example], alpha=20, beta=0.5, log_t=11, crf=CRFConfig(bilateral_srgb=70))
    assert (explorer.alpha.value, explorer.alpha.max) == (20, 20)
    assert (explorer.beta.value, explorer.beta.min) == (0.5, 0.5)
    assert (explorer.log_t.value, explorer.color.value) == (11, 70)


def test_the_walk_s_crf_waits_until_a_slider_is_let_go(example):
    explorer = teach.WalkExplorer([example])
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
