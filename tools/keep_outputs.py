"""Put the outputs of a run's executed notebooks into ``notebooks/`` itself, for readers who do not run them.

Usage: ``python -m tools.keep_outputs runs/quick [04,07]``
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat

from wsss_nb.run.notebooks import own_cells, read_notebook
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import atomic_path

__all__ = ["keep_outputs", "main"]

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def keep_outputs(path: Path, executed: Path) -> None:
    """Put the outputs of an executed copy into the notebook; sources, tags and parameters stay as they are.

    Raises:
        InputError: the copy has other cells.
    """
    content, copy = read_notebook(path), read_notebook(executed)
    content.cells, done = own_cells(content), own_cells(copy)
    if [cell.source for cell in content.cells] != [cell.source for cell in done]:
        raise InputError(f"{executed}: expected the cells of {path}, got others; run it again")
    count = 0
    for cell, other in zip(content.cells, done, strict=True):
        if cell.cell_type == "code":
            count += bool(other.source.strip())
            cell.outputs = _joined(other.outputs)
            cell.execution_count = count if other.source.strip() else None
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    content.metadata.pop("widgets", None)
    if "widgets" in copy.metadata:
        content.metadata["widgets"] = copy.metadata.widgets
    with atomic_path(path) as temporary:
        nbformat.write(content, temporary)


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs with neighbouring pieces of one stream as one; how a stream was cut is an accident of timing."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and "stream" == last.output_type == output.output_type and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def main(arguments: list[str]) -> int:
    """Keep the outputs of all executed notebooks of a run, or of those whose numbers are given."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    numbers = arguments[1].split(",") if len(arguments) == 2 else [""]
    for executed in sorted((Path(arguments[0]) / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        if any(executed.name.startswith(number) for number in numbers):
            keep_outputs(NOTEBOOKS / executed.name, executed)
            print(executed.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
