"""The manifest beside a figure or table: each thing one needs to make it again, checked field by field."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_run import make_fake_run

from wsss_nb.code_version import code_version
from wsss_nb.errors import InputError
from wsss_nb.experiment import provenance
from wsss_nb.experiment.provenance import command_line, describe_run
from wsss_nb.figures import make_figure
from wsss_nb.files import read_json, write_json
from wsss_nb.results import Run, load_run
from wsss_nb.tables import make_table

MADE_BY = {
    "created": "2024-05-01T10:00:00+00:00",
    "command": "wsss-nb run --profile quick --out runs/quick",
    "git": {"commit": "f" * 40, "dirty": False},
    "python": "3.10.1",
    "packages": {"torch": "2.4.0"},
    "hardware": {"processor": "another machine's", "gpus": ["one"]},
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with two checkpoints, the manifests of its steps, and the record of who made it."""
    folder = make_fake_run(
        tmp_path / "quick", num_val=2, weights=(1.0,), fsl=(True,), methods=("sampling",), seeds=(0, 4)
    )
    for name in ("pretrain", "cam/lambda1_fsl/seed0/model"):
        (folder / name).mkdir(parents=True)
        (folder / name / "checkpoint.pt").write_bytes(name.encode())
        write_json(folder / name / "manifest.json", {"inputs": {"code": f"code of {name}"}})
    write_json(folder / "cam/lambda1_fsl/seed4/val/manifest.json", {"inputs": {"code": "scoring"}})
    write_json(folder / "run.json", {"schema": 1, "profile": {}, **MADE_BY})
    return load_run(folder)


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    state = {"commit": "a" * 40, "dirty": True}
    monkeypatch.setattr(provenance, "git_state", lambda: state)
    monkeypatch.setenv(
        provenance.COMMAND, "papermill notebooks/07_figures.ipynb out.ipynb -p run_dir runs/quick"
    )
    yield state


@pytest.mark.parametrize("name", ["figure_2", "table_1"])
def test_every_field_of_a_manifest(run: Run, checkout: dict[str, Any], tmp_path: Path, name: str) -> None:
    (make_figure if name == "figure_2" else make_table)(name, run, tmp_path / "out", describe_run(run))
    found = read_json(tmp_path / "out" / f"{name}.json")

    assert found["git"] == checkout, "commit and dirty flag of the drawing code"
    expected = dict(run.results.profile)
    expected["data"] = {"root": found["profile"]["data"]["root"]}  # a folder elsewhere keeps its name only
    assert found["profile"] == expected and expected["data"]["root"] == "data", (
        "the profile with all its values"
    )
    assert found["seeds"] == [0, 4]
    assert found["data_hash"] == "0" * 64
    results = run.folder / "results.json"
    assert found["results_hash"] == hashlib.sha256(results.read_bytes()).hexdigest()
    assert found["weights"] == {
        place: hashlib.sha256(content.encode()).hexdigest()
        for place, content in (
            ("cam/lambda1_fsl/seed0", "cam/lambda1_fsl/seed0/model"),
            ("pretrain", "pretrain"),
        )
    }
    for said in ("Protocol: val split, 2 images", "background rule complement, no CRF"):
        assert said in found["protocol"]
    assert found["python"] == platform.python_version()
    for package in ("torch", "numpy", "matplotlib", "seaborn", "pandas", "papermill", "pydensecrf2"):
        assert found["packages"][package] == version(package)
    assert {"system", "processor", "cores", "memory_gib", "gpus", "threads"} == set(found["hardware"])
    age = datetime.now(timezone.utc) - datetime.fromisoformat(found["created"])
    assert 0 <= age.total_seconds() < 600
    assert found["command"].startswith("papermill notebooks/07_figures.ipynb")
    assert found["code"] == {
        "figures": code_version("wsss_nb.figures"),
        "tables": code_version("wsss_nb.tables"),
        "pretrain": "code of pretrain",
        "cam/lambda1_fsl/seed0/model": "code of cam/lambda1_fsl/seed0/model",
        "cam/lambda1_fsl/seed4/val": "scoring",
    }
    made_by = found["made_by"]
    assert {**MADE_BY, "steps": made_by["steps"]} == made_by, (
        "the machine that trained, not the one that draws"
    )
    assert (found["run"], found["synthetic"], found["note"]) == ("quick", True, "synthetic data, not VOC")
    assert found["title"] and found["shows_images"] is False and found["measured"] is False
    assert f"{name}.npz" in found["files"] and all(len(digest) == 64 for digest in found["files"].values())
    assert str(tmp_path) not in json.dumps(found)


