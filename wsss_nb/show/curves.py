"""Scores as curves: Figure 2, the background threshold, and the paths of the learned mu and sigma."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsss_nb.counts import confusion_matrix, mean_iou
from wsss_nb.run.run import Run
from wsss_nb.show.panels import candidates
from wsss_nb.show.paper import FIGURE_2_POINT, FIGURE_2_READING
from wsss_nb.show.protocol import about, mean_and_spread, required, seeds_of, seeds_text
from wsss_nb.show.style import COLORS, MARKERS, Array, Arrays, begin, begin_pair, letter, scalar, top_legend
from wsss_nb.system.config import VOID
from wsss_nb.system.errors import InputError

__all__ = ["collect_background_threshold", "collect_figure_2", "collect_mu_sigma", "plot_background_threshold",
           "plot_figure_2", "plot_mu_sigma"]  # fmt: skip

_BINS = 100
_SCORES = {"miou": "area mIoU", "contour_f": "contour F-score"}

# of the level lines of Figure 2, in the order of the variants
_DASHES = ((1, 1), (6, 1.5, 1, 1.5), (3, 3), (8, 2), (2, 4), (10, 2, 2, 2), (4, 1, 1, 1, 1, 1), (1, 4))


def collect_figure_2(run: Run) -> Arrays:
    """Scores of every CAM training: the points of the curves, and the baselines."""
    others = run.cams(on_curve=False)
    sweep = required(run.cams(on_curve=True), "cam: expected runs with a lambda")
    points = {key: 100 * np.array([getattr(cam.scores, key) for cam in sweep]) for key in _SCORES}
    points |= {key: np.array([getattr(cam, key) for cam in sweep]) for key in ("fsl", "seed")}
    points |= {f"baseline_{key}": 100 * np.array([getattr(cam.scores, key) for cam in others]) for key in _SCORES}
    points |= {
        "lambda": np.array([cam.lam for cam in sweep]),
        "baseline": np.array([cam.title for cam in others], np.str_),
    }
    return about(run, [*sweep, *others], **points, baseline_seed=np.array([cam.seed for cam in others], np.int64))


def plot_figure_2(arrays: Arrays) -> Figure:
    """Figure 2: both scores against lambda."""
    single = scalar(arrays, "width") == "single"
    figure, panels = begin_pair(arrays, 4.1 if single else 2.6, f"{_about_seeds(arrays)}{FIGURE_2_READING}")
    place, published = FIGURE_2_POINT
    kinds = {"without FSL": (COLORS[0], "o", (0, (4, 1.5))), "with FSL": (COLORS[3], "s", "solid")}
    star: dict[str, Any] = {"marker": "*", "markersize": 8, "markerfacecolor": "white", "markeredgecolor": "0.2"}
    for index, (axes, (key, title)) in enumerate(zip(panels, _SCORES.items(), strict=True)):
        for fsl, (name, look) in enumerate(kinds.items()):
            chosen = arrays["fsl"] == fsl
            if chosen.any():
                _curve(axes, arrays["lambda"][chosen], arrays[key][chosen], name, *look, side=2 * fsl - 1)
        for number, name in enumerate(dict.fromkeys(arrays["baseline"].tolist())):
            values = arrays[f"baseline_{key}"][arrays["baseline"] == name]
            dashes = (0, _DASHES[number % len(_DASHES)])
            _level(axes, values, f"{name} ({_of_seeds([len(values)])})", dashes)
        paper, label = getattr(published, key), "paper, VOC val: λ = 1 with FSL (Table 1)"
        axes.plot(place, paper, linestyle="none", **star, markeredgewidth=0.8, label=label, zorder=4, clip_on=False)
        letter(axes, index, title)
        highest = np.concatenate([arrays[key], arrays[f"baseline_{key}"], [paper]]).max()
        axes.set(ylabel=f"{title} [%]", ylim=(0, 1.1 * highest), xlim=(-0.06, 1.06))
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
    counts = Counter(f"λ = {lam:g}{' + FSL' * fsl}" for lam, fsl in points)
    text = "Small open marks: single runs. " if max(counts.values()) > 1 else ""
    return f"{text}Marks: {seeds_of(counts)}. " if len(set(counts.values())) > 1 else text


def _of_seeds(counts: Sequence[int] | Array) -> str:
    return f"{'mean ± s.d., ' if max(counts) > 1 else ''}{seeds_text(counts)}"


def _level(axes: Axes, values: Array, label: str, line: Any) -> None:
    """The mean of values that do not depend on x as a horizontal line, one deviation as a band around it."""
    mean, spread = map(float, mean_and_spread(values))
    axes.axhline(mean, color="0.35", linewidth=1, linestyle=line, label=label, zorder=1.5)
    if np.isfinite(spread):
        axes.axhspan(mean - spread, mean + spread, color="0.35", alpha=0.13, linewidth=0, zorder=1.2)


def _curve(axes: Axes, x: Array, y: Array, name: str, color: Any, marker: str, line: Any, side: int) -> None:
    """Mean and band over ``x``, or bars where two places or fewer make no curve.

    Single runs stand beside the mean, on the right (``side`` 1) or left (-1) of it.
    """
    places, counts = np.unique(x, return_counts=True)
    mean, spread = np.array([mean_and_spread(y[x == place]) for place in places]).T
    label, is_curve = f"{name} ({_of_seeds(counts)})", len(places) > 2
    look = {"color": color, "marker": marker, "linestyle": line if is_curve else "none"}
    axes.plot(places, mean, **look, markersize=4, label=label, zorder=3)
    if is_curve:
        axes.fill_between(places, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)
    else:
        axes.errorbar(places, mean, yerr=spread, color=color, linestyle="none", capsize=2, elinewidth=1)
    if max(counts) > 1:
        shift = np.empty(len(x))
        for place, count in zip(places, counts, strict=True):
            shift[x == place] = side * np.linspace(0.02, 0.02 + 0.006 * min(count - 1, 3), count)
        open_mark = {"markersize": 2.6, "markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 0.7}
        axes.plot(x + shift, y, linestyle="none", marker=marker, **open_mark, zorder=3.5)


def collect_mu_sigma(run: Run) -> Arrays:
    """(step, mu, sigma) of every training that learned them."""
    entries = [cam for cam in run.cams() if cam.fsl and len({(mu, sigma) for _, mu, sigma in cam.mu_sigma or []}) > 1]
    required(entries, "cam: expected paths of a mu and sigma that were learned")
    arrays: dict[str, Any] = {"lambda": np.array([cam.lam for cam in entries], dtype=np.float64)}
    arrays |= {f"path_{index}": np.array(cam.mu_sigma, dtype=np.float64) for index, cam in enumerate(entries)}
    arrays |= {"variant": [cam.title for cam in entries], "seed": [cam.seed for cam in entries]}
    return about(run, [], **arrays)


def plot_mu_sigma(arrays: Arrays) -> Figure:
    """mu and sigma over the training steps."""
    single = scalar(arrays, "width") == "single"
    names = list(dict.fromkeys(arrays["variant"].tolist()))
    figure, panels = begin_pair(arrays, 4.0 if single else 2.2, "One line per seed.", names)
    shades = colormaps["viridis"](np.linspace(0, 0.88, len(names)))
    lines = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))
    titles = ("μ, cross-over of Eq. 8", "σ, width of Eq. 7 [map pixels]")  # noqa: RUF001
    for index, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for number, variant in enumerate(arrays["variant"].tolist()):
            path, kind = arrays[f"path_{number}"], names.index(variant)
            label = variant if variant not in arrays["variant"][:number] else None
            mark = {"marker": MARKERS[kind % len(MARKERS)], "markersize": 3, "markevery": [len(path) - 1]}
            look = {"color": shades[kind], "linestyle": lines[kind % 4], "linewidth": 1, **mark}
            axes.plot(path[:, 0], path[:, 1 + index], label=label, **look)
        letter(axes, index, title)
        axes.margins(y=0.15)
        axes.ticklabel_format(axis="y", useOffset=False)
        if index == 1 or not single:
            axes.set_xlabel("training step")
    top_legend(figure, panels[0])
    return figure


def collect_background_threshold(run: Run) -> Arrays:
    """mIoU of our CAMs for every background threshold, and by the run's own rule."""
    entries = required(run.cams(run.ours), "cam: expected CAMs of our method")
    names, k = candidates(run), len(run.classes)
    counts = np.zeros((len(entries), _BINS, k, k), dtype=np.int64)
    by_rule = np.zeros((len(entries), k, k), dtype=np.int64)
    for name in names:
        target = run.dataset.mask(name)
        kept = target != VOID
        for row, entry in enumerate(entries):
            classes, cam = run.activations(entry, name)
            label_map = run.label_map(entry, name)
            for suffix, shape in (("npz", cam.shape[1:]), ("png", label_map.shape)):
                if shape != target.shape:
                    raise InputError(f"{name}.{suffix}: expected a map of size {target.shape}, got {shape}")
            by_rule[row] += confusion_matrix(label_map, target, k)
            if classes.size == 0:  # background without activation
                classes, cam = np.zeros(1, dtype=np.int64), np.zeros((1, *target.shape), dtype=np.float32)
            strongest = classes[cam.argmax(axis=0)][kept]
            bins = np.clip((cam.max(axis=0)[kept] * _BINS).astype(np.int64), 0, _BINS - 1)
            pairs = (bins * k + target[kept]) * k + strongest
            counts[row] += np.bincount(pairs, minlength=_BINS * k * k).reshape(_BINS, k, k)
    below = counts.cumsum(axis=1) - counts  # pixels whose activation lies under each threshold
    confusion = counts.sum(axis=1, keepdims=True) - below
    confusion[..., 0] += below.sum(axis=-1)
    found: dict[str, Any] = {"miou": 100 * mean_iou(confusion), "rule_miou": 100 * mean_iou(by_rule)}
    found |= {"variant": entries[0].title, "rule": str(entries[0].scores.protocol.get("background", ""))}
    found |= {"threshold": np.arange(_BINS) / _BINS, "seed": [entry.seed for entry in entries]}
    return about(run, entries, **found, images=len(names), val_images=len(run.val_names))


