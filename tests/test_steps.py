"""Steps: made once, resumed, kept beside those of other inputs, and never at once by two."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsss_nb.run.steps import Step, run_step, total_cost
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import json_hash, read_json, write_json


def working(calls: list[Path], value: int = 1) -> Callable[[Path], dict[str, Any]]:
    def work(out: Path) -> dict[str, Any]:
        calls.append(out)
        assert (out / "started.json").exists() and not (out / "manifest.json").exists(), "the manifest is last"
        (out / "made.txt").write_text(str(value))
        return {"value": value}

    return work


def test_a_step_runs_once(tmp_path: Path) -> None:
    calls: list[Path] = []
    started: list[str] = []
    author = {"command": "wsss-nb sweep", "git": None}
    made = run_step(tmp_path, "s", {"a": 1}, working(calls), author, lambda: started.append("s"))
    assert made.key == json_hash({"a": 1}) and made.result == {"value": 1}
    assert made.folder == tmp_path / f"s-{made.key[:8]}" == calls[0]
    assert made.cost.keys() == {"seconds", "peak_memory_mb", "device", "threads"}
    assert made.cost["peak_memory_mb"] > 10 and made.cost["threads"] == 1
    manifest = read_json(made.folder / "manifest.json")
    assert manifest["inputs"] == {"a": 1} and manifest["made_by"].items() > author.items()
    assert run_step(tmp_path, "s", {"a": 1}, working(calls, 2), None, lambda: started.append("again")) == made
    assert len(calls) == len(started) == 1
    assert sorted(path.name for path in made.folder.iterdir()) == ["made.txt", "manifest.json"]


def test_other_inputs_get_another_folder_and_the_old_one_stays(tmp_path: Path) -> None:
    calls: list[Path] = []
    made = [run_step(tmp_path, "s", {"a": value}, working(calls, value)) for value in (1, 2, 1)]
    assert made[0] == made[2] and made[0].folder != made[1].folder and len(calls) == 2
    assert [(step.folder / "made.txt").read_text() for step in made] == ["1", "2", "1"]


def test_a_step_that_failed_is_resumed_with_its_files(tmp_path: Path) -> None:
    def fail(out: Path) -> dict[str, Any]:
        (out / "part.txt").write_text("half")
        (out / ".left.0a1b2c3d.npz").write_text("an interrupted write")
        (out / ".mine").write_text("somebody's")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run_step(tmp_path, "s", {"a": 1}, fail)
    (folder,) = tmp_path.glob("s-*")
    assert not (folder / "manifest.json").exists()
    run_step(tmp_path, "s", {"a": 1}, working([]))
    assert sorted(path.name for path in folder.iterdir()) == [".mine", "made.txt", "manifest.json", "part.txt"]


def test_a_manifest_beside_a_forgotten_start_counts(tmp_path: Path) -> None:
    """Killed between the last two writes: the result is complete."""
    calls: list[Path] = []
    made = run_step(tmp_path, "s", {"a": 1}, working(calls))
    write_json(made.folder / "started.json", {"key": made.key})
    assert run_step(tmp_path, "s", {"a": 1}, working(calls)) == made and len(calls) == 1


def test_a_step_leaves_other_peoples_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / f"s-{json_hash({'a': 1})[:8]}"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"s-\w{8}: expected an empty folder or an earlier attempt at this step, got"):
        run_step(tmp_path, "s", {"a": 1}, working([]))
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["[1]", '{"key": "k"}', "{"])
def test_a_broken_manifest_is_named(tmp_path: Path, content: str) -> None:
    made = run_step(tmp_path, "s", {"a": 1}, working([]))
    (made.folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest.json: expected (JSON|the manifest of a step)"):
        run_step(tmp_path, "s", {"a": 1}, working([]))


def test_costs_are_those_of_the_work_or_of_all_its_epochs(tmp_path: Path) -> None:
    def slow(out: Path) -> dict[str, Any]:
        time.sleep(0.2)
        return {}

    one = run_step(tmp_path, "one", {}, slow)
    assert 0.2 <= one.cost["seconds"] < 20
    resumed = run_step(tmp_path, "resumed", {}, lambda out: {"history": [{"seconds": 40.0}, {"seconds": 2.5}]})
    assert resumed.cost["seconds"] == 42.5
    total = total_cost(one, resumed)
    assert total["seconds"] == pytest.approx(42.5 + one.cost["seconds"])
    assert total["peak_memory_mb"] == max(one.cost["peak_memory_mb"], resumed.cost["peak_memory_mb"])
    assert json.dumps(total) and isinstance(one, Step)


SLOW_STEP = """
import sys, time
from pathlib import Path
from wsss_nb.run.steps import run_step
def work(out):
    with open(out / "workers", "a") as file:
        print("at work", file=file)
    print("at work", flush=True)
    while not Path(sys.argv[1], "go").exists():
        time.sleep(0.05)
    return {"by": sys.argv[2]}
made = run_step(Path(sys.argv[1]), "s", {"a": 1}, work)
print(made.result["by"], flush=True)
"""


def test_two_processes_wait_for_each_other(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLOW_STEP, str(tmp_path), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("first") as first:
        assert first.stdout is not None and first.stdout.readline() == "at work\n"
        with start("second") as second:
            assert second.stdout is not None
            assert second.stdout.readline().endswith(": another process is at work here; waiting for it\n")
            (tmp_path / "go").touch()
            assert second.stdout.read() == first.stdout.read() == "first\n"
    (workers,) = tmp_path.glob("s-*/workers")
    assert workers.read_text() == "at work\n", "the work was done once"