def test_each_step_names_its_commit_and_command(run: Run) -> None:
    """Two commits trained, a third scored last; a step of an older run does not say."""
    clean, dirty = {"commit": "a" * 40, "dirty": False}, {"commit": "b" * 40, "dirty": True}
    said = [
        ("pretrain", clean, "wsss-nb sweep", "2024-05-01T10:00:00+00:00"),
        ("cam/lambda1_fsl/seed0/model", clean, "wsss-nb sweep", "2024-05-01T11:00:00+00:00"),
        ("cam/lambda1_fsl/seed0/val", dirty, "wsss-nb run", "2024-05-02T10:00:00+00:00"),
        ("affinitynet/ours/seed0/crf", clean, "wsss-nb run", "2024-05-01T12:00:00+00:00"),
    ]
    for name, git, command, created in said:
        made = {"git": git, "command": command, "created": created}
        (run.folder / name).mkdir(parents=True, exist_ok=True)
        write_json(run.folder / name / "manifest.json", {"inputs": {}, "made_by": made})
    made_by = describe_run(run)["made_by"]
    assert made_by["steps"] == [
        {"git": None, "command": None, "created": None, "steps": ["cam/lambda1_fsl/seed4/val"]},
        {
            "git": clean,
            "command": "wsss-nb sweep",
            "created": ["2024-05-01T10:00:00+00:00", "2024-05-01T11:00:00+00:00"],
            "steps": ["pretrain", "cam/lambda1_fsl/seed0/model"],
        },
        {
            "git": clean,
            "command": "wsss-nb run",
            "created": ["2024-05-01T12:00:00+00:00"] * 2,
            "steps": ["affinitynet/ours/seed0/crf"],
        },
        {
            "git": dirty,
            "command": "wsss-nb run",
            "created": ["2024-05-02T10:00:00+00:00"] * 2,
            "steps": ["cam/lambda1_fsl/seed0/val"],
        },
    ]
    assert {name: made_by[name] for name in MADE_BY} == MADE_BY
    (run.folder / "run.json").unlink()
    made_by = describe_run(run)["made_by"]
    assert made_by["git"] is None and len(made_by["steps"]) == 4, "the steps still say it"


def test_the_imagenet_weights_are_among_the_weights(run: Run) -> None:
    assert "imagenet" not in describe_run(run)["weights"]
    results = read_json(run.folder / "results.json")
    write_json(run.folder / "results.json", {**results, "weights": "c" * 64})
    assert describe_run(load_run(run.folder))["weights"]["imagenet"] == "c" * 64


def test_the_fingerprint_is_of_what_is_drawn(run: Run) -> None:
    first = run.fingerprint()
    assert load_run(run.folder).fingerprint() == first
    (run.folder / "notebooks").mkdir()
    (run.folder / "notebooks/state.json").write_text("{}")
    (run.folder / "pretrain/started.json").write_text("{}")
    assert run.fingerprint() == first
    found = {first}
    for name in (
        "run.json",
        "results.json",
        "pretrain/manifest.json",
        "cam/lambda1_fsl/seed4/val/manifest.json",
    ):
        write_json(run.folder / name, {**read_json(run.folder / name), "more": 1})
        found.add(run.fingerprint())
    assert len(found) == 5


def test_a_run_that_does_not_say_who_made_it(run: Run) -> None:
    (run.folder / "run.json").unlink()
    assert describe_run(run)["made_by"] is None
    (run.folder / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"run.json: expected names and values, got list"):
        describe_run(run)


def test_a_broken_manifest_of_a_step_is_named(run: Run) -> None:
    (run.folder / "pretrain" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"pretrain/manifest.json: expected JSON"):
        describe_run(run)


@pytest.mark.parametrize(
    ("arguments", "started", "parent", "expected"),
    [
        (["/env/bin/wsss-nb", "run"], [], [], "wsss-nb run"),
        (
            ["/lib/wsss_nb/cli/__main__.py", "run", "--out", "/far/away/quick"],
            ["/env/bin/python3.11", "-m", "wsss_nb.cli", "run", "--out", "/far/away/quick"],
            [],
            "python -m wsss_nb.cli run --out quick",
        ),
        (["-c", "run"], ["python3", "-c", "open('/far/away')", "run"], [], "python -c ... run"),
        (
            ["/lib/ipykernel_launcher.py", "-f", "/run/kernel-1.json"],
            [],
            ["/env/bin/python3", "/env/bin/papermill", "a.ipynb", "-p", "run_dir", "/far/away/photos"],
            "papermill a.ipynb -p run_dir photos",
        ),
        (
            ["/lib/ipykernel_launcher.py"],
            [],
            ["/opt/jupyter-lab", "--no-browser"],
            "jupyter-lab --no-browser",
        ),
        (["/lib/ipykernel_launcher.py"], [], [], "ipykernel_launcher.py"),
    ],
)
def test_command_is_what_somebody_typed(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    started: list[str],
    parent: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda process: parent)
    assert command_line() == expected
