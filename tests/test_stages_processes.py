"""Two processes on this machine's CPU, connected by gloo, against one: the same curve, every image once, one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsss_nb.data import make_synthetic
from wsss_nb.errors import InputError
from wsss_nb.files import read_json
from wsss_nb.stages import processes as module
from wsss_nb.stages.processes import Processes, launched, processes

# All parts of the paper's objective with their dropout and draws, and batches of 3 that two processes share unevenly.
SETTINGS = [
    "--profile", "quick", "--pretrain", "null", "--cam.epochs", "2", "--cam.batch_size", "3", "--cam.siamese", "true",
    "--cam.views.sizes", "[[48,48]]", "--cam.dropout", "0.5", "--cam.learn_similarity", "true", "--cam.accumulate", "1",
    "--threads", "1", "--inference.scales", "1",
]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
    }
    return kept | {"ACCELERATE_USE_CPU": "true", "WSSS_NB_HEADLESS": "1", "OMP_NUM_THREADS": "1"} | more


def command(root: Path, out: Path, several: bool) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m"]
    if several:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    words = ["wsss_nb.cli", "train", "cam", "--data", str(root), "--out", str(out), *SETTINGS]
    return subprocess.run([*start, *words], env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    base = tmp_path_factory.mktemp("processes")
    root = base / "fish"
    make_synthetic(root, num_train=7, num_val=3, size=48)
    answers = [command(root, base / name, several) for name, several in (("one", False), ("two", True))]
    for answer in answers:
        assert answer.returncode == 0, answer.stderr
    return base / "one", base / "two", answers[1]


def checkpoint(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / "cam/lambda1_fsl/seed0/model/checkpoint.pt", weights_only=True)
    return found


def test_the_loss_curve_is_that_of_one_process(pair: tuple[Path, Path, Any]) -> None:
    one, two = (checkpoint(out)["history"] for out in pair[:2])
    assert len(one) == len(two) == 2 and len(one[0]) >= 11
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds"}:
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), name
    a, b = (checkpoint(out)["modules"] for out in pair[:2])
    assert list(a) == list(b), "saved without the wrapper's names"
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-4)


def test_every_image_is_inferred_once_and_scored_together(pair: tuple[Path, Path, Any]) -> None:
    one, two = (json.loads((out / "results.json").read_text())["cam"][0] for out in pair[:2])
    confusion = np.array(two["scores"]["confusion"])
    assert confusion.sum() == np.array(one["scores"]["confusion"]).sum(), (
        "no pixel is counted twice or left out"
    )
    assert two["scores"]["miou"] == pytest.approx(one["scores"]["miou"], abs=0.02)
    assert two["scores"]["protocol"] == one["scores"]["protocol"] and one["scores"]["protocol"]["images"] == 3
    names = [sorted(path.name for path in (out / "cam/lambda1_fsl/seed0/val").iterdir()) for out in pair[:2]]
    assert names[0] == names[1] and len(names[0]) == 7, "three CAMs, three label maps, a manifest"
    keys = [read_json(out / "cam/lambda1_fsl/seed0/model/manifest.json")["key"] for out in pair[:2]]
    assert keys[0] == keys[1], "how many processes computed a step is none of its settings"


def test_the_main_process_alone_speaks_and_writes(pair: tuple[Path, Path, Any]) -> None:
    assert pair[2].stdout.count("written to") == 1 and pair[2].stdout.count("mIoU") == 1
    assert not list(pair[1].rglob("*.tmp")) and not list(pair[1].rglob("started.json"))


# ---------------------------------------------------------------- without starting any


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == 1 and type(processes()) is Processes
    code = "import sys; from wsss_nb.stages.processes import processes; processes(); print('accelerate' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert answer.stdout == "False\n"


def test_several_processes_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        InputError, match=r"expected Hugging Face Accelerate for several of them \(pip install"
    ):
        module._Launched()


@pytest.mark.parametrize("words", [["sweep"], ["run"]])
def test_commands_of_one_process_say_so(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from wsss_nb import cli

    monkeypatch.setenv("WORLD_SIZE", "4")
    assert cli.main([*words, "--out", str(tmp_path)]) == 2
    assert f"{words[0]}: expected one process, got 4" in capsys.readouterr().err
