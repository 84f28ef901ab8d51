"""Whether published figures and tables are still what their arrays give, and whether two runs gave the same.

Each figure or table is a set of files: the arrays (npz), what was made of them (PDF, SVG, PNG; CSV, Markdown,
LaTeX) and a manifest (JSON) with the arrays' SHA-256. `verify_folder` makes everything again from the arrays alone;
`compare_folders` holds two folders side by side. Neither needs the run, the data set or a training library.

    >>> from wsss_nb.verify import verify_folder
    >>> all(verdict.matches for verdict in verify_folder("figures"))  # doctest: +SKIP
    True
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss_nb.errors import InputError
from wsss_nb.figures import FIGURES
from wsss_nb.figures.store import FORMATS, figure_bytes, read_arrays
from wsss_nb.figures.style import Arrays, scalar
from wsss_nb.files import read_json, sha256_file
from wsss_nb.tables import TABLES, Table

__all__ = ["Verdict", "compare_folders", "verify_folder"]

_TEXTS = ("csv", "md", "tex")
_FILES = (*FORMATS, *_TEXTS, "npz")
_NAMES = frozenset(TABLES) | {spec.file_name(width) for spec in FIGURES.values() for width in spec.widths}


@dataclass(frozen=True)
class Verdict:
    """What was found about one file; ``matches`` is None where there was nothing to compare.

    Attributes:
        path: the file, relative to the folder.
        matches: whether it is what it should be.
        reason: what is wrong, or why nothing was compared.
    """

    path: Path
    matches: bool | None
    reason: str = ""


def verify_folder(folder: str | Path) -> list[Verdict]:
    """Make each figure and table of a folder again from the arrays beside it, and compare.

    PNG files are compared by pixels, CSV, Markdown and LaTeX by bytes, the arrays with the SHA-256 in the manifest,
    the manifest's statements with the arrays. PDF and SVG are compared by bytes; where only the bytes of a redrawing
    differ (another zlib), the file as saved counts, if the PNG beside it has the right pixels.

    Args:
        folder: with its subfolders.

    Returns:
        A verdict for every file of every set, every file that a manifest names, and every file with the name of a
        figure or table that no manifest speaks for.

    Raises:
        InputError: there is no folder, or no figure or table in it.
    """
    folder = Path(folder)
    verdicts: list[Verdict] = []
    for manifest in _manifests(folder):
        verdicts += _verify_set(manifest)
    return [Verdict(v.path.relative_to(folder), v.matches, v.reason) for v in verdicts]


def compare_folders(folder: str | Path, other: str | Path) -> list[Verdict]:
    """Whether two runs gave the same figures and tables: CSV by bytes, PNG by pixels, arrays by values.

    Figures and tables of times and memory are named but not compared: no two runs share them.

    Args:
        folder: one run's figures and tables.
        other: another's.

    Returns:
        A verdict for every CSV, PNG and npz file of either folder.

    Raises:
        InputError: one is no folder, or has no figure or table.
    """
    roots = [Path(folder), Path(other)]
    found = [{path.relative_to(root): path for path in _manifests(root)} for root in roots]
    verdicts = []
    for place in sorted({*found[0], *found[1]}):
        facts = [_facts(sets[place])[0] for sets in found if place in sets]
        is_table = place.stem in TABLES or any("table" in fact for fact in facts)
        suffixes = ("csv", "npz") if is_table else ("npz", "png")
        measured = any(fact.get("measured") is True for fact in facts)
        for suffix in suffixes:
            path = place.with_suffix(f".{suffix}")
            if measured:
                verdicts.append(Verdict(path, None, "times and memory, which no two runs share"))
            else:
                reason = _difference(roots[0] / path, roots[1] / path, suffix)
                verdicts.append(Verdict(path, not reason, reason))
    return verdicts


def _manifests(folder: Path) -> list[Path]:
    """Manifests of figures and tables: JSON files that say so, or that lie beside a figure's or table's files.

    Where files with the name of a figure or table have none, the place where it should be.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of figures and tables, got none")
    found = set()
    for path in folder.rglob("*.*"):
        suffix, manifest = path.suffix[1:], path.with_suffix(".json")
        if path.name.startswith(".") or suffix not in (*_FILES, "json"):
            continue
        named = path.stem in _NAMES or (suffix != "json" and manifest.is_file())
        if path.is_file() and (named or (suffix == "json" and "shows_images" in _facts(path)[0])):
            found.add(manifest)
    if not found:
        raise InputError(f"{folder}: expected figures or tables with their manifests, got none")
    return sorted(found)


def _facts(manifest: Path) -> tuple[dict[str, Any], str]:
    """A manifest's statements, or why it cannot be read."""
    try:
        facts = read_json(manifest)
    except InputError as error:
        return {}, str(error).partition(": ")[2]
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        return {}, "expected a manifest with the names of its files, got something else"
    return facts, ""


