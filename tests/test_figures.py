"""Figures: numbers and pictures are those of the run, files are reproducible, faces are honest."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from fake_run import make_fake_run, make_voc_folder
from matplotlib.text import Text
from PIL import Image

from wsss_nb.counts import confusion_matrix, mean_iou
from wsss_nb.data.voc import VOCFolder, colorize, save_label_map
from wsss_nb.run.run import NotInRun, NotOnThisMachine, load_run
from wsss_nb.show import FIGURES, figure_png, make_figure, make_table, publish_figures, save_figure
from wsss_nb.show.panels import MAX_IMAGES, candidates, image_scores, typical
from wsss_nb.show.paper import FIGURE_2_READING, TABLE_1
from wsss_nb.show.protocol import describe_protocol, mean_and_spread, seeds_of, seeds_text, shared_protocol
from wsss_nb.system.code_version import imported_modules, modules_behind
from wsss_nb.system.errors import InputError
from wsss_nb.variants import lambda_variant

figure_1, figure_2, figure_3, per_class, confusion = (FIGURES[name] for name in list(FIGURES)[:5])
background_threshold, mu_sigma, coverage, gallery, cost = (FIGURES[name] for name in list(FIGURES)[5:])
SIZE = (24, 32)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_fake_run(tmp_path_factory.mktemp("runs") / "quick", num_val=7, lams=(0.0, 0.5, 1.0))


@pytest.fixture(scope="module")
def run(run_dir):
    return load_run(run_dir)


@pytest.fixture
def changed(run_dir, tmp_path):
    """A function that gives the run with results.json changed; pictures and data stay where they are."""

    def change(edit):
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        for name in ("cam", "affinitynet", "deeplab", "data"):
            if not (folder / name).exists():
                (folder / name).symlink_to(run_dir / name)
        results = json.loads((run_dir / "results.json").read_text())
        edit(results)
        (folder / "results.json").write_text(json.dumps(results))
        return load_run(folder)

    return change


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def face(figure):
    """All text in the figure, with line breaks of the foot undone."""
    return " ".join(" ".join(texts(figure)).split())


def outside(figure):
    """Texts that stick out of the figure; tick labels beyond an axis' limits are not drawn."""
    renderer, box = figure.canvas.get_renderer(), figure.bbox
    hidden = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(limits)
            for tick in axis.get_major_ticks():
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    hidden |= {tick.label1, tick.label2}
    found = []
    for text in figure.findobj(Text):
        extent = text.get_window_extent(renderer)
        if text in hidden or not text.get_text().strip() or extent.width == 0:
            continue
        if min(extent.x0, extent.y0) < -1 or extent.x1 > box.x1 + 1 or extent.y1 > box.y1 + 1:
            found.append(text.get_text())
    return found


# Small numbers


def test_mean_and_spread_by_hand():
    mean, spread = mean_and_spread(np.array([[1.0, 5.0, np.nan], [3.0, np.nan, np.nan]]))
    np.testing.assert_allclose(mean, [2, 5, np.nan])
    np.testing.assert_allclose(spread, [np.sqrt(2), np.nan, np.nan])


def test_seeds_text():
    assert seeds_text([1, 1]) == "1 seed"
    assert seeds_text([3]) == "3 seeds"
    assert seeds_text([3, 1, 2]) == "1 to 3 seeds"


def test_seeds_of_names_the_exceptions():
    assert seeds_of({"a": 3, "b": 3}) == "3 seeds"
    assert seeds_of({"a": 1}) == "1 seed"
    assert seeds_of({"a": 1, "b": 3, "c": 3, "d": 2, "e": 1, "f": 3}) == "3 seeds (a; e: 1 seed; d: 2 seeds)"
    assert seeds_of({"a": 1, "b": 2}) == "2 seeds (a: 1 seed)"


def test_describe_protocol():
    protocol = {"split": "val", "crf": False, "scales": [0.5, 1.0], "flips": True, "void": "masked", "beta": 8.0}
    assert describe_protocol(protocol) == (
        "val split, no CRF, scales 0.5 1, with flips, void masked in contour F, beta 8"
    )
    assert describe_protocol({"crf": {"iterations": 1, "bilateral_sxy": 20.0}, "image_labels": False}) == (
        "CRF (iterations 1, bilateral sxy 20), no image labels used"
    )


def test_shared_protocol_names_what_differs(run):
    same = shared_protocol(run.stages("cam"), run)
    assert same == (
        "Protocol: val split, 7 images, background rule complement, no CRF, scales 1, with flips, "
        "image labels used, void as background in contour F, backbone tiny."
    )
    both = shared_protocol([*run.stages("cam"), *run.stages("deeplab")], run)
    assert "CAMs: background rule complement, no CRF, image labels used" in both
    assert "DeepLab-v1: background rule network, CRF (iterations 1, bilateral sxy 20)" in both
    assert "seed" not in both


def test_shared_protocol_is_silent_about_what_a_stage_has_not(changed):
    def only_cams(results):
        for cam in results["cam"]:
            cam["scores"]["protocol"]["max_normalized"] = False
        results["stages"] = [entry for entry in results["stages"] if entry["stage"] == "deeplab"]

    run = changed(only_cams)
    text = shared_protocol([run.cams("average")[0], run.stages("deeplab")[0]], run)
    assert "CAMs: background rule complement, no CRF, image labels used, maps not divided" in text
    assert text.count("maps") == 1


# Which images


def test_image_scores_are_those_of_the_files(run):
    entries = [run.cams("lambda0")[0], run.stages("deeplab")[0]]
    scores = image_scores(run, entries, run.val_names)
    assert scores.shape == (2, 7)
    for row, entry in enumerate(entries):
        target, predicted = run.dataset.mask("val_0003"), run.label_map(entry, "val_0003")
        ious = []
        for label in set(target[target != 255].tolist()) | set(predicted[target != 255].tolist()):
            hit = np.sum((target == label) & (predicted == label))
            ious.append(hit / np.sum(((target == label) | (predicted == label)) & (target != 255)))
        assert scores[row, 3] == pytest.approx(np.mean(ious))


def test_image_scores_find_out_other_masks(changed):
    def other(results):
        results["cam"][0]["scores"]["confusion"][0][0] += 1

    run = changed(other)
    with pytest.raises(
        InputError, match="data_root: expected the masks that cam/lambda0/seed0/val-1a2b3c4d was scored on"
    ):
        image_scores(run, [run.results.cam[0]], run.val_names)
    assert image_scores(run, [run.results.cam[0]], run.val_names[:3]).shape == (1, 3)


