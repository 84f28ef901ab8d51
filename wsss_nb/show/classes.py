"""Scores by class and by part, the confusion matrix, and what the run cost."""

import itertools
import math
from collections import Counter
from typing import Any, Literal

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsss_nb.run.results import CamResult, Cost, StageResult
from wsss_nb.run.run import Run
from wsss_nb.show.panels import compared_cams
from wsss_nb.show.protocol import about, mean_and_spread, required, seeds_of, seeds_text
from wsss_nb.show.style import COLORS, MARKERS, WIDTHS, Array, Arrays, begin, begin_pair, letter, scalar, top_legend
from wsss_nb.variants import SEAM, STAGE_TITLES, STAGES

__all__ = ["PARTS", "collect_confusion", "collect_cost", "collect_coverage", "collect_per_class", "plot_confusion",
           "plot_cost", "plot_coverage", "plot_per_class"]  # fmt: skip

PARTS: dict[Literal["head", "body", "background"], Any] = {
    "head": COLORS[3], "body": COLORS[0], "background": COLORS[7]
}  # fmt: skip


def collect_per_class(run: Run) -> Arrays:
    """IoU and contour F of every class: CAMs by max pooling, ours without and with FSL, then ours stage by stage."""
    series: list[tuple[str, CamResult | StageResult]] = []
    series += [(f"CAMs, {title}", cam) for title, cams in compared_cams(run).items() for cam in cams]
    series += [(STAGE_TITLES[stage], entry) for stage in STAGES[1:] for entry in run.stages(stage)]
    required(series, "expected CAMs at lambda 0 or of our method, or later stages")
    entries = [entry for _, entry in series]
    iou, f = (
        100 * np.array([getattr(entry.scores, key) for entry in entries], dtype=np.float64) for key in ("iou", "f")
    )
    return about(run, entries, classes=run.classes, series=[title for title, _ in series], iou=iou, f=f)


def plot_per_class(arrays: Arrays) -> Figure:
    """A row for each class, a mark for each series, in two panels."""
    shown = np.flatnonzero(np.isfinite(arrays["iou"]).any(axis=0))
    classes, left_out = _occurring(arrays, shown)
    names = list(dict.fromkeys(arrays["series"].tolist()))
    single = scalar(arrays, "width") == "single"
    extra = f"{_of_seeds(arrays['series'], 'Mean ± s.d. of ')}. The background has no contour score.{left_out}"
    pitch = min(0.06, (2.5 if single else 3.6) / (len(classes) * (len(names) + 1)))  # inches from mark to mark
    body = 0.55 + max(0.135, pitch * (len(names) + 1)) * max(len(classes), 4)
    figure, panels = begin_pair(arrays, 2 * body if single else body, extra, names, by_row=True)
    rows, size = np.arange(len(shown)), float(np.clip(72 * pitch, 1.8, 3.6))
    for index, (axes, key, title) in enumerate(zip(panels, ("iou", "f"), ("IoU", "contour F-score"), strict=True)):
        _list_rows(axes, classes)
        for number, name in enumerate(names):
            values = arrays[key][arrays["series"] == name]
            if key == "f":  # the background has no contour score
                values = np.pad(values, ((0, 0), (1, 0)), constant_values=np.nan)
            shift = (number + 0.5 - len(names) / 2) / (len(names) + 1)
            _marks(axes, values[:, shown], rows + shift, number, COLORS[number], name, markersize=size, elinewidth=0.7)
        axes.set(xlim=(-2, 102), xlabel=f"{title} [%]")
        letter(axes, index, f"{title} by class")
    top_legend(figure, panels[0])
    return figure


def _marks(axes: Axes, values: Array, y: Array, number: int, color: Any, label: str, **look: Any) -> None:
    """Mean and deviation over the runs (axis 0) of each row at heights ``y``."""
    mean, spread = mean_and_spread(values)
    look |= {"linestyle": "none", "marker": MARKERS[number], "color": color, "label": label}
    axes.errorbar(mean, y, xerr=np.nan_to_num(spread), **look)


