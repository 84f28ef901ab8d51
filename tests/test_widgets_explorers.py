"""The explorers: shells that wire widgets to pictures, and what they do with files and errors."""

from __future__ import annotations

import datetime
import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from wsss_nb import widgets
from wsss_nb.widgets import similarity


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small maps: several threads would only wait for each other."""
    with widgets.single_thread():
        yield


def _move(explorer, control, value):
    """Set a control as the browser would; the picture's bytes before and after."""
    before = explorer.picture.value
    control.value = value
    return before, explorer.picture.value


def _has_problem(explorer):
    return "#b00020" in explorer.words.value


def test_similarity_explorer_updates_one_picture_in_place():
    explorer = widgets.SimilarityExplorer("fish", size=32)
    image = explorer.picture
    for control, value in (
        (explorer.mu, 1.0), (explorer.sigma, 6.0), (explorer.row, 3), (explorer.column, 30),
        (explorer.photo_menu, "cat"),
    ):  # fmt: skip
        before, after = _move(explorer, control, value)
        assert before != after and explorer.picture is image and not _has_problem(explorer)
    assert 'role="status"' in explorer.words.value
    assert "Feature similarity around pixel (3, 30)" in explorer.words.value
    assert image.tooltip is None, "JupyterLab cannot open an image with a tooltip"


def test_similarity_explorer_descends_as_far_as_asked_and_resets():
    explorer = widgets.SimilarityExplorer("fish", size=40)
    start = dict(explorer.values)
    image, foreground, _ = widgets.snap_example("fish", 40)
    explorer.steps.value = 5
    assert explorer.values == start, "the slider alone changes nothing"
    explorer.descend.click()
    explorer.steps.value = 3
    explorer.descend.click()
    five = widgets.descend(foreground, image, steps=5).maps[-1]
    eight = widgets.descend(torch.from_numpy(five), image, steps=3).maps[-1]
    np.testing.assert_allclose(explorer.foreground.numpy(), eight, atol=1e-6)
    assert explorer.values["contour_f"] > start["contour_f"] and explorer.values["loss"] < start["loss"]
    assert explorer.values["contour_f_before"] == start["contour_f"], (
        "the first map's, however often one descends"
    )
    assert "after 8 steps of descent contour F" in explorer.words.value
    explorer.reset.click()
    assert explorer.values == start and "steps" not in explorer.words.value
    explorer.descend.click()
    explorer.photo_menu.value = "cat"
    assert "steps" not in explorer.words.value, "another image has not descended"


def test_sliders_can_go_to_their_ends():
    explorer = widgets.SimilarityExplorer("coffee", size=32)
    for slider in (explorer.mu, explorer.sigma, explorer.row, explorer.column, explorer.steps):
        for value in (slider.min, slider.max):
            slider.value = value
            assert not _has_problem(explorer)
    cam = widgets.CamExplorer("cat")
    for slider in (cam.strength, cam.threshold):
        for value in (slider.min, slider.max):
            slider.value = value
            assert not _has_problem(cam)
    cam.rule.value = "power"
    for value in (cam.alpha.min, cam.alpha.max):
        cam.alpha.value = value
        assert not _has_problem(cam)


def test_cam_explorer():
    explorer = widgets.CamExplorer("coffee")
    assert explorer.class_menu.value == 968 and explorer.alpha.disabled and not explorer.threshold.disabled
    for control, value in (
        (explorer.class_menu, 967), (explorer.stride, 32), (explorer.normalize, "softmax"),
        (explorer.strength, 0.2), (explorer.threshold, 0.7), (explorer.rule, "complement"),
        (explorer.pooling, "max"), (explorer.photo_menu, "cat"),
    ):  # fmt: skip
        before, after = _move(explorer, control, value)
        assert before != after and not _has_problem(explorer), control.description
    assert explorer.threshold.disabled and explorer.class_menu.value == 285
    explorer.photo_menu.value = "astronaut"
    assert "iou" not in explorer.values, "no outline, no score"


def test_the_menu_offers_every_class_the_likely_ones_first():
    explorer = widgets.CamExplorer("coffee")
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
    explorer = widgets.CamExplorer("coffee")

    def expected(index):
        s = widgets.photo_logits("coffee", explorer.stride.value)
        scores = {"average": s.mean((1, 2)), "max": s.flatten(1).max(1).values}
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
    explorer = widgets.CamExplorer("coffee")
    plain = explorer.values["contour_f"]
    explorer.crf.value = True
    assert not _has_problem(explorer) and explorer.values["contour_f"] > plain


def test_the_crf_waits_until_a_slider_is_let_go_and_is_kept_while_it_does_not_change(monkeypatch):
    refine, calls, said = widgets.refine_map, [], []
    monkeypatch.setattr(
        "wsss_nb.widgets.explorers.refine_map", lambda *args: calls.append(args[2]) or refine(*args)
    )
    explorer = widgets.CamExplorer("coffee")
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
    explorer = widgets.CamExplorer("cat")
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
    _upload(explorer, "bike.png", _png(widgets.load_photo("motorcycle").image))
    assert explorer.picture.value != own and explorer.photo_menu.label == "own photo: bike.png"
    assert [name for _, name in explorer.photo_menu.options] == [*widgets.PHOTOS, "own photo"]


def test_cam_explorer_says_what_is_wrong_with_an_upload_and_forgets_it():
    explorer = widgets.CamExplorer("cat")
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
    explorer = widgets.SamplingExplorer()
    for control, value in ((explorer.num_samples, 300), (explorer.weight, 0.3), (explorer.class_menu, 0)):
        before, after = _move(explorer, control, value)
        assert before != after and not _has_problem(explorer)
    before = explorer.picture.value
    explorer.redraw.click()
    assert explorer.picture.value != before
    two = widgets.SamplingExplorer([widgets.imitated_example(3), widgets.imitated_example(5)])
    before, after = _move(two, two.example, 1)
    assert before != after


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("out of <memory>"), "out of &lt;memory&gt;"), (MemoryError(), "MemoryError"),
        (OSError(28, "no space"), "no space"), (IndexError("far out"), "far out"),
    ],
)  # fmt: skip
def test_problems_are_shown_not_raised(monkeypatch, error, words):
    explorer = widgets.SimilarityExplorer("coffee", size=32)

    def broken(*arguments, **settings):
        raise error

    monkeypatch.setattr(similarity, "descend", broken)
    monkeypatch.setattr(similarity, "snap_example", broken)
    shown = explorer.picture.value
    for act in (
        explorer.descend.click,
        explorer.reset.click,
        lambda: setattr(explorer.photo_menu, "value", "cat"),
    ):
        explorer.say("nothing yet")
        act()
        assert explorer.picture.value == shown and _has_problem(explorer) and words in explorer.words.value
    explorer.say("nothing yet")
    monkeypatch.setattr(explorer, "draw", broken)
    before, after = _move(explorer, explorer.mu, 0.0)
    assert before == after and _has_problem(explorer) and words in explorer.words.value
    sampling = widgets.SamplingExplorer([widgets.imitated_example(3), widgets.imitated_example(5)])
    monkeypatch.setattr(sampling, "_list_classes", broken)
    sampling.example.value = 1
    assert _has_problem(sampling) and words in sampling.words.value