def test_typical_takes_the_median_not_the_best(run):
    values = np.array([0.9, 0.1, 0.5, 0.52, 0.47, 0.95, -0.3])
    names, near = typical(run, values, run.val_names, 2)
    assert near == 4
    assert len(names) == 2
    # nearest to the median 0.5 are 2 (0.5), 3 (0.52), 4 (0.47), then 0 or 1 (0.4 away)
    assert set(names) <= {run.val_names[i] for i in (0, 1, 2, 3, 4)}
    assert run.val_names[5] not in names
    assert run.val_names[6] not in names
    assert names[0] == run.val_names[2]


def test_typical_shows_a_new_class_first(run):
    values = np.zeros(7)
    names, _ = typical(run, values, run.val_names, 2)
    shown = [set(np.unique(run.dataset.mask(name)).tolist()) - {0, 255} for name in names]
    assert shown[1] - shown[0]


def test_candidates_of_a_large_split_are_evenly_spaced(changed):
    run = changed(lambda r: r["data"].update(val_names=[f"n{i}" for i in range(1449)]))
    names = candidates(run)
    assert len(names) == len(set(names)) == MAX_IMAGES
    assert (names[0], names[-1]) == ("n0", "n1448")
    steps = np.diff([int(name[1:]) for name in names])
    assert steps.min() >= 3
    assert steps.max() <= 4
    with pytest.raises(NotInRun, match="val_names"):
        candidates(changed(lambda r: r["data"].update(val_names=[])))


# Pictures


def test_figure_1_shows_the_files_of_the_run(run):
    figure, arrays = figure_1(run, names=["val_0002", "val_0005"])
    assert arrays["columns"].tolist() == [
        "input",
        "max pooling (λ = 0)",
        "sampling (λ = 1)",
        "sampling (λ = 1) + FSL",
        "SEAM",
        "ground truth",
    ]
    assert arrays["names"].tolist() == ["val_0002", "val_0005"]
    np.testing.assert_array_equal(arrays["panel_1_0"], run.dataset.image("val_0005"))
    np.testing.assert_array_equal(arrays["panel_1_5"], run.dataset.mask("val_0005"))
    for column, entries in (
        (1, run.cams("lambda0")),
        (2, run.cams("lambda1")),
        (3, run.cams("lambda1_fsl")),
        (4, run.cams("seam")),
    ):
        np.testing.assert_array_equal(arrays[f"panel_1_{column}"], run.label_map(entries[0], "val_0005"))
        shown = next(axes for axes in figure.axes[6:] if axes.get_images() and axes is figure.axes[6 + column])
        np.testing.assert_array_equal(shown.get_images()[0].get_array(), colorize(arrays[f"panel_1_{column}"]))
    assert "not run" not in texts(figure)
    assert "Rows: chosen by name." in face(figure)
    assert "class1" in face(figure)  # the legend


def test_figure_1_says_the_gain_and_chooses_typical_rows(run):
    figure, arrays = figure_1(run, rows=3)
    entries = [run.cams("lambda0")[0], run.cams("lambda1_fsl")[0]]
    scores = image_scores(run, entries, run.val_names)
    gain = scores[1] - scores[0]
    assert f"median gain ({100 * np.median(gain):+.1f} points)" in face(figure)
    best = run.val_names[int(np.argmax(gain))]
    assert best not in arrays["names"]
    numbers = arrays["score"][:, [1, 3]] / 100
    where = [run.val_names.index(name) for name in arrays["names"]]
    np.testing.assert_allclose(numbers, scores[:, where].T)


def test_figure_1_marks_what_was_not_run(changed):
    run = changed(lambda r: r.update(cam=[c for c in r["cam"] if c["variant"] in ("lambda1", "lambda1_fsl")]))
    figure, arrays = figure_1(run, rows=2)
    assert texts(figure).count("not run") == 4  # two columns, two rows
    assert "panel_0_1" not in arrays
    assert "panel_0_4" not in arrays
    assert np.isnan(arrays["score"][:, [0, 1, 4, 5]]).all()


def refined_at_half(results):
    for entry in results["stages"]:
        if entry["variant"] == "lambda1_fsl":
            entry["variant"] = "lambda0.5_fsl"
            if entry["stage"] == "cam":
                cams = [c for c in results["cam"] if c["variant"] == entry["variant"]]
                found = next(c for c in cams if c["seed"] == entry["seed"])
                entry |= {"steps": found["steps"], "scores": found["scores"]}


def test_figure_1_and_per_class_show_the_lambda_that_was_refined(changed):
    run = changed(refined_at_half)
    assert run.ours == "lambda0.5_fsl"
    figure, arrays = figure_1(run, rows=1)
    name = arrays["names"][0]
    assert arrays["columns"].tolist()[1:5] == ["max pooling (λ = 0)", "λ = 0.5", "λ = 0.5 + FSL", "SEAM"]
    for column, fsl in ((2, False), (3, True)):
        shown = run.label_map(run.cams(lambda_variant(0.5, fsl).name)[0], name)
        np.testing.assert_array_equal(arrays[f"panel_0_{column}"], shown)
    assert "gain in mIoU from λ = 0 to λ = 0.5 with FSL" in face(figure)
    series = per_class(run)[1]["series"].tolist()
    assert list(dict.fromkeys(series)) == [
        "CAMs, max pooling (λ = 0)",
        "CAMs, λ = 0.5",
        "CAMs, λ = 0.5 + FSL",
        "+ AffinityNet",
        "+ DeepLab-v1",
    ]


def test_before_the_later_stages_the_profile_says_which_lambda_will_be_refined(changed):
    def cams_only(results):
        results["stages"] = []
        results["profile"]["refine"] = ["lambda0.5_fsl", "seam"]

    run = changed(cams_only)
    assert run.ours == "lambda0.5_fsl"
    assert "λ = 0.5 + FSL" in figure_1(run, rows=1)[1]["columns"]


def test_figure_1_needs_cams(changed):
    with pytest.raises(NotInRun, match="expected CAMs at lambda 0, of our method or of SEAM, got none"):
        figure_1(changed(lambda r: r.update(cam=[])))


