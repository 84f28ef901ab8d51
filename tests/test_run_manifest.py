"""Provenance: what a manifest says, who made the steps behind a figure, and the command somebody typed."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_run import SUFFIX, make_fake_run

from wsss_nb.run import provenance
from wsss_nb.run.provenance import command_line, describe_run, git_state, manifest
from wsss_nb.run.run import Run, load_run
from wsss_nb.show.figures import make_figure
from wsss_nb.show.tables import make_table
from wsss_nb.system.code_version import code_version
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import read_json, write_json

MADE_BY = {
    "created": "2024-05-01T10:00:00+00:00",
    "command": "wsss-nb run --profile quick --out runs/quick",
    "git": {"commit": "f" * 40, "dirty": False},
    "python": "3.10.1",
    "packages": {"torch": "2.4.0"},
    "hardware": {"processor": "another machine's", "gpus": ["one"]},
}
PRETRAIN = f"pretrain-{SUFFIX}"
MODEL, VAL = (f"cam/lambda1_fsl/seed0/{step}-{SUFFIX}" for step in ("model", "val"))
OTHER_SEED = f"cam/lambda1_fsl/seed4/val-{SUFFIX}"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with two checkpoints, the manifests of its steps, and the record of who made it."""
    folder = make_fake_run(tmp_path / "quick", num_val=2, lams=(1.0,), fsl=(True,), baselines=(), seeds=(0, 4))
    start = {"seed": 0, "folder": PRETRAIN, "cost": {"seconds": 1.0}}
    write_json(folder / "results.json", {**read_json(folder / "results.json"), "pretrain": start})
    for name in (PRETRAIN, MODEL):
        write_json(folder / name / "manifest.json", {"inputs": {"code": f"code of {name}"}})
        (folder / name / "checkpoint.pt").write_bytes(name.encode())
    write_json(folder / OTHER_SEED / "manifest.json", {"inputs": {"code": "scoring"}})
    # of other settings: no score comes of it
    write_json(folder / "cam/lambda1_fsl/seed0/model-00000000/manifest.json", {"inputs": {"code": "other"}})
    write_json(folder / "run.json", {"schema": 1, "profile": {}, **MADE_BY})
    return load_run(folder)


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    state = {"commit": "a" * 40, "dirty": True}
    monkeypatch.setattr(provenance, "git_state", lambda: state)
    monkeypatch.setenv(provenance.COMMAND, "papermill notebooks/07_figures.ipynb out.ipynb -p run_dir runs/quick")
    yield state


@pytest.mark.parametrize("name", ["figure_2", "table_1"])
def test_every_field_of_a_manifest(run: Run, checkout: dict[str, Any], tmp_path: Path, name: str) -> None:
    (make_figure if name == "figure_2" else make_table)(name, run, tmp_path / "out", describe_run(run))
    found = read_json(tmp_path / "out" / f"{name}.json")

    assert found["git"] == checkout, "commit and dirty flag of the drawing code"
    expected = dict(run.results.profile)
    expected["data"] = {"root": found["profile"]["data"]["root"]}  # a folder elsewhere keeps its name only
    assert found["profile"] == expected and expected["data"]["root"] == "data", "the profile with all its values"
    assert found["seeds"] == [0, 4]
    assert found["data_hash"] == "0" * 64
    results = run.folder / "results.json"
    assert found["results_hash"] == hashlib.sha256(results.read_bytes()).hexdigest()
    assert found["weights"] == {place: hashlib.sha256(place.encode()).hexdigest() for place in (MODEL, PRETRAIN)}
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
        "figures": code_version("wsss_nb.show.figures"),
        "tables": code_version("wsss_nb.show.tables"),
        PRETRAIN: f"code of {PRETRAIN}",
        MODEL: f"code of {MODEL}",
        OTHER_SEED: "scoring",
    }
    made_by = found["made_by"]
    assert {**MADE_BY, "steps": made_by["steps"]} == made_by, "the machine that trained, not the one that draws"
    assert (found["run"], found["synthetic"], found["note"]) == ("quick", True, "synthetic data, not VOC")
    assert found["title"] and found["shows_images"] is False and found["measured"] is False
    assert f"{name}.npz" in found["files"] and all(len(digest) == 64 for digest in found["files"].values())
    assert str(tmp_path) not in json.dumps(found)


