"""How every figure looks: sizes, fonts, colours, and the lines that say what the data are."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from wsss_nb.data.palette import IGNORE, voc_colormap
from wsss_nb.published import STAGE_TITLES, STAGES
from wsss_nb.results import CamResult, Run, StageResult

__all__ = [
    "COLORS",
    "GREY",
    "MARKERS",
    "WIDTHS",
    "Arrays",
    "Width",
    "begin",
    "class_legend",
    "describe_protocol",
    "house_style",
    "lambda_title",
    "legend_height",
    "letter",
    "mean_and_spread",
    "our_lambda",
    "scalar",
    "seeds_of",
    "seeds_text",
    "shared_protocol",
    "top_legend",
    "top_legend_height",
    "variant_title",
]

Arrays = dict[str, npt.NDArray[Any]]
Width = Literal["single", "double"]

WIDTHS: dict[str, float] = {"single": 3.39, "double": 7.0}
"""Inches of one and of two columns of the paper's style (86 and 178 mm)."""

COLORS: list[tuple[float, float, float]] = list(seaborn.color_palette("colorblind"))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
GREY = "0.4"
_WARNING = (0.60, 0.12, 0.0)
_FOOT, _FOOT_LINE = 6.0, 0.115  # points, inches

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.4,
    "savefig.dpi": 300,
    "figure.dpi": 300,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "wsss-nb",
}

_SWITCHES: dict[str, tuple[str, str]] = {  # what a true and a false value are called
    "crf": ("CRF", "no CRF"),
    "flips": ("with flips", "no flips"),
    "flip": ("with flips", "no flips"),
    "image_labels": ("image labels used", "no image labels used"),
    "max_normalized": ("maps divided by their maximum", "maps not divided by their maximum"),
}
_PHRASES = {
    "split": "{} split",
    "images": "{} images",
    "background": "background rule {}",
    "void": "void {} in contour F",
    "crf": "CRF {}",
}
_VALUES = {("void", "background"): "as background"}
_UNTOLD = {"seed", "seeds", "stage"}  # counted, or named by the figure itself


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults with our settings, whatever the user's own configuration says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in _RC.items():
            matplotlib.rcParams[key] = value  # type: ignore[index]
        yield


def begin(arrays: Arrays, height: float, extra: str = "", layout: bool = True) -> tuple[Figure, float]:
    """A new figure whose foot says which data and which protocol its numbers have.

    Args:
        arrays: with ``width`` ("single" or "double"), ``note`` and ``protocol``.
        height: inches above the foot.
        extra: one more sentence for the foot.
        layout: place axes automatically above the foot.

    Returns:
        The figure and the height of its foot in inches.
    """
    width = WIDTHS[scalar(arrays, "width")]
    note, protocol = scalar(arrays, "note"), scalar(arrays, "protocol")
    characters = int((width - 0.1) / 0.0455)
    lines = [(line, GREY) for text in (extra, protocol) for line in textwrap.wrap(text, characters)]
    foot = 0.06 + _FOOT_LINE * len(lines) + (0.15 if note else 0.0)
    figure = Figure(figsize=(width, height + foot), layout="constrained" if layout else None)
    FigureCanvasAgg(figure)
    total = height + foot
    bottom = foot - 0.02
    if note:
        bottom -= 0.13
        figure.text(0.05 / width, bottom / total, note, fontsize=7.5, fontweight="bold", color=_WARNING)
    for line, color in lines:
        bottom -= _FOOT_LINE
        figure.text(0.05 / width, bottom / total, line, fontsize=_FOOT, color=color)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, foot / total, 1, 1 - foot / total), w_pad=0.08)  # type: ignore[call-arg]
    return figure, foot


def scalar(arrays: Arrays, name: str) -> str:
    """The text kept as a zero-dimensional array."""
    return str(arrays[name][()]) if name in arrays else ""


