"""The registry of figures, and figures as files: drawn from arrays alone, with these and a manifest beside them."""

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from PIL import Image

from wsss_nb.run.run import NotInRun, NotOnThisMachine, Run
from wsss_nb.show import classes, curves, panels
from wsss_nb.show.style import WIDTHS, Arrays, house_style, scalar
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import atomic_path, sha256_file, write_json

__all__ = ["FIGURES", "FOLDER", "FORMATS", "FigureSpec", "figure_bytes", "figure_png", "make_figure", "read_arrays",
           "remove_files", "removing", "save_figure", "write_arrays", "write_set"]  # fmt: skip

FOLDER = "figures"
"""Folder of a run that holds its figures and tables."""

_METADATA = {  # left out: dates, and who drew it with what
    "pdf": dict.fromkeys(("CreationDate", "ModDate", "Producer", "Creator")),
    "svg": dict.fromkeys(("Date", "Creator")),
    "png": {"Software": None},
}
FORMATS = tuple(_METADATA)
"""Formats a figure is saved in."""
_TITLES: dict[str, str] = yaml.safe_load(Path(__file__).with_name("titles.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class FigureSpec:
    """A figure: ``figure = plot(collect(run))``.

    The arrays are complete, so a saved figure can be drawn again, and checked, without the run.

    Attributes:
        name: file name without suffix, and key of the registry.
        collect: arrays of a run; options are keyword arguments.
        plot: picture of the arrays.
        shows_images: whether images of the data set can be seen in it (then it may not be published
            unless the images are ours).
        measured: whether it shows times or memory, which no two runs share.
    """

    name: str
    collect: Callable[..., Arrays]
    plot: Callable[[Arrays], Figure]
    shows_images: bool = False
    measured: bool = False

    @property
    def title(self) -> str:
        """What it shows, in a few words; also its alternative text."""
        return _TITLES[self.name]

    def __call__(self, run: Run, *, width: str = "double", **options: Any) -> tuple[Figure, Arrays]:
        """Draw the figure of a run.

        Args:
            run: see :func:`wsss_nb.run.run.load_run`.
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

    def draw(self, collected: Arrays, width: str) -> tuple[Figure, Arrays]:
        """The figure in one size, and its arrays with name and size among them."""
        arrays = {**collected, "figure": np.array(self.name), "width": np.array(width)}
        return self.redraw(arrays), arrays

    def redraw(self, arrays: Arrays) -> Figure:
        """The same picture from its arrays alone."""
        with house_style():
            figure = self.plot(arrays)
            figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, so that each format gets the same picture
        return figure

    def file_name(self, width: str) -> str:
        """Name of its files in one size, without suffix."""
        return self.name if width == "double" else f"{self.name}_{width}"

    def facts(self, arrays: Arrays) -> dict[str, Any]:
        """What a manifest says of the figure."""
        said = {key: scalar(arrays, key) for key in ("figure", "width", "note", "protocol")}
        own = {key: getattr(self, key) for key in ("title", "shows_images", "measured")}
        return {**said, **own, "name": self.file_name(said["width"])}


_SPECS = (
    FigureSpec("figure_1", panels.collect_figure_1, panels.plot_panels, shows_images=True), FigureSpec("figure_2",
    curves.collect_figure_2, curves.plot_figure_2), FigureSpec("figure_3", panels.collect_figure_3, panels.plot_panels,
    shows_images=True), FigureSpec("per_class", classes.collect_per_class, classes.plot_per_class),
    FigureSpec("confusion", classes.collect_confusion, classes.plot_confusion), FigureSpec("background_threshold",
    curves.collect_background_threshold, curves.plot_background_threshold), FigureSpec("mu_sigma",
    curves.collect_mu_sigma, curves.plot_mu_sigma), FigureSpec("coverage", classes.collect_coverage,
    classes.plot_coverage), FigureSpec("gallery", panels.collect_gallery, panels.plot_panels, shows_images=True),
    FigureSpec("cost", classes.collect_cost, classes.plot_cost, measured=True)
)  # fmt: skip
FIGURES = {spec.name: spec for spec in _SPECS}
"""Every figure by name, in the order of notebook 07."""


def make_figure(name: str, run: Run, folder: str | Path, manifest: Mapping[str, Any], **options: Any) -> Figure:
    """Draw a figure of the registry and save it for one and for two columns.

    An earlier drawing is replaced, and removed where ``results.json`` no longer backs it. It stays where only a file
    or the data set is missing on this machine.

    Returns:
        The figure for two columns, to show.

    Raises:
        NotInRun: the run does not hold what the figure shows.
        NotOnThisMachine: it does, but a file of the run or its data set is missing.
        InputError: a file of the run is broken, the folder is not writable, or the name is unknown.
    """
    if (spec := FIGURES.get(name)) is None:
        raise InputError(f"figure: expected one of {', '.join(FIGURES)}, got {name!r}")
    with removing(Path(folder), map(spec.file_name, WIDTHS), FORMATS):
        collected = spec.collect(run, **options)
    drawn = [spec.draw(collected, width) for width in WIDTHS]
    for figure, arrays in drawn:
        facts = {**manifest, "results_hash": run.results_hash, **spec.facts(arrays)}
        save_figure(figure, arrays, folder, facts["name"], facts)
    return drawn[0][0]


@contextmanager
def removing(folder: Path, names: Iterable[str], formats: tuple[str, ...]) -> Iterator[None]:
    """Remove the files of a figure or table if the run turns out to hold no numbers for it."""
    try:
        yield
    except NotInRun as error:
        if not isinstance(error, NotOnThisMachine):
            remove_files(*(folder / f"{name}.{suffix}" for name in names for suffix in (*formats, "npz", "json")))
        raise


def save_figure(
    figure: Figure, arrays: Arrays, folder: str | Path, name: str, manifest: Mapping[str, Any]
) -> dict[str, Path]:
    """Write a figure as PDF, SVG and PNG, the arrays behind it, and a manifest; see `write_set`.

    Example:
        >>> figure, arrays = FIGURES["figure_2"](run)  # doctest: +SKIP
        >>> save_figure(figure, arrays, "figures", "figure_2", describe_run(run))  # doctest: +SKIP
    """
    return write_set(folder, name, {suffix: figure_bytes(figure, suffix) for suffix in FORMATS}, arrays, manifest)


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


def write_set(
    folder: str | Path, name: str, contents: Mapping[str, bytes], arrays: Arrays, manifest: Mapping[str, Any]
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
    paths = {suffix: Path(folder) / f"{name}.{suffix}" for suffix in (*contents, "npz", "json")}
    remove_files(paths["json"])
    write_arrays(paths["npz"], arrays)
    for suffix, content in contents.items():
        with atomic_path(paths[suffix]) as temporary:
            temporary.write_bytes(content)
    files = {paths[suffix].name: sha256_file(paths[suffix]) for suffix in (*contents, "npz")}
    write_json(paths["json"], {**manifest, "name": name, "files": files})
    return paths


def remove_files(*paths: Path) -> None:
    """Remove files, present or not.

    Raises:
        InputError: their folder cannot be written to.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path}: expected a writable place, got {error.strerror or error}") from error


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
