"""Scores as curves: Figure 2, the background threshold, and the paths of the learned mu and sigma."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsss_nb.data.palette import IGNORE
from wsss_nb.errors import InputError
from wsss_nb.figures.images import candidates, image_confusion, image_mious
from wsss_nb.figures.spec import FigureSpec
from wsss_nb.figures.style import (
    COLORS,
    MARKERS,
    WIDTHS,
    Arrays,
    begin,
    letter,
    mean_and_spread,
    scalar,
    seeds_of,
    seeds_text,
    shared_protocol,
    top_legend,
    top_legend_height,
    variant_title,
)
from wsss_nb.published import FIGURE_2_POINT, FIGURE_2_READING
from wsss_nb.results import NotInRun, Run

__all__ = ["background_threshold", "figure_2", "mu_sigma"]

_BINS = 100


def _collect_figure_2(run: Run) -> Arrays:
    sweep = run.cams("sampling")
    if not sweep:
        raise NotInRun("results.json: cam: expected runs with a lambda, got none")
    others = [*run.cams("average"), *run.cams("seam")]
    return {
        "note": np.array(run.note),
        "protocol": np.array(shared_protocol([*sweep, *others], run)),
        "lambda": np.array([cam.weight for cam in sweep], dtype=np.float64),
        "fsl": np.array([cam.fsl for cam in sweep]),
        "seed": np.array([cam.seed for cam in sweep]),
        "miou": 100 * np.array([cam.scores.miou for cam in sweep]),
        "contour_f": 100 * np.array([cam.scores.contour_f for cam in sweep]),
        "baseline": np.array([variant_title(cam) for cam in others], dtype=np.str_),
        "baseline_seed": np.array([cam.seed for cam in others], dtype=np.int64),
        "baseline_miou": 100 * np.array([cam.scores.miou for cam in others]),
        "baseline_contour_f": 100 * np.array([cam.scores.contour_f for cam in others]),
    }


def _plot_figure_2(arrays: Arrays) -> Figure:
    single = scalar(arrays, "width") == "single"
    extra = f"{_about_seeds(arrays)}{FIGURE_2_READING}"
    figure, _ = begin(arrays, 4.1 if single else 2.6, extra=extra)
    panels = figure.subplots(2, 1, sharex=True) if single else figure.subplots(1, 2)
    place, published = FIGURE_2_POINT
    for index, (axes, key, title, paper) in enumerate(
        zip(
            panels,
            ("miou", "contour_f"),
            ("area mIoU", "contour F-score"),
            (published.miou, published.contour_f),
            strict=True,
        )
    ):
        for fsl, name, color, marker, line in (
            (False, "without FSL", COLORS[0], "o", (0, (4, 1.5))),
            (True, "with FSL", COLORS[3], "s", "solid"),
        ):
            chosen = arrays["fsl"] == fsl
            if chosen.any():
                side = 1 if fsl else -1
                _curve(axes, arrays["lambda"][chosen], arrays[key][chosen], name, color, marker, line, side)
        for number, name in enumerate(dict.fromkeys(arrays["baseline"].tolist())):
            values = arrays[f"baseline_{key}"][arrays["baseline"] == name]
            what = "mean ± s.d., " if len(values) > 1 else ""
            dashes = ((0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 3)), (0, (8, 2)))[number % 4]
            _level(axes, values, f"{name} ({what}{seeds_text([len(values)])})", dashes)
        axes.plot(
            place,
            paper,
            linestyle="none",
            marker="*",
            markersize=8,
            markerfacecolor="white",
            markeredgecolor="0.2",
            markeredgewidth=0.8,
            label="paper, VOC val: λ = 1 with FSL (Table 1)",
            zorder=4,
            clip_on=False,
        )
        letter(axes, index, title)
        axes.set_ylabel(f"{title} [%]")
        highest = np.concatenate([arrays[key], arrays[f"baseline_{key}"], [paper]]).max()
        axes.set_ylim(0, 1.1 * highest)
        axes.set_xlim(-0.06, 1.06)
        swept = np.unique(arrays["lambda"])
        if len(swept) <= 6:
            axes.set_xticks(swept, [f"{value:g}" for value in swept])
        if index == 1 or not single:
            axes.set_xlabel("λ, weight of the sampling term (Eq. 5)")
    top_legend(figure, panels[0])
    return figure


def _about_seeds(arrays: Arrays) -> str:
    """What the marks of Figure 2 are, and which points have other numbers of seeds."""
    points = zip(arrays["lambda"].tolist(), arrays["fsl"].tolist(), strict=True)
    counts = Counter(f"λ = {weight:g}{' + FSL' * fsl}" for weight, fsl in points)
    text = "Small open marks: single runs. " if max(counts.values()) > 1 else ""
    return f"{text}Marks: {seeds_of(counts)}. " if len(set(counts.values())) > 1 else text


def _level(axes: Axes, values: npt.NDArray[Any], label: str, line: Any) -> None:
    """The mean of values that do not depend on x as a horizontal line, one deviation as a band around it."""
    mean, spread = map(float, mean_and_spread(values))
    axes.axhline(mean, color="0.35", linewidth=1, linestyle=line, label=label, zorder=1.5)
    if np.isfinite(spread):
        axes.axhspan(mean - spread, mean + spread, color="0.35", alpha=0.13, linewidth=0, zorder=1.2)


def _curve(
    axes: Axes,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    name: str,
    color: tuple[float, float, float],
    marker: str,
    line: Any,
    side: int,
) -> None:
    """Mean and band over ``x``, or bars where two places or fewer make no curve.

    Single runs stand beside the mean, on the right (``side`` 1) or left (-1) of it.
    """
    places = np.unique(x)
    grouped = [y[x == place] for place in places]
    mean = np.array([group.mean() for group in grouped])
    spread = np.array([mean_and_spread(group)[1] for group in grouped], dtype=np.float64)
    counts = [len(group) for group in grouped]
    what = "mean ± s.d., " if max(counts) > 1 else ""
    is_curve = len(places) > 2
    axes.plot(
        places,
        mean,
        color=color,
        linestyle=line if is_curve else "none",
        marker=marker,
        markersize=4,
        label=f"{name} ({what}{seeds_text(counts)})",
        zorder=3,
    )
    if is_curve:
        axes.fill_between(places, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)
    else:
        axes.errorbar(places, mean, yerr=spread, color=color, linestyle="none", capsize=2, elinewidth=1)
    if max(counts) > 1:
        shift = np.empty(len(x))
        for place, count in zip(places, counts, strict=True):
            shift[x == place] = side * np.linspace(0.02, 0.02 + 0.006 * min(count - 1, 3), count)
        axes.plot(
            x + shift,
            y,
            linestyle="none",
            marker=marker,
            markersize=2.6,
            markerfacecolor="white",
            markeredgecolor=color,
            markeredgewidth=0.7,
            zorder=3.5,
        )


def _collect_mu_sigma(run: Run) -> Arrays:
    entries = [cam for cam in run.results.cam if cam.fsl and _moved(cam.mu_sigma)]
    if not entries:
        raise NotInRun("results.json: cam: expected paths of a learned mu and sigma, got fixed ones or none")
    entries.sort(key=lambda cam: (cam.weight is None, cam.weight or 0.0, cam.variant, cam.seed))
    arrays: Arrays = {
        "note": np.array(run.note),
        "protocol": np.array(""),
        "variant": np.array([variant_title(cam, run.pooling) for cam in entries]),
        "lambda": np.array(
            [np.nan if cam.weight is None else cam.weight for cam in entries], dtype=np.float64
        ),
        "seed": np.array([cam.seed for cam in entries]),
    }
    for index, cam in enumerate(entries):
        arrays[f"path_{index}"] = np.array(cam.mu_sigma, dtype=np.float64)
    return arrays


def _moved(path: list[list[float]] | None) -> bool:
    return bool(path) and len({(mu, sigma) for _, mu, sigma in path or []}) > 1


def _plot_mu_sigma(arrays: Arrays) -> Figure:
    single = scalar(arrays, "width") == "single"
    names = list(dict.fromkeys(arrays["variant"].tolist()))
    height = (4.0 if single else 2.2) + top_legend_height(names, WIDTHS[scalar(arrays, "width")])
    figure, _ = begin(arrays, height, extra="One line per seed.")
    panels = figure.subplots(2, 1, sharex=True) if single else figure.subplots(1, 2)
    shades = colormaps["viridis"](np.linspace(0, 0.88, len(names)))
    for index, (axes, column, title) in enumerate(
        zip(panels, (1, 2), ("μ, cross-over of Eq. 8", "σ, width of Eq. 7 [map pixels]"), strict=True)  # noqa: RUF001
    ):
        for number, variant in enumerate(arrays["variant"].tolist()):
            path = arrays[f"path_{number}"]
            kind = names.index(variant)
            axes.plot(
                path[:, 0],
                path[:, column],
                color=shades[kind],
                linestyle=("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))[kind % 4],
                marker=MARKERS[kind % len(MARKERS)],
                markersize=3,
                markevery=[len(path) - 1],
                linewidth=1,
                label=variant if variant not in arrays["variant"][:number] else None,
            )
        letter(axes, index, title)
        axes.margins(y=0.15)
        axes.ticklabel_format(axis="y", useOffset=False)
        if index == 1 or not single:
            axes.set_xlabel("training step")
    top_legend(figure, panels[0])
    return figure


def _collect_background_threshold(run: Run) -> Arrays:
    variant = run.final_variant("ours")
    entries = sorted((cam for cam in run.results.cam if cam.variant == variant), key=lambda cam: cam.seed)
    if not entries:
        raise NotInRun("results.json: cam: expected CAMs of our method, got none")
    names, k = candidates(run), len(run.classes)
    counts = np.zeros((len(entries), _BINS, k, k), dtype=np.int64)
    by_rule = np.zeros((len(entries), k, k), dtype=np.int64)
    for name in names:
        target = run.dataset.mask(name)
        kept = target != IGNORE
        for row, entry in enumerate(entries):
            classes, cam = run.activations(entry, name)
            if cam.shape[1:] != target.shape:
                raise InputError(f"{name}.npz: expected maps of size {target.shape}, got {cam.shape[1:]}")
            label_map = run.label_map(entry, name)
            if label_map.shape != target.shape:
                raise InputError(f"{name}.png: expected a map of size {target.shape}, got {label_map.shape}")
            by_rule[row] += image_confusion(label_map, target, k)
            if classes.size == 0:
                counts[row, 0, :, 0] += np.bincount(target[kept], minlength=k)
                continue
            strongest = classes[cam.argmax(axis=0)][kept]
            bins = np.clip((cam.max(axis=0)[kept] * _BINS).astype(np.int64), 0, _BINS - 1)
            pairs = (bins * k + target[kept]) * k + strongest
            counts[row] += np.bincount(pairs, minlength=_BINS * k * k).reshape(_BINS, k, k)
    below = counts.cumsum(axis=1) - counts  # pixels whose activation lies under each threshold
    confusion = counts.sum(axis=1, keepdims=True) - below
    confusion[..., 0] += below.sum(axis=-1)
    rule = str(entries[0].scores.protocol.get("background", ""))
    return {
        "note": np.array(run.note),
        "protocol": np.array(shared_protocol(entries, run)),
        "variant": np.array(variant_title(entries[0], run.pooling)),
        "threshold": np.arange(_BINS) / _BINS,
        "seed": np.array([entry.seed for entry in entries]),
        "miou": 100 * image_mious(confusion),
        "rule": np.array(rule),
        "rule_miou": 100 * image_mious(by_rule),
        "images": np.array(len(names)),
        "val_images": np.array(len(run.val_names)),
    }


def _plot_background_threshold(arrays: Arrays) -> Figure:
    single = scalar(arrays, "width") == "single"
    shown, everything = int(arrays["images"]), int(arrays["val_images"])
    part = "" if shown == everything else f" evenly spaced of {everything}"
    extra = (
        f"{scalar(arrays, 'variant')}; pixels whose largest foreground activation lies under the threshold "
        f"are background; curve and rule on the same {shown} images{part}. "
        "The oracle's best needs the ground truth: shown, never used."
    )
    figure, _ = begin(arrays, 2.7 if single else 2.5, extra=extra)
    axes = figure.subplots()
    x, values = arrays["threshold"], arrays["miou"]
    mean, spread = mean_and_spread(values)
    count = len(values)
    what = f"mean ± s.d., {seeds_text([count])}" if count > 1 else seeds_text([count])
    axes.plot(x, mean, color=COLORS[0], label=f"fixed threshold ({what})")
    axes.fill_between(x, mean - spread, mean + spread, color=COLORS[0], alpha=0.18, linewidth=0)
    best = int(mean.argmax())
    axes.plot(
        x[best],
        mean[best],
        linestyle="none",
        marker="X",
        color=COLORS[3],
        markersize=6,
        label=f"oracle's best: {x[best]:.2f} (never used)",
    )
    rule = scalar(arrays, "rule")
    label = f"this run's rule: {rule or 'not recorded'}{' (mean ± s.d.)' * (count > 1)}"
    _level(axes, arrays["rule_miou"], label, (0, (4, 2)))
    axes.set_xlabel("background threshold")
    axes.set_ylabel("area mIoU [%]")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    top_legend(figure, axes)
    return figure


figure_2 = FigureSpec(
    "figure_2",
    "Area mIoU and contour F-score against lambda, with and without the feature similarity loss",
    _collect_figure_2,
    _plot_figure_2,
)
mu_sigma = FigureSpec("mu_sigma", "Paths of the learned mu and sigma", _collect_mu_sigma, _plot_mu_sigma)
background_threshold = FigureSpec(
    "background_threshold",
    "Area mIoU against a fixed background threshold, with the oracle's best",
    _collect_background_threshold,
    _plot_background_threshold,
)
