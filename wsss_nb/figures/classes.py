"""Scores by class and by part, the confusion matrix, and what the run cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsss_nb.figures.spec import FigureSpec
from wsss_nb.figures.style import (
    COLORS,
    MARKERS,
    WIDTHS,
    Arrays,
    begin,
    letter,
    mean_and_spread,
    our_lambda,
    scalar,
    seeds_of,
    seeds_text,
    shared_protocol,
    top_legend,
    top_legend_height,
    variant_title,
)
from wsss_nb.published import STAGE_TITLES, STAGES
from wsss_nb.results import CamResult, Cost, NotInRun, Run, StageResult

__all__ = ["confusion", "cost", "coverage", "per_class"]

_PARTS = ("head", "body", "background")
_METHOD_TITLES = {"ours": "", "seam": " (SEAM)"}


def _collect_per_class(run: Run) -> Arrays:
    series: list[tuple[str, CamResult | StageResult]] = []
    ours = our_lambda(run)
    for weight, fsl in dict.fromkeys(((0.0, False), (ours, False), (ours, True))):
        for cam in run.cams("sampling", weight, fsl):
            series.append((f"CAMs, {variant_title(cam, run.pooling)}", cam))
    for stage in STAGES[1:]:
        series += [(STAGE_TITLES[stage], entry) for entry in run.stages(stage)]
    if not series:
        raise NotInRun(f"results.json: expected CAMs at lambda 0 or {ours:g}, or later stages, got none")
    return {
        "note": np.array(run.note),
        "protocol": np.array(shared_protocol([entry for _, entry in series], run)),
        "classes": np.array(run.classes),
        "series": np.array([title for title, _ in series]),
        "iou": np.array([_percent(entry.scores.iou) for _, entry in series]),
        "f": np.array([_percent(entry.scores.f) for _, entry in series]),
    }


def _percent(values: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else 100 * value for value in values]


def _plot_per_class(arrays: Arrays) -> Figure:
    shown = np.flatnonzero(np.isfinite(arrays["iou"]).any(axis=0))
    classes = [_short(name) for name in arrays["classes"][shown].tolist()]
    names = list(dict.fromkeys(arrays["series"].tolist()))
    single = scalar(arrays, "width") == "single"
    extra = f"{_of_seeds(arrays['series'], 'Mean ± s.d. of ')}."
    extra += " The background has no contour score."
    extra += _left_out(len(arrays["classes"]) - len(shown))
    pitch = min(
        0.06, (2.5 if single else 3.6) / (len(classes) * (len(names) + 1))
    )  # inches from mark to mark
    step = max(0.135, pitch * (len(names) + 1))
    body = 0.55 + step * max(len(classes), 4)
    height = (2 * body if single else body) + top_legend_height(names, WIDTHS[scalar(arrays, "width")])
    figure, _ = begin(arrays, height, extra=extra)
    panels = figure.subplots(2, 1) if single else figure.subplots(1, 2, sharey=True)
    for index, (axes, key, title) in enumerate(
        zip(panels, ("iou", "f"), ("IoU", "contour F-score"), strict=True)
    ):
        _stripes(axes, len(shown))
        for number, name in enumerate(names):
            values = arrays[key][arrays["series"] == name]
            if key == "f":  # the background has no contour score
                values = np.pad(values, ((0, 0), (1, 0)), constant_values=np.nan)
            mean, spread = mean_and_spread(values[:, shown])
            y = np.arange(len(shown))
            shift = (number + 0.5 - len(names) / 2) / (len(names) + 1)
            axes.errorbar(
                mean,
                y + shift,
                xerr=np.nan_to_num(spread),
                linestyle="none",
                marker=MARKERS[number],
                markersize=float(np.clip(72 * pitch, 1.8, 3.6)),
                elinewidth=0.7,
                color=COLORS[number],
                label=name,
            )
        axes.set_yticks(np.arange(len(classes)), classes, fontsize=7 if len(classes) <= 25 else 5.5)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.set_xlim(-2, 102)
        axes.set_xlabel(f"{title} [%]")
        letter(axes, index, f"{title} by class")
    top_legend(figure, panels[0])
    return figure


def _stripes(axes: Axes, rows: int) -> None:
    """Every other row on grey, so that marks above and below its middle are read as its own."""
    for row in range(0, rows, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.965", linewidth=0, zorder=0)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _collect_confusion(run: Run, stage: str | None = None) -> Arrays:
    for name in reversed(STAGES) if stage is None else (stage,):
        entries = run.stages(name)  # type: ignore[arg-type]
        if entries:
            break
    else:
        raise NotInRun(f"results.json: expected scores of stage {stage or 'cam'} of our method, got none")
    return {
        "note": np.array(run.note),
        "protocol": np.array(shared_protocol(entries, run)),
        "classes": np.array(run.classes),
        "stage": np.array(STAGE_TITLES[entries[0].stage].removeprefix("+ ")),
        "seeds": np.array([entry.seed for entry in entries]),
        "confusion": np.array([entry.scores.confusion for entry in entries], dtype=np.int64).sum(axis=0),
    }


def _plot_confusion(arrays: Arrays) -> Figure:
    counts = arrays["confusion"]
    shown = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1) > 0)
    counts = counts[np.ix_(shown, shown)]
    classes = [_short(name) for name in arrays["classes"][shown].tolist()]
    width = WIDTHS[scalar(arrays, "width")]
    k = len(classes)
    extra = "Each row: where the pixels of a true class went, in percent; grey rows: predicted only."
    extra += _left_out(len(arrays["classes"]) - k)
    size = 7 if k <= 12 else 6 if k <= 25 else 4.2
    longest = max(map(len, classes))
    pitch = 72 * (width - 1.6 - 0.0086 * size * longest) / k  # points for each column
    upright = 0.62 * size * longest > pitch
    below, every = classes, 1
    if pitch < 1.1 * size:  # names would run into each other
        below, upright = [str(number) for number in range(k)], False
        classes = [f"{name} {number}" for number, name in enumerate(classes)]
        every = math.ceil((0.64 * len(below[-1]) + 0.4) * size / pitch)
        extra += " Columns have their rows' numbers."
    foot = 0.0086 * size * max(map(len, below)) if upright else 0.15
    tallest = 6.0 if width > WIDTHS["single"] else 4.0
    figure, _ = begin(arrays, min(tallest, max(1.1, 0.2 * k)) + 0.7 + foot, extra=extra)
    axes = figure.subplots()
    total = counts.sum(axis=1, keepdims=True)
    share = np.where(total > 0, 100 * counts / np.maximum(total, 1), np.nan)
    seaborn.heatmap(
        share,
        ax=axes,
        vmin=0,
        vmax=100,
        cmap="cividis",
        annot=(k <= 21 and width > 4) or k <= 8,
        fmt=".0f",
        annot_kws={"fontsize": 6 if k <= 12 else 4.6},
        linewidths=0.3 if k <= 25 else 0,
        linecolor="0.5",
        cbar_kws={"label": "share [%]"},
    )
    places = np.arange(0, k, every)
    axes.set_xticks(places + 0.5, [below[i] for i in places], rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(np.arange(k) + 0.5, classes, rotation=0, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.grid(False)
    axes.set_facecolor("0.88")
    axes.set_title(f"{scalar(arrays, 'stage')}, pixels of {seeds_text([len(arrays['seeds'])])}")
    return figure


def _of_seeds(series: npt.NDArray[Any], many: str) -> str:
    """How many seeds stand behind each series, after ``many`` if any has more than one."""
    counts = Counter(series.tolist())
    return f"{many if max(counts.values()) > 1 else ''}{seeds_of(counts)}"


def _left_out(count: int) -> str:
    return f" Classes that do not occur are left out ({count})." if count else ""


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _collect_coverage(run: Run) -> Arrays:
    entries = [cam for cam in run.results.cam if cam.parts]
    if not entries:
        raise NotInRun("results.json: cam: expected head and body coverage (synthetic data only), got none")
    entries.sort(key=_variant_order)
    found = {
        part: np.array(
            [np.nan if (value := (cam.parts or {}).get(part)) is None else value for cam in entries],  # type: ignore[call-overload]
            dtype=np.float64,
        )
        for part in _PARTS
    }
    return {
        "note": np.array(run.note),
        "protocol": np.array(shared_protocol(entries, run)),
        "variant": np.array([variant_title(cam, run.pooling) for cam in entries]),
        "seed": np.array([cam.seed for cam in entries]),
        **found,
    }


def _variant_order(cam: CamResult) -> tuple[object, ...]:
    return (("average", "seam", "sampling").index(cam.method), cam.weight or 0.0, cam.fsl, cam.seed)


def _plot_coverage(arrays: Arrays) -> Figure:
    names = list(dict.fromkeys(arrays["variant"].tolist()))
    extra = (
        "Share of the head's, the body's and the background's pixels that the pseudo-labels have right. "
        f"{_of_seeds(arrays['variant'], 'Mean ± s.d. of ')}."
    )
    figure, _ = begin(arrays, 0.75 + 0.24 * len(names), extra=extra)
    axes = figure.subplots()
    _stripes(axes, len(names))
    for number, part in enumerate(_PARTS):
        means, spreads = [], []
        for row, name in enumerate(names):
            values = arrays[part][arrays["variant"] == name]
            mean, spread = mean_and_spread(values)
            means.append(float(mean))
            spreads.append(float(spread))
            y = np.full(len(values), row + 0.26 * (number - 1))
            axes.plot(
                values, y, linestyle="none", marker="|", markersize=4, color=_part_color(number), alpha=0.6
            )
        axes.errorbar(
            means,
            np.arange(len(names)) + 0.26 * (number - 1),
            xerr=np.nan_to_num(spreads),
            linestyle="none",
            marker=MARKERS[number],
            elinewidth=0.8,
            color=_part_color(number),
            label=part,
        )
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share of pixels predicted right")
    top_legend(figure, axes)
    return figure


def _part_color(number: int) -> tuple[float, float, float]:
    return COLORS[(3, 0, 7)[number]]


def _collect_cost(run: Run) -> Arrays:
    rows: list[tuple[str, int, Cost]] = []
    start = run.results.pretrain
    if start is not None:
        rows.append(("Pre-training", start.seed, start.cost))
    for cam in sorted(run.results.cam, key=_variant_order):
        if cam.cost is not None:
            rows.append((f"CAMs, {variant_title(cam, run.pooling)}", cam.seed, cam.cost))
    known = {cam.variant for cam in run.results.cam if cam.cost is not None}
    later = sorted(run.results.stages, key=lambda entry: (entry.method == "seam", entry.variant, entry.seed))
    for stage in STAGES:
        for entry in later:
            if (
                entry.stage == stage
                and entry.cost is not None
                and not (stage == "cam" and entry.variant in known)
            ):
                title = STAGE_TITLES[stage].removeprefix("+ ") + _METHOD_TITLES[entry.method]
                rows.append((title, entry.seed, entry.cost))
    if not rows:
        raise NotInRun("results.json: expected what the stages cost, got none")
    machines = sorted({f"{c.device}{_threads(c)}" for _, _, c in rows if c.device})
    measured = [f"Measured on: {'; '.join(machines)}."] if machines else []
    return {
        "note": np.array(run.note),
        "protocol": np.array(" ".join([*measured, *_counted(run)])),
        "step": np.array([title for title, _, _ in rows]),
        "seed": np.array([seed for _, seed, _ in rows]),
        "seconds": np.array([c.seconds for _, _, c in rows]),
        "peak_memory_mb": np.array(
            [np.nan if c.peak_memory_mb is None else c.peak_memory_mb for _, _, c in rows], dtype=np.float64
        ),
    }


def _counted(run: Run) -> list[str]:
    """What the rows of the cost count; older runs kept the time of a CAM network's training alone."""
    cams = [cam.cost for cam in run.results.cam if cam.cost is not None]
    if all("val" in cost.steps for cost in cams):
        said = ["Each row counts its training, inference and scoring."]
    else:
        said = [
            "Rows of CAMs count the training alone, later stages inference and scoring too (an older record)."
        ]
    if run.results.pretrain is None and run.results.profile.get("pretrain"):
        said.append("Pre-training was not recorded.")
    return said