def test_chosen_names_must_be_in_the_split(run):
    with pytest.raises(InputError, match="names: expected images of the val split, got 'train_0000'"):
        figure_1(run, names=["train_0000"])


def test_figure_3_has_one_fixed_scale(changed, run_dir):
    run = changed(lambda r: None)
    figure, arrays = figure_3(run, names=["val_0000", "val_0001"])
    assert arrays["panel_0_1"].max() < 1
    maps = [image for axes in figure.axes for image in axes.get_images() if image.get_array().ndim == 2]
    assert [image.get_clim() for image in maps] == [(0, 1), (0, 1)]
    classes, cam = run.activations(run.cams("lambda1_fsl")[0], "val_0001")
    assert len(classes) == 2
    np.testing.assert_array_equal(arrays["panel_1_1"], cam.max(axis=0))
    np.testing.assert_array_equal(arrays["panel_1_3"], run.label_map(run.stages("deeplab")[0], "val_0001"))
    assert "the same scale in every picture" in face(figure)


def test_figure_3_without_the_later_stages(changed):
    run = changed(lambda r: r.update(stages=[]))
    figure, _ = figure_3(run, rows=2)
    assert texts(figure).count("not run") == 2
    assert "mIoU (CAM pseudo-labels) is nearest to the median" in face(figure)


def test_gallery_is_sorted_by_score(run):
    figure, arrays = gallery(run, rows=2)
    assert arrays["groups"].tolist() == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    scores = arrays["score"][:, 1]
    everything = 100 * image_scores(run, [run.stages("deeplab")[0]], run.val_names)[0]
    assert scores[0] == pytest.approx(everything.max())
    assert scores[4] == pytest.approx(everything.min())
    assert scores[:2].min() >= scores[2:4].max()
    assert scores[2:4].min() >= scores[4:].max()
    assert {"best", "median", "worst"} <= set(texts(figure))


def test_gallery_leaves_out_images_without_a_labelled_pixel(run_dir, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    results = json.loads((folder / "results.json").read_text())
    results["data"]["root"] = "data"
    void = results["data"]["val_names"][2:4]
    for name in void:
        save_label_map(folder / f"data/SegmentationClass/{name}.png", np.full(SIZE, 255, np.uint8))
    run = load_run(folder)
    for entry in results["stages"]:  # scored on these masks
        if entry["stage"] == "deeplab":
            found = next(e for e in run.stages("deeplab", entry["variant"]) if e.seed == entry["seed"])
            masks = VOCFolder(folder / "data", "val")
            entry["scores"]["confusion"] = sum(
                confusion_matrix(run.label_map(found, name), masks.mask(name), 4) for name in run.val_names
            ).tolist()
    (folder / "results.json").write_text(json.dumps(results))
    figure, arrays = gallery(load_run(folder), rows=2)
    assert not set(void) & set(arrays["names"])
    assert arrays["groups"].tolist() == ["best", "median", "worst"]
    assert np.isfinite(arrays["score"][:, 1]).all()
    assert "worst mIoU of 5 images." in face(figure)
    run = load_run(folder)
    with pytest.raises(InputError, match="expected val masks with labelled pixels, got void alone"):
        image_scores(run, run.stages("deeplab"), void)


def test_pictures_need_the_data_set_and_plots_do_not(changed, run_dir):
    run = changed(lambda r: r["data"].update(root="/nowhere"))
    for spec in FIGURES.values():
        if spec.shows_images or spec is background_threshold:
            with pytest.raises(NotInRun, match="data_root"):
                spec(run)
        else:
            assert spec(run)[0].axes
    found = load_run(run.folder, str(run_dir / "data"))
    assert figure_1(found, names=["val_0000"])[1]["names"].tolist() == ["val_0000"]


# Plots


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_figure_2_draws_means_spreads_and_single_runs(run):
    figure, arrays = figure_2(run)
    for axes, metric in zip(figure.axes, ("miou", "contour_f"), strict=True):
        drawn = lines(axes)
        for fsl, label in ((False, "without FSL"), (True, "with FSL")):
            line = drawn[f"{label} (mean ± s.d., 2 seeds)"]
            np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 1])
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
                values = [100 * getattr(cam.scores, metric) for cam in run.cams(lambda_variant(float(x), fsl).name)]
                assert len(values) == 2
                assert y == pytest.approx(np.mean(values))
        singles = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
        points = np.concatenate([line.get_ydata() for line in singles if line.get_marker() != "*"])
        assert sorted(points) == pytest.approx(sorted(arrays[metric]))
        band = axes.collections[0].get_paths()[0].vertices
        values = np.array([100 * getattr(cam.scores, metric) for cam in run.cams("lambda0")])
        at_zero = band[np.isclose(band[:, 0], 0), 1]
        assert at_zero.min() == pytest.approx(values.mean() - values.std(ddof=1))
        assert at_zero.max() == pytest.approx(values.mean() + values.std(ddof=1))


def test_figure_2_holds_the_paper_to_what_it_printed(run):
    figure, arrays = figure_2(run)
    for axes, number in zip(figure.axes, (54.9, 35.6), strict=True):
        stars = [line for line in axes.get_lines() if line.get_marker() == "*"]
        assert len(stars) == 1
        assert (float(stars[0].get_xdata()[0]), float(stars[0].get_ydata()[0])) == (1.0, number)
        assert "paper, VOC val" in stars[0].get_label()
    assert (TABLE_1["cam", "ours"].miou, TABLE_1["cam", "ours"].contour_f) == (54.9, 35.6)
    assert FIGURE_2_READING in face(figure)
    assert not any(name.startswith("paper") for name in arrays)


def test_figure_2_shows_baselines_as_levels(run):
    figure, _ = figure_2(run)
    level = lines(figure.axes[0])["average pooling (mean ± s.d., 2 seeds)"]
    values = [100 * cam.scores.miou for cam in run.cams("average")]
    assert list(level.get_ydata()) == pytest.approx([np.mean(values)] * 2)
    assert (np.mean(values), np.std(values, ddof=1)) in bands(figure.axes[0])


def bands(axes):
    """Middle and half height of the bands across an axes, to compare with means and deviations."""
    found = [band.get_extents().transformed(axes.transData.inverted()) for band in axes.patches]
    return [(pytest.approx((b.y0 + b.y1) / 2), pytest.approx((b.y1 - b.y0) / 2)) for b in found]


