"""Two processes on this machine's CPU, connected by gloo, against one: the same curve, every image once, one writer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsss_nb.data import make_synthetic
from wsss_nb.errors import InputError
from wsss_nb.files import read_json
from wsss_nb.stages import processes as module
from wsss_nb.stages.affinitynet import confident_labels
from wsss_nb.stages.processes import Processes, launched, processes

# All parts of the paper's objective with their dropout and draws, and batches of 3 that two processes share unevenly.
SETTINGS = [
    "--profile", "quick", "--pretrain", "null", "--cam.epochs", "2", "--cam.batch_size", "3", "--cam.siamese", "true",
    "--cam.views.sizes", "[[48,48]]", "--cam.dropout", "0.5", "--cam.learn_similarity", "true", "--cam.accumulate", "1",
    "--threads", "1", "--inference.scales", "1",
]  # fmt: skip
# Stage 2 on fresh augmentations: its means are over pairs, of which every crop has other numbers.
SECOND = [
    "--affinitynet.epochs", "2", "--affinitynet.batch_size", "3", "--affinitynet.views.cached", "false",
    "--affinitynet.views.crop", "40", "--affinitynet.views.long_side", "null", "--affinitynet.crf.iterations", "0",
    "--affinitynet.alpha_amplified", "20", "--affinitynet.alpha_weakened", "60",
    "--affinitynet.optimizer.learning_rate", "0.05", "--workers", "1",
]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
    }
    return kept | {"WSSS_NB_HEADLESS": "1", "OMP_NUM_THREADS": "1"} | more


Pair = tuple[Path, Path, subprocess.CompletedProcess[str]]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
# with --cpu in place of --multi_gpu it would start one process only
ACCELERATE = [
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
    "-m",
]


def command(words: list[str], launcher: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", *launcher, "wsss_nb.cli", "train"]
    answer = subprocess.run(
        [*start, *words, *SETTINGS], env=environment(HF_HOME=os.devnull), capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return answer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Stage 1 by one process and by two of ``torchrun``: both run folders, and what the two said."""
    base = tmp_path_factory.mktemp("processes")
    make_synthetic(base / "fish", num_train=7, num_val=3, size=48)
    words = ["cam", "--data", str(base / "fish"), "--out"]
    command([*words, str(base / "one")])
    return base / "one", base / "two", command([*words, str(base / "two")], TORCHRUN)


@pytest.fixture(scope="module")
def second(pair: Pair) -> Pair:
    """Stage 2 on the same CAM network by one process and by two of ``accelerate launch``."""
    base = pair[0].parent
    one, two = (shutil.copytree(pair[0], base / f"second{count}") for count in (1, 2))
    words = ["affinitynet", "--data", str(base / "fish"), *SECOND, "--out"]
    command([*words, str(one)])
    return one, two, command([*words, str(two)], ACCELERATE)


def checkpoint(out: Path, stage: str = "cam/lambda1_fsl") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / stage / "seed0/model/checkpoint.pt", weights_only=True)
    return found


def assert_same_training(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert len(one["history"]) == len(two["history"]) == 2
    for row, other in zip(one["history"], two["history"], strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds"}:
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), name
    assert list(one["modules"]) == list(two["modules"]), "saved without the wrapper's names"
    for name, value in one["modules"].items():
        torch.testing.assert_close(two["modules"][name], value, rtol=1e-3, atol=1e-4)


def test_the_loss_curve_is_that_of_one_process(pair: Pair) -> None:
    one, two = (checkpoint(out) for out in pair[:2])
    assert len(one["history"][0]) >= 11
    assert_same_training(one, two)


def test_the_loss_curve_of_stage_2_is_that_of_one_process(second: Pair) -> None:
    """Augmented views, and the numbers of pairs added up over both processes."""
    maps = sorted((second[0] / "affinitynet/ours/seed0/crf").glob("*.npz"))
    labels = [confident_labels(path, (12, 12)) for path in maps]
    assert len({int((found == 0).sum()) for found in labels}) > 3, "one image has far more pairs than another"
    assert sum(int(((found > 0) & (found < 255)).sum()) for found in labels) > 20
    one, two = (checkpoint(out, "affinitynet/ours") for out in second[:2])
    losses = [row["affinity"] for row in one["history"]]
    assert losses[0] > 0.1 and losses[0] != losses[1]
    assert_same_training(one, two)
    assert all(checkpoint(second[0])["epoch"] == checkpoint(out)["epoch"] for out in second[:2])
    results = [json.loads((out / "results.json").read_text())["stages"][-1] for out in second[:2]]
    assert results[0]["stage"] == results[1]["stage"] == "affinitynet"
    assert results[1]["scores"]["miou"] == pytest.approx(results[0]["scores"]["miou"], abs=0.02)
    assert second[2].stdout.count("mIoU") == 1, "one of the two speaks"


def test_every_image_is_inferred_once_and_scored_together(pair: Pair) -> None:
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


def test_the_main_process_alone_speaks_and_writes(pair: Pair) -> None:
    assert pair[2].stdout.count("written to") == 1 and pair[2].stdout.count("mIoU") == 1
    assert not list(pair[1].rglob("*.tmp")) and not list(pair[1].rglob("started.json"))


# ---------------------------------------------------------------- without starting any


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == 1 and type(processes()) is Processes
    code = "import sys; from wsss_nb.stages.processes import processes; processes(); print('accelerate' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert answer.stdout == "False\n"


def test_no_precision_and_no_compiling_from_accelerates_configuration() -> None:
    """Both are settings of the profile; `accelerate launch` hands over what `accelerate config` once wrote."""
    code = "from wsss_nb.stages.processes import _Launched; a = _Launched()._accelerator; "
    code += "print(a.mixed_precision, a.state.dynamo_plugin.backend.value)"
    configured = environment(ACCELERATE_MIXED_PRECISION="bf16", ACCELERATE_DYNAMO_BACKEND="INDUCTOR")
    answer = subprocess.run([sys.executable, "-c", code], env=configured, capture_output=True, text=True)
    assert answer.stdout == "no NO\n", answer.stderr


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
