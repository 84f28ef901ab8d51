"""The notebook runner: only what changed runs, a killed run carries on, nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from wsss_nb import code_version as code
from wsss_nb.config import Config
from wsss_nb.errors import InputError
from wsss_nb.experiment import runner
from wsss_nb.experiment.notebooks import (
    check_parameters,
    find_notebooks,
    keep_outputs,
    parse_parameter,
    read_notebook,
)
from wsss_nb.experiment.progress import Progress, duration
from wsss_nb.experiment.runner import RunRequest, notebook_key, plan_run, run_notebooks
from wsss_nb.experiment.state import NotebookRecord, RunState, folder_stamp, run_lock, written_files

PARAMETERS = 'profile = "quick"\ndata_root = ""\nout_dir = "runs/quick"\nseed = 0\noverrides = ""'


class Data(Config):
    kind: Literal["synthetic", "voc"] = "synthetic"
    root: str = ""


class FakeProfile(Config):
    name: str = "quick"
    seeds: tuple[int, ...] = (7,)
    epochs: int = 3
    backbone: str = "tiny"
    imagenet_weights: str = ""
    data: Data = Data()


def write(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook of a title, a parameters cell and some code cells."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[new_markdown_cell(f"# {name}"), tagged, *map(new_code_cell, cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


SCORES = {
    "protocol": {}, "miou": 0.5, "contour_f": 0.5, "iou": [0.5, 0.5], "f": [0.5], "confusion": [[1, 0], [0, 1]],
    "matches": [[1, 1, 1, 1]],
}  # fmt: skip


def results_of(rows: int) -> str:
    """A results.json of so many trainings, which differ in their seeds."""
    row = {
        "variant": "average",
        "method": "average",
        "lambda": None,
        "fsl": False,
        "folder": "cam/average/seed0",
    }
    cam = [{**row, "seed": seed, "scores": SCORES} for seed in range(rows)]
    head = {"schema": 1, "run": "run", "profile": {}, "synthetic": True, "classes": ["background", "fish"]}
    return json.dumps({**head, "cam": cam, "stages": []})


def request_for(out_dir: Path, **changes: Any) -> RunRequest:
    return RunRequest(profile=FakeProfile(), out_dir=out_dir, **changes)  # type: ignore[arg-type]


def run(folder: Path, request: RunRequest, **options: Any) -> tuple[dict[str, str], str]:
    """Status by notebook number, and the log."""
    log = io.StringIO()
    outcomes = run_notebooks(plan_run(folder, request), progress=Progress(log), **options)
    return {outcome.name[:2]: outcome.status for outcome in outcomes}, log.getvalue()


def test_runs_with_parameters_then_skips_until_something_changes(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(
        folder,
        "04_a",
        "import json, os, sys, pathlib\n"
        "made = pathlib.Path(out_dir, 'made.json')\n"
        "values = [profile, data_root, out_dir, seed, overrides, sys.executable, sys.path]\n"
        "made.write_text(json.dumps(values))\n"
        "print('wrote', seed)",
    )
    assert run(folder, request_for(out, overrides="epochs=3"))[0] == {"04": "done"}
    profile, data_root, out_dir, seed, overrides, executable, path = json.loads(
        (out / "made.json").read_text()
    )
    assert (profile, data_root, out_dir, seed, overrides) == ("quick", "", str(out), 7, "epochs=3")
    assert executable == sys.executable
    assert os.getcwd() not in path and "" not in path[:1]

    executed = nbformat.read(out / "notebooks" / "04_a.ipynb", as_version=4)
    assert [output.text for output in executed.cells[-1].outputs] == ["wrote 7\n"]
    assert executed.metadata.papermill.input_path == "04_a.ipynb"
    assert str(tmp_path) not in json.dumps(executed.metadata.papermill.get("output_path"))
    assert sorted(path.name for path in (out / "notebooks").iterdir()) == ["04_a.ipynb", "state.json"]

    status, log = run(folder, request_for(out))
    assert status == {"04": "current"} and "04_a: up to date" in log
    (out / "made.json").unlink()
    assert run(folder, request_for(out))[0] == {"04": "done"}, "a missing output has to be made again"


def test_key_depends_on_content_and_not_on_outputs_or_places(tmp_path: Path) -> None:
    path = write(tmp_path, "04_a", "import wsss_nb.files", "1 + 1", parameters=PARAMETERS + "\ndraws = 1")
    request = request_for(tmp_path / "run")

    def key(
        request: RunRequest = request, data: str = "d", needed: tuple[str, ...] = (), **values: Any
    ) -> str:
        notebook = read_notebook(path)
        return notebook_key(notebook, {**notebook.parameters, **values}, request, data, needed)

    first = key()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="2")]
    notebook.cells[-1].execution_count = 4
    notebook.metadata["papermill"] = {"duration": 3}
    nbformat.write(notebook, path)
    assert key() == first, "outputs are not input"
    assert key(replace(request, out_dir=tmp_path / "elsewhere"), out_dir="elsewhere") == first
    assert key(data="other data") != first
    assert key(needed=("another",)) != first
    assert key(draws=2) != first
    assert key(seed=1) == first, "the profile holds the seeds"
    assert key(replace(request, profile=FakeProfile(epochs=4))) != first  # type: ignore[arg-type]
    notebook.cells[-1].source = "1 + 2"
    nbformat.write(notebook, path)
    assert key() != first


def test_code_version_ignores_words_and_follows_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "wsss_nb"
    (package / "stages").mkdir(parents=True)
    files = {
        "__init__.py": '"""Package."""',
        "leaf.py": '"""Leaf."""\ndef f(x):\n    """Twice."""\n    return 2 * x  # words\n',
        "middle.py": "from __future__ import annotations\nfrom .leaf import f\nVALUE = 3\n",
        "other.py": "VALUE = 1\n",
        "stages/__init__.py": "",
        "stages/top.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from wsss_nb import other\n"
            "def g():\n    from wsss_nb.middle import f\n    return f\n"
        ),
    }
    for name, text in files.items():
        (package / name).write_text(text)
    monkeypatch.setattr(code, "_ROOT", package)
    behind = ("wsss_nb", "wsss_nb.leaf", "wsss_nb.middle", "wsss_nb.stages", "wsss_nb.stages.top")
    assert code.modules_behind("wsss_nb.stages.top") == behind

    first = code.code_version("wsss_nb.stages.top")
    (package / "leaf.py").write_text("# new words\ndef f(x):\n\n    return (2 *\n        x)\n")
    assert code.code_version("wsss_nb.stages.top") == first
    (package / "other.py").write_text("VALUE = 2\n")
    assert code.code_version("wsss_nb.stages.top") == first, "imported for type checking only"
    (package / "leaf.py").write_text("def f(x):\n    return 3 * x\n")
    changed = code.code_version("wsss_nb.stages.top")
    assert changed != first
    (package / "stages/__init__.py").write_text("FLAG = 1\n")
    assert code.code_version("wsss_nb.stages.top") != changed, "Python runs the packages on the way"
    with pytest.raises(ValueError, match=r"module: expected a module of wsss_nb, got 'wsss_nb.nothing'"):
        code.code_version("wsss_nb.nothing")


def test_failure_names_cell_and_line_and_stops_only_what_needs_it(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(folder, "01_a", "1")
    write(folder, "04_b", "fine = 1", "x = 1\ny = 2\nraise ValueError('labels: expected 3,\\ngot 4')")
    write(folder, "05_c", "1")
    write(folder, "07_d", "1")
    status, log = run(folder, request_for(out))
    assert status == {"01": "done", "04": "failed", "05": "waits", "07": "waits"}
    # The fourth cell after title, parameters and `fine = 1`; papermill's own cells do not count.
    assert "04_b.ipynb: cell 4 (In [4]), line 3: ValueError: labels: expected 3,; see" in log
    assert "05_c: not run: it needs 04_b, which has not run to its end" in log
    errors = nbformat.read(out / "notebooks" / "04_b.ipynb", as_version=4).cells[-1].outputs
    assert errors[0].ename == "ValueError"

    write(folder, "04_b", "fine = 1", "x = 1")
    assert run(folder, request_for(out))[0] == {"01": "current", "04": "done", "05": "done", "07": "done"}
    with pytest.raises(InputError, match=r"only: expected notebooks of 01_a, .*, got '09'"):
        run(folder, request_for(out, only=["09"]))


def test_dead_kernel_is_tried_once_more_then_named(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(
        folder,
        "01_once",
        "import os, pathlib, signal\nmark = pathlib.Path(out_dir, 'mark')\n"
        "if not mark.exists():\n    mark.write_text('')\n    os.kill(os.getpid(), signal.SIGKILL)",
    )
    write(
        folder,
        "02_always",
        "import os, subprocess, pathlib\n"
        "child = subprocess.Popen(['sleep', '100'])\n"
        "with open(pathlib.Path(out_dir, 'children'), 'a') as file:\n    print(child.pid, file=file)",
        "os.kill(os.getpid(), 9)",
    )
    status, log = run(folder, request_for(out))
    assert status == {"01": "done", "02": "failed"}
    assert re.search(r"01_once.ipynb: cell 3( \(In \[\d\]\))?: the kernel died; once more", log)
    assert re.search(
        r"02_always.ipynb: cell 4( \(In \[\d\]\))?: the kernel died twice; most often memory", log
    )
    children = [int(line) for line in (out / "children").read_text().split()]
    assert len(children) == 2
    assert not any(alive(pid) for pid in children), "what a kernel started goes with it"


def test_timeout_stops_a_notebook(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(folder, "01_slow", "import time\ntime.sleep(100)")
    write(folder, "02_patient", "import time\ntime.sleep(1)")
    status, log = run(folder, request_for(out, timeouts={"01": 4, "": 300}))
    assert status == {"01": "failed", "02": "done"}
    assert "stopped after 4.0 s" in log and "once more" not in log


def test_timeouts_are_those_of_each_notebook(tmp_path: Path) -> None:
    for name in ("01_a", "04_b", "07_c"):
        write(tmp_path, name, "1")

    def limits(**timeouts: float) -> dict[str, float | None]:
        return dict(plan_run(tmp_path, request_for(tmp_path / "run", timeouts=timeouts)).timeouts)

    assert limits() == {"01_a": None, "04_b": None, "07_c": None}
    assert limits(**{"": 60.0, "04": 9.0}) == {"01_a": 60, "04_b": 9, "07_c": 60}
    assert limits(**{"07_c": 5.0}) == {"01_a": None, "04_b": None, "07_c": 5}
    with pytest.raises(InputError, match=r"timeout: expected notebooks of 01_a, 04_b, 07_c, got '05'"):
        limits(**{"05": 1.0})


def test_a_run_interrupted_at_any_notebook_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, numbers = tmp_path / "notebooks", [f"{number:02}" for number in range(1, 9)]
    for number in numbers:
        write(folder, f"{number}_x", "1")
    executed: list[str] = []
    stop_at = ""

    def execute(notebook: Any, values: Any, target: Path, *rest: Any) -> None:
        if notebook.number == stop_at:
            raise KeyboardInterrupt
        executed.append(notebook.number)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("")

    monkeypatch.setattr(runner, "execute", execute)
    for place, stop_at in enumerate(numbers):
        out = tmp_path / f"run{stop_at}"
        executed.clear()
        with pytest.raises(KeyboardInterrupt):
            run(folder, request_for(out))
        assert executed == numbers[:place]
        stop_at = ""
        status, _ = run(folder, request_for(out))
        assert executed == numbers
        assert list(status.values()) == ["current"] * place + ["done"] * (8 - place)


RUNNER = """
import sys
from pathlib import Path
from wsss_nb.experiment.runner import plan_run, run_notebooks
sys.path.insert(0, sys.argv[1])
from test_runner import request_for
run_notebooks(plan_run(Path(sys.argv[2]), request_for(Path(sys.argv[3]))))
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Any, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_killed_run_leaves_nothing_and_carries_on(tmp_path: Path, how: signal.Signals) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(folder, "01_a", "1")
    write(
        folder,
        "04_b",
        "import os, pathlib, subprocess, time\nout = pathlib.Path(out_dir)\n"
        "first = not (out / 'pids').exists()\n"
        "(out / 'step').write_text('kept')",
        "if first:\n"
        "    child = subprocess.Popen(['sleep', '100'])\n"
        "    (out / 'part').write_text(f'{os.getpid()} {child.pid}')\n"
        "    (out / 'part').rename(out / 'pids')\n"
        "    time.sleep(100)",
    )
    command = [sys.executable, "-c", RUNNER, str(Path(__file__).parent), str(folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert wait_for((out / "pids").exists), "the notebook never got there"
        pids = [int(word) for word in (out / "pids").read_text().split()]
        assert all(alive(pid) for pid in pids)
        process.send_signal(how)
        process.wait(30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode != 0
    assert wait_for(lambda: not any(alive(pid) for pid in pids), 10), (
        "kernel or its child outlived the runner"
    )

    state = RunState(out / "notebooks" / "state.json")
    assert {name: record.status for name, record in state.records.items()} == {
        "01_a": "done",
        "04_b": "running",
    }
    assert not (out / "notebooks" / "04_b.ipynb").exists(), "half a notebook is not an executed notebook"
    status, log = run(folder, request_for(out))
    assert status == {"01": "current", "04": "done"} and "04_b (carries on): started" in log
    # What the first attempt made belongs to the notebook, although the second found it there.
    assert "step" in RunState(out / "notebooks" / "state.json").records["04_b"].outputs
    assert not list((out / "notebooks").glob(".*"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"drws": 3}, r"drws: expected a parameter of a notebook \(draws\), got another name"),
        ({"out_dir": "here"}, r"out_dir: expected to be set by the run's own flags"),
        ({"draws": "three"}, r"draws: expected int, got 'three'"),
        ({"draws": True}, r"01_a.ipynb: draws: expected int, got True"),
        ({"draws": 0.5}, r"01_a.ipynb: draws: expected int, got 0.5"),
        ({"draws": None}, r"01_a.ipynb: draws: expected int, got None"),
    ],
)
def test_parameters_are_refused_before_anything_runs(
    tmp_path: Path, parameters: dict[str, Any], message: str
) -> None:
    write(tmp_path, "01_a", "1", parameters=PARAMETERS + "\ndraws = 1")
    write(tmp_path, "02_b", "1")
    with pytest.raises(InputError, match=message):
        plan_run(tmp_path, request_for(tmp_path / "run", parameters=parameters))
    plan = plan_run(tmp_path, request_for(tmp_path / "run", parameters={"draws": "3"}))
    assert plan.values["01_a"]["draws"] == 3 and "draws" not in plan.values["02_b"]


@pytest.mark.parametrize(
    ("source", "got"),
    [
        ("import os", "import os"),
        ("seed = [0]", r"seed = \[0\]"),
        ("a = b = 1", "a = b = 1"),
        ("a = f(1)", r"a = f\(1\)"),
    ],
)
def test_parameters_cell_holds_literals_only(tmp_path: Path, source: str, got: str) -> None:
    write(tmp_path, "02_b", "1", parameters=f"name = -1\n{source}")
    with pytest.raises(
        InputError, match=rf"02_b.ipynb: parameters: expected lines like name = literal, got '{got}'"
    ):
        find_notebooks(tmp_path)


def test_reading_notebooks(tmp_path: Path) -> None:
    source = "%matplotlib inline\nimport wsss_nb.files as files\nfrom wsss_nb import errors\n!ls"
    path = write(tmp_path, "05_b", source, "not python at all ;(")
    notebook = read_notebook(path)
    assert notebook.modules == {"wsss_nb", "wsss_nb.files", "wsss_nb.errors"}
    assert notebook.parameters == {
        "profile": "quick", "data_root": "", "out_dir": "runs/quick", "seed": 0, "overrides": "",
    }  # fmt: skip
    assert check_parameters(notebook, {"seed": 2})["seed"] == 2
    write(tmp_path, "04_a", "1")
    write(tmp_path, "07_c", "1")
    needs = {found.name: found.needs for found in find_notebooks(tmp_path)}
    assert needs == {"04_a": (), "05_b": ("04_a",), "07_c": ("04_a", "05_b")}
    write(tmp_path, "07_d", "1")
    with pytest.raises(InputError, match=r"expected one notebook per number"):
        find_notebooks(tmp_path)
    with pytest.raises(InputError, match=r"expected numbered notebooks such as 01_name.ipynb, got none"):
        find_notebooks(tmp_path / "nowhere")
    (tmp_path / "09_x.ipynb").write_text("{")
    with pytest.raises(InputError, match=r"09_x.ipynb: expected a notebook, got"):
        read_notebook(tmp_path / "09_x.ipynb")


def test_outputs_kept_in_the_notebook_change_nothing_else(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    path = write(folder, "04_a", "print(seed)", "", "1 + 1")
    assert run(folder, request_for(out))[0] == {"04": "done"}
    executed = nbformat.read(out / "notebooks" / "04_a.ipynb", as_version=4)
    (cell,) = [cell for cell in executed.cells if cell.source == "print(seed)"]
    stream = nbformat.v4.new_output
    cell.outputs = [
        stream("stream", text="7"),
        stream("stream", text="\n"),
        stream("stream", name="stderr", text="!"),
    ]
    nbformat.write(executed, out / "notebooks" / "04_a.ipynb")  # as if the stream had come in pieces
    before = read_notebook(path)
    keep_outputs(path, out / "notebooks" / "04_a.ipynb")
    assert read_notebook(path) == before
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) == 5 and "papermill" not in json.dumps(cells)
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, None, 3]
    assert [output.text for output in cells[2].outputs] == ["7\n", "!"]
    assert cells[4].outputs[0].execution_count == 3
    assert run(folder, request_for(out))[0] == {"04": "current"}
    write(folder, "04_a", "print(2)")
    with pytest.raises(InputError, match=r"expected the cells of .*04_a.ipynb, got others; run it again"):
        keep_outputs(path, out / "notebooks" / "04_a.ipynb")


