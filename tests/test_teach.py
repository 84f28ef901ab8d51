"""The lessons' colours and pictures, their photographs, and the numbers behind the explorers."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import skimage.color
import torch
from matplotlib.axes import Axes
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from wsss_nb import teach
from wsss_nb.cam import class_activation_map
from wsss_nb.crf import CRFConfig, dense_crf
from wsss_nb.models.networks import create_imagenet_classifier
from wsss_nb.similarity import MU_RANGE, feature_similarity
from wsss_nb.system.errors import InputError
from wsss_nb.teach import Panel, photos, pictures, render_panels, similarity
from wsss_nb.teach.pictures import LABEL_COLORS, ORANGE, Box, Canvas, Picture, color_table

# --- colours -----------------------------------------------------------------------------------------------


def test_the_unit_scale_is_fixed_and_clips():
    table = color_table("viridis")
    values = np.array([[0.0, 1.0, 0.5], [-3.0, 7.0, np.nan]])
    np.testing.assert_array_equal(teach.color_unit(values), table[np.array([[0, 255, 128], [0, 255, 0]])])
    # a map that never reaches 1 is not stretched to it
    assert (teach.color_unit(np.full((2, 2), 0.2)) == table[51]).all()


def test_the_signed_scale_is_symmetric_with_zero_in_the_middle():
    colors = teach.color_signed(np.array([[-2.0, 0.0, 2.0, 9.0]]), 2.0)[0].astype(int)
    np.testing.assert_array_equal(colors, color_table("PuOr_r")[[0, 128, 255, 255]])
    assert colors[1].min() > 240, "zero is nearly white"
    with pytest.raises(ValueError, match="limit: expected a positive number, got 0"):
        teach.color_signed(np.zeros((2, 2)), 0)


def test_luminance_orders_the_activation_scale():
    """Readable without colour vision: brightness grows along the whole scale."""
    luminance = color_table("viridis") @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -0.5).all() and luminance[-1] - luminance[0] > 150


def test_label_colors():
    colors = teach.color_labels(np.array([[0, 1, 20, 21, 255]], np.uint8))[0]
    assert (colors[0] == LABEL_COLORS[0]).all() and (colors[4] == 255).all()
    assert (colors[3] == colors[1]).all(), "the twenty-first class repeats the first, not the background"


def _as_seen(colors, seen):
    """Linear RGB through a matrix of Machado, Oliveira and Fernandes (2009), severity 1; CIELAB."""
    linear = skimage.color.rgb2xyz(colors[None] / 255) @ np.linalg.inv(skimage.color.rgb2xyz(np.eye(3)))
    return skimage.color.xyz2lab((linear @ np.array(seen).T).clip(0, 1) @ skimage.color.rgb2xyz(np.eye(3)))[0]


@pytest.mark.parametrize(
    "seen",
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    ],
    ids=["all cones", "protanopia", "deuteranopia"],
)
def test_twenty_classes_have_twenty_colors(seen):
    lab = _as_seen(np.vstack([LABEL_COLORS, [[255, 255, 255]]]).astype(float), seen)
    assert len(lab) == 22, "background, VOC's classes, and white for no label"
    apart = skimage.color.deltaE_ciede2000(lab[:, None], lab[None])[1:21][~np.eye(22, dtype=bool)[1:21]]
    assert apart.min() > 5, "a class from every other, from background and from white; 2.3 is just noticeable"


def test_label_key_names_what_is_there():
    names = ("background", "cat", "dog", "cow")
    found = teach.label_key(names, np.array([[0, 3]], np.uint8), np.array([[2, 255]], np.uint8))
    colors = [tuple(LABEL_COLORS[k].tolist()) for k in (0, 2, 3)]
    assert found == (*zip(("background", "dog", "cow"), colors, strict=True), ("no label", (255, 255, 255)))
    with pytest.raises(ValueError, match=r"label_maps: expected labels 0\.\.3 or 255, got 4"):
        teach.label_key(names, np.array([[4]]))


def test_overlay_by_hand():
    image = np.full((1, 1, 3), 100, np.uint8)
    colors = np.array([[[200, 0, 50]]], np.uint8)
    assert teach.overlay(image, colors, 0.25).tolist() == [[[125, 75, 88]]]
    assert teach.overlay(image, colors, 1.0).tolist() == colors.tolist()
    with pytest.raises(ValueError, match="strength"):
        teach.overlay(image, colors, 1.2)
    with pytest.raises(ValueError, match=r"colors: expected the image's shape \(1, 1, 3\), got \(2, 1, 3\)"):
        teach.overlay(image, np.zeros((2, 1, 3), np.uint8), 0.5)


def test_borders_by_hand():
    labels, image = np.array([[0, 0, 2], [0, 0, 2], [1, 1, 1]]), np.zeros((3, 3, 3), np.uint8)
    thin, thick = (teach.draw_boundary(image, labels, (255, 0, 0), width=width)[..., 0] > 0 for width in (1, 2))
    np.testing.assert_array_equal(thin, [[0, 1, 0], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(thick, [[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    assert image.max() == 0, "the image itself is left alone"


def test_outline_on_an_enlarged_image():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    line = (255, 0, 0)
    large = pictures.outlined(image, np.array([[0, 1], [0, 1]]), 4, line)
    enlarged = np.kron(image, np.ones((4, 4, 1), np.uint8))
    assert (large[:, 3:5] == line).all(), "one pixel on either side of the border"
    np.testing.assert_array_equal(large[:, [0, 1, 2, 5, 6, 7]], enlarged[:, [0, 1, 2, 5, 6, 7]])


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
    assert Box(10, 20, 100, 50).at(0.5, 1) == (60, 70)


def test_color_bar_runs_from_bottom_to_top():
    canvas = Canvas(60, 120)
    canvas.color_bar(Box(5, 10, 12, 100), "viridis", ("0", "0.5", "1"))
    pixels, table = canvas.pixels().astype(int), color_table("viridis").astype(int)
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
    reds = np.argwhere((picture.pixels == (255, 0, 0)).all(-1))
    assert reds[:, 1].max() < 115, "both red panels are in the first column"
    assert len(np.unique(reds[:, 0])) == 96, "two panels of 50 rows, less their frames"
    assert picture.alt == "three"
    with pytest.raises(ValueError, match="panels: expected at least one, got none"):
        render_panels([], "")


def test_a_panel_may_draw_itself():
    boxes = []
    panel = Panel("a", np.zeros((10, 20, 3), np.uint8), draw=lambda canvas, box: boxes.append(box))
    pixels = render_panels([panel], "own", panel_width=100).pixels
    assert boxes == [Box(10, 34, 100, 50)] and (pixels[34:] == 255).all(), "its pixels only give the shape"


def test_a_key_explains_colors_below_the_panels_and_wraps():
    panels = [Panel("a", np.full((10, 10, 3), 200, np.uint8))] * 2
    plain = render_panels(panels, "two", panel_width=100)
    red, blue = (255, 0, 0), (0, 0, 255)
    one = render_panels(panels, "two", panel_width=100, key=[("cat", red), ("dog", blue)])
    grown = one.pixels.shape[0] - plain.pixels.shape[0]
    assert one.pixels.shape[1] == plain.pixels.shape[1] and 0 < grown < 40
    np.testing.assert_array_equal(one.pixels[: plain.pixels.shape[0] - 10], plain.pixels[:-10])
    places = {}
    for color in (red, blue):
        found = np.argwhere((one.pixels == color).all(-1))
        assert len(found) == 100, "a square of twelve pixels less its rim"
        places[color] = found.min(0)
    assert places[red][0] == places[blue][0] > 130 and places[red][1] < places[blue][1]
    two = render_panels(panels, "two", panel_width=100, key=[("a long name " * 2, red), ("dog", blue)])
    rows = {color: np.argwhere((two.pixels == color).all(-1)).min(0) for color in (red, blue)}
    assert rows[red][0] < rows[blue][0] and rows[red][1] == rows[blue][1]
    assert two.pixels.shape[0] - one.pixels.shape[0] == rows[blue][0] - rows[red][0]


def test_film_has_all_frames_and_one_palette():
    frames = [Picture(np.full((20, 30, 3), value, np.uint8), "") for value in (0, 100, 250)]
    film = teach.make_film(frames, "grey & white", seconds=0.1, pause=0.5)
    with Image.open(io.BytesIO(film.gif)) as image:
        assert image.n_frames == 3 and image.size == (30, 20)
        assert image.info["duration"] == 500
        image.seek(1)
        assert abs(int(np.asarray(image.convert("RGB"))[5, 5, 0]) - 100) < 30
    assert 'alt="grey &amp; white"' in film._repr_mimebundle_()["text/html"]
    for wrong in ([], [frames[0], Picture(np.zeros((5, 5, 3), np.uint8), "")]):
        with pytest.raises(ValueError, match="frames: expected pictures of one size"):
            teach.make_film(wrong, "")


def test_a_chart_is_its_figure_in_pixels_with_a_description():
    figure = plt.figure(figsize=(2, 1), dpi=90)
    figure.add_axes((0, 0, 1, 0.5)).set_axis_off()
    figure.axes[0].axvspan(0, 1, color="#ff0000")
    figure.axes[0].set(xlim=(0, 1))
    picture = teach.chart(figure, "red below")
    assert picture.pixels.shape == (90, 180, 3) and picture.pixels.dtype == np.uint8
    assert (picture.pixels[:40] == 255).all() and (picture.pixels[50:] == (255, 0, 0)).all()
    assert picture.alt == "red below"
    assert not plt.fignum_exists(figure.number), "or the notebook would show it a second time"
    with pytest.raises(ValueError, match="alt: expected a description of the chart in words, got ' '"):
        teach.chart(plt.figure(), " ")


# --- photographs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", teach.PHOTOS)
def test_photographs_load_without_download(name):
    photo = teach.load_photo(name)
    assert min(photo.image.shape[:2]) == 320 and photo.image.dtype == np.uint8
    assert photo.classes
    if photo.mask is not None:
        assert photo.mask.shape == photo.image.shape[:2] and 0.05 < photo.mask.mean() < 0.9


def test_outlines_are_on_their_objects():
    cup, cat, bike = (teach.load_photo(name).mask for name in ("coffee", "cat", "motorcycle"))
    assert cup[110, 230] and not cup[20, 20] and not cup[300, 240]
    assert cat[110, 190] and not cat[300, 450] and not cat[50, 5]
    scale = bike.shape[1] / 741
    for x, y in ((205, 318), (598, 373), (300, 250)):
        assert bike[round(scale * y), round(scale * x)], "both wheels and what is between them"
    assert not bike[10, 10]


def test_every_class_has_a_name_of_its_own():
    names = [teach.class_name(index) for index in range(1000)]
    assert len({name.casefold() for name in names}) == 1000 and all(name == name.strip() for name in names)
    known = {0: "tench", 1: "goldfish", 285: "Egyptian cat", 340: "zebra", 388: "giant panda", 404: "airliner"}
    known |= {463: "bucket", 504: "coffee mug", 670: "motor scooter", 872: "tripod", 954: "banana", 968: "cup"}
    known |= {134: "crane (bird)", 517: "crane", 999: "toilet tissue"}
    assert {index: names[index] for index in known} == known
    for wrong in (-1, 1000):
        with pytest.raises(ValueError, match=rf"index: expected 0\.\.999, got {wrong}"):
            teach.class_name(wrong)
    with pytest.raises(ValueError, match=r"name: expected one of .*cat.*, got 'dog'"):
        teach.load_photo("dog")


def _saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
def test_uploads_of_any_mode_become_rgb(mode):
    image = Image.new("RGB", (80, 60), (200, 100, 50)).convert(mode)
    photo = teach.read_photo(_saved(image, format="TIFF" if mode == "CMYK" else "PNG"))
    assert photo.image.shape == (320, 427, 3)
    if mode in {"RGB", "RGBA"}:
        assert (photo.image[100, 100] == (200, 100, 50)).all()


def test_bad_uploads_are_input_errors(monkeypatch):
    with pytest.raises(InputError, match=r"notes.txt: expected an image file, got another kind of file"):
        teach.read_photo(b"not an image", "notes.txt")
    with pytest.raises(InputError, match="expected sides of at most 4 to 1, got 500 x 10"):
        teach.read_photo(_saved(Image.new("RGB", (500, 10))))
    huge = _saved(Image.new("1", (8000, 7000)))  # some kilobytes, 56 million pixels
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"big\.png: expected at most 50 million pixels, got 8000 x 7000"):
        teach.read_photo(huge, "big.png")


def test_a_large_jpeg_is_turned_upright_and_decoded_to_a_fraction_of_its_size(monkeypatch):
    image = Image.new("RGB", (5200, 3900), (200, 100, 50))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    sizes = []
    resize = photos._resize
    monkeypatch.setattr(photos, "_resize", lambda image, side: sizes.append(image.size) or resize(image, side))
    photo = teach.read_photo(_saved(image, format="JPEG", exif=exif))
    assert photo.image.shape == (427, 320, 3) and np.abs(photo.image - (200.0, 100, 50)).max() < 4
    ((width, height),) = sizes
    assert min(width, height) >= 640 and max(width, height) <= 1300, "enough for the 320 pixels that are kept"


# --- numbers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coffee():
    """The photograph, its outline, and the map of its cup."""
    photo = teach.load_photo("coffee")
    return photo.image, photo.mask, teach.activation(teach.photo_logits("coffee", 32), 968)


def test_class_maps_average_to_the_classifier_s_logits():
    image = teach.load_photo("cat").image
    logits = create_imagenet_classifier(32)(torch.tensor(image).permute(2, 0, 1)[None] / 255)[0]
    assert int(logits.argmax()) == 285
    torch.testing.assert_close(teach.class_logits(image, 32).mean((1, 2)), logits, atol=1e-3, rtol=1e-4)


def test_the_crf_s_foreground_probability(coffee):
    image, _, cup = coffee
    full = teach.enlarge(cup, image.shape[:2])
    pair = np.stack([(1 - full) ** 2, full])
    expected = dense_crf(image.copy(), (pair / pair.sum(0)).astype(np.float32), iterations=1)
    found = teach.refine_map(image, cup, "power:2", CRFConfig(iterations=1))
    np.testing.assert_allclose(found, expected[1], atol=1e-5)


def test_activation_by_hand():
    logits = torch.tensor([[[-1.0, 2.0]], [[0.0, 1.0]]])
    torch.testing.assert_close(teach.activation(logits, 0), torch.tensor([[0.0, 1.0]]))
    softmax = teach.activation(logits, 0, "softmax")
    torch.testing.assert_close(softmax, torch.sigmoid(torch.tensor([[-1.0, 1.0]])))
    nothing = teach.activation(-torch.ones(1, 2, 2), 0)
    assert nothing.max() == 0 and torch.isfinite(nothing).all()
    with pytest.raises(ValueError, match=r"index: expected 0\.\.1, got 2"):
        teach.activation(logits, 2)
    with pytest.raises(ValueError, match="normalize"):
        teach.activation(logits, 0, "sigmoid")


def test_score_of_a_map_by_hand():
    foreground = np.array([[0.9, 0.4], [0.6, 0.1]])
    labels, values = teach.score_map(foreground, "threshold:0.5", np.array([[True, True], [False, False]]))
    assert labels.tolist() == [[1, 0], [1, 0]]
    assert values["covered"] == 0.5 and values["iou"] == pytest.approx(1 / 3)
    _, values = teach.score_map(foreground, "threshold:0.5", None)
    assert set(values) == {"covered"}
    _, values = teach.score_map(np.zeros((4, 4)), "threshold:0.5", np.zeros((4, 4), bool))
    assert values["iou"] == 0 and values["contour_f"] == 1


def test_where_the_gradient_goes():
    logits = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    average = teach.loss_gradient(logits, labels, 0.0, pooling="average")[0]
    # d/ds of -1/3 log sigmoid(mean s) is -(1 - sigmoid) / (3 * 20), the same for every pixel
    expected = (torch.sigmoid(logits[0].mean((1, 2))) - labels[0]) / 60
    torch.testing.assert_close(average, expected[:, None, None].expand(3, 4, 5))
    most = teach.loss_gradient(logits, labels, 0.0)[0]
    places = {int(i) for i in class_activation_map(logits)[0].flatten(1).argmax(1)}
    assert set(torch.nonzero(most.abs().sum(0).flatten()).flatten().tolist()) == places
    exact = teach.loss_gradient(logits, labels, 1.0, None)
    many = teach.loss_gradient(logits, labels, 1.0, 100_000, seed=1)
    torch.testing.assert_close(many, exact, atol=2e-3, rtol=0.05)
    one = teach.loss_gradient(logits, labels, 1.0, 1, seed=1)
    assert torch.count_nonzero(one.abs().sum(1)) <= 3 < torch.count_nonzero(exact.abs().sum(1))


@pytest.mark.parametrize("mu", [*MU_RANGE, 0.0, 2.5])
def test_f_is_zero_at_the_cross_over(mu):
    delta = torch.tensor([teach.cross_over(mu)], dtype=torch.float64)
    assert abs(float(feature_similarity(delta, mu))) < 1e-9


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
    loss, gradient = teach.similarity_field(torch.tensor(a)[None], torch.tensor(image)[None], mu, sigma)
    assert loss == pytest.approx(-(w * f * g).sum() / 30, rel=1e-6)
    M = w * f
    expected = -2 * (M.sum(1)[:, None] * y - M @ y)  # times H W
    np.testing.assert_allclose(gradient.numpy().reshape(2, -1).T, expected, rtol=1e-5, atol=1e-9)


def _contour_f(foreground, mask):
    return teach.score_map(foreground, "complement", mask)[1]["contour_f"]


def test_descent_snaps_to_the_fish():
    image, foreground, mask = teach.snap_example("fish")
    path = teach.descend(foreground, image, mu=2.5, sigma=3.0, steps=15)
    assert path.maps.shape == (16, 56, 56) and path.losses.shape == (16,)
    assert (np.diff(path.losses) < 0).all(), "every step goes down"
    assert _contour_f(path.maps[-1], mask) > max(_contour_f(path.maps[0], mask) + 0.15, 0.9)


@pytest.mark.parametrize("name", [*teach.PHOTOS, "fish"])
def test_snap_examples(name):
    image, foreground, mask = teach.snap_example(name, 32)
    assert image.shape == (1, 3, 32, 32) and foreground.shape == (32, 32)
    assert foreground.min() >= 0 and 0.5 < foreground.max() <= 1
    assert mask is None or mask.shape == (32, 32)


# --- lessons -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lesson():
    """A few fish with their features."""
    fish = teach.draw_fish(12)
    return fish, teach.frozen_features(fish.images, side=128)


def test_fish_labels_match_their_masks(lesson):
    fish, _ = lesson
    for labels, mask, part in zip(fish.labels, fish.masks, fish.parts, strict=True):
        assert set(torch.nonzero(labels).flatten().tolist()) == {0, *mask.unique().tolist()}
        assert ((part > 0) == (mask > 0)).all()
    assert fish.names[:2] == ("background", "clownfish") and len(fish.names) == 4
    assert fish.picture(0).shape == (96, 96, 3)
    later = teach.draw_fish(2, first=3)
    assert torch.equal(later.images, fish.images[3:5]) and torch.equal(later.masks, fish.masks[3:5])


def test_painted_parts_have_one_value_on_heads_and_one_on_bodies(lesson):
    fish, _ = lesson
    maps = fish.paint_parts(body=0.25, head=2)
    for k in range(4):
        for part, value in ((1, 0.25), (2, 2)):
            assert (maps[:, k][(fish.masks == k) & (fish.parts == part)] == value).all()
        assert (maps[:, k][fish.masks != k] == 0).all()


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
    head, losses = teach.train_head(_loss, features, fish.labels, steps=40, watch=lambda step, _: steps.append(step))
    assert steps == list(range(41)) and len(losses) == 40
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    again, repeated = teach.train_head(_loss, features, fish.labels, steps=40)
    assert repeated == losses
    teach.train_head(_loss, features, fish.labels, steps=2, head=head)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), head.parameters(), strict=True))


def test_scores_of_perfect_maps(lesson):
    fish, features = lesson
    perfect = torch.nn.functional.one_hot(fish.masks.long(), 4).permute(0, 3, 1, 2).float()
    assert teach.score_cams(perfect, fish) == {"head": 1, "body": 1, "background": 1, "miou": 1, "contour_f": 1}
    nothing = torch.zeros_like(perfect)
    nothing[:, 0] = 1
    scores = teach.score_cams(nothing, fish)
    assert scores["head"] == scores["body"] == 0 and scores["background"] == 1
    head, _ = teach.train_head(_loss, features, fish.labels, steps=1)
    cams = teach.fish_cams(head, features, fish.labels)
    assert cams.shape == (12, 4, 96, 96)
    assert (cams * (fish.labels == 0)[:, :, None, None]).abs().max() == 0, "absent classes are zero"


def _history(epochs):
    return [{"epoch": e, "step": 9 * e, "loss": 1 / e, "mu": 2.5, "seconds": 1.0} for e in range(1, epochs + 1)]


@pytest.mark.parametrize("headless", [False, True])
def test_loss_plot_grows_in_place_and_ends_static(monkeypatch, headless):
    shown = []
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1" if headless else "")
    monkeypatch.setattr("wsss_nb.teach.lessons.display", shown.append)
    plot = teach.LossPlot("training")
    plot(_history(2))
    first, image = plot.image.value, plot.image
    plot(_history(3))
    assert plot.image is image and plot.image.value != first
    assert shown == [] if headless else [image], "shown once, then updated; headless never"
    plot.show(_history(3))
    assert (shown[-1].pixels == teach.render_history(_history(3), "training").pixels).all()
    assert shown[-1].alt == "Loss curves of training, epochs 1 to 3: loss 1 to 0.333."


def test_a_single_branch_is_not_numbered(monkeypatch):
    labels = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **looks: labels.append(looks["label"]) or plot(*args, **looks))
    row = {"epoch": 1, "step": 2, "seconds": 1.0}
    teach.render_history([{**row, "classification1": 0.5, "similarity": -0.1}])
    teach.render_history([{**row, "classification1": 0.5, "classification2": 0.4}])
    assert labels == ["classification", "similarity", "classification1", "classification2"]


# --- pictures of the explorers -----------------------------------------------------------------------------


def _similarity(**settings):
    image, foreground, mask = teach.snap_example("coffee", 40)
    return teach.render_similarity(image, foreground, mask=mask, **settings)


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


@pytest.mark.parametrize("mu", MU_RANGE)
@pytest.mark.parametrize("sigma", [0.5, 12.0])
@pytest.mark.parametrize("pixel", [(0, 0), (39, 39)])
def test_similarity_picture_at_the_ends_of_the_sliders(mu, sigma, pixel):
    values = _similarity(mu=mu, sigma=sigma, pixel=pixel).values
    assert all(math.isfinite(value) for value in values.values())


def test_similarity_picture_says_what_a_descent_did(monkeypatch):
    image, start, mask = teach.snap_example("fish", 40)
    path = teach.descend(start, image, steps=20)
    end, arguments = torch.from_numpy(path.maps[-1]), {"mask": mask, "descended": (20, start)}
    before, after = (_contour_f(m, mask) for m in path.maps[[0, -1]])
    seen = {}
    render = similarity.render_panels
    monkeypatch.setattr(
        similarity,
        "render_panels",
        lambda panels, *a, **k: seen.update({p.title: p.note for p in panels}) or render(panels, *a, **k),
    )
    picture = teach.render_similarity(image, end, **arguments)
    assert picture.values["contour_f"] == after and picture.values["contour_f_before"] == before
    assert picture.alt.endswith(f"after 20 steps of descent contour F {100 * after:.1f}, before {100 * before:.1f}.")
    assert seen["map a"] == f"after 20 steps: contour F {100 * before:.1f} → {100 * after:.1f}"
    one = teach.render_similarity(image, start, descended=(1, start))
    assert one.alt.endswith(", after 1 step of descent.") and "contour" not in one.alt, "nobody knows its outline"
    plain = teach.render_similarity(image, start, mask=mask)
    assert plain.alt.endswith(f", contour F {100 * before:.1f}.") and "contour_f_before" not in plain.values


def test_similarity_picture_of_a_constant_map_and_image():
    image, foreground = torch.full((1, 3, 16, 16), 0.5), torch.full((16, 16), 0.5)
    assert teach.render_similarity(image, foreground).values["loss"] == pytest.approx(0, abs=1e-9)


def test_cam_picture(coffee):
    image, mask, cup = coffee
    picture = teach.render_cam(image, cup, mask=mask, rule="threshold:0.3", name="cup")
    assert 0.3 < picture.values["iou"] < 0.8 and 0 < picture.values["contour_f"] < 1
    assert "cup" in picture.alt and "threshold:0.3" in picture.alt
    assert f"IoU {100 * picture.values['iou']:.1f}, contour F" in picture.alt, "as the picture says it"
    stricter = teach.render_cam(image, cup, mask=mask, rule="threshold:0.8", name="cup")
    assert stricter.values["covered"] < picture.values["covered"]
    with pytest.raises(ValueError, match="rule"):
        teach.render_cam(image, cup, rule="median")
    with pytest.raises(ValueError, match=r"pooling: expected one of .*'max'.*, got 'mean'"):
        teach.render_cam(image, cup, pooling="mean")


def test_cam_picture_marks_what_max_pooling_sees(coffee):
    image, _, cup = coffee
    alike, alone = (teach.render_cam(image, cup, pooling=pooling) for pooling in ("average", "max"))
    np.testing.assert_array_equal(teach.render_cam(image, cup).pixels, alike.pixels)
    full = teach.enlarge(cup, image.shape[:2])
    row, column = np.unravel_index(full.argmax(), full.shape)
    assert alone.alt == f"{alike.alt} A cross marks the map's maximum, in row {row} and column {column}."
    scale = 330 / image.shape[1]
    changed = np.argwhere((alike.pixels != alone.pixels).any(-1))
    changed = changed[changed[:, 0] < 24 + 10 + round(scale * image.shape[0])]  # the note differs as well
    middle = (changed.min(0) + changed.max(0)) / 2 - (34, 354)  # where the second panel's picture begins
    assert np.abs(middle - (np.array([row, column]) + 0.5) * scale).max() <= 1.5


def test_cam_picture_shows_what_the_crf_made_of_the_map(coffee):
    image, mask, cup = coffee
    picture = teach.render_cam(image, cup, mask=mask, refined=np.where(mask, 0.9, 0.2).astype(np.float32))
    assert picture.values["iou"] == picture.values["contour_f"] == 1
    assert "threshold:0.3 and a dense CRF" in picture.alt


def test_sampling_picture_has_the_mean_at_its_draws():
    example, k = teach.imitated_example(), 3
    picture = teach.render_sampling(example, index=k, num_samples=200)
    assert picture.values["map_mean"] < picture.values["drawn_mean"] <= picture.values["map_max"]
    cam = class_activation_map(example.logits)[0, k]
    expected = float((cam**2).sum() / cam.sum())  # E[a] under Eq. 4
    assert picture.values["drawn_mean"] == pytest.approx(expected, abs=0.05)
    assert f"200 pixels drawn from the map of {example.names[k]}" in picture.alt
    other = teach.render_sampling(example, index=k, num_samples=200, seed=1)
    assert (other.pixels != picture.pixels).any()


@pytest.mark.parametrize("seed", range(10))
def test_the_dot_is_where_the_one_draw_pushes(seed):
    """With one draw and lambda 1 a class is pushed up most at its own draw, hardly at those of the other classes."""
    example, k = teach.imitated_example(), 3
    push = -teach.loss_gradient(example.logits, example.labels, 1.0, 1, seed=seed)[0, k]
    row, column = divmod(int(push.argmax()), push.shape[1])
    picture = teach.render_sampling(example, index=k, num_samples=1, weight=1.0, seed=seed)
    left, top, size = 10, 34, 235  # of the first panel's picture
    dot = np.argwhere((picture.pixels[:, : left + size] == ORANGE).all(-1)).mean(0)
    expected = (np.array([row, column]) + 0.5) / push.shape[0] * size + (top, left)
    assert np.abs(dot - expected).max() < 1.5, "within the map's pixel, which is ten pixels wide"


def test_readme_and_docs_show_every_explorer_in_words_and_pictures():
    root = Path(__file__).parent.parent
    text = "".join((root / page).read_text(encoding="utf-8") for page in ("README.md", "docs/teaching.md"))
    shown = {path: words for words, path in re.findall(r"!\[([^\]]+)\]\((?:\.\./)?(figures/screenshots/[^)]+)\)", text)}
    assert sorted(shown) == [f"figures/screenshots/{name}.png" for name in ("cam", "sampling", "similarity", "walk")]
    for path, words in shown.items():
        assert len(words) > 60 and (root / path).stat().st_size < 250_000
        with Image.open(root / path) as picture:
            assert picture.width > 700
