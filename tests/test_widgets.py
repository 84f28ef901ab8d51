"""The explorers: colours, pictures, the numbers behind them, and the shells that wire them to widgets."""

from __future__ import annotations

import datetime
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from wsss_nb import widgets
from wsss_nb.cam import class_activation_map
from wsss_nb.errors import InputError
from wsss_nb.models import create_imagenet_classifier
from wsss_nb.similarity import similarity_weight
from wsss_nb.widgets import maps
from wsss_nb.widgets.canvas import ORANGE, Box, Canvas, Picture, color_table
from wsss_nb.widgets.render import Panel, render_panels


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small maps: several threads would only wait for each other."""
    with widgets.single_thread():
        yield


# --- colours -----------------------------------------------------------------------------------------------


def test_the_unit_scale_is_fixed_and_clips():
    table = color_table("viridis")
    values = np.array([[0.0, 1.0, 0.5], [-3.0, 7.0, np.nan]])
    expected = table[np.array([[0, 255, 128], [0, 255, 0]])]
    np.testing.assert_array_equal(maps.color_unit(values), expected)
    # a map that never reaches 1 is not stretched to it
    assert (maps.color_unit(np.full((2, 2), 0.2)) == table[51]).all()


def test_the_signed_scale_is_symmetric_with_zero_in_the_middle():
    colors = maps.color_signed(np.array([[-2.0, 0.0, 2.0, 9.0]]), 2.0)[0].astype(int)
    table = color_table("PuOr_r").astype(int)
    np.testing.assert_array_equal(colors, table[[0, 128, 255, 255]])
    assert colors[1].min() > 240, "zero is nearly white"
    with pytest.raises(ValueError, match="limit: expected a positive number, got 0"):
        maps.color_signed(np.zeros((2, 2)), 0)


def test_luminance_orders_the_activation_scale():
    """Readable without colour vision: brightness grows along the whole scale."""
    luminance = color_table("viridis") @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -0.5).all() and luminance[-1] - luminance[0] > 150


def test_label_colors():
    colors = maps.color_labels(np.array([[0, 1, 8, 9, 255]], np.uint8))[0]
    assert (colors[0] == maps.LABEL_COLORS[0]).all() and (colors[4] == 255).all()
    assert (colors[3] == colors[1]).all(), "the ninth class repeats the first, not the background"
    assert len(np.unique(maps.LABEL_COLORS, axis=0)) == 9


def test_overlay_by_hand():
    image = np.full((1, 1, 3), 100, np.uint8)
    colors = np.array([[[200, 0, 50]]], np.uint8)
    assert maps.overlay(image, colors, 0.25).tolist() == [[[125, 75, 88]]]
    assert maps.overlay(image, colors, 1.0).tolist() == colors.tolist()
    with pytest.raises(ValueError, match="strength"):
        maps.overlay(image, colors, 1.2)
    with pytest.raises(ValueError, match=r"colors: expected the image's shape \(1, 1, 3\), got \(2, 1, 3\)"):
        maps.overlay(image, np.zeros((2, 1, 3), np.uint8), 0.5)


def test_boundary_by_hand():
    labels = np.array([[0, 0, 2], [0, 0, 2], [1, 1, 1]])
    expected = np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    np.testing.assert_array_equal(maps.boundary(labels), expected)
    image = np.zeros((3, 3, 3), np.uint8)
    thin = maps.draw_boundary(image, labels, (255, 0, 0), width=1)
    thick = maps.draw_boundary(image, labels, (255, 0, 0), width=2)
    np.testing.assert_array_equal(thin[..., 0] > 0, expected)
    np.testing.assert_array_equal(thick[..., 0] > 0, [[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    assert image.max() == 0, "the image itself is left alone"


# --- drawing -----------------------------------------------------------------------------------------------


def test_dots_lines_and_crosses_land_where_asked():
    canvas = Canvas(60, 40)
    canvas.dot(20, 10, 5)
    canvas.line(np.array([[5.0, 30.0], [55.0, 30.0]]), (0, 0, 0), 3)
    canvas.cross(40, 15)
    pixels = canvas.pixels()
    assert tuple(pixels[10, 20]) == ORANGE
    assert (pixels[10, 30] == 255).all(), "nothing beside the dot"
    assert (pixels[30, 10:50] == 0).all() and (pixels[25, 10:50] == 255).all()
    assert (pixels[15, 40] == 255).all() and (pixels[13, 40 - 2] == 0).any()


def test_box_fractions():
    assert Box(10, 20, 100, 50).at(0.5, 1) == (60, 70)


def test_color_bar_runs_from_bottom_to_top():
    canvas = Canvas(60, 120)
    canvas.color_bar(Box(5, 10, 12, 100), "viridis", ("0", "1"))
    pixels = canvas.pixels().astype(int)
    table = color_table("viridis").astype(int)
    assert np.abs(pixels[12, 10] - table[250]).max() < 8 and np.abs(pixels[107, 10] - table[5]).max() < 8


def test_picture_encodings_agree_and_carry_the_description():
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    flat = np.full((40, 60, 3), 200, np.uint8)
    for pixels, mime in ((noise, "image/jpeg"), (flat, "image/png")):
        picture = Picture(pixels, "a description")
        with Image.open(io.BytesIO(picture.png())) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)
        data, metadata = picture._repr_mimebundle_()
        assert set(data) == {mime, "text/plain"} and metadata[mime]["alt"] == "a description"
    with Image.open(io.BytesIO(Picture(flat, "").jpeg())) as image:
        assert np.abs(np.asarray(image).astype(int) - 200).max() <= 2


def test_panels_are_laid_out_in_rows_with_legends():
    red = Panel("a", np.full((10, 20, 3), (255, 0, 0), np.uint8))
    blue = Panel("b", np.full((10, 20, 3), (0, 0, 255), np.uint8), legend="unit", note="note", cross=(5, 10))
    picture = render_panels([red, blue, red], "three", columns=2, panel_width=100)
    pixels = picture.pixels
    reds = np.argwhere((pixels == (255, 0, 0)).all(-1))
    assert reds[:, 1].max() < 115, "both red panels are in the first column"
    rows = np.unique(reds[:, 0])
    assert len(rows) == 96, "two panels of 50 rows, less their frames"
    assert picture.alt == "three"
    with pytest.raises(ValueError, match="panels: expected at least one, got none"):
        render_panels([], "")


def test_film_has_all_frames_and_one_palette():
    frames = [Picture(np.full((20, 30, 3), value, np.uint8), "") for value in (0, 100, 250)]
    film = widgets.make_film(frames, "grey & white", seconds=0.1, pause=0.5)
    with Image.open(io.BytesIO(film.gif)) as image:
        assert image.n_frames == 3 and image.size == (30, 20)
        assert image.info["duration"] == 500
        image.seek(1)
        assert abs(int(np.asarray(image.convert("RGB"))[5, 5, 0]) - 100) < 30
    assert 'alt="grey &amp; white"' in film._repr_mimebundle_()["text/html"]
    with pytest.raises(ValueError, match="frames: expected pictures of one size"):
        widgets.make_film([frames[0], Picture(np.zeros((5, 5, 3), np.uint8), "")], "")


# --- photographs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", widgets.PHOTOS)
def test_photographs_load_without_download(name):
    photo = widgets.load_photo(name)
    assert min(photo.image.shape[:2]) == 320 and photo.image.dtype == np.uint8
    assert photo.classes
    if photo.mask is not None:
        assert photo.mask.shape == photo.image.shape[:2] and 0.05 < photo.mask.mean() < 0.9


def test_outlines_are_on_their_objects():
    cup = widgets.load_photo("coffee")
    assert cup.mask[110, 230] and not cup.mask[20, 20] and not cup.mask[300, 240]
    cat = widgets.load_photo("cat")
    assert cat.mask[110, 190] and not cat.mask[300, 450] and not cat.mask[50, 5]


def test_unknown_photo():
    with pytest.raises(ValueError, match=r"name: expected one of .*cat.*, got 'dog'"):
        widgets.load_photo("dog")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
def test_uploads_of_any_mode_become_rgb(mode):
    buffer = io.BytesIO()
    kind = "TIFF" if mode == "CMYK" else "PNG"
    Image.new("RGB", (80, 60), (200, 100, 50)).convert(mode).save(buffer, format=kind)
    photo = widgets.read_photo(buffer.getvalue())
    assert photo.image.shape == (320, 427, 3)
    if mode in {"RGB", "RGBA"}:
        assert (photo.image[100, 100] == (200, 100, 50)).all()


def test_uploads_follow_their_orientation():
    image = Image.new("RGB", (80, 60))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", exif=exif)
    assert widgets.read_photo(buffer.getvalue()).image.shape == (427, 320, 3)


def test_bad_uploads_are_input_errors():
    with pytest.raises(InputError, match=r"notes.txt: expected an image file, got"):
        widgets.read_photo(b"not an image", "notes.txt")
    buffer = io.BytesIO()
    Image.new("RGB", (500, 10)).save(buffer, format="PNG")
    with pytest.raises(InputError, match="expected sides of at most 4 to 1, got 500 x 10"):
        widgets.read_photo(buffer.getvalue())


# --- numbers -----------------------------------------------------------------------------------------------


def test_class_maps_average_to_the_classifier_s_logits():
    image = widgets.load_photo("cat").image
    logits = create_imagenet_classifier(32)(widgets.to_tensor(image))[0]
    assert int(logits.argmax()) == 285
    torch.testing.assert_close(widgets.class_logits(image, 32).mean((1, 2)), logits, atol=1e-3, rtol=1e-4)


def test_activation_by_hand():
    logits = torch.tensor([[[-1.0, 2.0]], [[0.0, 1.0]]])
    torch.testing.assert_close(widgets.activation(logits, 0), torch.tensor([[0.0, 1.0]]))
    softmax = widgets.activation(logits, 0, "softmax")
    torch.testing.assert_close(softmax, torch.sigmoid(torch.tensor([[-1.0, 1.0]])))
    nothing = widgets.activation(-torch.ones(1, 2, 2), 0)
    assert nothing.max() == 0 and torch.isfinite(nothing).all()
    with pytest.raises(ValueError, match=r"index: expected 0\.\.1, got 2"):
        widgets.activation(logits, 2)
    with pytest.raises(ValueError, match="normalize"):
        widgets.activation(logits, 0, "sigmoid")


def test_score_of_a_map_by_hand():
    foreground = np.array([[0.9, 0.4], [0.6, 0.1]])
    labels, values = widgets.score_map(foreground, "threshold:0.5", np.array([[True, True], [False, False]]))
    assert labels.tolist() == [[1, 0], [1, 0]]
    assert values["covered"] == 0.5 and values["iou"] == pytest.approx(1 / 3)
    _, values = widgets.score_map(foreground, "threshold:0.5", None)
    assert set(values) == {"covered"}
    _, values = widgets.score_map(np.zeros((4, 4)), "threshold:0.5", np.zeros((4, 4), bool))
    assert values["iou"] == 0 and values["contour_f"] == 1


def test_where_the_gradient_goes():
    logits = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    average = widgets.loss_gradient(logits, labels, 0.0, pooling="average")[0]
    # d/ds of -1/3 log sigmoid(mean s) is -(1 - sigmoid) / (3 * 20), the same for every pixel
    expected = (torch.sigmoid(logits[0].mean((1, 2))) - labels[0]) / 60
    torch.testing.assert_close(average, expected[:, None, None].expand(3, 4, 5))
    most = widgets.loss_gradient(logits, labels, 0.0)[0]
    places = {int(i) for i in class_activation_map(logits)[0].flatten(1).argmax(1)}
    assert set(torch.nonzero(most.abs().sum(0).flatten()).flatten().tolist()) == places
    exact = widgets.loss_gradient(logits, labels, 1.0, None)
    many = widgets.loss_gradient(logits, labels, 1.0, 100_000, seed=1)
    torch.testing.assert_close(many, exact, atol=2e-3, rtol=0.05)
    one = widgets.loss_gradient(logits, labels, 1.0, 1, seed=1)
    assert torch.count_nonzero(one.abs().sum(1)) <= 3 < torch.count_nonzero(exact.abs().sum(1))


@pytest.mark.parametrize("mu", [-2.0, 0.0, 2.5, 6.0])
def test_f_is_zero_at_the_cross_over(mu):
    delta = torch.tensor([widgets.cross_over(mu)], dtype=torch.float64)
    assert abs(float(similarity_weight(delta, mu))) < 1e-9


def test_similarity_field_against_all_pairs_in_numpy():
    rng = np.random.default_rng(0)
    image, a = rng.random((3, 5, 6)), rng.random((2, 5, 6))
    mu, sigma = 1.5, 2.0
    x, y = image.reshape(3, -1).T, a.reshape(2, -1).T
    places = np.stack(np.mgrid[0:5, 0:6], -1).reshape(-1, 2)
    delta = np.abs(x[:, None] - x[None]).mean(-1)
    with np.errstate(divide="ignore"):
        f = np.tanh(mu + np.log(delta / (1 - delta)))
    w = np.exp(-((places[:, None] - places[None]) ** 2).sum(-1) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    g = ((y[:, None] - y[None]) ** 2).sum(-1) / 2
    loss, gradient = widgets.similarity_field(torch.tensor(a)[None], torch.tensor(image)[None], mu, sigma)
    assert loss == pytest.approx(-(w * f * g).sum() / 30, rel=1e-6)
    M = w * f
    expected = -2 * (M.sum(1)[:, None] * y - M @ y)  # times H W
    np.testing.assert_allclose(gradient.numpy().reshape(2, -1).T, expected, rtol=1e-5, atol=1e-9)


def test_descent_snaps_to_the_fish():
    image, foreground, mask = widgets.snap_example("fish")
    path = widgets.descend(foreground, image, mu=2.5, sigma=3.0, steps=15)
    assert path.maps.shape == (16, 56, 56) and path.losses.shape == (16,)
    assert (np.diff(path.losses) < 0).all(), "every step goes down"
    before, after = (widgets.score_map(m, "complement", mask)[1]["contour_f"] for m in path.maps[[0, -1]])
    assert after > before + 0.15 and after > 0.9


@pytest.mark.parametrize("name", [*widgets.PHOTOS, "fish"])
def test_snap_examples(name):
    image, foreground, mask = widgets.snap_example(name, 32)
    assert image.shape == (1, 3, 32, 32) and foreground.shape == (32, 32)
    assert foreground.min() >= 0 and 0.5 < foreground.max() <= 1
    assert mask is None or mask.shape == (32, 32)


# --- lessons -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lesson():
    """A few fish with their features."""
    fish = widgets.draw_fish(12)
    return fish, widgets.frozen_features(fish.images, side=128)


def test_fish_labels_match_their_masks(lesson):
    fish, _ = lesson
    for labels, mask, part in zip(fish.labels, fish.masks, fish.parts, strict=True):
        assert set(torch.nonzero(labels).flatten().tolist()) == {0, *mask.unique().tolist()}
        assert ((part > 0) == (mask > 0)).all()
    assert fish.names[:2] == ("background", "clownfish") and len(fish.names) == 4
    assert fish.picture(0).shape == (96, 96, 3)


def test_features_are_standardised(lesson):
    _, features = lesson
    assert features.shape == (12, 112, 8, 8)
    assert features.mean((0, 2, 3)).abs().max() < 1e-3
    assert (features.std((0, 2, 3)) - 1).abs().median() < 0.05


def _loss(logits, labels, generator):
    assert isinstance(generator, torch.Generator)
    target = labels[:, :, None, None].expand_as(logits)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target)


def test_training_learns_repeats_and_leaves_its_start_alone(lesson):
    fish, features = lesson
    steps = []
    head, losses = widgets.train_head(
        _loss, features, fish.labels, steps=40, watch=lambda step, _: steps.append(step)
    )
    assert steps == list(range(41)) and len(losses) == 40
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    again, repeated = widgets.train_head(_loss, features, fish.labels, steps=40)
    assert repeated == losses
    kept = [p.clone() for p in head.parameters()]
    widgets.train_head(_loss, features, fish.labels, steps=2, head=head)
    assert all(torch.equal(a, b) for a, b in zip(kept, head.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), head.parameters(), strict=True))


def test_scores_of_perfect_maps(lesson):
    fish, features = lesson
    perfect = torch.nn.functional.one_hot(fish.masks.long(), 4).permute(0, 3, 1, 2).float()
    scores = widgets.score_cams(perfect, fish)
    assert scores == {"head": 1, "body": 1, "background": 1, "miou": 1, "contour_f": 1}
    nothing = torch.zeros_like(perfect)
    nothing[:, 0] = 1
    scores = widgets.score_cams(nothing, fish)
    assert scores["head"] == scores["body"] == 0 and scores["background"] == 1
    head, _ = widgets.train_head(_loss, features, fish.labels, steps=1)
    cams = widgets.fish_cams(head, features, fish.labels)
    assert cams.shape == (12, 4, 96, 96)
    assert (cams * (fish.labels == 0)[:, :, None, None]).abs().max() == 0, "absent classes are zero"


# --- pictures of the explorers -----------------------------------------------------------------------------


def _similarity(**settings):
    image, foreground, mask = widgets.snap_example("coffee", 40)
    return widgets.render_similarity(image, foreground, mask=mask, **settings)


def test_similarity_picture_has_the_numbers_and_changes_with_every_setting():
    base = {"mu": 2.0, "sigma": 3.0, "pixel": (10, 12)}
    picture = _similarity(**base)
    assert picture.values["cross_over"] == pytest.approx(1 / (1 + math.e**2))
    assert set(picture.values) == {"loss", "cross_over", "contour_f"}
    assert f"{picture.values['loss']:.5f}" in picture.alt and "(10, 12)" in picture.alt
    np.testing.assert_array_equal(picture.pixels, _similarity(**base).pixels)
    for change in ({"mu": 3.0}, {"sigma": 4.0}, {"pixel": (20, 12)}, {"pixel": (10, 20)}):
        assert (_similarity(**{**base, **change}).pixels != picture.pixels).any()
    with pytest.raises(ValueError, match=r"pixel: expected a place in \(40, 40\), got \(40, 0\)"):
        _similarity(pixel=(40, 0))


@pytest.mark.parametrize("mu", [-2.0, 6.0])
@pytest.mark.parametrize("sigma", [0.5, 12.0])
@pytest.mark.parametrize("pixel", [(0, 0), (39, 39)])
def test_similarity_picture_at_the_ends_of_the_sliders(mu, sigma, pixel):
    values = _similarity(mu=mu, sigma=sigma, pixel=pixel).values
    assert all(math.isfinite(value) for value in values.values())


def test_similarity_picture_of_a_constant_map_and_image():
    image, foreground = torch.full((1, 3, 16, 16), 0.5), torch.full((16, 16), 0.5)
    picture = widgets.render_similarity(image, foreground)
    assert picture.values["loss"] == pytest.approx(0, abs=1e-9)


def test_cam_picture():
    photo = widgets.load_photo("coffee")
    cup = widgets.activation(widgets.photo_logits("coffee", 32), 968)
    picture = widgets.render_cam(photo.image, cup, mask=photo.mask, rule="threshold:0.3", name="cup")
    assert 0.3 < picture.values["iou"] < 0.8 and 0 < picture.values["contour_f"] < 1
    assert "cup" in picture.alt and "threshold:0.3" in picture.alt
    assert f"IoU {100 * picture.values['iou']:.1f}, contour F" in picture.alt, "as the picture says it"
    stricter = widgets.render_cam(photo.image, cup, mask=photo.mask, rule="threshold:0.8", name="cup")
    assert stricter.values["covered"] < picture.values["covered"]
    marked = widgets.render_cam(photo.image, cup, mask=photo.mask, rule="threshold:0.3", pooling="max")
    assert (marked.pixels != picture.pixels).any()
    with pytest.raises(ValueError, match="rule"):
        widgets.render_cam(photo.image, cup, rule="median")


def test_sampling_picture_shows_the_draws_that_the_loss_used():
    example = widgets.imitated_example()
    k = 2
    arguments = (example.image, example.logits, example.labels)
    picture = widgets.render_sampling(*arguments, index=k, num_samples=200, name="zebrafish")
    assert picture.values["map_mean"] < picture.values["drawn_mean"] <= picture.values["map_max"]
    cam = class_activation_map(example.logits)[0, k]
    expected = float((cam**2).sum() / cam.sum())  # E[a] under Eq. 4
    assert picture.values["drawn_mean"] == pytest.approx(expected, abs=0.1)
    other = widgets.render_sampling(*arguments, index=k, num_samples=200, name="zebrafish", seed=1)
    assert (other.pixels != picture.pixels).any()


def test_outline_on_an_enlarged_image():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    line = (255, 0, 0)
    large = maps.outlined(image, np.array([[0, 1], [0, 1]]), 4, line)
    enlarged = np.kron(image, np.ones((4, 4, 1), np.uint8))
    assert (large[:, 3:5] == line).all(), "one pixel on either side of the border"
    np.testing.assert_array_equal(large[:, [0, 1, 2, 5, 6, 7]], enlarged[:, [0, 1, 2, 5, 6, 7]])


def test_readme_shows_every_explorer_in_words_and_pictures():
    root = Path(__file__).parent.parent
    shown = dict(
        (path, words)
        for words, path in re.findall(r"!\[([^\]]+)\]\((figures/screenshots/[^)]+)\)", _text(root))
    )
    assert sorted(shown) == [
        f"figures/screenshots/{name}.png" for name in ("cam", "sampling", "similarity", "walk")
    ]
    for path, words in shown.items():
        assert len(words) > 60 and (root / path).stat().st_size < 250_000
        with Image.open(root / path) as picture:
            assert picture.width > 700


def _text(root):
    return (root / "README.md").read_text(encoding="utf-8")


# --- shells ------------------------------------------------------------------------------------------------


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


def test_similarity_explorer_descends_and_resets():
    explorer = widgets.SimilarityExplorer("fish", size=40)
    start = dict(explorer.values)
    explorer.descend.click()
    assert explorer.values["contour_f"] > start["contour_f"] and explorer.values["loss"] < start["loss"]
    explorer.reset.click()
    assert explorer.values == start


def test_sliders_can_go_to_their_ends():
    explorer = widgets.SimilarityExplorer("coffee", size=32)
    for slider in (explorer.mu, explorer.sigma, explorer.row, explorer.column):
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
        (explorer.pooling, True), (explorer.photo_menu, "cat"),
    ):  # fmt: skip
        before, after = _move(explorer, control, value)
        assert before != after and not _has_problem(explorer), control.description
    assert explorer.threshold.disabled and explorer.class_menu.value == 285
    explorer.photo_menu.value = "astronaut"
    assert "iou" not in explorer.values, "no outline, no score"


def test_cam_explorer_refines_by_crf():
    explorer = widgets.CamExplorer("coffee")
    plain = explorer.values["contour_f"]
    explorer.crf.value = True
    assert not _has_problem(explorer) and explorer.values["contour_f"] > plain


def test_cam_explorer_takes_uploads_and_says_what_is_wrong_with_them():
    explorer = widgets.CamExplorer("cat")
    buffer = io.BytesIO()
    Image.fromarray(widgets.load_photo("motorcycle").image).save(buffer, format="PNG")

    def upload(name, content):
        when = datetime.datetime.now(datetime.timezone.utc)
        file = {"name": name, "type": "image/png", "size": len(content), "last_modified": when}
        explorer.upload.value = ({**file, "content": memoryview(content)},)

    before = explorer.picture.value
    upload("bike.png", buffer.getvalue())
    assert explorer.picture.value != before and not _has_problem(explorer)
    shown = explorer.picture.value
    upload("notes.txt", b"no image")
    assert _has_problem(explorer) and "notes.txt: expected an image file" in explorer.words.value
    assert explorer.picture.value == shown, "the last good picture stays"
    explorer.photo_menu.value = "coffee"
    assert not _has_problem(explorer) and explorer.upload.value == ()


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


def test_problems_are_shown_not_raised(monkeypatch):
    explorer = widgets.SimilarityExplorer("coffee", size=32)

    def broken():
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr(explorer, "draw", broken)
    before, after = _move(explorer, explorer.mu, 0.0)
    assert before == after and _has_problem(explorer) and "out of &lt;memory&gt;" in explorer.words.value


def test_single_thread_restores_the_setting():
    threads = torch.get_num_threads()
    with pytest.raises(KeyError), widgets.single_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == threads


# --- loss plot ---------------------------------------------------------------------------------------------


def _history(epochs):
    return [
        {"epoch": e, "step": 9 * e, "loss": 1 / e, "mu": 2.5, "seconds": 1.0} for e in range(1, epochs + 1)
    ]


def test_loss_plot_grows_in_place_and_ends_static(monkeypatch):
    shown = []
    monkeypatch.delenv("WSSS_NB_HEADLESS", raising=False)
    monkeypatch.setattr("wsss_nb.widgets.loss_plot.display", shown.append)
    plot = widgets.LossPlot("training")
    plot(_history(2))
    first, image = plot.image.value, plot.image
    plot(_history(3))
    assert plot.image is image and plot.image.value != first
    assert shown == [image], "shown once, then updated"
    plot.show(_history(3))
    assert len(shown) == 2 and shown[1].data == widgets.render_history(_history(3), "training")


def test_a_single_branch_is_not_numbered(monkeypatch):
    labels = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda *args, **looks: labels.append(looks["label"]) or plot(*args, **looks)
    )
    row = {"epoch": 1, "step": 2, "seconds": 1.0}
    widgets.render_history([{**row, "classification1": 0.5, "similarity": -0.1}])
    widgets.render_history([{**row, "classification1": 0.5, "classification2": 0.4}])
    assert labels == ["classification", "similarity", "classification1", "classification2"]


def test_loss_plot_is_silent_when_headless(monkeypatch):
    shown = []
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    monkeypatch.setattr("wsss_nb.widgets.loss_plot.display", shown.append)
    plot = widgets.LossPlot("training")
    plot(_history(2))
    assert not shown
    plot.show(_history(2))
    assert len(shown) == 1, "the static picture stays"
