"""Course material: the lesson notebooks as copies for students and for the teacher."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat

from wsss_nb.run.notebooks import own_cells
from wsss_nb.system.errors import require
from wsss_nb.system.files import atomic_path

__all__ = ["LESSONS", "make_course"]

LESSONS = ("01", "02", "03", "04", "05", "06")
"""The notebooks with exercises, by their numbers."""

_NO_SOURCE = 'source = ""  # @param'  # of the install cell, as it stands in the repository
_ABOUT_SOLUTIONS = re.compile(r"\s*The solution is in the collapsed cell[^.]*\.")
_SHOWN_SOLUTIONS = " The solution is in the cell below the stub."


def make_course(notebooks: Path, out: Path, source: str = "") -> list[Path]:
    """Write ``out/student`` and ``out/teacher``: the lessons without outputs, and without or with solutions.

    Both come from the same source, in which every exercise (a cell tagged "exercise") is followed by its solution
    (tagged "solution", ending in the same check). Students' copies lose the solutions, teachers' show them unfolded.

    Args:
        notebooks: folder of the numbered notebooks.
        out: folder to write to; files of the same names in it are replaced one by one.
        source: where the copies' install cells get the library from on Colab, as pip takes it
            (``git+https://...``); empty leaves it to whoever runs them.

    Returns:
        The files written.

    Raises:
        InputError: a lesson is missing, has no exercises, or an exercise has no solution.
    """
    sources = {}
    for number in LESSONS:
        found = sorted(notebooks.glob(f"{number}_*.ipynb"))
        require(len(found) == 1, f"notebooks: expected one notebook {number}_* in {notebooks}, got {len(found)}")
        name = found[0].name
        sources[name] = nbformat.read(found[0], as_version=4)
        kinds = ["".join(_tags(cell)) for cell in sources[name].cells if _tags(cell)]
        solved = bool(kinds) and kinds == ["exercise", "solution"] * (len(kinds) // 2)
        got = ", ".join(kinds) or "no exercise"
        require(solved, f"{name}: expected every exercise to be followed by its solution, got {got}")
    written = {out / kind / name: (kind, name) for kind in ("student", "teacher") for name in sources}
    for path, (kind, name) in written.items():
        with atomic_path(path) as temporary:
            nbformat.write(_copy(sources[name], kind == "teacher", source), temporary)
    return list(written)


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", [])) & {"exercise", "solution"}


def _copy(content: Any, solutions: bool, source: str) -> Any:
    copy = nbformat.from_dict(content)
    copy.metadata.pop("widgets", None)
    copy.cells = [nbformat.from_dict(cell) for cell in own_cells(content) if solutions or "solution" not in _tags(cell)]
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("jupyter", None)
            if "install" in cell.metadata.get("tags", []):
                cell.source = cell.source.replace(_NO_SOURCE, f"source = {json.dumps(source)}  # @param")
        else:
            cell.source = _ABOUT_SOLUTIONS.sub(_SHOWN_SOLUTIONS if solutions else "", cell.source)
    return copy
