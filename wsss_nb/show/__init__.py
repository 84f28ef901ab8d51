"""Figures 1 to 3 and Tables 1 and 2 of the paper, and what else a reader wants to see, made from a finished run.

A figure is called with a run and gives a Matplotlib figure and the arrays behind it:

    >>> from wsss_nb.run.run import load_run
    >>> from wsss_nb.show import FIGURES
    >>> figure, arrays = FIGURES["figure_2"](load_run("runs/quick"))  # doctest: +SKIP

Nothing here trains, and only pictures of images need the data set.
"""

from wsss_nb.show.figures import FIGURES, FigureSpec, figure_png, make_figure, save_figure
from wsss_nb.show.paper import TABLE_1
from wsss_nb.show.tables import TABLES, Table, make_table, table_1, table_2, table_cost, table_sweep
from wsss_nb.show.verify import compare_folders, publish_figures, verify_folder

__all__ = ["FIGURES", "TABLES", "TABLE_1", "FigureSpec", "Table", "compare_folders", "figure_png", "make_figure",
           "make_table", "publish_figures", "save_figure", "table_1", "table_2", "table_cost", "table_sweep",
           "verify_folder"]  # fmt: skip
