"""From a run's folder into the published one: figures and tables, but no picture of somebody else's image."""

from __future__ import annotations

import shutil
from pathlib import Path

from wsss_nb.errors import InputError
from wsss_nb.figures import FIGURES
from wsss_nb.figures.registry import FOLDER
from wsss_nb.figures.store import remove_files
from wsss_nb.files import atomic_path, read_json
from wsss_nb.results import load_run
from wsss_nb.tables import TABLES

__all__ = ["publish_figures"]


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
    plots = {
        spec.file_name(width) for spec in FIGURES.values() if not spec.shows_images for width in spec.widths
    }
    copies = []
    for path in sorted(source.glob("*.json")):
        facts = read_json(path)
        if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
            continue
        if facts.get("results_hash") != run.results_hash:
            continue
        if not run.synthetic and (
            path.stem not in {*plots, *TABLES} or facts.get("shows_images") is not False
        ):
            continue
        missing = [
            name for name in facts["files"] if Path(name).name != name or not (source / name).is_file()
        ]
        if missing:
            raise InputError(f"{path}: expected the file {missing[0]} beside it, got none")
        remove_files([target / path.name])  # what has a manifest is complete
        for name in (*facts["files"], path.name):
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
            copies.append(target / name)
    if not copies:
        raise InputError(
            f"{source}: expected figures or tables drawn from the run's results.json, got none; notebooks 07 and 08 "
            "draw them"
        )
    return copies