def class_legend(
    figure: Figure, labels: Iterable[int], classes: Sequence[str], bottom: float, left: float = 0.05
) -> None:
    """VOC colours of the given labels (255 = void) as a legend, ``bottom`` inches above the figure's edge."""
    colors = voc_colormap() / 255.0
    handles = [
        Patch(
            facecolor=colors[label],
            edgecolor="0.3",
            linewidth=0.4,
            label=_class_text(label, classes),
        )
        for label in labels
    ]
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        ncols=_legend_columns([str(handle.get_label()) for handle in handles], width - left),
        loc="lower left",
        bbox_to_anchor=(left / width, bottom / height),
        borderaxespad=0,
        borderpad=0.2,
        handlelength=1.1,
        handleheight=0.9,
        columnspacing=1.1,
        handletextpad=0.5,
        labelspacing=0.35,
    )


def legend_height(labels: Sequence[int], classes: Sequence[str], width: float) -> float:
    """Inches that ``class_legend`` takes."""
    texts = [_class_text(label, classes) for label in labels]
    return 0.06 + 0.135 * math.ceil(len(texts) / _legend_columns(texts, width))


def _class_text(label: int, classes: Sequence[str]) -> str:
    return "void" if label == IGNORE else f"{label} {classes[label]}" if label else classes[label]


def _legend_columns(texts: Sequence[str], width: float) -> int:
    longest = max((len(text) for text in texts), default=1)
    return max(1, min(len(texts), int((width - 0.1) / (0.27 + 0.062 * longest))))


def top_legend(figure: Figure, axes: Axes) -> None:
    """The entries of ``axes`` above all panels, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    columns = _top_columns(labels, figure.get_figwidth())
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def top_legend_height(labels: Sequence[str], width: float) -> float:
    """Inches that ``top_legend`` takes."""
    return 0.08 + 0.14 * math.ceil(len(labels) / _top_columns(labels, width))


def _top_columns(labels: Sequence[str], width: float) -> int:
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), int((width - 0.2) / (0.42 + 0.051 * longest))))


def describe_protocol(protocol: dict[str, Any]) -> str:
    """One line of a score's protocol, keys in the order they were recorded.

    Example:
        >>> describe_protocol({"split": "val", "crf": False, "scales": [0.5, 1.0]})
        'val split, no CRF, scales 0.5 1'
    """
    words = []
    for key, value in protocol.items():
        if key in _SWITCHES and (isinstance(value, bool) or value is None):
            words.append(_SWITCHES[key][0 if value else 1])
        elif value is not None and value != "":
            text = _VALUES.get((key, str(value)), _plain(value))
            words.append(_PHRASES.get(key, key.replace("_", " ") + " {}").format(text))
    return ", ".join(words)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return " ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items()) + ")"
    return str(value)


def shared_protocol(entries: Sequence[CamResult | StageResult], run: Run) -> str:
    """The protocol of several scores in one line: what they share, then what differs between stages.

    Seeds are left out: figures and tables count the runs they really hold.

    Example:
        >>> shared_protocol([*run.stages("cam"), *run.stages("deeplab")], run)  # doctest: +SKIP
        'Protocol: val split, 150 images, scales 1; CAMs: no CRF; DeepLab-v1: CRF.'
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(entries, key=_protocol_order):  # whichever was scored first
        groups.setdefault(_protocol_title(entry), []).append(entry.scores.protocol)
    everything = [protocol for group in groups.values() for protocol in group]
    keys = [key for key in dict.fromkeys(key for p in everything for key in p) if key not in _UNTOLD]
    common: dict[str, Any] = {}
    for key in keys:
        if len({_plain(protocol.get(key)) for protocol in everything}) == 1:
            common[key] = everything[0].get(key)
        if key == "split" and run.results.data.val is not None:
            common.setdefault("images", run.results.data.val)
    if run.backbone:
        common["backbone"] = run.backbone
    differing: dict[str, list[str]] = {}  # what differs, and where
    for title, group in groups.items():
        own: dict[str, Any] = {}
        for key in keys:
            values = list(dict.fromkeys(_plain(protocol[key]) for protocol in group if key in protocol))
            if values and key not in common:
                own[key] = group[0].get(key) if len(values) == 1 else " or ".join(values)
        differing.setdefault(describe_protocol(own), []).append(title)
    parts = [describe_protocol(common)]
    parts += [f"{', '.join(titles)}: {text}" for text, titles in differing.items() if text]
    return f"Protocol: {'; '.join(part for part in parts if part)}."


