"""Headless notebooks: only what changed runs, a killed run carries on, nothing is left behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.keep_outputs import keep_outputs
from wsss_nb.run import notebooks as runner
from wsss_nb.run.notebooks import Notebook, find_notebooks, own_cells, parameter_values, run_notebooks
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import write_json

PARAMETERS = 'profile = "quick"\ndata_root = ""\nout_dir = "runs/quick"\nseed = 0\noverrides = ""'
SET = {"profile": "quick", "data_root": "", "seed": 7, "overrides": ""}


def write(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook of a title, a parameters cell and some code cells."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[new_markdown_cell(f"# {name}"), tagged, *map(new_code_cell, cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


SCORES = {"protocol": {}, "miou": 0.5, "contour_f": 0.5, "iou": [0.5, 0.5], "f": [0.5], "confusion": [[1, 0], [0, 1]],
          "matches": [[1, 1, 1, 1]]}  # fmt: skip


def results_of(rows: int) -> str:
    """A results.json of so many trainings, which differ in their seeds."""
    row = {"variant": "average", "title": "average", "lambda": None, "fsl": False, "order": [0.0], "scores": SCORES}
    row |= {"steps": {"model": "cam/model-1", "val": "cam/val-1"}, "cost": {"seconds": 1.0}}
    head = {"schema": 2, "run": "run", "profile": {}, "synthetic": True, "classes": ["background", "fish"]}
    return json.dumps({**head, "cam": [{**row, "seed": seed} for seed in range(rows)], "stages": []})


def run(
    folder: Path, out: Path, only: tuple[str, ...] = (), limits: dict[str, float] | None = None, **more: Any
) -> tuple[dict[str, str], str]:
    """Status by notebook number, and the log."""
    found = find_notebooks(folder)
    given = {**SET, "out_dir": str(out), **more}
    values = {
        notebook.name: parameter_values(
            notebook, {name: value for name, value in given.items() if name in notebook.parameters}
        )
        for notebook in found
    }
    chosen = [notebook.name for notebook in found if not only or notebook.number in only]
    log: list[str] = []
    outcomes = run_notebooks(found, values, out, chosen=chosen, timeouts=limits or {}, say=log.append)
    return {outcome.name[:2]: outcome.status for outcome in outcomes}, "\n".join(log)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Any, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


# What runs, and when it runs again


def test_runs_with_parameters_then_skips_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    source = (
        "import json, os, sys, pathlib\n"
        "values = [profile, data_root, seed, overrides, sys.executable, os.environ['WSSS_NB_HEADLESS'], sys.path]\n"
        "pathlib.Path(out_dir, 'made.json').write_text(json.dumps(values))\n"
        "print('wrote', seed)"
    )
    write(folder, "04_a", source)
    assert run(folder, out, overrides="cam.epochs=3")[0] == {"04": "done"}
    *values, path = json.loads((out / "made.json").read_text())
    assert values == ["quick", "", 7, "cam.epochs=3", sys.executable, "1"]
    assert str(tmp_path) not in path and path[0], "a notebook does not import from where it runs"

    executed = nbformat.read(out / "notebooks/04_a.ipynb", as_version=4)
    assert [output.text for output in executed.cells[-1].outputs] == ["wrote 7\n"]
    assert executed.metadata.papermill.input_path == executed.metadata.papermill.output_path == "04_a.ipynb"
    assert [path.name for path in (out / "notebooks").iterdir()] == ["04_a.ipynb"]

    status, log = run(folder, out)
    assert status == {"04": "current"} and log == "04_a: up to date"
    write_json(out / "cam/average/seed0/val-1/manifest.json", {"key": "another step"})
    assert run(folder, out)[0] == {"04": "done"}, "what it shows has changed"
    write(folder, "04_a", f"{source}\n1")
    assert run(folder, out)[0] == {"04": "done"}, "and so has what it does"


def test_the_key_is_of_all_that_a_notebook_shows(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    path = write(folder, "04_a", "import wsss_nb.cam", "1 + 1", parameters=PARAMETERS + "\ndraws = 1")
    out.mkdir()

    def key(**values: Any) -> str:
        (notebook,) = find_notebooks(folder)
        return notebook.key({**notebook.parameters, **values}, out)

    first = key()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].outputs = [new_output("stream", text="2")]
    notebook.cells[-1].execution_count = 4
    notebook.metadata["papermill"] = {"duration": 3}
    nbformat.write(notebook, path)
    assert key() == first, "outputs are not input"
    assert key(out_dir="elsewhere", seed=1, profile="x", overrides="y") == first, "the settings are in the run's folder"
    found = {first, key(draws=2), key(data_root="images")}
    (out / "config.yaml").write_text("epochs: 3")
    found.add(key())
    write_json(out / "cam/average/seed0/val-1/manifest.json", {"key": "a step"})
    found.add(key())
    write_json(out / "deeplab/seam/seed0/val-1/manifest.json", {"key": "a step of 06"})
    assert key() in found
    for source in ("import wsss_nb.sampling", "%matplotlib inline\nimport wsss_nb.cam", "not python at all ;("):
        notebook.cells[-2].source = source
        nbformat.write(notebook, path)
        found.add(key())
    assert len(found) == 8


def test_figures_follow_the_results_and_nothing_else(tmp_path: Path) -> None:
    """Other settings, other cells of the stages: what is drawn is what the run holds."""
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(folder, "04_a", "raise ValueError('the stages are not for today')")
    write(folder, "07_c", "print(data_root)")
    status, log = run(folder, out, only=("07",))
    assert status == {"07": "blocked"} and f"it draws from results.json of {out}, and there is none" in log
    out.mkdir()
    (out / "results.json").write_text(results_of(2))
    assert [run(folder, out, only=("07",))[0]["07"] for _ in range(2)] == ["done", "current"]
    (out / "config.yaml").write_text("other: settings")
    assert run(folder, out, only=("07",))[0] == {"07": "current"}
    assert run(folder, out, only=("07",), data_root="elsewhere")[0] == {"07": "done"}, "its pictures are there"
    (out / "results.json").write_text(results_of(3))
    assert run(folder, out, only=("07",))[0] == {"07": "done"}
    (out / "run.json").write_text("{}")
    assert run(folder, out, only=("07",))[0] == {"07": "done"}, "and who made them"
    (out / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results.json: expected JSON"):
        run(folder, out, only=("07",))


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, numbers = tmp_path / "notebooks", [f"{number:02}" for number in range(1, 7)]
    for number in numbers:
        write(folder, f"{number}_x", "1")
    executed: list[str] = []
    stop_at = ""

    def execute(notebook: Notebook, values: Any, target: Path, *rest: Any) -> None:
        if notebook.number == stop_at:
            raise KeyboardInterrupt
        executed.append(notebook.number)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(notebook.path.read_bytes())

    monkeypatch.setattr(runner, "execute", execute)
    for place, number in enumerate(numbers):
        stop_at, out = number, tmp_path / f"run{number}"
        executed.clear()
        with pytest.raises(KeyboardInterrupt):
            run(folder, out)
        assert executed == numbers[:place]
        stop_at = ""
        assert list(run(folder, out)[0].values()) == ["current"] * place + ["done"] * (len(numbers) - place)
        assert executed == numbers


# What goes wrong


def test_failure_names_cell_and_line_and_stops_only_what_needs_it(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(folder, "01_a", "1")
    write(folder, "04_b", "fine = 1", "x = 1\ny = 2\nraise ValueError('labels: expected 3,\\ngot 4')")
    write(folder, "05_c", "1")
    write(folder, "07_d", "1")
    status, log = run(folder, out)
    assert status == {"01": "done", "04": "failed", "05": "blocked", "07": "blocked"}
    # The fourth cell after title, parameters and `fine = 1`; papermill's own cells do not count.
    assert "04_b.ipynb: cell 4 (In [4]), line 3: ValueError: labels: expected 3,; see" in log
    assert "05_c: not run: it needs 04_b, which has not run to its end" in log
    errors = nbformat.read(out / "notebooks/04_b.ipynb", as_version=4).cells[-1].outputs
    assert errors[0].ename == "ValueError"

    write(folder, "04_b", "fine = 1", "x = 1")
    (out / "results.json").write_text(results_of(1))
    assert run(folder, out)[0] == {"01": "current", "04": "done", "05": "done", "07": "done"}


def test_a_dead_kernel_is_tried_once_more_then_named(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    once = "import os, pathlib, signal\nmark = pathlib.Path(out_dir, 'mark')\n"
    write(folder, "01_once", f"{once}if not mark.exists():\n    mark.write_text('')\n    os.kill(os.getpid(), 9)")
    always = "import os, subprocess, pathlib\nchild = subprocess.Popen(['sleep', '100'])\n"
    always += "with open(pathlib.Path(out_dir, 'children'), 'a') as file:\n    print(child.pid, file=file)"
    write(folder, "02_always", always, "os.kill(os.getpid(), 9)")
    status, log = run(folder, out)
    assert status == {"01": "done", "02": "failed"}
    assert re.search(r"01_once.ipynb: cell 3( \(In \[\d\]\))?: the kernel died; once more", log)
    assert re.search(r"02_always.ipynb: cell 4( \(In \[\d\]\))?: the kernel died twice; most often memory", log)
    children = [int(line) for line in (out / "children").read_text().split()]
    assert len(children) == 2
    assert not any(alive(pid) for pid in children), "what a kernel started goes with it"


def test_timeout_stops_a_notebook_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    write(folder, "01_slow", "import time\ntime.sleep(100)")
    write(folder, "02_patient", "1")
    status, log = run(folder, tmp_path / "run", limits={"01_slow": 6})
    assert status == {"01": "failed", "02": "done"}
    assert "stopped after 6.0 s" in log and "once more" not in log


RUNNER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_runner import run
run(Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_killed_run_leaves_nothing_and_carries_on(tmp_path: Path, how: signal.Signals) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(folder, "01_a", "1")
    first = (
        "import os, pathlib, subprocess, time\nout = pathlib.Path(out_dir)\nif not (out / 'pids').exists():\n"
        "    child = subprocess.Popen(['sleep', '100'])\n"
        "    (out / 'part').write_text(f'{os.getpid()} {child.pid}')\n"
        "    (out / 'part').rename(out / 'pids')\n"
        "    time.sleep(100)"
    )
    write(folder, "04_b", first)
    command = [sys.executable, "-c", RUNNER, str(Path(__file__).parent), str(folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert wait_for((out / "pids").exists, 120), "the notebook never got there"
        pids = [int(word) for word in (out / "pids").read_text().split()]
        assert all(alive(pid) for pid in pids)
        process.send_signal(how)
        process.wait(60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode != 0
    assert wait_for(lambda: not any(alive(pid) for pid in pids), 20), "kernel or its child outlived the runner"
    assert not (out / "notebooks/04_b.ipynb").exists(), "half a notebook is not an executed notebook"
    assert run(folder, out)[0] == {"01": "current", "04": "done"}
    assert not list((out / "notebooks").glob(".*"))


def test_a_users_kernelspec_cannot_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "jupyter/kernels/python3/kernel.json"
    write_json(spec, {"argv": ["/bin/false"], "display_name": "mine", "language": "python"})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    write(tmp_path / "notebooks", "01_a", "1")
    assert run(tmp_path / "notebooks", tmp_path / "run")[0] == {"01": "done"}


def test_a_line_a_minute_says_where_a_notebook_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    notebook = Notebook(Path("04_a.ipynb"), {}, [("code", "1", ())] * 9)
    log = runner._Log(notebook, said.append, interval=0.0)
    for index, tags in enumerate([[], ["parameters"], ["injected-parameters"], []]):
        log.on_cell_start(nbformat.from_dict({"metadata": {"tags": tags}}), index)
    log.write("epoch 1\repoch 2\n\n")
    log.tick()
    log._interval = 60.0
    log.tick()
    assert said == ["04_a: cell 3 of 9, 0.0 s: epoch 2"]


# Parameters and files


@pytest.mark.parametrize(
    ("default", "given", "value"),
    [
        (0, "3", 3),
        (0.5, "1e-3", 1e-3),
        (0.5, 3, 3.0),
        ("", "3", "3"),
        (True, "False", False),
        (None, "x", "x"),
        (1, 2, 2),
    ],
)
def test_parameters_get_their_declared_type(default: Any, given: Any, value: Any) -> None:
    found = parameter_values(Notebook(Path("01_a.ipynb"), {"a": default, "b": 1}, []), {"a": given})
    assert found == {"a": value, "b": 1} and type(found["a"]) is type(value)


@pytest.mark.parametrize(
    ("default", "given", "expected"),
    [(1, "three", "int"), (1, True, "int"), (1, 0.5, "int"), (1, None, "int"), (True, "1", "bool"), ("", 1, "str")],
)
def test_parameters_of_another_type_are_refused(default: Any, given: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parameter_values(Notebook(Path("01_a.ipynb"), {"a": default}, []), {"a": given})
    assert str(caught.value) == f"01_a.ipynb: a: expected {expected}, got {given!r}"


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(InputError, match=r"01_a.ipynb: drws: expected one of draws, got an unknown parameter"):
        parameter_values(Notebook(Path("01_a.ipynb"), {"draws": 1}, []), {"drws": 3})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import os", "expected lines like name = literal, got 'import os'"),
        ("seed = [0]", r"expected lines like name = literal, got 'seed = \[0\]'"),
        ("a = b = 1", "expected lines like name = literal, got 'a = b = 1'"),
        ("a = f(1)", r"expected lines like name = literal, got 'a = f\(1\)'"),
        ("a = (", "expected Python, got 'a = "),
    ],
)
def test_the_parameters_cell_holds_literals_only(tmp_path: Path, source: str, message: str) -> None:
    write(tmp_path, "02_b", "1", parameters=f"name = -1\n{source}")
    with pytest.raises(InputError, match=f"02_b.ipynb: parameters: {message}"):
        find_notebooks(tmp_path)


def test_reading_notebooks(tmp_path: Path) -> None:
    write(tmp_path, "05_b", "1", parameters="seed = 0\nnote = None\nrate = 0.5")
    write(tmp_path, "04_a", "1")
    write(tmp_path, "07_c", "1")
    found = find_notebooks(tmp_path)
    assert [(notebook.name, notebook.draws) for notebook in found] == [("04_a", False), ("05_b", False), ("07_c", True)]
    assert found[1].parameters == {"seed": 0, "note": None, "rate": 0.5}
    write(tmp_path, "07_d", "1")
    with pytest.raises(InputError, match=r"expected one notebook per number"):
        find_notebooks(tmp_path)
    with pytest.raises(InputError, match=r"expected numbered notebooks such as 01_name.ipynb, got none"):
        find_notebooks(tmp_path / "nowhere")
    (tmp_path / "07_d.ipynb").unlink()
    (tmp_path / "09_x.ipynb").write_text("{")
    with pytest.raises(InputError, match=r"09_x.ipynb: expected a notebook, got"):
        find_notebooks(tmp_path)
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "09_x.ipynb")
    with pytest.raises(InputError, match=r"09_x.ipynb: expected one cell tagged 'parameters', got 0"):
        find_notebooks(tmp_path)


def test_outputs_kept_in_the_notebook_change_nothing_else(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    path = write(folder, "04_a", "print(seed)", "", "1 + 1")
    assert run(folder, out)[0] == {"04": "done"}
    executed = nbformat.read(out / "notebooks/04_a.ipynb", as_version=4)
    (cell,) = [cell for cell in executed.cells if cell.source == "print(seed)"]
    cell.outputs = [new_output("stream", text="7"), new_output("stream", text="\n")]  # as if it had come in pieces
    cell.outputs.append(new_output("stream", name="stderr", text="!"))
    nbformat.write(executed, out / "notebooks/04_a.ipynb")
    before = find_notebooks(folder)
    keep_outputs(path, out / "notebooks/04_a.ipynb")
    assert find_notebooks(folder) == before
    content = nbformat.read(path, as_version=4)
    cells = content.cells
    assert len(cells) == len(own_cells(executed)) == 5 and "papermill" not in json.dumps(cells)
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, None, 3]
    assert [output.text for output in cells[2].outputs] == ["7\n", "!"]
    assert cells[4].outputs[0].execution_count == 3
    assert run(folder, out)[0] == {"04": "current"}
    write(folder, "04_a", "print(2)")
    with pytest.raises(InputError, match=r"expected the cells of .*04_a.ipynb, got others; run it again"):
        keep_outputs(path, out / "notebooks/04_a.ipynb")