def test_figure_2_of_one_seed_has_no_spread(changed):
    run = changed(lambda r: r.update(cam=[c for c in r["cam"] if c["seed"] == 0]))
    figure, _ = figure_2(run)
    assert "with FSL (1 seed)" in lines(figure.axes[0])
    assert "s.d." not in face(figure)
    assert "single runs" not in face(figure)
    assert not figure.axes[0].patches


def test_figure_2_says_if_seeds_differ_in_number(changed):
    run = changed(lambda r: r["cam"].pop(0))
    figure, _ = figure_2(run)
    assert any("1 to 2 seeds" in label for label in lines(figure.axes[0]))
    assert "Marks: 2 seeds (λ = 0: 1 seed)." in face(figure)


def test_figure_2_draws_no_curve_through_two_lambdas(changed):
    run = changed(lambda r: r.update(cam=[c for c in r["cam"] if c["lambda"] != 0.5]))
    figure, _ = figure_2(run)
    for axes, metric in zip(figure.axes, ("miou", "contour_f"), strict=True):
        drawn = lines(axes)
        for fsl, label in ((False, "without FSL"), (True, "with FSL")):
            assert drawn[f"{label} (mean ± s.d., 2 seeds)"].get_linestyle() == "None"
            bar = axes.containers[int(fsl)].lines[2][0]
            for x, (low, high) in zip((0, 1), bar.get_segments(), strict=True):
                values = [100 * getattr(cam.scores, metric) for cam in run.cams(lambda_variant(float(x), fsl).name)]
                assert low.tolist() == pytest.approx([x, np.mean(values) - np.std(values, ddof=1)])
                assert high.tolist() == pytest.approx([x, np.mean(values) + np.std(values, ddof=1)])


def test_figure_2_needs_a_sweep(changed):
    run = changed(lambda r: r.update(cam=[c for c in r["cam"] if c["lambda"] is None]))
    with pytest.raises(NotInRun, match="expected runs with a lambda, got none"):
        figure_2(run)


def test_single_column_is_narrower(run):
    assert figure_2(run)[0].get_figwidth() == pytest.approx(7.0)
    assert figure_2(run, width="single")[0].get_figwidth() == pytest.approx(3.39)
    with pytest.raises(ValueError, match="width: expected one of"):
        figure_2(run, width="triple")


def test_per_class_numbers_and_absent_classes(changed):
    def absent(results):
        for entry in [*results["cam"], *results["stages"]]:
            entry["scores"]["iou"][2] = None
            entry["scores"]["f"][1] = None

    run = changed(absent)
    figure, arrays = per_class(run)
    deeplab = arrays["series"] == "+ DeepLab-v1"
    expected = [[np.nan if v is None else 100 * v for v in e.scores.iou] for e in run.stages("deeplab")]
    np.testing.assert_allclose(arrays["iou"][deeplab], expected)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["background", "class1", "class3"]
    assert "Classes that do not occur are left out (1)." in face(figure)
    container = next(c for c in figure.axes[1].containers if c.get_label() == "+ DeepLab-v1")
    x, _ = container.lines[0].get_data()
    f = np.array([e.scores.f for e in run.stages("deeplab")], dtype=float).mean(axis=0)
    np.testing.assert_allclose(x[1:], 100 * f[[0, 2]])
    assert np.isnan(x[0])  # the background has no contour


def test_series_of_other_numbers_of_seeds_are_named(changed):
    def one_seed_later(results):
        results["stages"] = [e for e in results["stages"] if e["stage"] == "cam" or e["seed"] == 0]

    run = changed(one_seed_later)
    assert "Mean ± s.d. of 2 seeds (+ AffinityNet; + DeepLab-v1: 1 seed)." in face(per_class(run)[0])
    later = "AffinityNet; DeepLab-v1; AffinityNet (SEAM); DeepLab-v1 (SEAM)"
    said = face(cost(run)[0])
    assert all(f"{step}" in said for step in later.split("; ")) and "Bars: mean of 2 seeds (" in said
    assert said.count(": 1 seed)") == 1


def test_confusion_sums_seeds_and_normalises_rows(run):
    figure, arrays = confusion(run)
    expected = np.sum([entry.scores.confusion for entry in run.stages("deeplab")], axis=0)
    np.testing.assert_array_equal(arrays["confusion"], expected)
    mesh = figure.axes[0].collections[0]
    share = np.asarray(mesh.get_array(), dtype=float).reshape(4, 4)
    np.testing.assert_allclose(share, 100 * expected / expected.sum(axis=1, keepdims=True))


def test_background_threshold_equals_thresholding_each_image(run):
    figure, arrays = background_threshold(run)
    entries = run.cams("lambda1_fsl")
    assert arrays["miou"].shape == (2, 100)
    for index in (0, 7, 30, 80):
        counts = np.zeros((4, 4), dtype=np.int64)
        for name in run.val_names:
            target = run.dataset.mask(name)
            classes, cam = run.activations(entries[1], name)
            predicted = classes[cam.argmax(axis=0)]
            predicted[cam.max(axis=0) < arrays["threshold"][index]] = 0
            counts += confusion_matrix(predicted, target, 4)
        assert arrays["miou"][1, index] == pytest.approx(100 * mean_iou(counts))
    best = arrays["miou"].mean(axis=0).argmax()
    label = f"oracle's best: {arrays['threshold'][best]:.2f} (never used)"
    assert label in lines(figure.axes[0])
    assert "this run's rule: complement (mean ± s.d.)" in lines(figure.axes[0])
    values = [100 * entry.scores.miou for entry in entries]
    np.testing.assert_allclose(arrays["rule_miou"], values)  # all images: the score of the run
    assert (np.mean(values), np.std(values, ddof=1)) in bands(figure.axes[0])
    assert "shown, never used" in face(figure)
    assert "on the same 7 images." in face(figure)


def test_background_threshold_scores_curve_and_rule_on_the_same_images(run, monkeypatch):
    monkeypatch.setattr("wsss_nb.show.panels.MAX_IMAGES", 3)
    figure, arrays = background_threshold(run)
    names = [run.val_names[i] for i in (0, 3, 6)]
    counts = sum(
        confusion_matrix(run.label_map(run.cams("lambda1_fsl")[0], name), run.dataset.mask(name), 4) for name in names
    )
    assert arrays["rule_miou"][0] == pytest.approx(100 * mean_iou(counts))
    assert arrays["rule_miou"][0] != pytest.approx(100 * run.cams("lambda1_fsl")[0].scores.miou)
    assert "curve and rule on the same 3 images evenly spaced of 7." in face(figure)


