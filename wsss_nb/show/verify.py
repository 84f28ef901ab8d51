"""Published figures and tables: copied from a run, held against their arrays, and against another run's.

Each figure or table is a set of files: the arrays (npz), what was made of them (PDF, SVG, PNG; CSV, Markdown,
LaTeX) and a manifest (JSON) with the arrays' SHA-256. `verify_folder` makes everything again from the arrays alone;
`compare_folders` holds two folders side by side. Neither needs the run, the data set or a training library.

    >>> from wsss_nb.show.verify import verify_folder
    >>> all(verdict.matches for verdict in verify_folder("figures"))  # doctest: +SKIP
    True
"""

import importlib.metadata
import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from wsss_nb.run.run import load_run
from wsss_nb.show.figures import FIGURES, FOLDER, FORMATS, figure_bytes, read_arrays, remove_files
from wsss_nb.show.style import WIDTHS, Arrays, scalar
from wsss_nb.show.tables import TABLES, Table
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import atomic_path, read_json, sha256_file

__all__ = ["Verdict", "compare_folders", "publish_figures", "verify_folder"]

_FILES = (*FORMATS, "csv", "md", "tex", "npz")
_DRAWINGS = {spec.file_name(width): spec for spec in FIGURES.values() for width in WIDTHS}
_NAMES = {*TABLES, *_DRAWINGS}


def publish_figures(run_dir: str | Path, figures_dir: str | Path) -> list[Path]:
    """Copy what a run drew from its results into the folder of published figures.

    Of a synthetic run everything is copied. Of any other run only what is known to show no image: the
    registry's figures with ``shows_images=False`` and the tables, because the photographs are not ours.
    What was drawn from earlier results is left out, and nothing is removed: a figure or table replaces the one of its
    name, anything else in the folder stays as it is.

    Returns:
        The copies.

    Raises:
        InputError: the run has no results, nothing was drawn from them, or a file that a manifest names is missing.

    Example:
        >>> publish_figures("runs/quick", "figures")  # doctest: +SKIP
    """
    run = load_run(run_dir)
    source, target = Path(run_dir) / FOLDER, Path(figures_dir)
    free = _NAMES - {name for name, spec in _DRAWINGS.items() if spec.shows_images}
    copies = []
    for path in sorted(source.glob("*.json")):
        facts, problem = _facts(path)
        allowed = run.results.synthetic or (path.stem in free and facts.get("shows_images") is False)
        if problem or not allowed or facts.get("results_hash") != run.results_hash:
            continue
        missing = [name for name in facts["files"] if Path(name).name != name or not (source / name).is_file()]
        if missing:
            raise InputError(f"{path}: expected the file {missing[0]} beside it, got none")
        remove_files(target / path.name)  # what has a manifest is complete
        for name in (*facts["files"], path.name):
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
            copies.append(target / name)
    if not copies:
        said = "expected figures or tables drawn from the run's results.json, got none"
        raise InputError(f"{source}: {said}; notebooks 07 and 08 draw them")
    return copies


class Verdict(NamedTuple):
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
    found = [verdict for manifest in _manifests(folder) for verdict in _verify_set(manifest)]
    return [Verdict(path.relative_to(folder), not reason, reason) for path, reason in found]


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
        measured = any(_facts(sets[place])[0].get("measured") is True for sets in found if place in sets)
        for path in (place.with_suffix(suffix) for suffix in (".csv", ".npz", ".png")):
            if any((root / path).is_file() for root in roots):
                reason = "times and memory, which no two runs share" if measured else _difference(path, *roots)
                verdicts.append(Verdict(path, None if measured else not reason, reason))
    return verdicts


