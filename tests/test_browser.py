"""A real browser on a real JupyterLab: 01-03 run from top to bottom, and every explorer answers to every slider.

``pytest tests/test_browser.py --screenshots figures/screenshots`` also keeps the explorers' portraits for the README.
"""

# ruff: noqa: RUF001 -- the sliders are called σ, μ, α and β

from __future__ import annotations

import io
import re
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
import skimage.data
from browser import CHROMIUM, Play, chromium, jupyterlab, run_all, wait_for_the_end
from PIL import Image
from playwright.sync_api import expect

from wsss_nb import teach as widgets

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine: apt-get install chromium")

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSONS = {
    "cam": "01_class_activation_maps.ipynb",
    "sampling": "02_importance_sampling.ipynb",
    "similarity": "03_feature_similarity_loss.ipynb",
}
WALK = "walk.ipynb"  # notebook 05 trains before it can show its explorer; here it walks on an imitated map


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on the lessons."""
    walk = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("from wsss_nb import teach as widgets\n\nwidgets.WalkExplorer()")],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    sources = [nbformat.read(FOLDER / name, as_version=4) for name in LESSONS.values()]
    with jupyterlab(tmp_path_factory.mktemp("lab"), [*sources, walk], [*LESSONS.values(), WALK]) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def explorer(lab, browser):
    """The explorer of a lesson, all of whose cells have run. The lessons are opened once and run side by side."""
    pages = {name: run_all(browser, lab, file) for name, file in {**LESSONS, "walk": WALK}.items()}
    opened = {}

    def of(name):
        if name not in opened:
            solutions = 0
            if name in LESSONS:
                cells = nbformat.read(FOLDER / LESSONS[name], as_version=4).cells
                solutions = sum("solution" in cell.metadata.get("tags", []) for cell in cells)
            wait_for_the_end(pages[name], solutions)
            opened[name] = Play(pages[name])
        return opened[name]

    yield of
    for page in pages.values():
        page.close()


@pytest.fixture
def keep(request, tmp_path):
    """Where an explorer's portrait goes: the folder of --screenshots, or one that is forgotten."""
    folder = request.config.getoption("--screenshots")
    return Path(folder) if folder else tmp_path


def _portrait(play, path):
    """The explorer as it stands in the page, as a PNG small enough for a README."""
    play.settled()
    play.page.mouse.move(0, 0)
    shot = Image.open(io.BytesIO(play.box.screenshot())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    for share in (1.0, 0.9, 0.8, 0.7):
        size = round(shot.width * share), round(shot.height * share)
        shot.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)
        if path.stat().st_size < 240_000:
            break
    assert 10_000 < path.stat().st_size < 250_000


def _number(words, name):
    """The number after a name, as in "contour F 10.6"."""
    found = re.search(rf"{re.escape(name)} ([+-]?[\d.]+\d)", words)
    assert found, f"{name} is not in: {words}"
    return float(found[1])


def test_jupyterlab_lets_nobody_in_without_the_token(lab):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{lab.address}/api/contents", timeout=30)
    urllib.request.urlopen(f"{lab.address}/api/contents?token={lab.token}", timeout=30).close()


