"""What the tests of the cluster have its workers do; a light module of its own: workers import it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_nb.experiment.profiles import Profile


def noted(path: Path, line: str) -> int:
    """Append a line and say how many there are now."""
    with open(path, "a") as file:
        file.write(line + "\n")
    return len(path.read_text().splitlines())


def point(profile: Profile, out: Path, variant: str, seed: int) -> dict[str, Any]:
    """A point of a sweep; the one of lambda 1 is killed once, after its first checkpoint."""
    from wsss_nb.experiment.pipeline import Run

    def on_epoch(history: list[dict[str, float]]) -> None:
        done = noted(out / f"epochs-{variant}", f"epoch {len(history)}")
        if variant == "lambda1_fsl" and done == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return Run(profile, out, workers=0).cam_row(variant, seed, on_epoch)


def die(log: Path) -> None:
    """Never answers."""
    noted(log, "died")
    os.kill(os.getpid(), signal.SIGKILL)


def fail(log: Path, kind: str) -> None:
    """Raises an error of ours, or a bug's."""
    from wsss_nb.errors import InputError
    from wsss_nb.stages.loop import TrainingError

    noted(log, "failed")
    raise {"input": InputError, "training": TrainingError, "bug": KeyError}[kind]("what is wrong")


def where(number: int, values: Any) -> tuple[int, int, bool, str]:
    """A number again; the process; whether it may write to its arguments; what it knows of a cluster."""
    return number, os.getpid(), values.flags.writeable, os.environ.get("WSSS_NB_RAY_ADDRESS", "none")