def test_mu_sigma_paths(run, changed):
    figure, arrays = mu_sigma(run)
    assert len(arrays["variant"]) == 6  # three lambdas with FSL, two seeds
    first = run.cams("lambda0_fsl")[0]
    np.testing.assert_array_equal(arrays["path_0"], first.mu_sigma)
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_ydata(), [row[1] for row in first.mu_sigma])
    np.testing.assert_array_equal(figure.axes[1].get_lines()[0].get_ydata(), [row[2] for row in first.mu_sigma])

    def fixed(results):
        for cam in results["cam"]:
            cam["mu_sigma"] = [[10, 2.0, 3.0], [20, 2.0, 3.0]]

    with pytest.raises(NotInRun, match="expected paths of a mu and sigma that were learned, got none"):
        mu_sigma(changed(fixed))


def test_coverage_and_cost_numbers(run, changed):
    _, arrays = coverage(run)
    sampling = arrays["variant"] == "sampling (λ = 1)"
    np.testing.assert_allclose(arrays["body"][sampling], [cam.parts["body"] for cam in run.cams("lambda1")])
    with pytest.raises(NotInRun, match="head and body coverage"):
        coverage(changed(lambda r: [cam.update(parts=None) for cam in r["cam"]]))
    figure, arrays = cost(run)
    assert arrays["seconds"].sum() == pytest.approx(8 * (20 + 21) + 2 * 2 * 2 * 9.5)
    assert "7 min" in face(figure)
    assert "Measured on: cpu, 1 thread." in face(figure)
    assert "Each row counts its training, inference and scoring." in face(figure)

    def pretrained(results):
        cost = {"seconds": 1000.0, "peak_memory_mb": None}
        results["pretrain"] = {"seed": 0, "folder": "pretrain-1a2b3c4d", "cost": cost}

    figure, arrays = cost(changed(pretrained))
    assert (arrays["step"][0], arrays["seconds"][0]) == ("Pre-training", 1000)
    assert np.isnan(arrays["peak_memory_mb"][0]) and "not recorded" in face(figure)
    with pytest.raises(NotInRun, match="what the stages cost"):
        cost(changed(lambda r: r.update(cam=[], stages=[])))


# Faces and layout


def test_every_figure_says_what_its_data_are(run, changed):
    def photographs(results):
        results["synthetic"] = False
        results["data"]["root"] = "data"

    def voc(results):
        results["synthetic"] = False
        results["classes"] = ["background", *(f"c{i}" for i in range(1, 21))]
        results["data"]["val"] = 1449
        results["stages"] = []
        results["cam"] = [c for c in results["cam"] if c["lambda"] is not None]
        for cam in results["cam"]:
            scores = cam["scores"]
            scores["iou"], scores["f"] = [0.5] * 21, [0.5] * 20
            scores["confusion"], scores["matches"] = [[1] * 21] * 21, [[1] * 4] * 20

    for spec in FIGURES.values():
        assert "synthetic data, not VOC" in texts(spec(run)[0]), spec.name
    assert "data, not VOC 2012" in texts(figure_1(changed(photographs))[0])
    assert "data, not VOC 2012" in texts(figure_2(changed(photographs))[0])
    assert "not VOC" not in face(figure_2(changed(voc))[0])


def test_dollars_in_names_are_text(tmp_path):
    """Matplotlib would read what stands between two dollars as mathematics, and fail on "c$$_%"."""
    data = tmp_path / "$a_{$b"
    make_voc_folder(data, 4, 3, SIZE)
    (data / "classes.txt").write_text("background\nc$$_%\n$x^2$\n\\alpha$\n")
    folder = make_fake_run(tmp_path / "run", data=data, synthetic=False, seeds=(0,))
    results = json.loads((folder / "results.json").read_text())
    for row in [*results["cam"], *results["stages"]]:
        row["title"] = f"$\\frac{row['title']}$"
        row["scores"]["protocol"]["background"] = "$rule$"
    (folder / "results.json").write_text(json.dumps(results))
    run = load_run(folder)
    for spec in FIGURES.values():
        if spec is not coverage:  # of synthetic data only
            figure, _ = spec(run)
            for text in figure.findobj(Text):
                assert text._preprocess_math(text.get_text()) == (text.get_text(), False), spec.name
            assert "$a_{$b, not VOC 2012" in texts(figure), spec.name
            assert figure_png(figure)[1:4] == b"PNG"
    said = face(per_class(run)[0])
    assert "c$$_%" in said and "$x^2$" in said and "CAMs, $\\fracsampling (λ = 1)$" in said


@pytest.mark.parametrize(
    ("width", "options"),
    [
        ("double", {"num_classes": 51, "num_val": 9, "seeds": (0,)}),
        ("single", {"num_classes": 4, "num_val": 4}),
        ("double", {"num_classes": 2, "num_val": 1, "seeds": (0,), "lams": (1.0,), "baselines": (), "stages": ()}),
        ("single", {"num_val": 4, "size": (48, 20), "lams": (0.0,), "fsl": (False,), "stages": ("cam",)}),
    ],
    ids=["50 classes", "single column", "one class, one image, one run", "portrait, lambda 0 only"],
)
def test_unusual_runs_draw_with_all_text_inside(tmp_path, width, options):
    folder = make_fake_run(tmp_path / "run", **options)
    classes = (folder / "data/classes.txt").read_text().split("\n")[:-1]
    long = [classes[0], *(f"{name} with quite a long name" for name in classes[1:])]
    (folder / "data/classes.txt").write_text("\n".join(long) + "\n")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "classes": long}))
    run, drawn = load_run(folder), []
    for spec in FIGURES.values():
        try:
            figure, _ = spec(run, width=width)
        except NotInRun:
            continue
        assert outside(figure) == [], spec.name
        drawn.append(spec.name)
    assert {"figure_1", "figure_2", "figure_3", "per_class", "confusion", "gallery", "cost"} <= set(drawn)