@pytest.mark.parametrize("name", LESSONS)
def test_run_all_leaves_no_error(explorer, name):
    page = explorer(name).page
    assert page.locator(".jp-Notebook [data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator(".jp-Notebook [data-mime-type='application/vnd.jupyter.error']").count() == 0
    expect(page.locator(".wsss-explorer img")).to_be_visible()


# --- 01: class activation maps -----------------------------------------------------------------------------


def test_cam_words_are_the_scores_of_what_is_shown(explorer, keep):
    play = explorer("cam")
    assert play.settled()[1] == _of_cup("threshold:0.3").alt
    _portrait(play, keep / "cam.png")
    words = play.press("threshold", times=5)
    assert words == _of_cup("threshold:0.35").alt
    assert _number(words, "IoU") > 0 and _number(words, "contour F") > 0
    stricter = play.drag("threshold", 40)
    assert _number(stricter, "covered") < _number(words, "covered")


def _of_cup(rule, **settings):
    photo = widgets.load_photo("coffee")
    cup = widgets.activation(widgets.photo_logits("coffee", 16), 968)
    return widgets.render_cam(photo.image, cup, rule=rule, mask=photo.mask, name="cup", **settings)


def test_cam_sliders_and_menus(explorer):
    play = explorer("cam")
    before = play.settled()[1]
    assert play.drag("overlay", -30) == before, "another picture with the same scores"
    play.choose("background", "a > (1 − a)^α")
    assert "power:4:" in play.settled()[1]
    assert "power:5.5:" in play.press("α")
    gentler = play.settled()[1]
    assert _number(play.drag("α", 40), "covered") > _number(gentler, "covered")
    assert "complement" in play.choose("background", "a > 1 − a")
    assert "average: logit" in play.chosen("pooling")
    assert "A cross marks the map's maximum" in play.choose("pooling", "max: logit")
    assert "cross" not in play.choose("pooling", "average")
    finer = _number(play.settled()[1], "covered")
    assert _number(play.choose("a map pixel is", "32 pixels"), "covered") != finer
    assert "activation map of tripod" in play.choose("class", "tripod"), "any class can be asked for"
    assert "activation map of cup" in play.choose("class", "cup  (")


def test_cam_with_the_crf_waits_until_a_slider_is_let_go(explorer):
    play = explorer("cam")
    plain = play.choose("background", "a > threshold")
    with play.record() as seen:
        refined = play.click("refine by a dense CRF (slow)")
    assert seen.words == ["dense CRF …", refined] and "and a dense CRF" in refined
    assert _number(refined, "contour F") != _number(plain, "contour F")
    with play.record() as seen:
        play.drag("threshold", 20)
    assert len(seen.pictures) == 1 and seen.words[0] == "dense CRF …"
    refined = play.settled()[1]
    with play.record() as seen:
        assert play.drag("overlay", 30) == refined
    assert len(seen.pictures) > 1 and not seen.words, "the overlay needs no other CRF"
    play.click("refine by a dense CRF (slow)")
    with play.record() as seen:
        play.drag("threshold", -20)
    assert len(seen.pictures) > 1, "the picture follows again"


def test_a_photograph_of_one_s_own(explorer, tmp_path):
    play = explorer("cam")
    path = tmp_path / "at work.png"
    Image.fromarray(skimage.data.camera()).save(path)
    before, _ = play.settled()
    with play.record() as seen:
        play.upload("own photo", path)
        words = play.expect_another_picture(before)
    assert seen.words[0] == "looking at the photograph …"
    assert "activation map of tripod" in words and "IoU" not in words, "nobody has outlined it"
    assert play.chosen("class").startswith("tripod  (") and play.chosen("photograph") == "own photo: at work.png"
    found = _number(words, "covered")
    assert _number(play.press("threshold", times=5), "covered") != found

    (tmp_path / "notes.png").write_text("no image")
    before, _ = play.settled()
    play.upload("own photo", tmp_path / "notes.png")
    expect(play.box.locator("[role=status]")).to_contain_text("notes.png: expected an image file")
    assert play.picture() == before, "the last good picture stays"
    assert _number(play.choose("photograph", "Cup of coffee"), "IoU") > 0, "where the explorer began"
    assert "tripod" in play.choose("photograph", "own photo")
    assert _number(play.choose("photograph", "Cat (Chelsea)"), "IoU") > 0


# --- 02: importance sampling -------------------------------------------------------------------------------


def test_sampling_explorer(explorer, keep):
    play = explorer("sampling")
    first = play.settled()[1]
    assert first.startswith("10 pixels drawn from the map of zebrafish")
    words = play.press("draws", times=5)
    assert words.startswith("200 pixels drawn")
    _portrait(play, keep / "sampling.png")
    assert "lambda 0.85" in play.press("λ", "ArrowLeft")
    assert "lambda 0.85" not in play.drag("λ", -40)
    again = play.click("draw again")
    assert _number(again, "maximum") == _number(words, "maximum"), "the same map"
    assert _number(again, "at the draws") != _number(words, "at the draws"), "other draws"
    play.drag("draws", -30)
    other = play.choose("map of", "max pooling")
    assert "map of zebrafish" in other
    assert "map of background" in play.choose("class", "background")


# --- 03: feature similarity --------------------------------------------------------------------------------


def test_similarity_explorer_begins_with_the_defaults(explorer, keep):
    play = explorer("similarity")
    assert "with mu 2.5 and sigma 3:" in play.settled()[1]
    _portrait(play, keep / "similarity.png")


@pytest.mark.parametrize(
    ("name", "pixels"), [("μ", -12), ("σ (map pixels)", 12), ("row of i", -15), ("column of i", 15)]
)
def test_every_slider_of_the_similarity_explorer(explorer, name, pixels):
    play = explorer("similarity")
    before = play.settled()[1]
    assert play.drag(name, pixels) != before, "the description follows the picture"


def test_similarity_words_are_the_numbers_of_what_is_shown(explorer):
    play = explorer("similarity")
    words = play.drag("μ", 12)
    place = re.search(r"pixel \((\d+), (\d+)\) with mu ([\d.]+) and sigma ([\d.]+):", words)
    image, foreground, mask = widgets.snap_example("coffee")
    row, column, mu, sigma = (float(text) for text in place.groups())
    pixel = (int(row), int(column))
    expected = widgets.render_similarity(image, foreground, mu=mu, sigma=sigma, pixel=pixel, mask=mask)
    assert words == expected.alt
    assert _number(words, "dissimilarity") == pytest.approx(expected.values["cross_over"], abs=1e-3)


def test_descending_says_how_many_steps_did_what(explorer):
    play = explorer("similarity")
    start = play.choose("image", "Synthetic fish")
    shown = play.picture()
    play.move("steps", 30)
    steps = int(play.readout("steps"))
    assert steps > 10 and play.settled() == (shown, start), "the number of steps is for later"
    with play.record() as seen:
        words = play.click("descend")
    assert seen.words == ["descending …", words] and len(seen.pictures) == 1
    assert _number(words, "loss") < _number(start, "loss")
    found = re.search(r"after (\d+) steps of descent contour F ([\d.]+\d), before ([\d.]+\d)\.", words)
    assert int(found[1]) == steps and float(found[2]) > float(found[3]) == _number(start, "contour F")
    assert f"after {2 * steps} steps of descent" in play.click("descend")
    assert play.click("reset the map") == start
    play.choose("image", "Cup of coffee")


def test_dragging_does_not_flicker(explorer):
    """One and the same element from the first to the last picture, and never without a height."""
    play = explorer("similarity")
    handle = play.image.element_handle()
    handle.evaluate(
        "image => { const heights = window.heights = [];"
        " new ResizeObserver(() => heights.push(image.offsetHeight)).observe(image) }"
    )
    play.drag("σ (map pixels)", 25)
    assert handle.evaluate("image => image.isConnected")
    heights = play.page.evaluate("window.heights")
    assert min(heights) == max(heights) > 200


# --- 05: random walk and CRF -------------------------------------------------------------------------------


def test_walk_explorer(explorer, keep):
    play = explorer("walk")
    words = play.settled()[1]
    assert words == widgets.render_walk(widgets.imitated_walk()).alt
    before, after = (float(f) for f in re.findall(r"contour F ([\d.]+\d)", words))
    assert after > before
    with play.record() as seen:
        play.click("dense CRF afterwards (slow)")
    assert seen.words[0] == "dense CRF …"
    _portrait(play, keep / "walk.png")
    for name, pixels in (("CRF: pixels", -25), ("CRF: colours", 20), ("CRF: rounds", 25)):
        with play.record() as seen:
            assert "after a dense CRF" in play.drag(name, pixels)
        assert len(seen.pictures) == 1 and seen.words[0] == "dense CRF …", "once, when it is let go"
    assert play.click("dense CRF afterwards (slow)") == words
    for name, pixels in (("α (background)", -20), ("β (affinities)", -20), ("log₂ of the steps", -30)):
        assert play.drag(name, pixels) != words
