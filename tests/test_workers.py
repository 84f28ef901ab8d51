"""Work in other processes: beside each other, in order, with one thread, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cluster_tasks
import psutil
import pytest
import torch

from wsss_nb.system import workers
from wsss_nb.system.errors import WorkerDiedError
from wsss_nb.system.workers import KeptWorker, finished_results, fixed_threads, stream_results


def test_jobs_run_at_the_same_time_in_processes_of_their_own(tmp_path: Path) -> None:
    jobs = {name: (tmp_path, name, 2) for name in ("a", "b")}
    results = dict(finished_results(cluster_tasks.meet, jobs, 2, "meeting"))
    assert results.keys() == jobs.keys() and len({*results.values(), os.getpid()}) == 3


def test_every_worker_computes_with_one_thread_and_without_workers_so_does_this_process() -> None:
    torch.set_num_threads(2)
    ((_, (process, *facts)),) = finished_results(cluster_tasks.process_and_threads, {"a": ()}, 1, "threads")
    assert process != os.getpid() and facts == [1, "1"]
    ((_, (process, threads, _)),) = finished_results(cluster_tasks.process_and_threads, {"a": ()}, 0, "threads")
    assert process == os.getpid() and threads == 1 and torch.get_num_threads() == 2
    with pytest.raises(KeyError), fixed_threads(3):
        assert torch.get_num_threads() == 3
        raise KeyError
    assert torch.get_num_threads() == 2, "also after an error"


def test_without_workers_jobs_run_here_one_after_the_other() -> None:
    results = list(finished_results(divmod, {"a": (7, 2), "b": (9, 4)}, 0, "division"))
    assert results == [("a", (3, 1)), ("b", (2, 1))]
    assert list(finished_results(divmod, {}, 2, "division")) == []


def test_streamed_results_come_in_order_and_jobs_are_taken_as_results_are_used() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[tuple[int, int]]:
        for number in range(40):
            taken.append(number)
            yield number, 7

    results = stream_results(divmod, jobs(), 2, None, "division")
    assert [next(results) for _ in range(3)] == [divmod(number, 7) for number in range(3)]
    assert len(taken) == 3 + 2 * 2
    assert list(results) == [divmod(number, 7) for number in range(3, 40)]
    with pytest.raises(ZeroDivisionError):
        list(stream_results(divmod, [(1, 1), (1, 0)], 1, None, "division"))


def test_a_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(WorkerDiedError, match=r"^the sweep: a worker process was killed .* carries on$"):
        list(finished_results(cluster_tasks.die, {"a": (log,)}, 1, "the sweep"))
    with pytest.raises(WorkerDiedError, match=r"^CRF: a worker process died at job 0 or one of the 2 after it \("):
        list(stream_results(cluster_tasks.die, [(log,)], 1, None, "CRF"))
    worker = KeptWorker("CRF")
    with pytest.raises(WorkerDiedError, match=r"^CRF: a worker process died \("):
        worker.result(cluster_tasks.die, log)
    assert worker.result(divmod, 7, 2) == (3, 1), "replaced"


def test_a_kept_worker_is_the_same_process() -> None:
    worker = KeptWorker("numbers")
    first = worker.result(os.getpid)
    assert first == worker.result(os.getpid) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        worker.result(divmod, 1, 0)
    assert worker.result(os.getpid) == first, "an error of the function is none of the worker"


def test_workers_leave_with_a_killed_parent(tmp_path: Path) -> None:
    code = f"import cluster_tasks, pathlib; cluster_tasks.pool_in_a_process(pathlib.Path({str(tmp_path)!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not all((tmp_path / name).exists() for name in "ab"):
        assert parent.poll() is None, "it ended by itself"
        time.sleep(0.05)
    children = [psutil.Process(int((tmp_path / name).read_text())) for name in "ab"]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


_taken: list[int] = []


def start_on_two_gpus(*arguments: Any) -> None:
    """Stands for the start of a worker on a machine with two GPUs."""
    with (
        mock.patch.object(torch.cuda, "device_count", lambda: 2),
        mock.patch.object(torch.cuda, "set_device", _taken.append),
    ):
        workers._start(*arguments)


def gpu_beside(places: Path, name: str, others: int) -> list[int]:
    """The GPUs that this process took, asked while ``others`` processes have such a job as well."""
    cluster_tasks.meet(places, name, others)
    return _taken


@pytest.mark.parametrize(("gpu", "expected"), [(True, [[0], [0], [1]]), (False, [[], []])])
def test_every_worker_takes_the_next_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, expected: list[list[int]]
) -> None:
    """Three trainings at a time on two GPUs; work that wants none takes none."""
    monkeypatch.setattr(workers, "_start", start_on_two_gpus)
    jobs = {str(number): (tmp_path, str(number), len(expected)) for number in range(len(expected))}
    results = dict(finished_results(gpu_beside, jobs, len(expected), "trainings", gpu=gpu))
    assert sorted(results.values()) == expected
