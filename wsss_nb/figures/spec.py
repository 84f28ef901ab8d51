"""What a figure is: arrays collected from a run, and a drawing of nothing but those arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wsss_nb.figures.style import WIDTHS, Arrays, Width, house_style
from wsss_nb.results import Run

__all__ = ["Drawing", "FigureSpec"]

Drawing = tuple[Figure, Arrays]


@dataclass(frozen=True)
class FigureSpec:
    """A figure: ``figure = plot(collect(run))``.

    The arrays are complete, so a saved figure can be drawn again, and checked, without the run.

    Attributes:
        name: file name without suffix, and key of the registry.
        title: what it shows, in a few words; also its alternative text.
        collect: arrays of a run; options are keyword arguments.
        plot: picture of the arrays.
        shows_images: whether images of the data set can be seen in it (then it may not be published
            unless the images are ours).
        measured: whether it shows times or memory, which no two runs share.
        widths: the sizes it is saved in; files of the first have the plain name.
    """

    name: str
    title: str
    collect: Callable[..., Arrays]
    plot: Callable[[Arrays], Figure]
    shows_images: bool = False
    measured: bool = False
    widths: tuple[Width, ...] = ("double", "single")

    def __call__(self, run: Run, *, width: Width = "double", **options: Any) -> Drawing:
        """Draw the figure of a run.

        Args:
            run: see ``wsss_nb.results.load_run``.
            width: "single" or "double" column.
            **options: those of the figure's ``collect``.

        Returns:
            The figure and the arrays behind it.

        Raises:
            NotInRun: the run does not hold what the figure shows.
            InputError: one of its files is broken.
            ValueError: an unknown width.
        """
        if width not in WIDTHS:
            raise ValueError(f"width: expected one of {sorted(WIDTHS)}, got {width!r}")
        return self.draw(self.collect(run, **options), width)

    def draw(self, collected: Arrays, width: Width) -> Drawing:
        """The figure in one size, and its arrays with name and size among them."""
        arrays = {**collected, "figure": np.array(self.name), "width": np.array(width)}
        return self.redraw(arrays), arrays

    def file_name(self, width: str) -> str:
        """Name of its files in one size, without suffix."""
        return self.name if width == self.widths[0] else f"{self.name}_{width}"

    def redraw(self, arrays: Arrays) -> Figure:
        """The same picture from its arrays alone."""
        with house_style():
            figure = self.plot(arrays)
            figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, so that each format gets the same picture
        return figure
