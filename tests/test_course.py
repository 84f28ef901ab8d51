"""wsss-nb course: what students get, what the teacher gets, and that solutions do not leak."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

from wsss_nb.cli import main
from wsss_nb.system.errors import InputError
from wsss_nb.teach.course import LESSONS, make_course

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def _cells(path, tag=None):
    cells = nbformat.read(path, as_version=4).cells
    return cells if tag is None else [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def test_students_get_the_stubs_and_the_teacher_the_solutions(tmp_path, capsys):
    assert main(["course", "--out", str(tmp_path / "course")]) == 0
    assert "6 lessons" in capsys.readouterr().out
    for number in LESSONS:
        (source,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
        student, teacher = (tmp_path / "course" / kind / source.name for kind in ("student", "teacher"))
        solutions = [cell.source for cell in _cells(source, "solution")]
        assert [cell.source for cell in _cells(teacher, "solution")] == solutions and len(solutions) >= 3
        text = student.read_text(encoding="utf-8")
        assert not _cells(student, "solution") and "The solution is" not in text
        (about,) = [cell.source for cell in _cells(teacher) if "The solution is" in cell.source]
        assert "The solution is in the cell below the stub." in about and "collapsed" not in about
        for solution in solutions:
            body = max(solution.splitlines()[1:-1], key=len).strip()
            assert body not in {
                line.strip() for cell in _cells(student, "exercise") for line in cell.source.splitlines()
            }
        stubs = [cell.source for cell in _cells(source, "exercise")]
        assert [cell.source for cell in _cells(student, "exercise")] == stubs
        for path in (student, teacher):
            nbformat.validate(nbformat.read(path, as_version=4))
            for cell in _cells(path):
                if cell.cell_type == "code":
                    assert not cell.outputs and cell.execution_count is None
                    assert not cell.metadata.get("jupyter", {}).get("source_hidden")


@pytest.mark.parametrize("address", ["", 'git+https://example.org/a "b"/wsss-nb'])
def test_copies_keep_the_install_cell_and_take_an_address(tmp_path, address):
    flags = ["--source", address] if address else []
    assert main(["course", "--out", str(tmp_path), *flags]) == 0
    for path in sorted(tmp_path.glob("*/*.ipynb")):
        (cell,) = _cells(path, "install")
        lines = [line for line in cell.source.splitlines() if line.startswith("source = ")]
        assert len(lines) == 1 and '# @param {type:"string"}' in lines[0]
        assert ast.literal_eval(lines[0].split(" = ", 1)[1]) == address


def test_the_sources_stay_as_they_are(tmp_path):
    before = {path.name: path.read_bytes() for path in NOTEBOOKS.glob("*.ipynb")}
    make_course(NOTEBOOKS, tmp_path)
    assert {path.name: path.read_bytes() for path in NOTEBOOKS.glob("*.ipynb")} == before


def _lessons(folder, tags):
    cells = [nbformat.v4.new_code_cell("1", metadata={"tags": [tag]}) for tag in tags]
    for number in LESSONS:
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{number}_lesson.ipynb")


@pytest.mark.parametrize(
    ("tags", "got"),
    [
        (["exercise"], "got exercise"),
        (["exercise", "exercise", "solution", "solution"], "got exercise, exercise, solution, solution"),
        (["solution", "exercise"], "got solution, exercise"),
        ([], "got no exercise"),
    ],
)
def test_an_exercise_without_solution_is_refused_before_anything_is_written(tmp_path, tags, got):
    _lessons(tmp_path, tags)
    with pytest.raises(InputError, match=f"01_lesson.ipynb: expected every exercise .*{got}"):
        make_course(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_lesson_is_named(tmp_path, capsys):
    _lessons(tmp_path, ["exercise", "solution"])
    (tmp_path / "04_lesson.ipynb").unlink()
    assert main(["course", "--notebooks", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "expected one notebook 04_*" in capsys.readouterr().err
