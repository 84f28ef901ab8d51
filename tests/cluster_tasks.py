"""What the tests of workers and of the cluster have other processes do; a light module of its own: they import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def noted(path: Path, line: str) -> int:
    """Append a line and say how many there are now."""
    with open(path, "a") as file:
        file.write(line + "\n")
    return len(path.read_text().splitlines())


def point(folder: Path, variant: str, seed: int) -> Any:
    """A point of a sweep; the one of lambda 1 is killed once, after its first checkpoint."""
    from wsss_nb.run.pipeline import _cam_row
    from wsss_nb.run.run import load_run

    def on_epoch(history: list[dict[str, float]]) -> None:
        done = noted(folder / f"epochs-{variant}", f"epoch {len(history)}")
        if variant == "lambda1_fsl" and done == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return _cam_row(load_run(folder), variant, seed, on_epoch)


def die(log: Path) -> None:
    """Never answers."""
    noted(log, "died")
    os.kill(os.getpid(), signal.SIGKILL)


def fail(log: Path, kind: str) -> None:
    """Raises an error of ours, or a bug's."""
    from wsss_nb.stages.loop import TrainingError
    from wsss_nb.system.errors import InputError

    noted(log, "failed")
    raise {"input": InputError, "training": TrainingError, "bug": KeyError}[kind]("what is wrong")


def where(number: int, values: Any) -> tuple[int, int, bool, str]:
    """A number again; the process; whether it may write to its arguments; what it knows of a cluster."""
    return number, os.getpid(), values.flags.writeable, os.environ.get("WSSS_NB_RAY_ADDRESS", "none")


def meet(places: Path, name: str, others: int) -> int:
    """The process, which ends only when ``others`` are at work at the same time."""
    (places / name).touch()
    deadline = time.monotonic() + 300
    while len(list(places.iterdir())) < others and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list(places.iterdir())) == others
    return os.getpid()


def pool_in_a_process(pids: Path) -> None:
    """Two workers that write down who they are and would sleep for long."""
    from wsss_nb.system.workers import finished_results

    list(finished_results(sleep, {"a": (pids, "a"), "b": (pids, "b")}, 2, "sleeping"))


def sleep(pids: Path, name: str) -> None:
    """Write down the process, whole, and sleep."""
    (pids / f"{name}.part").write_text(str(os.getpid()))
    (pids / f"{name}.part").rename(pids / name)
    time.sleep(600)


def process_and_threads() -> tuple[int, int, str]:
    """The process, the threads it computes with, and whether it reports progress."""
    import torch

    return os.getpid(), torch.get_num_threads(), os.environ.get("WSSS_NB_HEADLESS", "")
