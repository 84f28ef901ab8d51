"""How every figure looks: sizes, fonts, colours, legends, and the foot that says what its data are."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy.typing as npt
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from wsss_nb.data.voc import voc_colormap
from wsss_nb.system.config import VOID

__all__ = ["COLORS", "MARKERS", "WIDTHS", "Array", "Arrays", "begin", "begin_pair", "class_legend", "house_style",
           "legend_height", "letter", "scalar", "top_legend"]  # fmt: skip

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

WIDTHS = {"double": 7.0, "single": 3.39}
"""Inches of two and of one column of the paper's style (178 and 86 mm)."""

COLORS = list(seaborn.color_palette("colorblind"))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_GREY, _WARNING = "0.4", (0.60, 0.12, 0.0)
_FOOT, _FOOT_LINE = 6.0, 0.115  # points, inches
_CLASS_LEGEND, _TOP_LEGEND = (0.27, 0.062), (0.42, 0.051)  # inches of an entry's symbol, and of a letter


def house_style() -> AbstractContextManager[None]:
    """Matplotlib's defaults with our settings, whatever the user's own configuration says."""
    return matplotlib.rc_context(fname=Path(__file__).with_name("wsss_nb.mplstyle"))


def scalar(arrays: Arrays, name: str) -> str:
    """The text kept as a zero-dimensional array."""
    return str(arrays[name][()]) if name in arrays else ""


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
    width, note = WIDTHS[scalar(arrays, "width")], scalar(arrays, "note")
    characters = int((width - 0.1) / 0.0455)
    lines = [line for text in (extra, scalar(arrays, "protocol")) for line in textwrap.wrap(text, characters)]
    foot = 0.06 + _FOOT_LINE * len(lines) + (0.15 if note else 0.0)
    total = height + foot
    figure = Figure(figsize=(width, total))
    FigureCanvasAgg(figure)
    bottom = foot - 0.02
    if note:
        bottom -= 0.13
        figure.text(0.05 / width, bottom / total, note, fontsize=7.5, fontweight="bold", color=_WARNING)
    for line in lines:
        bottom -= _FOOT_LINE
        figure.text(0.05 / width, bottom / total, line, fontsize=_FOOT, color=_GREY)
    if layout:
        figure.set_layout_engine("constrained", rect=(0, foot / total, 1, 1 - foot / total), w_pad=0.08)
    return figure, foot


def begin_pair(
    arrays: Arrays, height: float, extra: str, legend: Sequence[str] = (), by_row: bool = False
) -> tuple[Figure, Any]:
    """A new figure of two panels, side by side or, in a single column, one above the other.

    Args:
        arrays: as for `begin`.
        height: inches above the foot, without the legend.
        extra: one more sentence for the foot.
        legend: entries of the `top_legend`, for which room is added.
        by_row: both panels list the same rows; otherwise they have the same x axis.
    """
    if legend:
        columns = _columns(legend, WIDTHS[scalar(arrays, "width")] - 0.2, *_TOP_LEGEND)
        height += 0.08 + 0.14 * math.ceil(len(legend) / columns)
    figure, _ = begin(arrays, height, extra)
    single = scalar(arrays, "width") == "single"
    return figure, figure.subplots(2, 1, sharex=not by_row) if single else figure.subplots(1, 2, sharey=by_row)


def letter(axes: Axes, index: int, title: str) -> None:
    """Title of a panel, with its letter."""
    axes.set_title(f"({chr(ord('a') + index)}) {title}", loc="left")


def class_legend(figure: Figure, labels: Iterable[int], classes: Sequence[str], bottom: float) -> None:
    """VOC colours of the given labels (255 = void) as a legend, ``bottom`` inches above the figure's edge."""
    colors = voc_colormap() / 255.0
    texts = {label: _class_text(label, classes) for label in labels}
    handles = [Patch(facecolor=colors[n], edgecolor="0.3", linewidth=0.4, label=text) for n, text in texts.items()]
    width, height = figure.get_size_inches()
    columns, place = _columns([*texts.values()], width - 0.05 - 0.1, *_CLASS_LEGEND), (0.05 / width, bottom / height)
    pads = {"borderaxespad": 0, "borderpad": 0.2, "columnspacing": 1.1, "handletextpad": 0.5, "labelspacing": 0.35}
    size = {"handlelength": 1.1, "handleheight": 0.9}
    figure.legend(handles=handles, ncols=columns, loc="lower left", bbox_to_anchor=place, **size, **pads)


def legend_height(labels: Sequence[int], classes: Sequence[str], width: float) -> float:
    """Inches that ``class_legend`` takes."""
    texts = [_class_text(label, classes) for label in labels]
    return 0.06 + 0.135 * math.ceil(len(texts) / _columns(texts, width - 0.1, *_CLASS_LEGEND))


def _class_text(label: int, classes: Sequence[str]) -> str:
    return "void" if label == VOID else f"{label} {classes[label]}" if label else classes[label]


def top_legend(figure: Figure, axes: Axes) -> None:
    """The entries of ``axes`` above all panels, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    columns = _columns(labels, figure.get_figwidth() - 0.2, *_TOP_LEGEND)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _columns(texts: Sequence[str], width: float, symbol: float, letter: float) -> int:
    """Columns of a legend in ``width`` inches; an entry takes ``symbol``, and ``letter`` for each letter of the longest."""
    longest = max(map(len, texts), default=1)
    return max(1, min(len(texts), int(width / (symbol + letter * longest))))