def _plot_cost(arrays: Arrays) -> Figure:
    names = list(dict.fromkeys(arrays["step"].tolist()))
    single = scalar(arrays, "width") == "single"
    total = arrays["seconds"].sum()
    extra = f"Bars: {_of_seeds(arrays['step'], 'mean of ')}. All of them together: {_duration(total)}."
    body = 0.6 + 0.17 * max(len(names), 3)
    figure, _ = begin(arrays, 2 * body if single else body, extra=extra)
    panels = figure.subplots(2, 1) if single else figure.subplots(1, 2, sharey=True)
    for index, (axes, key, title, color) in enumerate(
        zip(panels, ("seconds", "peak_memory_mb"), ("time [s]", "peak memory [MB]"), COLORS, strict=False)
    ):
        _bars(axes, arrays, key, names, color)
        axes.locator_params(axis="x", nbins=5)
        letter(axes, index, title)
    return figure


def _bars(axes: Axes, arrays: Arrays, key: str, names: Sequence[str], color: tuple[float, ...]) -> None:
    means = np.array([mean_and_spread(arrays[key][arrays["step"] == name])[0] for name in names])
    axes.barh(np.arange(len(names)), np.nan_to_num(means), height=0.65, color=color)
    for row, mean in enumerate(means):
        text = f" {mean:,.0f}" if mean >= 10 else f" {mean:.2g}" if np.isfinite(mean) else " not recorded"
        axes.text(np.nan_to_num(mean), row, text, va="center", fontsize=6)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.18)
    axes.grid(axis="y", visible=False)


def _threads(cost: Cost) -> str:
    return "" if not cost.threads else f", {cost.threads} thread{'s' if cost.threads > 1 else ''}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


per_class = FigureSpec(
    "per_class", "IoU and contour F-score of every class", _collect_per_class, _plot_per_class
)
confusion = FigureSpec("confusion", "Confusion matrix", _collect_confusion, _plot_confusion)
coverage = FigureSpec(
    "coverage",
    "How much of the head, the body and the background is right",
    _collect_coverage,
    _plot_coverage,
)
cost = FigureSpec("cost", "Time and memory of each stage", _collect_cost, _plot_cost, measured=True)
