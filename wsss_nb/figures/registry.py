"""The registry of figures, and how they get onto disk and into the published folder."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from wsss_nb.errors import InputError
from wsss_nb.figures import classes, curves, panels
from wsss_nb.figures.spec import FigureSpec
from wsss_nb.figures.style import Arrays, house_style
from wsss_nb.files import atomic_path, read_json, sha256_file, write_json
from wsss_nb.results import Run, load_run

__all__ = [
    "FIGURES",
    "FOLDER",
    "TABLE_NAMES",
    "figure_png",
    "make_figure",
    "publish_figures",
    "remove_files",
    "save_figure",
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

_FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
_MANIFEST = ".json"
TABLE_NAMES = ("table_1", "table_2", "table_sweep", "table_cost")
"""Tables of ``wsss_nb.tables``; like plots they show no image."""


def save_figure(
    figure: Figure, arrays: Arrays, folder: str | Path, name: str, manifest: Mapping[str, Any]
) -> dict[str, Path]:
    """Write a figure as PDF, SVG and PNG, the arrays behind it, and a manifest.

    The same figure gives the same bytes each time (no dates, fixed identifiers). Every file appears whole;
    the manifest comes last and holds the SHA-256 of the others.

    Args:
        figure: the drawing.
        arrays: what it was drawn from.
        folder: where to; made if needed.
        name: file name without suffix.
        manifest: where the numbers come from.

    Returns:
        The files by suffix: pdf, svg, png, npz, json.

    Raises:
        InputError: the folder cannot be written to.

    Example:
        >>> figure, arrays = figure_2(run)  # doctest: +SKIP
        >>> save_figure(figure, arrays, "figures", "figure_2", describe_run(run))  # doctest: +SKIP
    """
    for key, array in arrays.items():
        if array.dtype.kind == "O":
            raise ValueError(f"arrays[{key!r}]: expected numbers or text, got dtype object")
    folder = Path(folder)
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in (*_FORMATS, "npz", "json")}
    remove_files([paths["json"]])
    with house_style():
        for suffix, metadata in _FORMATS.items():
            with atomic_path(paths[suffix]) as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)
    with atomic_path(paths["npz"]) as temporary:
        np.savez_compressed(temporary, **{key: arrays[key] for key in sorted(arrays)})  # type: ignore[arg-type]
    files = {paths[suffix].name: sha256_file(paths[suffix]) for suffix in (*_FORMATS, "npz")}
    write_json(paths["json"], {**manifest, "name": name, "files": files})
    return paths


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
    suffixes = (*_FORMATS, "npz", "json")
    remove_files(
        folder / f"{_file_name(spec, width)}.{suffix}" for width in spec.widths for suffix in suffixes
    )
    figures = []
    for width in spec.widths:
        figure, arrays = spec(run, width=width, **options)
        facts = {
            **manifest,
            "figure": name,
            "title": spec.title,
            "width": width,
            "shows_images": spec.shows_images,
            "note": str(arrays["note"][()]),
            "protocol": str(arrays["protocol"][()]),
        }
        save_figure(figure, arrays, folder, _file_name(spec, width), facts)
        figures.append(figure)
    return figures[0]


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files, present or not.

    Raises:
        InputError: their folder cannot be written to.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path}: expected a writable place, got {error.strerror or error}") from error


def figure_png(figure: Figure, dpi: int = 125) -> bytes:
    """The figure as a small PNG (256 colours), for a notebook or a widget."""
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", metadata=_FORMATS["png"], dpi=dpi)
    with Image.open(buffer) as full:
        small = full.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def publish_figures(run_dir: str | Path, figures_dir: str | Path) -> list[Path]:
    """Copy what a run drew into the folder of published figures.

    Of a synthetic run everything is copied. Of any other run only what is known to show no image: the
    registry's figures with ``shows_images=False`` and the tables, because the photographs are not ours.

    Returns:
        The copies.

    Raises:
        InputError: the run has no results, or a file that its manifest names is missing.
    """
    run = load_run(run_dir)
    source, target = Path(run_dir) / FOLDER, Path(figures_dir)
    open_names = {
        _file_name(spec, width) for spec in FIGURES.values() if not spec.shows_images for width in spec.widths
    }
    open_names.update(TABLE_NAMES)
    copies = []
    for path in sorted(source.glob(f"*{_MANIFEST}")):
        manifest = read_json(path)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            continue
        if not run.synthetic and (path.stem not in open_names or manifest.get("shows_images") is not False):
            continue
        for name in (*manifest["files"], path.name):
            if Path(name).name != name or not (source / name).is_file():
                raise InputError(f"{path}: expected the file {name} beside it, got none")
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
            copies.append(target / name)
    return copies


def _file_name(spec: FigureSpec, width: str) -> str:
    return spec.name if width == spec.widths[0] else f"{spec.name}_{width}"