def test_parameters_from_the_command_line_get_their_declared_type() -> None:
    assert parse_parameter("a", "3", 0) == 3
    assert parse_parameter("a", "3", 0.5) == 3.0
    assert parse_parameter("a", "3", "") == "3"
    assert parse_parameter("a", "False", True) is False
    with pytest.raises(InputError, match=r"a: expected int, got '3.5'"):
        parse_parameter("a", "3.5", 0)
    with pytest.raises(InputError, match=r"a: expected true or false, got '1'"):
        parse_parameter("a", "1", False)


def test_results_emptied_by_another_profile_bring_the_stages_back(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(
        folder, "04_a", f"import pathlib\npathlib.Path(out_dir, 'results.json').write_text('{results_of(2)}')"
    )
    write(folder, "07_b", "1")
    assert run(folder, request_for(out))[0] == {"04": "done", "07": "done"}
    assert run(folder, request_for(out))[0] == {"04": "current", "07": "current"}
    (out / "results.json").write_text(results_of(0))
    status, log = run(folder, request_for(out, only=["07"]))
    assert status == {"07": "waits"} and f"draws from results.json of {out}, which holds no scores" in log
    assert run(folder, request_for(out))[0] == {"04": "done", "07": "current"}
    (out / "results.json").write_text(results_of(3))
    assert run(folder, request_for(out))[0] == {"04": "current", "07": "done"}, "figures follow the results"
    (out / "run.json").write_text("{}")
    assert run(folder, request_for(out))[0] == {"04": "current", "07": "done"}, "and who made them"


def test_a_finished_run_is_drawn_whatever_made_it(tmp_path: Path) -> None:
    """Other settings, other data, other cells of the stages: what is drawn is what the run holds."""
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(
        folder, "04_a", f"import pathlib\npathlib.Path(out_dir, 'results.json').write_text('{results_of(2)}')"
    )
    write(folder, "05_b", "1")
    write(folder, "07_c", "print(data_root)")
    assert set(run(folder, request_for(out))[0].values()) == {"done"}
    write(folder, "04_a", "raise ValueError('the stages are not for today')")
    gone = FakeProfile(
        epochs=9, data=Data(kind="voc", root=str(tmp_path / "unmounted")), imagenet_weights="gone"
    )
    other = replace(request_for(out, only=["07"]), profile=gone)  # type: ignore[arg-type]
    assert run(folder, other)[0] == {"07": "current"}
    write(folder, "07_c", "print(2)")
    assert run(folder, other)[0] == {"07": "done"}
    assert run(folder, replace(other, data_root="elsewhere"))[0] == {"07": "done"}, "its pictures are there"
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "results.json").write_text(results_of(1))
    assert run(folder, request_for(copy, only=["07"]))[0] == {"07": "done"}, "without a record of its stages"


