"""A step of a run: a folder that knows what it was made from, skips itself, and says what it cost."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from wsss_nb.errors import InputError
from wsss_nb.files import read_json, write_json
from wsss_nb.stages.processes import processes

__all__ = ["cost_of", "pick_device", "run_step", "step_key"]

MANIFEST = "manifest.json"
STARTED = "started.json"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")  # as wsss_nb.files.atomic_path names them


def step_key(inputs: dict[str, Any]) -> str:
    """SHA-256 of a step's inputs (configuration, keys of the steps before it, code version)."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def pick_device() -> torch.device:
    """This process's GPU when there is one, else the CPU."""
    return processes().device


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: the peak is then that of the whole process


def cost_of(work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Call ``work`` and return its result with seconds, peak memory (MB), device and threads."""
    _reset_peak_memory()
    begun = time.monotonic()
    result = work()
    return result, {
        "seconds": round(time.monotonic() - begun, 3),
        "peak_memory_mb": round(_peak_memory_mb(), 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def _clear(folder: Path) -> None:
    """Empty a step's folder; ``started.json`` stays, with a key that no step has, so that a kill meanwhile does no harm."""
    write_json(folder / STARTED, {"key": None})
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != STARTED:
            path.unlink()


def run_step(
    folder: Path,
    inputs: dict[str, Any],
    work: Callable[[Path], dict[str, Any]],
    made_by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Do ``work(folder)`` unless the folder already holds its result for the same inputs.

    ``started.json`` carries the key while the step is under way: the same key resumes what is there, another
    key clears the folder first. ``manifest.json`` appears last, so its presence means that all is there. Several
    processes do the work together; the main one's result counts.

    Args:
        folder: the step's own.
        inputs: what the result depends on, as JSON values.
        work: makes the files in the folder it is given.
        made_by: who does it (command, commit); kept beside the result, the step does not depend on it.

    Returns:
        The manifest: ``key``, ``inputs``, ``result`` (what ``work`` returned), ``cost``, and ``made_by`` with the time at
        which it was ``created``. The seconds of a resumed training are those of all its epochs; other resumed steps
        count their last part only.

    Raises:
        InputError: the folder holds files of somebody else and would have to be cleared.
    """
    key = step_key(inputs)
    manifest = folder / MANIFEST
    crew = processes()
    if not crew.same(crew.is_main and _begin(folder, key)):
        known: dict[str, Any] = read_json(manifest)
        return known
    result, cost = cost_of(lambda: work(folder))
    crew.wait()
    if crew.is_main:
        # a resumed training took at least what all its epochs took
        cost["seconds"] = max(
            cost["seconds"], round(sum(row["seconds"] for row in result.get("history", ())), 3)
        )
        done = {"key": key, "inputs": inputs, "result": result, "cost": cost}
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(manifest, done | {"made_by": {"created": created, **(made_by or {})}})
        (folder / STARTED).unlink()
    crew.wait()
    made: dict[str, Any] = read_json(manifest)
    return made


def _begin(folder: Path, key: str) -> bool:
    """Whether the step has to be done; if so its folder is ready, with what a killed attempt left of the same key."""
    manifest, started = folder / MANIFEST, folder / STARTED
    if manifest.exists() and read_json(manifest).get("key") == key:
        return False
    # a hidden file is somebody else's, or what an interrupted write left behind
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        ours = manifest.exists() or started.exists()
        if not ours:
            raise InputError(
                f"{folder}: expected an empty folder or an earlier result of this step, got other files"
            )
        if not started.exists() or read_json(started).get("key") != key:
            _clear(folder)
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
    write_json(started, {"key": key})
    manifest.unlink(missing_ok=True)
    return True