@pytest.mark.parametrize("width", ["double", "single"])
def test_fifty_classes_that_all_occur(many_classes, width):
    for spec in (per_class, confusion):
        figure, arrays = spec(many_classes, width=width)
        assert outside(figure) == []
        assert "left out" not in face(figure)
        assert len(arrays["classes"]) == 51
        shown = " ".join(texts(figure)).split()
        assert {f"class{number}" for number in range(1, 51)} <= set(shown)
    renderer, axes = figure.canvas.get_renderer(), figure.axes[0]
    for labels, low, high in ((axes.get_xticklabels(), "x0", "x1"), (axes.get_yticklabels()[::-1], "y0", "y1")):
        boxes = [label.get_window_extent(renderer) for label in labels]
        assert all(getattr(a, high) <= getattr(b, low) + 1 for a, b in itertools.pairwise(boxes)), width


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "run"
    options = {"lams": (1.0,), "baselines": (), "fsl": (True,), "stages": ("cam",), "seeds": (0,)}
    return load_run(make_fake_run(folder, num_classes=51, num_val=100, **options))


def test_single_runs_stand_beside_the_mean(run):
    figure, _ = figure_2(run)
    for axes in figure.axes:
        singles = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
        sides = {}
        for line in singles:
            if line.get_marker() != "*":
                away = line.get_xdata() - np.round(line.get_xdata() * 2) / 2  # from lambda 0, 0.5, 1
                assert np.abs(away).min() >= 0.02
                sides[line.get_marker()] = np.sign(away).tolist()
        assert sides == {"o": [-1.0] * 6, "s": [1.0] * 6}, "on two sides, so that they do not cover each other"


@pytest.mark.parametrize("width", ["double", "single"])
def test_marks_of_one_class_do_not_cover_each_other(changed, width):
    def all_the_same(results):
        for entry in [*results["cam"], *results["stages"]]:
            entry["scores"]["iou"] = [0.5] * 4
            entry["parts"] = {"head": 0.5, "body": 0.5, "background": 0.5}

    run = changed(all_the_same)
    for spec in (per_class, coverage):
        figure, _ = spec(run, width=width)
        axes = figure.axes[0]
        marks = [container.lines[0] for container in axes.containers]
        assert len(marks) >= 3
        pixels = np.array([axes.transData.transform(mark.get_xydata())[:, 1] for mark in marks])
        apart = -np.diff(pixels, axis=0).max()
        assert apart >= 0.95 * marks[0].get_markersize() * figure.dpi / 72, spec.name
        bands = [patch.get_extents() for patch in axes.patches]  # every other row is on grey
        for row, ys in enumerate(pixels.T):
            inside = [band for band in bands if band.y0 < ys.min() and ys.max() < band.y1]
            assert len(inside) == (row % 2 == 0), "a mark lies in its own row"


def test_class_numbers_keep_clear_of_the_score(run):
    _, arrays = figure_1(run, names=["val_0000"])
    maps = np.zeros(SIZE, np.uint8)
    maps[-10:, -9:] = 1  # deepest under the score, but thick enough left of it
    maps[-8:, 3:-9] = 1
    maps[:9, :9] = 2
    arrays["panel_0_1"] = maps
    figure = FIGURES["figure_1"].redraw(arrays)
    axes = next(axes for axes in figure.axes if len(axes.get_images()) and "max pooling" in axes.get_title())
    renderer = figure.canvas.get_renderer()
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in axes.texts}
    score = boxes.pop(f"{arrays['score'][0, 1]:.0f}")
    assert set(boxes) == {"1", "2"}
    assert not any(box.overlaps(score) for box in boxes.values())
    maps[:, :-9] = 0  # now there is no other place, and the number is better there than nowhere
    figure = FIGURES["figure_1"].redraw(arrays)
    assert "1" in {text.get_text() for text in figure.axes[1].texts}


# Files


def test_save_figure_twice_gives_the_same_bytes_and_redraws(run, tmp_path):
    first, arrays = figure_2(run)
    again, more = figure_2(run)
    one = save_figure(first, arrays, tmp_path / "one", "figure_2", {"run": "quick"})
    two = save_figure(again, more, tmp_path / "two", "figure_2", {"run": "quick"})
    assert sorted(one) == ["json", "npz", "pdf", "png", "svg"]
    for suffix in one:
        assert one[suffix].read_bytes() == two[suffix].read_bytes(), suffix
    with np.load(one["npz"], allow_pickle=False) as saved:
        redrawn = FIGURES["figure_2"].redraw(dict(saved))
    three = save_figure(redrawn, arrays, tmp_path / "three", "figure_2", {"run": "quick"})
    with Image.open(one["png"]) as a, Image.open(three["png"]) as b:
        np.testing.assert_array_equal(np.array(a), np.array(b))
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(p.name for p in one.values())


def test_pictures_redraw_from_their_arrays(run, tmp_path):
    figure, arrays = figure_1(run, rows=2)
    paths = save_figure(figure, arrays, tmp_path, "figure_1", {})
    with np.load(paths["npz"], allow_pickle=False) as saved:
        redrawn = FIGURES["figure_1"].redraw(dict(saved))
    assert figure_png(redrawn) == figure_png(figure)
    arrays["panel_0_2"] = np.zeros(SIZE, np.uint8)
    assert figure_png(FIGURES["figure_1"].redraw(arrays)) != figure_png(figure)


def test_files_are_the_same_in_another_process_without_training_code(run_dir, run, tmp_path):
    code = (
        "import sys, wsss_nb.run.provenance\n"
        "from wsss_nb.show import FIGURES, save_figure\n"
        "from wsss_nb.run.run import load_run\n"
        "save_figure(*FIGURES['figure_2'](load_run(sys.argv[1])), sys.argv[2], 'figure_2', {})\n"
        "print([name for name in sys.modules if name.startswith(('wsss_nb.stages', 'wsss_nb.models', 'torch'))])"
    )
    command = [sys.executable, "-c", code, run_dir, tmp_path / "a"]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "86400"}
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    here = save_figure(*figure_2(run), tmp_path / "b", "figure_2", {})
    for suffix, path in here.items():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), suffix


def test_saved_files_embed_fonts_and_hold_no_date(run, tmp_path):
    paths = save_figure(*figure_2(run), tmp_path, "figure_2", {})
    pdf = paths["pdf"].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert b"<dc:date>" not in paths["svg"].read_bytes()
    with Image.open(paths["png"]) as image:
        assert image.size == (2100, image.size[1]), "7 inches at 300 dpi, as printers ask"


