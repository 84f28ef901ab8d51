"""How fast the method's core is, against the straightforward way to write it.

``python -m benchmarks`` measures every row in one process: contestants take turns, medians are reported, peak
memory comes from runs of its own, and each pair is first checked to compute the same thing. Each row states
its targets and whether they were met.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["put_table", "run"]


def run(
    only: Sequence[str], repeats: int, threads: int | None, json_path: str | None, readme_path: str | None = None
) -> int:
    """Measure the rows named in ``only`` (all if empty), print a table, write JSON and into a text if asked to.

    Returns:
        0; whether targets were met is in the table and in the JSON, for machines differ.

    Raises:
        InputError: an unknown row, ``repeats`` or ``threads`` below 1, or a text for the table when only some rows
            are measured, or without such a table.
    """
    import torch

    from benchmarks.measure import measure, table
    from benchmarks.rows import ROWS
    from wsss_nb.run.provenance import manifest
    from wsss_nb.system.errors import InputError
    from wsss_nb.system.files import write_json

    for name in only:
        if name not in ROWS:
            raise InputError(f"only: expected rows of {', '.join(ROWS)}, got {name!r}")
    if readme_path and only:
        raise InputError(f"readme: expected all rows to be measured for it, got only {', '.join(only)}")
    if readme_path:
        _table_in(Path(readme_path))  # or an error before the time is spent
    if repeats < 1:
        raise InputError(f"repeats: expected at least 1, got {repeats}")
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads)
    results = []
    for name, row in ROWS.items():
        if only and name not in only:
            continue
        print(f"measuring {name}")
        results.append({"row": name, **measure(row, repeats)})
    print(table(results))
    if json_path:
        write_json(json_path, {"rows": results, "manifest": manifest()})
    if readme_path:
        put_table(Path(readme_path), table(results))
    return 0


def put_table(path: Path, table: str) -> None:
    """Replace the benchmark's table in a Markdown file.

    Raises:
        InputError: the file cannot be read or has no such table.
    """
    from wsss_nb.system.files import atomic_path

    before, after = _table_in(path)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}{table}\n{after}", encoding="utf-8")


def _table_in(path: Path) -> tuple[str, str]:
    """What stands before and after the table."""
    from benchmarks.measure import table
    from wsss_nb.system.errors import InputError

    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a Markdown file with the table, got {error}") from error
    title = table([]).splitlines()[0]
    first = next((number for number, line in enumerate(lines) if line.rstrip() == title), None)
    if first is None:
        raise InputError(f"{path}: expected a line {title!r}, got none")
    end = next((number for number in range(first, len(lines)) if not lines[number].startswith("|")), len(lines))
    return "".join(lines[:first]), "".join(lines[end:])
