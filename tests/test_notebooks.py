"""The notebooks: their form, their size, their exercises, and the numbers in their marked cells."""

from __future__ import annotations

import ast
import base64
import html
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.teach import checks

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


def _pictures(cell):
    """Kind, bytes and description of every picture a cell left behind."""
    return [
        (kind, base64.b64decode(data), output.get("metadata", {}).get(kind, {}).get("alt", ""))
        for output in cell.outputs
        for kind, data in output.get("data", {}).items()
        if kind.startswith("image/")
    ]


def _explorers(notebook):
    """Place among the code cells of every explorer, its picture, and the words below it, as stored."""
    stored = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    models, found = stored.get("state", {}), []
    for place, cell in enumerate(_code(notebook)):
        for output in cell.outputs:
            view = output.get("data", {}).get("application/vnd.jupyter.widget-view+json")
            if view is not None:
                children = models[view["model_id"]]["state"]["children"]
                _, picture, words = (models[child.removeprefix("IPY_MODEL_")] for child in children)
                (buffer,) = picture["buffers"]
                text = re.fullmatch(r"<div[^>]*>(.*)</div>", words["state"]["value"], re.DOTALL)
                found.append((place, base64.b64decode(buffer["data"]), html.unescape(text[1])))
    return found


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_class_activation_maps",
        "02_importance_sampling",
        "03_feature_similarity_loss",
        "04_train_cam",
        "05_train_affinitynet",
        "06_train_deeplab",
        "07_figures",
        "08_tables",
    ]


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
        pictures = [o for cell in cells for o in cell.outputs if any(k.startswith("image/") for k in o.get("data", {}))]
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


@pytest.mark.parametrize("path", [*LESSONS, NOTEBOOKS[4]], ids=lambda path: path.stem)
def test_every_explorer_is_followed_by_the_same_picture_as_a_plain_function_call(path):
    """For headless runs and readers without a kernel; what the explorer begins with is in the stored widget state."""
    notebook = _read(path)
    cells, explorers = _code(notebook), _explorers(notebook)
    assert [place for place, *_ in explorers] == [
        place for place, cell in enumerate(cells) if "Explorer(" in cell.source
    ]
    assert explorers
    for place, shown, words in explorers:
        static = cells[place + 1]
        assert "render_" in static.source
        ((_, picture, alt),) = _pictures(static)
        assert alt == words
        pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for data in (shown, picture)]
        assert pixels[0].shape == pixels[1].shape
        assert abs(pixels[0] - pixels[1]).mean() < 2, "alike but for JPEG"


@pytest.mark.parametrize("path", NOTEBOOKS[:6], ids=lambda path: path.stem)
def test_pictures_and_charts_are_described(path):
    """Also matplotlib's: a figure that is left to the inline backend has no description."""
    described = [alt for cell in _code(_read(path)) for _, _, alt in _pictures(cell)]
    assert described and all(len(alt.split()) >= 4 for alt in described), described


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
class TestLessons:
    def test_marked_cells_print_plain_answers(self, path):
        marked = [cell for cell in _code(_read(path)) if "NBVAL_CHECK_OUTPUT" in cell.source]
        assert len(marked) >= 4
        for cell in marked:
            (output,) = cell.outputs
            assert output.output_type == "stream" and "False" not in output.text

    def test_widget_state_is_stored(self, path):
        """So that a reader without a kernel sees the explorer."""
        state = _read(path).metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
        assert any(model["model_name"] == "ImageModel" for model in state.values())


# Cells that train or descend, and whose results the text reads off.
@pytest.mark.parametrize(
    ("number", "training", "marked"),
    [
        ("01", "ca42b0d8", "01-table-score"),
        ("02", "657b5a68", "02-begun-score"),
        ("02", "d6df892c", "02-sweep-score"),
        ("02", "25c3945f", "02-growth-score"),
        ("03", "7a2e2728", "03-descent-score"),
        ("03", "924ee69a", "03-fails-score"),
        ("03", "42e0bb5f", "03-away-score"),
    ],
)
def test_every_training_of_a_lesson_is_followed_by_a_marked_cell_with_its_results(number, training, marked):
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    cells = _read(path).cells
    places = {cell.id: place for place, cell in enumerate(cells)}
    assert 0 < places[marked] - places[training] <= 5
    source = cells[places[marked]].source
    assert "NBVAL_CHECK_OUTPUT" in source and len(re.findall(r"[<>]", source)) >= 2, "holds numbers to bounds"


def _table(path, identifier):
    """Rows of numbers of a printed table, by their first word; NaN where a name stands."""
    (cell,) = [cell for cell in _read(path).cells if cell.id == identifier]
    (text,) = [o.data["text/plain"] for o in cell.outputs if "text/plain" in o.get("data", {})]
    rows = {}
    for line in text.splitlines():
        name, *numbers = line.split()
        if re.fullmatch(r"[-\d. ]+", " ".join(numbers)):
            rows[name] = [float(number) for number in numbers]
    return rows


def test_what_04_says_of_the_sweep_is_in_its_table():
    """Sections 5 and 6, profile quick: mIoU and contour F come first, then seconds, head, body and background."""
    rows = _table(NOTEBOOKS[3], "55b7fa1c")
    for score in (0, 1):
        with_loss = [rows[f"lambda{w:g}_fsl"][score] for w in (0, 0.25, 0.5, 0.75, 1)]
        assert with_loss == sorted(with_loss), "both scores rise with lambda from end to end"
    miou, contour = ([rows[f"lambda{w:g}"][score] for w in (0, 0.25, 0.5, 0.75, 1)] for score in (0, 1))
    assert max(miou) == miou[2] > miou[4] + 2 and miou[1] - miou[0] > 0.9 * (miou[2] - miou[0])
    assert max(contour) == contour[0] > contour[4] + 3
    (_, _, _, head, body, _), (_, _, _, _, filled, floods) = rows["lambda0"], rows["lambda1"]
    assert head > 5 * body and body < 0.05 and filled > 0.7 and floods < 0.7
    assert rows["lambda1_fsl"][5] > 0.9 > rows["lambda1"][5] + 0.2, "the block shrinks to the outline"


def test_what_05_and_06_say_of_the_scores_is_in_their_tables():
    walked = _table(NOTEBOOKS[4], "e2e72fbd")
    stages = _table(NOTEBOOKS[5], "2e8c699d")  # mIoU of ours and seam, contour F of ours and seam
    first, second, third = (stages[stage] for stage in ("cam", "affinitynet", "deeplab"))
    assert walked["mIoU"] == pytest.approx(second[:2], abs=0.06)
    assert second[2] > first[2] and second[3] > first[3], "the walk sharpens contours"
    assert second[1] < first[1], "it can make maps that are wrong in the large worse"
    assert third[0] - second[0] > second[0] - first[0] and third[0] > third[1], "the last stage gains most"


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
            sys.executable,
            "-m",
            "pytest",
            "--nbval-lax",
            "--nbval-current-env",
            "-q",
            "-p",
            "no:cacheprovider",
            "--override-ini=addopts=",
            "--override-ini=timeout=0",
            f"--rootdir={tmp_path}",
            "-c",
            os.devnull,
            str(path),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    count = sum(1 for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
    assert f"{count} passed" in done.stdout