def test_each_step_names_its_commit_and_command(run: Run) -> None:
    """Two commits trained, a third scored last; a step of an older run does not say."""
    clean, dirty = {"commit": "a" * 40, "dirty": False}, {"commit": "b" * 40, "dirty": True}
    walk = f"affinitynet/lambda1_fsl/seed0/model-{SUFFIX}"
    for name, git, command, created in (
        (PRETRAIN, clean, "wsss-nb sweep", "2024-05-01T10:00:00+00:00"),
        (MODEL, clean, "wsss-nb sweep", "2024-05-01T11:00:00+00:00"),
        (VAL, dirty, "wsss-nb run", "2024-05-02T10:00:00+00:00"),
        (walk, clean, "wsss-nb run", "2024-05-01T12:00:00+00:00"),
    ):
        made = {"git": git, "command": command, "created": created}
        write_json(run.folder / name / "manifest.json", {"inputs": {}, "made_by": made})
    made_by = describe_run(run)["made_by"]
    assert [(author["command"], author["git"], author["created"], author["steps"]) for author in made_by["steps"]] == [
        (None, None, None, [OTHER_SEED]),
        ("wsss-nb sweep", clean, ["2024-05-01T10:00:00+00:00", "2024-05-01T11:00:00+00:00"], [MODEL, PRETRAIN]),
        ("wsss-nb run", clean, ["2024-05-01T12:00:00+00:00"] * 2, [walk]),
        ("wsss-nb run", dirty, ["2024-05-02T10:00:00+00:00"] * 2, [VAL]),
    ]
    assert {name: made_by[name] for name in MADE_BY} == MADE_BY
    (run.folder / "run.json").unlink()
    made_by = describe_run(run)["made_by"]
    assert made_by["git"] is None and len(made_by["steps"]) == 4, "the steps still say it"


def test_the_imagenet_weights_are_among_the_weights(run: Run) -> None:
    assert "imagenet" not in describe_run(run)["weights"]
    write_json(run.folder / "results.json", {**read_json(run.folder / "results.json"), "weights": "c" * 64})
    assert describe_run(load_run(run.folder))["weights"]["imagenet"] == "c" * 64


def test_the_fingerprint_is_of_what_is_drawn(run: Run) -> None:
    first = run.fingerprint()
    assert load_run(run.folder).fingerprint() == first
    for name in ("notebooks/04.json", f"{PRETRAIN}/started.json", "cam/lambda1_fsl/seed0/model-00000000/manifest.json"):
        write_json(run.folder / name, {})
    assert run.fingerprint() == first
    found = {first}
    for name in ("run.json", "results.json", f"{PRETRAIN}/manifest.json", f"{OTHER_SEED}/manifest.json"):
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
    (run.folder / PRETRAIN / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=rf"{PRETRAIN}/manifest.json: expected JSON"):
        describe_run(run)


def test_a_manifest_says_nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(provenance.COMMAND, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/opt/env/bin/wsss-nb", "run", f"--data={tmp_path}/photos", "--out", "../x/y"])
    profile = {"seeds": [0, 1], "data": {"root": "/far/away/photos"}, "cache": str(tmp_path / "c")}
    made = manifest(profile, data_hash="d", weights={"net": "abc"}, arrays="e")
    assert made["profile"] == {"seeds": [0, 1], "data": {"root": "photos"}, "cache": "c"}
    assert made["seeds"] == [0, 1] and made["arrays"] == "e"
    assert made["command"] == "wsss-nb run --data=photos --out y" == command_line()
    assert made["weights"] == {"net": "abc"}
    assert {"torch", "numpy", "wsss-nb"} <= set(made["packages"])
    assert made["hardware"]["cores"] >= 1 and made["hardware"]["memory_gib"] > 0
    assert str(tmp_path) not in json.dumps(made)


def test_git_state(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def state() -> dict[str, Any] | None:
        git_state.cache_clear()
        return git_state(tmp_path)

    assert state() is None
    git("init")
    (tmp_path / "wsss_nb").mkdir()
    (tmp_path / "wsss_nb/a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = state()
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "figures.pdf").write_text("made by a run")
    assert state() == clean
    (tmp_path / "wsss_nb/b.py").write_text("2")
    assert state() == {**clean, "dirty": True}
    git_state.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "started", "parent", "expected"),
    [
        (["/env/bin/wsss-nb", "run"], [], [], "wsss-nb run"),
        (
            ["/lib/wsss_nb/cli.py", "run", "--out", "/far/away/quick"],
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
        (["/lib/ipykernel_launcher.py"], [], ["/opt/jupyter-lab", "--no-browser"], "jupyter-lab --no-browser"),
        (["/lib/ipykernel_launcher.py"], [], [], "ipykernel_launcher.py"),
    ],
)
def test_command_is_what_somebody_typed(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], started: list[str], parent: list[str], expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda process: parent)
    assert command_line() == expected