def _protocol_order(entry: CamResult | StageResult) -> tuple[object, ...]:
    stage = -1 if isinstance(entry, CamResult) else STAGES.index(entry.stage)
    return (stage, entry.method == "seam", entry.variant, entry.seed)


def _protocol_title(entry: CamResult | StageResult) -> str:
    if isinstance(entry, CamResult):
        return "CAMs of SEAM" if entry.method == "seam" else "CAMs"
    title = STAGE_TITLES[entry.stage].removeprefix("+ ")
    return f"{title} of SEAM" if entry.method == "seam" else title


def variant_title(cam: CamResult, pooling: str = "max") -> str:
    """What a CAM variant is called in figures."""
    if cam.method == "sampling":
        return lambda_title(cam.weight or 0.0, cam.fsl, pooling)
    return ("SEAM" if cam.method == "seam" else "average pooling") + " + FSL" * cam.fsl


def lambda_title(weight: float, fsl: bool, pooling: str = "max") -> str:
    """What CAMs trained with a lambda are called in figures.

    Example:
        >>> lambda_title(1.0, True), lambda_title(0.8, False)
        ('sampling (λ = 1) + FSL', 'λ = 0.8')
    """
    named = {0.0: f"{pooling} pooling (λ = 0)", 1.0: "sampling (λ = 1)"}
    return named.get(weight, f"λ = {weight:g}") + " + FSL" * fsl


def our_lambda(run: Run) -> float:
    """Lambda of the CAMs that our later stages start from; 1, the paper's, if the run has none."""
    variant = run.final_variant("ours")
    return next((cam.weight for cam in run.cams() if cam.variant == variant and cam.weight is not None), 1.0)


def mean_and_spread(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and sample standard deviation over the first axis, NaN left out.

    The deviation of fewer than two values is NaN, the mean of none as well.
    """
    values = np.asarray(values, dtype=np.float64)
    count = np.isfinite(values).sum(axis=0)
    total = np.nansum(values, axis=0)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    squares = np.nansum((values - mean) ** 2, axis=0)
    return mean, np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def seeds_text(counts: Iterable[int]) -> str:
    """ "3 seeds", "1 seed", or "1 to 3 seeds" where the counts differ."""
    numbers = sorted(set(counts))
    if len(numbers) > 1:
        return f"{numbers[0]} to {numbers[-1]} seeds"
    return f"{numbers[0]} seed" if numbers == [1] else f"{numbers[0] if numbers else 0} seeds"


def seeds_of(counts: Mapping[str, int]) -> str:
    """How many seeds each series has: that of most of them, then the exceptions.

    Example:
        >>> seeds_of({"CAMs": 3, "SEAM": 3, "DeepLab": 1})
        '3 seeds (DeepLab: 1 seed)'
    """
    ranked = sorted(set(counts.values()), key=lambda n: (list(counts.values()).count(n), n), reverse=True)
    few = [
        f"{'; '.join(name for name in counts if counts[name] == number)}: {seeds_text([number])}"
        for number in ranked[1:]
    ]
    return seeds_text(ranked[:1]) + (f" ({'; '.join(few)})" if few else "")


def letter(axes: Axes, index: int, title: str) -> None:
    """Title of a panel, with its letter."""
    axes.set_title(f"({chr(ord('a') + index)}) {title}", loc="left")