def test_style_does_not_depend_on_the_users_settings(run):
    import matplotlib

    plain = figure_png(figure_2(run)[0])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert figure_png(figure_2(run)[0]) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_manifest_names_each_file_with_its_hash(run, tmp_path):
    make_figure("figure_2", run, tmp_path, {"run": "quick"})
    for name in ("figure_2", "figure_2_single"):
        manifest = json.loads((tmp_path / f"{name}.json").read_text())
        assert manifest["run"] == "quick"
        assert manifest["figure"] == "figure_2"
        assert manifest["shows_images"] is False
        assert manifest["note"] == "synthetic data, not VOC"
        assert manifest["protocol"].startswith("Protocol: val split, 7 images")
        assert sorted(manifest["files"]) == sorted(f"{name}.{suffix}" for suffix in ("npz", "pdf", "png", "svg"))
        for file, digest in manifest["files"].items():
            assert hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() == digest
    assert {"double", "single"} == {
        json.loads((tmp_path / f"{name}.json").read_text())["width"] for name in ("figure_2", "figure_2_single")
    }


def test_objects_are_not_saved(run, tmp_path):
    figure, arrays = figure_2(run)
    arrays["bad"] = np.array([{}], dtype=object)
    with pytest.raises(ValueError, match=r"arrays\['bad'\]: expected numbers or text, got dtype object"):
        save_figure(figure, arrays, tmp_path, "figure_2", {})
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_one_clear_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a writable place"):
        make_figure("cost", run, tmp_path / "file" / "figures", {})


def test_unknown_figure(run, tmp_path):
    with pytest.raises(InputError, match=r"figure: expected one of figure_1, .*, got 'figure_9'"):
        make_figure("figure_9", run, tmp_path, {})


def test_a_figure_the_run_no_longer_backs_is_removed(run, changed, tmp_path):
    make_figure("coverage", run, tmp_path, {})
    (tmp_path / "other.png").write_bytes(b"kept")
    assert (tmp_path / "coverage.pdf").exists()
    with pytest.raises(NotInRun):
        make_figure("coverage", changed(lambda r: [cam.update(parts=None) for cam in r["cam"]]), tmp_path, {})
    assert [path.name for path in tmp_path.glob("*.*")] == ["other.png"]