def _verify_set(manifest: Path) -> Iterator[Verdict]:
    if not manifest.is_file():
        for path in (manifest.with_suffix(f".{suffix}") for suffix in _FILES):
            if path.is_file():
                yield Verdict(path, False, "no manifest speaks for it")
        return
    facts, problem = _facts(manifest)
    is_table = "table" in facts or manifest.stem in TABLES
    suffixes = (*_TEXTS, "npz") if is_table else (*FORMATS, "npz")
    files = [manifest.with_suffix(f".{suffix}") for suffix in suffixes]
    arrays: Arrays = {}
    make: Mapping[str, Callable[[], bytes]] = {}
    if not problem:
        try:
            arrays = read_arrays(files[-1])
            make = _makers(arrays)
            problem = _untrue(facts, arrays, manifest)
        except InputError as error:
            problem = str(error)
    yield Verdict(manifest, not problem, problem)
    yield _arrays_verdict(files[-1], facts)
    pixels = False
    for path in sorted(files[:-1], key=lambda path: path.suffix != ".png"):  # the PNG speaks for PDF and SVG
        reason = _recomputed(path, make.get(path.suffix[1:]), facts, pixels)
        pixels = pixels or (path.suffix == ".png" and not reason)
        yield Verdict(path, not reason, reason)
    named = {manifest.parent / Path(name).name for name in facts.get("files", {})}
    for extra in sorted(named - set(files)):
        yield Verdict(extra, False, "cannot be made again" if extra.is_file() else "missing")
    for suffix in _FILES:
        extra = manifest.with_suffix(f".{suffix}")
        if extra not in {*files, *named} and extra.is_file():
            yield Verdict(extra, False, "its manifest does not name it")


def _makers(arrays: Arrays) -> dict[str, Callable[[], bytes]]:
    """How each file of a set comes out of its arrays, by suffix.

    Raises:
        InputError: the arrays are of no figure or table that is known, or are not complete.
    """
    name = scalar(arrays, "figure") or scalar(arrays, "name")
    try:
        if name in FIGURES:
            figure = FIGURES[name].redraw(arrays)
            return {suffix: partial(figure_bytes, figure, suffix) for suffix in FORMATS}
        if name in TABLES:
            files = Table.from_arrays(arrays).files()
            return {suffix: partial(files.__getitem__, suffix) for suffix in files}
    except Exception as error:  # whatever a changed array breaks, it is the array's fault
        raise InputError(
            f"its arrays give no {name}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    known = ", ".join([*FIGURES, *TABLES])
    raise InputError(f"expected the arrays of one of {known}, got {name!r}")


def _untrue(facts: Mapping[str, Any], arrays: Arrays, manifest: Path) -> str:
    """What the manifest or the file's name says that the arrays do not."""
    expected: dict[str, Any] = {"note": scalar(arrays, "note")}
    if "figure" in arrays:
        spec, width = FIGURES[scalar(arrays, "figure")], scalar(arrays, "width")
        expected |= {"figure": spec.name, "title": spec.title, "width": width}
        expected |= {"protocol": scalar(arrays, "protocol"), "name": spec.file_name(width)}
        expected |= {"shows_images": spec.shows_images, "measured": spec.measured}
    else:
        name, protocol = scalar(arrays, "name"), " ".join(arrays["notes"].tolist())
        expected |= {"table": name, "title": scalar(arrays, "caption"), "protocol": protocol, "name": name}
    for key, value in expected.items():
        if facts.get(key) != value:
            return f"{key}: expected {value!r}, got {facts.get(key)!r}"
    if manifest.stem != expected["name"]:
        return f"name: expected {manifest.stem!r}, got the arrays of {expected['name']!r}"
    if facts.get("synthetic") is True and not expected["note"]:
        return "note: expected the synthetic data to be named, got none"
    return ""


def _arrays_verdict(path: Path, facts: Mapping[str, Any]) -> Verdict:
    if not path.is_file():
        return Verdict(path, False, "missing")
    changed = facts.get("files", {}).get(path.name) != sha256_file(path)
    return Verdict(path, not changed, "not the arrays that the manifest was written for" if changed else "")


def _recomputed(path: Path, make: Callable[[], bytes] | None, facts: Mapping[str, Any], pixels: bool) -> str:
    """What is wrong with a file; empty if nothing."""
    if not path.is_file():
        return "missing"
    if make is None:
        return "cannot be made again"
    content, expected = path.read_bytes(), make()
    drawing = path.suffix[1:] in FORMATS
    if path.suffix == ".png":
        reason = _pixels(content, expected)
    else:
        as_saved = drawing and pixels and facts["files"].get(path.name) == sha256_file(path)
        reason = "" if content == expected or as_saved else "not what its arrays give"
    drawn, here = facts.get("packages", {}).get("matplotlib"), importlib.metadata.version("matplotlib")
    other = drawing and drawn is not None and drawn != here
    return f"{reason} (drawn with matplotlib {drawn}, here {here})" if reason and other else reason


def _pixels(content: bytes, expected: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as one, Image.open(io.BytesIO(expected)) as two:
            a, b = np.asarray(one.convert("RGBA")), np.asarray(two.convert("RGBA"))
    except (OSError, ValueError, SyntaxError) as error:
        return f"not a PNG picture: {error}"
    if a.shape != b.shape:
        return f"{a.shape[1]} x {a.shape[0]} pixels, its arrays give {b.shape[1]} x {b.shape[0]}"
    count = int((a != b).any(axis=-1).sum())
    return f"{count} of {a.shape[0] * a.shape[1]} pixels are not what its arrays give" if count else ""


def _difference(one: Path, two: Path, suffix: str) -> str:
    """How a file differs between two folders; empty if it does not."""
    for path in (one, two):
        if not path.is_file():
            return f"missing in {path.parent}"
    if suffix == "csv":
        return "" if one.read_bytes() == two.read_bytes() else "other bytes"
    if suffix == "png":
        reason = _pixels(one.read_bytes(), two.read_bytes())
        return reason.replace("its arrays give", "the other has").replace("what the other has", "the same")
    try:
        a, b = read_arrays(one), read_arrays(two)
    except InputError as error:
        return str(error)
    for key in sorted({*a, *b}):
        if key not in a or key not in b:
            return f"array {key} is in one only"
        exact = a[key].dtype == b[key].dtype and a[key].tobytes() == b[key].tobytes()
        if not exact or a[key].shape != b[key].shape:
            return f"array {key} has other values"
    return ""
