"""Points of the sweep are trained side by side, each in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from wsss_nb import workers
from wsss_nb.data import make_synthetic
from wsss_nb.experiment import pipeline
from wsss_nb.experiment.pipeline import open_run
from wsss_nb.experiment.profiles import Profile, load_profile
from wsss_nb.workers import finished_results


def meet(profile: Profile, out: Path, variant: str, seed: int) -> dict[str, Any]:
    """Stands for a training: ends only when another point is at work at the same time."""
    places = out / "meeting"
    places.mkdir(exist_ok=True)
    (places / f"{variant}-{seed}").write_text(str(os.getpid()))
    deadline = time.monotonic() + 300
    while len(list(places.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return {
        "variant": variant, "seed": seed, "scores": {"miou": 0.5, "contour_f": 0.5}, "cost": {"seconds": 1.0},
        "others": len(list(places.iterdir())), "process": os.getpid(),
    }  # fmt: skip


def test_points_of_the_sweep_run_at_the_same_time_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_train_point", meet)
    make_synthetic(tmp_path / "fish", num_train=2, num_val=1, size=48)
    profile = load_profile(
        "quick", {"data.kind": "voc", "data.root": str(tmp_path / "fish"), "lambdas": [1], "fsl": [False, True],
                  "baselines": [], "refine": [], "workers": 2, "pretrain": None}
    )  # fmt: skip
    rows = open_run(profile, tmp_path / "run").train_cams()
    assert [row["variant"] for row in rows] == ["lambda1", "lambda1_fsl"]
    assert [row["others"] for row in rows] == [2, 2], "one waited for the other to end"
    assert len({row["process"] for row in rows} | {os.getpid()}) == 3


_taken: list[int] = []


def start_on_two_gpus(*arguments: Any) -> None:
    """Stands for the start of a worker on a machine with two GPUs."""
    with (
        mock.patch.object(torch.cuda, "device_count", lambda: 2),
        mock.patch.object(torch.cuda, "set_device", _taken.append),
    ):
        workers._start(*arguments)


def gpu_beside(places: Path, number: int, others: int) -> list[int]:
    """The GPUs that this process took, asked while ``others`` processes have such a job as well."""
    (places / str(number)).touch()
    deadline = time.monotonic() + 300
    while len(list(places.iterdir())) < others and time.monotonic() < deadline:
        time.sleep(0.02)
    return _taken


@pytest.mark.parametrize(("gpu", "expected"), [(True, [[0], [0], [1]]), (False, [[], []])])
def test_every_worker_takes_the_next_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, expected: list[list[int]]
) -> None:
    """Three trainings at a time on two GPUs; work that wants none takes none."""
    monkeypatch.setattr(workers, "_start", start_on_two_gpus)
    jobs = {str(number): (tmp_path, number, len(expected)) for number in range(len(expected))}
    results = dict(finished_results(gpu_beside, jobs, len(expected), "trainings", gpu=gpu))
    assert sorted(results.values()) == expected


def test_without_workers_jobs_run_here_one_after_the_other() -> None:
    results = list(finished_results(divmod, {"a": (7, 2), "b": (9, 4)}, 0, "division"))
    assert results == [("a", (3, 1)), ("b", (2, 1))]
    assert list(finished_results(divmod, {}, 2, "division")) == []
