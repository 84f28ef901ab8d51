"""The registry of figures, and how one of them is drawn into a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from wsss_nb.errors import InputError
from wsss_nb.figures import classes, curves, panels
from wsss_nb.figures.spec import FigureSpec
from wsss_nb.figures.store import FORMATS, remove_files, save_figure
from wsss_nb.results import NotHere, NotInRun, Run

__all__ = ["FIGURES", "FOLDER", "make_figure"]

FIGURES: dict[str, FigureSpec] = {
    spec.name: spec
    for spec in (
        panels.figure_1,
        curves.figure_2,
        panels.figure_3,
        classes.per_class,
        classes.confusion,
        curves.background_threshold,
        curves.mu_sigma,
        classes.coverage,
        panels.gallery,
        classes.cost,
    )
}
"""Every figure by name, in the order of notebook 07."""

FOLDER = "figures"
"""Folder of a run that holds its figures and tables."""


def make_figure(
    name: str, run: Run, folder: str | Path, manifest: Mapping[str, Any], **options: Any
) -> Figure:
    """Draw a figure of the registry and save it in each of its widths.

    An earlier drawing is replaced, and removed where ``results.json`` no longer backs it. It stays where only a file
    or the data set is not at hand.

    Returns:
        The figure in its first width, to show.

    Raises:
        NotInRun: the run does not hold what the figure shows.
        NotHere: it does, but a file of the run or its data set is not on this machine.
        InputError: a file of the run is broken, the folder is not writable, or the name is unknown.
    """
    if name not in FIGURES:
        raise InputError(f"figure: expected one of {', '.join(FIGURES)}, got {name!r}")
    spec, folder = FIGURES[name], Path(folder)
    try:
        collected = spec.collect(run, **options)
    except NotHere:
        raise
    except NotInRun:
        suffixes = (*FORMATS, "npz", "json")
        names = [spec.file_name(width) for width in spec.widths]
        remove_files(folder / f"{name}.{suffix}" for name in names for suffix in suffixes)
        raise
    drawn = [spec.draw(collected, width) for width in spec.widths]
    for width, (figure, arrays) in zip(spec.widths, drawn, strict=True):
        facts = {
            **manifest,
            "figure": name,
            "title": spec.title,
            "width": width,
            "shows_images": spec.shows_images,
            "measured": spec.measured,
            "results_hash": run.results_hash,
            "note": str(arrays["note"][()]),
            "protocol": str(arrays["protocol"][()]),
        }
        save_figure(figure, arrays, folder, spec.file_name(width), facts)
    return drawn[0][0]
