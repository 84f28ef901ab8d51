"""How fast the method's core is, against the straightforward way to write it.

``wsss-nb benchmark`` measures every row in one process: contestants take turns, medians are reported, peak
memory comes from runs of its own, and each pair is first checked to compute the same thing. Each row states
its targets and whether they were met.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["run"]


def run(only: Sequence[str], repeats: int, threads: int | None, json_path: str | None) -> int:
    """Measure the rows named in ``only`` (all if empty), print a table, write JSON if asked to.

    Returns:
        0; whether targets were met is in the table and in the JSON, for machines differ.

    Raises:
        InputError: an unknown row, or ``repeats`` or ``threads`` below 1.
    """
    import torch

    from wsss_nb.benchmarks.measure import measure, table
    from wsss_nb.benchmarks.rows import ROWS
    from wsss_nb.errors import InputError
    from wsss_nb.experiment.provenance import manifest
    from wsss_nb.files import write_json

    for name in only:
        if name not in ROWS:
            raise InputError(f"only: expected rows of {', '.join(ROWS)}, got {name!r}")
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
    return 0
