"""Figures 1 to 3 of the paper and what else a reader wants to see, drawn from a finished run.

A figure is called with a run and gives a Matplotlib figure and the arrays behind it:

    >>> from wsss_nb.figures import FIGURES, figure_2
    >>> from wsss_nb.results import load_run
    >>> figure, arrays = figure_2(load_run("runs/quick"))  # doctest: +SKIP

Nothing here trains, and only pictures of images need the data set.
"""

from wsss_nb.figures.classes import confusion, cost, coverage, per_class
from wsss_nb.figures.curves import background_threshold, figure_2, mu_sigma
from wsss_nb.figures.panels import figure_1, figure_3, gallery
from wsss_nb.figures.registry import FIGURES, make_figure
from wsss_nb.figures.spec import Drawing, FigureSpec
from wsss_nb.figures.store import figure_png, save_figure

__all__ = [
    "FIGURES",
    "Drawing",
    "FigureSpec",
    "background_threshold",
    "confusion",
    "cost",
    "coverage",
    "figure_1",
    "figure_2",
    "figure_3",
    "figure_png",
    "gallery",
    "make_figure",
    "mu_sigma",
    "per_class",
    "save_figure",
]