@pytest.mark.parametrize(
    ("lost", "name", "error"),
    [
        ("data", "figure_1", NotOnThisMachine),
        ("data", "background_threshold", NotOnThisMachine),
        ("cam/lambda1_fsl/seed0/val-1a2b3c4d/val_0001.png", "figure_1", NotOnThisMachine),
        ("cam/lambda1_fsl/seed0/val-1a2b3c4d/val_0001.npz", "background_threshold", InputError),
    ],
)
def test_a_drawing_stays_if_only_data_or_files_are_not_at_hand(run_dir, tmp_path, lost, name, error):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    results = json.loads((folder / "results.json").read_text())
    results["data"]["root"] = "data"
    (folder / "results.json").write_text(json.dumps(results))
    drawn, target = folder / "figures", tmp_path / "figures"
    make_figure(name, load_run(folder), drawn, {})
    publish_figures(folder, target)
    before = {path.name: path.read_bytes() for path in drawn.iterdir()}
    assert len(before) == 10
    if error is NotOnThisMachine:
        (folder / lost).rename(tmp_path / "lost")
    else:
        (folder / lost).write_bytes(b"PK broken")
    with pytest.raises(error):
        make_figure(name, load_run(folder), drawn, {})
    assert {path.name: path.read_bytes() for path in drawn.iterdir()} == before
    publish_figures(folder, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


# Publishing


def test_registry_says_which_figures_show_images():
    shown = {name for name, spec in FIGURES.items() if spec.shows_images}
    assert shown == {"figure_1", "figure_3", "gallery"}
    assert list(FIGURES)[:3] == ["figure_1", "figure_2", "figure_3"]
    assert all(name == spec.name for name, spec in FIGURES.items())


def draw_some(run):
    folder = run.folder / "figures"
    for name in ("figure_1", "cost"):
        make_figure(name, run, folder, {})
    return folder


def test_all_of_a_synthetic_run_is_published(run_dir, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    draw_some(load_run(folder))
    copies = publish_figures(folder, tmp_path / "figures")
    assert len(copies) == 2 * 2 * 5
    assert sorted(path.name for path in copies) == sorted(p.name for p in (folder / "figures").iterdir())
    for path in copies:
        assert path.read_bytes() == (folder / "figures" / path.name).read_bytes()


def test_photographs_are_never_published(tmp_path):
    folder = make_fake_run(tmp_path / "run", num_val=3, synthetic=False, lams=(0.0, 1.0), seeds=(0,))
    drawn = draw_some(load_run(folder))
    (drawn / "extra.png").write_bytes(b"a photograph")
    manifest = json.loads((drawn / "figure_1.json").read_text())
    extra = {**manifest, "shows_images": False, "files": {"extra.png": ""}}
    (drawn / "extra.json").write_text(json.dumps(extra))
    (drawn / "figure_1.json").write_text(json.dumps({**manifest, "shows_images": False}))
    copies = publish_figures(folder, tmp_path / "figures")
    stems = {path.name.split(".")[0] for path in copies}
    assert stems == {"cost", "cost_single"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {path.name for path in copies}
    for path in copies:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                assert all(array.ndim < 3 and array.shape != SIZE for array in arrays.values())


def test_publishing_replaces_what_it_has_and_leaves_the_rest(run_dir, tmp_path):
    folder, target = tmp_path / "run", tmp_path / "figures"
    shutil.copytree(run_dir, folder)
    make_figure("cost", load_run(folder), folder / "figures", {})
    (target / "photos").mkdir(parents=True)
    others = ("mu_sigma.json", "mu_sigma.pdf", "coverage.png", "notes.json", "photos/cost.png")
    for name in others:
        (target / name).write_text('{"files": {"mu_sigma.pdf": ""}}')
    (target / "cost.png").write_text("replaced")
    copies = publish_figures(folder, target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*.*")}
    assert found == {*others, *(path.name for path in copies)}
    assert all("mu_sigma" in (target / name).read_text() for name in others)
    assert (target / "cost.png").read_bytes() == (folder / "figures/cost.png").read_bytes()


def test_only_what_was_drawn_from_these_results_is_published(run_dir, tmp_path):
    folder, target = tmp_path / "run", tmp_path / "figures"
    shutil.copytree(run_dir, folder)
    target.mkdir()
    (target / "cost.json").write_text('{"files": {}}')
    nothing = r"figures: expected figures or tables drawn from the run's results\.json, got none"
    with pytest.raises(InputError, match=nothing):
        publish_figures(folder, target)
    make_figure("cost", load_run(folder), folder / "figures", {})
    results = json.loads((folder / "results.json").read_text())
    results["cam"][0]["seed"] = 7
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=nothing):
        publish_figures(folder, target)
    assert [path.name for path in target.iterdir()] == ["cost.json"]
    make_table("table_sweep", load_run(folder), folder / "figures", {})
    assert {path.stem for path in publish_figures(folder, target)} == {"table_sweep"}


def test_publishing_half_a_figure_is_refused(run_dir, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    make_figure("cost", load_run(folder), folder / "figures", {})
    (folder / "figures/cost.pdf").unlink()
    with pytest.raises(InputError, match=r"cost\.json: expected the file cost\.pdf beside it, got none"):
        publish_figures(folder, tmp_path / "figures")
    manifest = json.loads((folder / "figures/cost.json").read_text())
    manifest["files"] = {"../../results.json": ""}
    (folder / "figures/cost.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="expected the file"):
        publish_figures(folder, tmp_path / "figures")


# Notebooks


@pytest.mark.parametrize("name", ["07_figures", "08_tables"])
def test_notebook_runs_from_its_folder(name, run_dir, tmp_path, monkeypatch, notebooks):
    project = tmp_path / "project"
    (project / "notebooks").mkdir(parents=True)
    (project / "runs").mkdir()
    shutil.copytree(run_dir, project / "runs" / "quick")
    monkeypatch.chdir(project / "notebooks")
    shown = "val_0003"
    scope = {"__name__": "__main__"}
    for cell in nbformat.read(notebooks / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), scope)
            if "parameters" in cell.metadata.get("tags", []):
                scope["figures_dir"] = str(project / "figures")
                scope["images"] = shown
    made = {path.stem for path in (project / "figures").glob("*.json")}
    if name == "07_figures":
        assert made == {f"{name}{size}" for name in FIGURES for size in ("", "_single")}
        assert scope["known"] in ("class1", "class2", "class3")
        with np.load(project / "figures" / "figure_1.npz") as arrays:
            assert arrays["names"].tolist() == [shown]
    else:
        assert made == {"table_1", "table_2", "table_sweep", "table_cost"}
    manifest = json.loads(next((project / "figures").glob("*.json")).read_text())
    assert {"git", "profile", "seeds", "data_hash", "weights", "packages", "hardware", "files"} <= set(manifest)
    assert str(tmp_path) not in json.dumps(manifest)


@pytest.fixture(scope="module")
def notebooks(request):
    return request.config.rootpath / "notebooks"


def nothing_run(results):
    results["cam"], results["stages"] = [], []


def cams_of_one_seed(results):
    results["cam"] = [cam for cam in results["cam"] if cam["seed"] == 0]
    results["stages"] = []


def baselines_only(results):
    results["cam"] = [cam for cam in results["cam"] if cam["lambda"] is None]
    results["stages"] = []


def later_stages_only(results):
    results["cam"] = []
    results["data"]["root"] = "/not/copied"


@pytest.mark.parametrize(
    ("edit", "drawn"),
    [
        (nothing_run, set()),
        (cams_of_one_seed, set(FIGURES)),
        (baselines_only, {"figure_1", "coverage", "cost"}),
        (later_stages_only, {"per_class", "confusion", "cost"}),
    ],
)
def test_notebooks_run_to_their_end_whatever_a_run_has_not_got(edit, drawn, changed, notebooks, capsys, monkeypatch):
    run = changed(edit)
    monkeypatch.setattr("IPython.display.display", lambda *shown, **how: None)
    for place in ("figures.figure_bytes", "figure_png"):  # what is drawn counts, not its files
        monkeypatch.setattr(f"wsss_nb.show.{place}", lambda *figure: b"picture")
    for name in ("07_figures", "08_tables"):
        scope = {"__name__": "__main__"}
        for cell in nbformat.read(notebooks / f"{name}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, name, "exec"), scope)
                if "parameters" in cell.metadata.get("tags", []):
                    scope["run_dir"] = str(run.folder)
    made = {path.stem for path in (run.folder / "figures").glob("*.json")}
    tables = {"table_1", "table_2", *({"table_sweep"} if run.results.cam else ())}
    tables |= {"table_cost"} if drawn else set()
    assert made == tables | {f"{figure}{size}" for figure in drawn for size in ("", "_single")}
    said = capsys.readouterr().out
    for figure in set(FIGURES) - drawn:
        assert f"{figure}: not drawn. " in said
    assert "table_1: not made" not in said


@pytest.mark.parametrize("name", ["07_figures", "08_tables"])
def test_notebooks_that_draw_import_nothing_that_trains(name, notebooks):
    cells = nbformat.read(notebooks / f"{name}.ipynb", as_version=4).cells
    behind = modules_behind(*imported_modules("\n".join(cell.source for cell in cells if cell.cell_type == "code")))
    assert {"wsss_nb.show.figures", "wsss_nb.run.results"} <= set(behind)
    training = ("wsss_nb.stages", "wsss_nb.run.pipeline", "wsss_nb.models.checkpoint")
    assert not [module for module in behind if module.startswith(training)]


@pytest.mark.parametrize("name", ["07_figures", "08_tables"])
def test_notebook_form(name, notebooks):
    notebook = nbformat.read(notebooks / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.startswith(f"# {name[:2]} ")
    assert "parameters" in code[0].metadata.tags
    names = [line.split(" = ")[0] for line in code[0].source.splitlines()]
    own = ["run_dir", "images", "figures_dir"] if name == "07_figures" else ["run_dir", "figures_dir"]
    assert names == ["profile", "data_root", "out_dir", "seed", "overrides", *own]
    for cell in code:
        assert len(cell.source.splitlines()) < 30
        for word in ("sys.path", "!", "%", "subprocess", "wsss_nb.stages", "wsss_nb.models", "torch"):
            assert not cell.source.lstrip().startswith(word) and f"import {word}" not in cell.source
            assert word in ("!", "%") or word not in cell.source
