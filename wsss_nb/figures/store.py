"""Figures as files: the same drawing gives the same bytes, and the arrays behind it lie beside it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from wsss_nb.errors import InputError
from wsss_nb.figures.style import Arrays, house_style
from wsss_nb.files import atomic_path, sha256_file, write_json

__all__ = [
    "FORMATS",
    "figure_bytes",
    "figure_png",
    "read_arrays",
    "remove_files",
    "save_figure",
    "write_arrays",
    "write_set",
]

_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
FORMATS = tuple(_METADATA)
"""Formats a figure is saved in."""


def figure_bytes(figure: Figure, suffix: str, dpi: int | None = None) -> bytes:
    """The figure as a PDF, SVG or PNG file: no dates, fixed identifiers, fonts inside."""
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format=suffix, metadata=_METADATA[suffix], dpi=dpi or "figure")
    return buffer.getvalue()


def figure_png(figure: Figure, dpi: int = 125) -> bytes:
    """The figure as a small PNG (256 colours), for a notebook or a widget."""
    with Image.open(io.BytesIO(figure_bytes(figure, "png", dpi))) as full:
        small = full.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_arrays(path: str | Path, arrays: Arrays) -> None:
    """Write arrays of numbers and text as npz; the same arrays give the same bytes.

    Raises:
        ValueError: one holds objects, which only pickle could store.
    """
    for key, array in arrays.items():
        if array.dtype.kind == "O":
            raise ValueError(f"arrays[{key!r}]: expected numbers or text, got dtype object")
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **{key: arrays[key] for key in sorted(arrays)})  # type: ignore[arg-type]


def read_arrays(path: str | Path) -> Arrays:
    """The arrays of an npz file.

    Raises:
        InputError: the file is missing, broken, or holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {key: saved[key] for key in saved.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected an npz file, got none") from error
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected an npz file of numbers and text, got {error}") from error


def save_figure(
    figure: Figure, arrays: Arrays, folder: str | Path, name: str, manifest: Mapping[str, Any]
) -> dict[str, Path]:
    """Write a figure as PDF, SVG and PNG, the arrays behind it, and a manifest.

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
        ValueError: an array of objects.

    Example:
        >>> figure, arrays = figure_2(run)  # doctest: +SKIP
        >>> save_figure(figure, arrays, "figures", "figure_2", describe_run(run))  # doctest: +SKIP
    """
    contents = {suffix: figure_bytes(figure, suffix) for suffix in FORMATS}
    return write_set(folder, name, contents, arrays, manifest)


def write_set(
    folder: str | Path,
    name: str,
    contents: Mapping[str, bytes],
    arrays: Arrays,
    manifest: Mapping[str, Any],
) -> dict[str, Path]:
    """Write the files of one figure or table, its arrays, and a manifest with the SHA-256 of them all.

    Every file appears whole. An earlier manifest goes first and the new one comes last, so that what has a
    manifest is complete.

    Args:
        folder: where to; made if needed.
        name: file name without suffix.
        contents: the files' bytes by suffix.
        arrays: what they were made from, saved as npz.
        manifest: where the numbers come from.

    Returns:
        The files by suffix, npz and json among them.

    Raises:
        InputError: the folder cannot be written to.
        ValueError: an array of objects.
    """
    folder = Path(folder)
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in (*contents, "npz", "json")}
    remove_files([paths["json"]])
    write_arrays(paths["npz"], arrays)
    for suffix, content in contents.items():
        with atomic_path(paths[suffix]) as temporary:
            temporary.write_bytes(content)
    files = {paths[suffix].name: sha256_file(paths[suffix]) for suffix in (*contents, "npz")}
    write_json(paths["json"], {**manifest, "name": name, "files": files})
    return paths


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
