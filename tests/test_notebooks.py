"""The notebooks: their form, their size, their exercises, and the numbers in their marked cells."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from wsss_nb import checks

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.name[:2] in {"01", "02", "03"}]
PARAMETERS = {"profile": "quick", "data_root": "", "out_dir": "runs/quick", "seed": 0, "overrides": ""}


def _read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_class_activation_maps", "02_importance_sampling", "03_feature_similarity_loss", "04_train_cam",
        "05_train_affinitynet", "06_train_deeplab", "07_figures", "08_tables",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestForm:
    def test_valid_and_small(self, path):
        notebook = _read(path)
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        identifiers = [cell.id for cell in notebook.cells]
        assert len(set(identifiers)) == len(identifiers)
        assert notebook.metadata.kernelspec.name == "python3"
        assert path.stat().st_size < 1.5e6

    def test_begins_with_a_title_then_the_parameters(self, path):
        notebook = _read(path)
        assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
        opening = notebook.cells[0].source.lower()
        assert "learn" in opening and "time" in opening and "paper" in opening
        (cell,) = _tagged(notebook, "parameters")
        assert cell is _code(notebook)[0], "before every other code cell"
        statements = ast.parse(cell.source).body
        values = {s.targets[0].id: ast.literal_eval(s.value) for s in statements}
        assert values.items() >= PARAMETERS.items()

    def test_cells_are_short_and_python(self, path):
        for cell in _code(_read(path)):
            assert len(cell.source.splitlines()) <= 30, cell.source[:80]
            ast.parse(cell.source)  # no magics, no shell
            assert "sys.path" not in cell.source

    def test_committed_as_executed(self, path):
        cells = [cell for cell in _code(_read(path)) if cell.source.strip()]
        for cell in cells:
            assert cell.execution_count is not None, cell.source[:80]
            assert not [o for o in cell.outputs if o.output_type == "error"], cell.source[:80]
        counts = [cell.execution_count for cell in cells]
        assert counts == sorted(counts), "run from top to bottom"
        pictures = [
            o
            for cell in cells
            for o in cell.outputs
            if any(k.startswith("image/") for k in o.get("data", {}))
        ]
        assert pictures or path.stem == "08_tables"

    def test_outputs_name_no_place_on_somebody_s_machine(self, path):
        text = path.read_text(encoding="utf-8")
        for place in ("home", "root", "Users", "work", "tmp"):
            assert f"/{place}/" not in text, place


@pytest.mark.parametrize("path", NOTEBOOKS[:6], ids=lambda path: path.stem)
class TestInstall:
    """On Colab the library is installed from the address one gives; everywhere else nothing happens."""

    def _run(self, path, monkeypatch, source="", colab=False, installed=False):
        calls = []
        monkeypatch.setattr(subprocess, "run", lambda *args, **options: calls.append((args, options)))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
        if colab:
            monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
        (cell,) = _tagged(_read(path), "install")
        exec(cell.source.replace('source = ""', f"source = {source!r}"), {})
        return calls

    def test_it_comes_before_every_import_of_the_library(self, path):
        cells = _code(_read(path))
        (install,) = [i for i, cell in enumerate(cells) if "install" in cell.metadata.get("tags", [])]
        assert install == 1 and not any("wsss_nb" in cell.source for cell in cells[:install])

    @pytest.mark.parametrize(("colab", "installed"), [(False, False), (False, True), (True, True)])
    def test_elsewhere_or_when_installed_it_does_nothing(self, path, monkeypatch, colab, installed):
        assert self._run(path, monkeypatch, "git+https://example.org/x", colab, installed) == []

    def test_on_colab_it_installs(self, path, monkeypatch):
        (((command,), options),) = self._run(path, monkeypatch, "git+https://example.org/x", colab=True)
        assert command == [sys.executable, "-m", "pip", "install", "--quiet", "git+https://example.org/x"]
        assert options == {"check": True}

    def test_on_colab_it_asks_for_an_address(self, path, monkeypatch):
        with pytest.raises(ValueError, match="source: expected the repository as pip takes it"):
            self._run(path, monkeypatch, colab=True)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
class TestLessons:
    def test_every_widget_has_a_static_picture_after_it(self, path):
        cells = _code(_read(path))
        places = [i for i, cell in enumerate(cells) if "Explorer(" in cell.source]
        assert places
        for place in places:
            static = cells[place + 1]
            assert (
                static.source.strip().splitlines()[-1].startswith(("widgets.render_", ")"))
                or "render_" in static.source
            )
            kinds = {kind for o in static.outputs for kind in o.get("data", {})}
            assert kinds & {"image/png", "image/jpeg"}

    def test_pictures_are_described(self, path):
        """Every picture of the library carries a description; matplotlib's charts have titles instead."""
        for cell in _code(_read(path)):
            for output in cell.outputs:
                for kind in ("image/png", "image/jpeg"):
                    if kind in output.get("data", {}) and "<Figure" not in output.data.get("text/plain", ""):
                        assert len(output.metadata[kind]["alt"]) > 10

    def test_marked_cells_print_plain_answers(self, path):
        marked = [cell for cell in _code(_read(path)) if "NBVAL_CHECK_OUTPUT" in cell.source]
        assert len(marked) >= 3
        for cell in marked:
            (output,) = cell.outputs
            assert output.output_type == "stream" and "False" not in output.text

    def test_widget_state_is_stored(self, path):
        """So that a reader without a kernel sees the explorer."""
        state = _read(path).metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
        assert any(model["model_name"] == "ImageModel" for model in state.values())


@pytest.mark.parametrize("path", NOTEBOOKS[:6], ids=lambda path: path.stem)
def test_exercises_fail_as_stubs_and_pass_as_solutions(path):
    notebook = _read(path)
    stubs, solutions = _tagged(notebook, "exercise"), _tagged(notebook, "solution")
    assert 3 <= len(stubs) == len(solutions) <= 6
    for stub, solution in zip(stubs, solutions, strict=True):
        check = stub.source.splitlines()[-1]
        assert check == solution.source.splitlines()[-1] and check.startswith("checks.check_")
        assert solution.metadata.jupyter.source_hidden, "collapsed until asked for"
        assert not _verdict(stub.source) and _verdict(solution.source)


def _verdict(source):
    """Run an exercise cell as the notebook would; what its last line says."""
    *lines, check = source.splitlines()
    names = {"torch": torch, "np": np, "checks": checks}
    exec("\n".join(lines), names)
    return eval(check, names)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_marked_numbers_come_out_again(path, tmp_path):
    """nbval, lax: run the notebook in a fresh kernel, compare the cells marked NBVAL_CHECK_OUTPUT."""
    environment = {**os.environ, "WSSS_NB_HEADLESS": "1"}
    environment.pop("PYTEST_CURRENT_TEST", None)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider",
            "--override-ini=addopts=", "--override-ini=timeout=0", f"--rootdir={tmp_path}", "-c", os.devnull,
            str(path),
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    count = sum(1 for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
    assert f"{count} passed" in done.stdout