def plot_background_threshold(arrays: Arrays) -> Figure:
    """mIoU against the threshold, with the oracle's best and the run's own rule."""
    shown, everything = int(arrays["images"]), int(arrays["val_images"])
    part = "" if shown == everything else f" evenly spaced of {everything}"
    extra = f"{scalar(arrays, 'variant')}; pixels whose largest foreground activation lies under the threshold "
    extra += f"are background; curve and rule on the same {shown} images{part}. "
    extra += "The oracle's best needs the ground truth: shown, never used."
    figure, _ = begin(arrays, 2.7 if scalar(arrays, "width") == "single" else 2.5, extra)
    axes = figure.subplots()
    x, count = arrays["threshold"], len(arrays["miou"])
    mean, spread = mean_and_spread(arrays["miou"])
    axes.plot(x, mean, color=COLORS[0], label=f"fixed threshold ({_of_seeds([count])})")
    axes.fill_between(x, mean - spread, mean + spread, color=COLORS[0], alpha=0.18, linewidth=0)
    best = int(mean.argmax())
    label = f"oracle's best: {x[best]:.2f} (never used)"
    axes.plot(x[best], mean[best], linestyle="none", marker="X", color=COLORS[3], markersize=6, label=label)
    label = f"this run's rule: {scalar(arrays, 'rule') or 'not recorded'}{' (mean ± s.d.)' * (count > 1)}"
    _level(axes, arrays["rule_miou"], label, (0, (4, 2)))
    axes.set(xlabel="background threshold", ylabel="area mIoU [%]", xlim=(0, 1), ylim=(0, None))
    top_legend(figure, axes)
    return figure