def _manifests(folder: Path) -> list[Path]:
    """Manifests of figures and tables: JSON files that say so, or that lie beside a figure's or table's files.

    Where files with the name of a figure or table have none, the place where it should be.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of figures and tables, got none")
    found = set()
    for path in folder.rglob("[!.]*.*"):
        manifest = path.with_suffix(".json")
        said = "shows_images" in _facts(path)[0] if path == manifest else manifest.is_file()
        if path.suffix[1:] in (*_FILES, "json") and path.is_file() and (path.stem in _NAMES or said):
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


def _verify_set(manifest: Path) -> Iterator[tuple[Path, str]]:
    """Each file of a set, and what is wrong with it."""
    beside = {path for suffix in _FILES if (path := manifest.with_suffix(f".{suffix}")).is_file()}
    if not manifest.is_file():
        yield from ((path, "no manifest speaks for it") for path in beside)
        return
    facts, problem = _facts(manifest)
    make: dict[str, Callable[[], bytes]] = {}
    try:
        if not problem:
            expected, make = _made_again(read_arrays(manifest.with_suffix(".npz")))
            problem = _untrue(facts, expected, manifest)
    except InputError as error:
        problem = str(error)
    yield manifest, problem
    named = {manifest.parent / Path(name).name for name in facts.get("files", {})}
    made = {manifest.with_suffix(f".{suffix}") for suffix in (*make, "npz")}
    pixels = False  # a PNG speaks for PDF and SVG
    for path in sorted(beside | named | made, key=lambda path: (path.suffix != ".png", path)):
        reason = _wrong(path, make.get(path.suffix[1:]), facts, pixels)
        if not reason and path not in named:
            reason = "its manifest does not name it"
        pixels = pixels or (path.suffix == ".png" and not reason)
        yield path, reason


def _made_again(arrays: Arrays) -> tuple[dict[str, Any], dict[str, Callable[[], bytes]]]:
    """What a manifest says of the arrays, and how each file of the set comes out of them, by suffix.

    Raises:
        InputError: the arrays are of no figure or table that is known, or are not complete.
    """
    name = scalar(arrays, "figure") or scalar(arrays, "name")
    try:
        if spec := FIGURES.get(name):
            figure = spec.redraw(arrays)
            return spec.facts(arrays), {suffix: partial(figure_bytes, figure, suffix) for suffix in FORMATS}
        if name in TABLES:
            table = Table.from_arrays(arrays)
            return table.facts(), {suffix: partial(bytes, text) for suffix, text in table.files().items()}
    except Exception as error:  # whatever a changed array breaks, it is the array's fault
        text = " ".join(str(error).split())
        raise InputError(f"its arrays give no {name}: {type(error).__name__}: {text}") from error
    raise InputError(f"expected the arrays of one of {', '.join([*FIGURES, *TABLES])}, got {name!r}")


def _untrue(facts: Mapping[str, Any], expected: Mapping[str, Any], manifest: Path) -> str:
    """What the manifest or the file's name says that the arrays do not."""
    said = [
        f"{key}: expected {true!r}, got {facts.get(key)!r}" for key, true in expected.items() if facts.get(key) != true
    ]
    if manifest.stem != expected["name"]:
        said.append(f"name: expected {manifest.stem!r}, got the arrays of {expected['name']!r}")
    if facts.get("synthetic") is True and not expected["note"]:
        said.append("note: expected the synthetic data to be named, got none")
    return "; ".join(said)


def _wrong(path: Path, make: Callable[[], bytes] | None, facts: Mapping[str, Any], pixels: bool) -> str:
    """What is wrong with a file; empty if nothing. ``pixels``: the PNG beside it is right."""
    if not path.is_file():
        return "missing"
    as_saved = facts.get("files", {}).get(path.name) == sha256_file(path)
    if path.suffix == ".npz":
        return "" if as_saved else "not the arrays that the manifest was written for"
    if make is None:
        return "cannot be made again"
    content, expected, drawing = path.read_bytes(), make(), path.suffix[1:] in FORMATS
    same = content == expected or (drawing and pixels and as_saved)
    reason = _pixels(content, expected) if path.suffix == ".png" else "" if same else "not what its arrays give"
    drawn, here = facts.get("packages", {}).get("matplotlib"), importlib.metadata.version("matplotlib")
    other = f" (drawn with matplotlib {drawn}, here {here})" if drawing and drawn not in (None, here) else ""
    return reason and reason + other


def _pixels(content: bytes, expected: bytes, what: str = "its arrays give") -> str:
    """How one PNG differs from another."""
    try:
        with Image.open(io.BytesIO(content)) as one, Image.open(io.BytesIO(expected)) as two:
            a, b = np.asarray(one.convert("RGBA")), np.asarray(two.convert("RGBA"))
    except (OSError, ValueError, SyntaxError) as error:
        return f"not a PNG picture: {error}"
    if a.shape != b.shape:
        return f"{a.shape[1]} x {a.shape[0]} pixels, {what} {b.shape[1]} x {b.shape[0]}"
    count = int((a != b).any(axis=-1).sum())
    return f"{count} of {a.shape[0] * a.shape[1]} pixels are not what {what}" if count else ""


def _difference(path: Path, *roots: Path) -> str:
    """How a file differs between two folders; empty if it does not."""
    places = [root / path for root in roots]
    if missing := [place.parent for place in places if not place.is_file()]:
        return f"missing in {missing[0]}"
    if path.suffix == ".npz":
        try:
            a, b = ({key: (x.dtype, x.shape, x.tobytes()) for key, x in read_arrays(place).items()} for place in places)
        except InputError as error:
            return str(error)
        return next((f"array {key} differs" for key in sorted({*a, *b}) if a.get(key) != b.get(key)), "")
    one, two = (place.read_bytes() for place in places)
    if path.suffix == ".png":
        return _pixels(one, two, "the other has")
    return "" if one == two else "other bytes"
