"""Tables 1 and 2 of the paper beside this run's numbers, the sweep over lambda, and the cost.

A cell that was not run is empty. The paper's numbers stand in columns of their own and never fill a gap.
All scores are percent; a difference is this run minus the paper.

    >>> from wsss_nb.results import load_run
    >>> from wsss_nb.tables import table_1
    >>> print(table_1(load_run("runs/quick")).to_markdown())  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsss_nb.errors import InputError
from wsss_nb.figures.store import remove_files, write_set
from wsss_nb.results import NotInRun, Run
from wsss_nb.tables.content import table_1, table_2, table_cost, table_sweep
from wsss_nb.tables.layout import Column, Table

__all__ = [
    "MEASURED",
    "TABLES",
    "Column",
    "Table",
    "make_table",
    "save_table",
    "table_1",
    "table_2",
    "table_cost",
    "table_sweep",
]

_SUFFIXES = ("csv", "md", "tex", "npz", "json")

TABLES: dict[str, Callable[[Run], Table]] = {
    "table_1": table_1,
    "table_2": table_2,
    "table_sweep": table_sweep,
    "table_cost": table_cost,
}
"""Every table by name, in the order of notebook 08."""

MEASURED = frozenset({"table_cost"})
"""Tables of times and memory, which no two runs share."""


def save_table(table: Table, folder: str | Path, manifest: Mapping[str, Any]) -> dict[str, Path]:
    """Write a table as CSV, Markdown and LaTeX, its numbers at full precision as npz, and a manifest.

    Returns:
        The files by suffix: csv, md, tex, npz, json.

    Raises:
        InputError: the folder cannot be written to.
    """
    facts = {
        **manifest,
        "table": table.name,
        "title": table.caption,
        "shows_images": False,
        "measured": table.name in MEASURED,
        "note": table.note,
        "protocol": " ".join(table.notes),
    }
    return write_set(folder, table.name, table.files(), table.arrays(), facts)


def make_table(name: str, run: Run, folder: str | Path, manifest: Mapping[str, Any]) -> Table:
    """Make a table of the registry and save it; an earlier one is removed where the run no longer backs it.

    Raises:
        NotInRun: the run does not hold what the table shows.
        InputError: the folder is not writable, or the name is unknown.
    """
    if name not in TABLES:
        raise InputError(f"table: expected one of {', '.join(TABLES)}, got {name!r}")
    try:
        table = TABLES[name](run)
    except NotInRun:
        remove_files(Path(folder) / f"{name}.{suffix}" for suffix in _SUFFIXES)
        raise
    save_table(table, folder, {**manifest, "results_hash": run.results_hash})
    return table
