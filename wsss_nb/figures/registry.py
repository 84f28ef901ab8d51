"""The registry of figures: drawn into a run's folder, and from there into the published one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from wsss_nb.errors import InputError
from wsss_nb.figures import classes, curves, panels
from wsss_nb.figures.spec import FigureSpec
from wsss_nb.figures.store import FORMATS, remove_files, save_figure
from wsss_nb.files import atomic_path, read_json
from wsss_nb.results import Run, load_run

__all__ = [
    "FIGURES",
    "FOLDER",
    "TABLE_NAMES",
    "make_figure",
    "publish_figures",
]

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

_MANIFEST = ".json"
TABLE_NAMES = ("table_1", "table_2", "table_sweep", "table_cost")
"""Tables of ``wsss_nb.tables``; like plots they show no image."""


def make_figure(
    name: str, run: Run, folder: str | Path, manifest: Mapping[str, Any], **options: Any
) -> Figure:
    """Draw a figure of the registry and save it in each of its widths.

    Files of an earlier drawing are removed first, so that none stays that the run no longer backs.

    Returns:
        The figure in its first width, to show.

    Raises:
        NotInRun: the run does not hold what the figure shows.
        InputError: a file of the run is broken, the folder is not writable, or the name is unknown.
    """
    if name not in FIGURES:
        raise InputError(f"figure: expected one of {', '.join(FIGURES)}, got {name!r}")
    spec, folder = FIGURES[name], Path(folder)
    suffixes = (*FORMATS, "npz", "json")
    remove_files(folder / f"{spec.file_name(width)}.{suffix}" for width in spec.widths for suffix in suffixes)
    collected = spec.collect(run, **options)
    figures = []
    for width in spec.widths:
        figure, arrays = spec.draw(collected, width)
        facts = {
            **manifest,
            "figure": name,
            "title": spec.title,
            "width": width,
            "shows_images": spec.shows_images,
            "measured": spec.measured,
            "note": str(arrays["note"][()]),
            "protocol": str(arrays["protocol"][()]),
        }
        save_figure(figure, arrays, folder, spec.file_name(width), facts)
        figures.append(figure)
    return figures[0]


def publish_figures(run_dir: str | Path, figures_dir: str | Path) -> list[Path]:
    """Copy what a run drew into the folder of published figures.

    Of a synthetic run everything is copied. Of any other run only what is known to show no image: the
    registry's figures with ``shows_images=False`` and the tables, because the photographs are not ours.
    A figure or table there that this run does not have is removed: a folder shows one run.

    Returns:
        The copies.

    Raises:
        InputError: the run has no results, or a file that its manifest names is missing.
    """
    run = load_run(run_dir)
    source, target = Path(run_dir) / FOLDER, Path(figures_dir)
    names = {spec.file_name(width): spec for spec in FIGURES.values() for width in spec.widths}
    open_names = {name for name, spec in names.items() if not spec.shows_images} | set(TABLE_NAMES)
    copies = []
    for path in sorted(source.glob(f"*{_MANIFEST}")):
        manifest = read_json(path)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            continue
        if not run.synthetic and (path.stem not in open_names or manifest.get("shows_images") is not False):
            continue
        remove_files([target / path.name])  # what has a manifest is complete
        for name in (*manifest["files"], path.name):
            if Path(name).name != name or not (source / name).is_file():
                raise InputError(f"{path}: expected the file {name} beside it, got none")
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
            copies.append(target / name)
    for name in sorted({*names, *TABLE_NAMES} - {path.stem for path in copies}):
        _remove_set(target / f"{name}{_MANIFEST}")
    return copies


def _remove_set(manifest: Path) -> None:
    """Remove a figure or table that an earlier run left; without a manifest of ours nothing is touched."""
    if not manifest.is_file():
        return
    facts = read_json(manifest)
    if isinstance(facts, dict) and isinstance(facts.get("files"), dict):
        remove_files(manifest.with_name(name) for name in facts["files"] if Path(name).name == name)
        remove_files([manifest])