def test_why_a_notebook_waits_is_the_truth(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(folder, "04_a", "import pathlib\npathlib.Path(out_dir, 'step').write_text('')")
    write(folder, "05_b", "1")

    def reason(**changes: Any) -> str:
        request = request_for(out, only=["05"])
        status, log = run(folder, replace(request, profile=FakeProfile(**changes)))  # type: ignore[arg-type]
        assert status == {"05": "waits"}
        return log.strip().removeprefix("05_b: not run: it needs 04_a, ")

    assert reason() == "which has not been run"
    run(folder, request_for(out, only=["04"]))
    assert reason(epochs=4) == "which ran with other settings, data or code"
    (out / "step").unlink()
    assert reason() == "whose results are not all there any more"
    write(folder, "04_a", "raise ValueError")
    run(folder, request_for(out, only=["04"]))
    assert reason() == "which has not run to its end"


def test_other_imagenet_weights_bring_the_stages_back(tmp_path: Path) -> None:
    folder, weights = tmp_path / "notebooks", tmp_path / "rna.params"
    write(folder, "04_a", "1")
    weights.write_bytes(b"first")
    profile = FakeProfile(imagenet_weights=str(weights))
    request = replace(request_for(tmp_path / "run"), profile=profile)  # type: ignore[arg-type]
    assert [run(folder, request)[0]["04"] for _ in range(2)] == ["done", "current"]
    weights.write_bytes(b"other")
    assert run(folder, request)[0] == {"04": "done"}, "the file has its name and its size, and other weights"
    pip = FakeProfile(backbone="efficientnet_lite0")
    stamps = {runner._input_stamp(p) for p in (pip, FakeProfile(), profile)}  # type: ignore[arg-type]
    assert len(stamps) == 3, "the weights that pip brings count too"


@pytest.mark.parametrize("content", ["[1]", '{"cam": null}', '{"cam": [{}]}', "{", results_of(1)[:-40]])
def test_broken_results_are_one_clear_error(tmp_path: Path, content: str) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "run"
    write(folder, "04_a", "1")
    write(folder, "07_b", "1")
    out.mkdir()
    (out / "results.json").write_text(content)
    for only in ([], ["07"]):
        with pytest.raises(InputError, match=r"results.json: .*(expected|input should)"):
            run(folder, request_for(out, only=only))


def test_written_files_stand_for_folders_with_a_manifest(tmp_path: Path) -> None:
    for name in (
        "cam/val/a.png",
        "cam/val/manifest.json",
        "figures/f.pdf",
        "old.txt",
        "notebooks/x.ipynb",
        "data/a.csv",
        ".lock",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    os.utime(tmp_path / "old.txt", (1, 1))
    assert written_files(tmp_path, since=time.time() - 60) == {"cam/val/manifest.json", "figures/f.pdf"}


def test_state_survives_and_refuses_strangers(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    record = NotebookRecord("k", "done", 1.5, seconds=2.0, outputs=("a", "b"), rows=3)
    RunState(path).put("04_a", record)
    assert RunState(path).records == {"04_a": record}
    path.write_text('{"notebooks": {"04_a": {"what": 1}}}')
    with pytest.raises(InputError, match=r"expected the state of a run"):
        RunState(path)


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    taken = rf"expected no other run here, got process {os.getpid()} on .* since"
    with run_lock(tmp_path / "run"), pytest.raises(InputError, match=taken), run_lock(tmp_path / "run"):
        raise AssertionError("two runs in one folder")
    with run_lock(tmp_path / "run"):
        pass


def test_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    hold = "import sys, time; from pathlib import Path; from wsss_nb.experiment.state import run_lock\n"
    hold += "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"got process {other.pid} on"), run_lock(tmp_path):
            raise AssertionError("two runs in one folder")
        other.kill()
    with run_lock(tmp_path):
        pass


def test_read_only_output_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = r"file/run: expected a writable folder, got Not a directory"
    with pytest.raises(InputError, match=expected), run_lock(tmp_path / "file" / "run"):
        raise AssertionError("a file cannot hold a folder")


def test_data_folder_is_part_of_the_key_only_when_it_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("a")
    first = folder_stamp(tmp_path)
    assert folder_stamp(tmp_path) == first
    (tmp_path / "a.jpg").write_text("ab")
    assert folder_stamp(tmp_path) != first
    synthetic = FakeProfile(data=Data(root=""))
    assert runner._data_stamp(synthetic) == "synthetic"  # type: ignore[arg-type]
    for kind in ("synthetic", "voc"):
        theirs = FakeProfile(data=Data(kind=kind, root=str(tmp_path)))
        assert runner._data_stamp(theirs) == folder_stamp(tmp_path)  # type: ignore[arg-type]


def test_headless_progress_is_one_line_per_interval() -> None:
    log = io.StringIO()
    progress = Progress(log, interval=0.0)
    progress.start("04_a", cells=9)
    for index, tags in enumerate([[], ["parameters"], ["injected-parameters"], []]):
        progress.on_cell_start(nbformat.from_dict({"metadata": {"tags": tags}}), index)
    progress.write("epoch 1\repoch 2\n\n")
    progress.tick()
    progress.interval = 60.0
    progress.tick()
    progress.end("done in 1 s")
    assert log.getvalue().splitlines() == [
        "04_a: started", "04_a: cell 3 of 9, 0.0 s: epoch 2", "04_a: done in 1 s",
    ]  # fmt: skip
    assert (duration(59.94), duration(3599), duration(3660)) == ("59.9 s", "59 min 59 s", "1 h 01 min")


def test_progress_at_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSSS_NB_HEADLESS", raising=False)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    progress = Progress(screen)
    progress.start("04_a", cells=4)
    progress.on_cell_start(nbformat.NotebookNode(), 0)
    progress.on_cell_start(nbformat.NotebookNode(), 1)
    progress.write("lambda 0.5, epoch 3\n")
    progress.tick()
    progress.end("done in 1 s")
    shown = screen.getvalue()
    assert "cell 2 of 4" in shown and "lambda 0.5, epoch 3" in shown and shown.endswith("04_a: done in 1 s\n")
    assert "04_a: started" not in shown


def test_a_users_kernelspec_cannot_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    stranger = {"argv": ["/bin/false"], "display_name": "mine", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(stranger))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    write(tmp_path / "notebooks", "01_a", "1")
    assert run(tmp_path / "notebooks", request_for(tmp_path / "run"))[0] == {"01": "done"}