def _list_rows(axes: Axes, names: list[str]) -> None:
    """A row for each name, every other on grey, so that marks above and below its middle are read as its own."""
    for row in range(0, len(names), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.965", linewidth=0, zorder=0)
    axes.set_yticks(np.arange(len(names)), names, fontsize=7 if len(names) <= 25 else 5.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _of_seeds(series: Array, many: str) -> str:
    """How many seeds stand behind each series, after ``many`` if any has more than one."""
    counts = Counter(series.tolist())
    return f"{many if max(counts.values()) > 1 else ''}{seeds_of(counts)}"


def _occurring(arrays: Arrays, shown: Array) -> tuple[list[str], str]:
    """Names of the classes that are shown, shortened, and what is said about the others."""
    names, count = arrays["classes"][shown].tolist(), len(arrays["classes"]) - len(shown)
    said = f" Classes that do not occur are left out ({count})." if count else ""
    return [name if len(name) <= 22 else f"{name[:21]}…" for name in names], said


def collect_confusion(run: Run) -> Arrays:
    """Confusion matrix of our last stage, summed over the seeds."""
    last = next((found for stage in reversed(STAGES) if (found := run.stages(stage))), None)
    entries = required(last, "expected scores of our method")
    stage, seeds = STAGE_TITLES[entries[0].stage].removeprefix("+ "), [entry.seed for entry in entries]
    counts = np.array([entry.scores.confusion for entry in entries], dtype=np.int64).sum(axis=0)
    return about(run, entries, classes=run.classes, stage=stage, seeds=seeds, confusion=counts)


def plot_confusion(arrays: Arrays) -> Figure:
    """Where the pixels of each class went, as a heat map."""
    counts = arrays["confusion"]
    shown = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1) > 0)
    counts = counts[np.ix_(shown, shown)]
    classes, left_out = _occurring(arrays, shown)
    width, k = WIDTHS[scalar(arrays, "width")], len(classes)
    extra = f"Each row: where the pixels of a true class went, in percent; grey rows: predicted only.{left_out}"
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
    figure, _ = begin(arrays, min(tallest, max(1.1, 0.2 * k)) + 0.7 + foot, extra)
    axes = figure.subplots()
    total = counts.sum(axis=1, keepdims=True)
    share = np.where(total > 0, 100 * counts / np.maximum(total, 1), np.nan)
    look: dict[str, Any] = {"cmap": "cividis", "linewidths": 0.3 if k <= 25 else 0, "linecolor": "0.5"}
    look |= {"annot": (k <= 21 and width > 4) or k <= 8, "annot_kws": {"fontsize": 6 if k <= 12 else 4.6}}
    seaborn.heatmap(share, ax=axes, vmin=0, vmax=100, fmt=".0f", cbar_kws={"label": "share [%]"}, **look)
    places = np.arange(0, k, every)
    axes.set_xticks(places + 0.5, [below[i] for i in places], rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(np.arange(k) + 0.5, classes, rotation=0, fontsize=size)
    axes.grid(False)
    title = f"{scalar(arrays, 'stage')}, pixels of {seeds_text([len(arrays['seeds'])])}"
    axes.set(xlabel="predicted", ylabel="true", facecolor="0.88", title=title)
    return figure


def collect_coverage(run: Run) -> Arrays:
    """Which share of head, body and background the CAMs' pseudo-labels have right."""
    entries = [cam for cam in run.cams() if cam.parts]
    required(entries, "cam: expected head and body coverage (synthetic data only)")
    shares = {part: np.array([(cam.parts or {}).get(part) for cam in entries], dtype=np.float64) for part in PARTS}
    return about(run, entries, variant=[cam.title for cam in entries], seed=[cam.seed for cam in entries], **shares)


def plot_coverage(arrays: Arrays) -> Figure:
    """A row for each variant, a mark for each part."""
    names = list(dict.fromkeys(arrays["variant"].tolist()))
    extra = "Share of the head's, the body's and the background's pixels that the pseudo-labels have right. "
    figure, _ = begin(arrays, 0.75 + 0.24 * len(names), f"{extra}{_of_seeds(arrays['variant'], 'Mean ± s.d. of ')}.")
    axes = figure.subplots()
    _list_rows(axes, names)
    for number, (part, color) in enumerate(PARTS.items()):
        rows = np.arange(len(names)) + 0.26 * (number - 1)
        found = [arrays[part][arrays["variant"] == name] for name in names]
        for y, values in zip(rows, found, strict=True):
            axes.plot(values, [y] * len(values), linestyle="none", marker="|", markersize=4, color=color, alpha=0.6)
        filled = np.array(list(itertools.zip_longest(*found, fillvalue=np.nan)))
        _marks(axes, filled, rows, number, color, part, elinewidth=0.8)
    axes.set(xlim=(-0.02, 1.02), xlabel="share of pixels predicted right")
    top_legend(figure, axes)
    return figure


def collect_cost(run: Run) -> Arrays:
    """Seconds and peak memory of pre-training, of every CAM training, and of every later stage."""
    start, cams = run.results.pretrain, run.cams()
    rows: list[tuple[str, int, Cost]] = [("Pre-training", start.seed, start.cost)] if start else []
    rows += [(f"CAMs, {cam.title}", cam.seed, cam.cost) for cam in cams]
    known = {cam.variant for cam in cams}
    later = [entry for entry in run.results.stages if entry.stage != "cam" or entry.variant not in known]
    for entry in sorted(later, key=lambda row: (STAGES.index(row.stage), row.variant == SEAM, row.variant, row.seed)):
        of = "" if entry.variant == run.ours else f" ({entry.title})"
        rows.append((STAGE_TITLES[entry.stage].removeprefix("+ ") + of, entry.seed, entry.cost))
    steps, seeds, costs = zip(*required(rows, "expected what the stages cost"), strict=True)
    threads = [f", {cost.threads} thread{'s' * (cost.threads > 1)}" if cost.threads else "" for cost in costs]
    machines = {f"{cost.device}{text}" for cost, text in zip(costs, threads, strict=True) if cost.device}
    measured = f"Measured on: {'; '.join(sorted(machines))}. " if machines else ""
    said = f"{measured}Each row counts its training, inference and scoring."
    memory = np.array([cost.peak_memory_mb for cost in costs], dtype=np.float64)
    seconds = [cost.seconds for cost in costs]
    return about(run, [], protocol=said, step=steps, seed=seeds, seconds=seconds, peak_memory_mb=memory)


def plot_cost(arrays: Arrays) -> Figure:
    """Bars of time and of memory."""
    names = list(dict.fromkeys(arrays["step"].tolist()))
    total = _duration(arrays["seconds"].sum())
    extra = f"Bars: {_of_seeds(arrays['step'], 'mean of ')}. All of them together: {total}."
    body = 0.6 + 0.17 * max(len(names), 3)
    figure, panels = begin_pair(arrays, 2 * body if scalar(arrays, "width") == "single" else body, extra, by_row=True)
    titles = {"seconds": "time [s]", "peak_memory_mb": "peak memory [MB]"}
    for index, (axes, (key, title)) in enumerate(zip(panels, titles.items(), strict=True)):
        means = np.array([mean_and_spread(arrays[key][arrays["step"] == name])[0] for name in names])
        axes.barh(np.arange(len(names)), np.nan_to_num(means), height=0.65, color=COLORS[index])
        for row, mean in enumerate(means):
            text = f" {mean:,.0f}" if mean >= 10 else f" {mean:.2g}" if np.isfinite(mean) else " not recorded"
            axes.text(np.nan_to_num(mean), row, text, va="center", fontsize=6)
        axes.set_yticks(np.arange(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.margins(x=0.18)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)
        letter(axes, index, title)
    return figure


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
