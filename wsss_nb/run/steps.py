"""A step of a run: a folder that knows what it was made from, is made once, and says what it cost.

Steps are what is cached. A step's folder carries the key of its inputs in its name, so that another setting gets another
folder, and going back to the old setting finds the old one; nothing that is finished is ever removed.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from wsss_nb.system.errors import InputError, require
from wsss_nb.system.files import json_hash, read_json, waiting_lock, write_json

__all__ = ["MANIFEST", "Step", "run_step", "total_cost"]

MANIFEST = "manifest.json"
STARTED = "started.json"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")  # as wsss_nb.system.files.atomic_path names them


@dataclass(frozen=True)
class Step:
    """A finished step.

    Attributes:
        folder: where its files are.
        key: hash of its inputs.
        result: what its work returned.
        cost: seconds, peak memory (MB), device and threads.
    """

    folder: Path
    key: str
    result: Mapping[str, Any]
    cost: Mapping[str, Any]


def _peak_memory_mb(reset: bool = False) -> float:
    """Highest memory of this process since it was reset: of the GPU where there is one, else of the machine."""
    import psutil
    import torch

    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole process
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
    with contextlib.suppress(OSError):
        return int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024
    memory = psutil.Process().memory_info()
    return float(getattr(memory, "peak_wset", memory.rss)) / 2**20


def _cost_of(work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Call ``work``: its result and what it cost."""
    import torch

    _peak_memory_mb(reset=True)
    begun = time.monotonic()
    result = work()
    return result, {
        "seconds": round(time.monotonic() - begun, 3),
        "peak_memory_mb": round(_peak_memory_mb(), 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def run_step(
    parent: Path, name: str, inputs: dict[str, Any], work: Callable[[Path], dict[str, Any] | None],
    made_by: Mapping[str, Any] | None = None, on_start: Callable[[], None] | None = None
) -> Step:  # fmt: skip
    """Do ``work(folder)`` in ``parent/NAME-KEY`` unless it is done already.

    ``started.json`` appears first: a killed step is resumed by the files that are there. ``manifest.json`` appears last, so
    its presence means that all is there. Several processes that train together do the work together; two that know
    nothing of each other wait for one another.

    Args:
        parent: folder of the step's folder.
        name: of the step.
        inputs: what the result depends on, as JSON values.
        work: makes the files in the folder it is given; may return a result, as JSON values.
        made_by: who does it (command, commit); kept beside the result, the step does not depend on it.
        on_start: called before the work where there is some to do.

    Returns:
        The step. The seconds of a resumed training are those of all its epochs; other resumed steps count their last
        part only.

    Raises:
        InputError: the folder holds files of somebody else.
    """
    from wsss_nb.system.processes import processes

    key = json_hash(inputs)
    folder = parent / f"{name}-{key[:8]}"
    manifest = folder / MANIFEST
    world = processes()
    lock = waiting_lock(parent / f".{folder.name}.lock", f"{folder}: another process is at work here")
    with nullcontext() if manifest.exists() or not world.is_main else lock:
        if world.broadcast(world.is_main and _begin(folder, key)):
            if on_start is not None and world.is_main:
                on_start()
            result, cost = _cost_of(lambda: work(folder) or {})
            world.barrier()
            if world.is_main:
                # a resumed training took at least what all its epochs took
                epochs = round(sum(row["seconds"] for row in result.get("history", ())), 3)
                cost["seconds"] = max(cost["seconds"], epochs)
                created = datetime.now(timezone.utc).isoformat(timespec="seconds")
                author = {"created": created, **(made_by or {})}
                done = {"key": key, "inputs": inputs, "result": result, "cost": cost, "made_by": author}
                write_json(manifest, done)
                (folder / STARTED).unlink()
            world.barrier()
    made = read_json(manifest)
    try:
        return Step(folder, made["key"], made["result"], made["cost"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{manifest}: expected the manifest of a step, got something else; remove it") from error


def _begin(folder: Path, key: str) -> bool:
    """Whether the step has to be done; if so its folder is ready, with what a killed attempt left of it."""
    manifest, started = folder / MANIFEST, folder / STARTED
    if manifest.exists():
        return False
    # a hidden file is somebody else's, or what an interrupted write left behind
    empty = not any(not path.name.startswith(".") for path in folder.glob("*"))
    expected = "an empty folder or an earlier attempt at this step"
    require(empty or started.exists(), f"{folder}: expected {expected}, got other files")
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
    write_json(started, {"key": key})
    return True


def total_cost(*steps: Step) -> dict[str, Any]:
    """What steps cost together: their seconds and the highest peak memory."""
    costs = [step.cost for step in steps]
    seconds, memory = round(sum(cost["seconds"] for cost in costs), 3), max(cost["peak_memory_mb"] for cost in costs)
    return {**costs[-1], "seconds": seconds, "peak_memory_mb": memory}
