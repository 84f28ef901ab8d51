"""What a run folder remembers of its notebooks, and the lock that keeps two runs out of it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wsss_nb.errors import InputError
from wsss_nb.files import read_json, write_json
from wsss_nb.results import RESULTS, read_results

__all__ = ["NotebookRecord", "RunState", "count_rows", "folder_stamp", "run_lock", "written_files"]

# Every run that is opened puts its data in order, so these files belong to no notebook.
_NOT_OUTPUT = ("notebooks", "data")

Status = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class NotebookRecord:
    """The last execution of one notebook.

    Attributes:
        key: hash of everything its result depends on.
        status: ``running`` also after a kill, because nobody was left to say otherwise.
        begun: seconds since the epoch at which work under this key began, in its first attempt.
        seconds: duration of the last attempt.
        outputs: files of the run folder that belong to it, see `written_files`.
        rows: how many scores ``results.json`` held afterwards.
        message: what went wrong, if anything.
    """

    key: str
    status: Status
    begun: float
    seconds: float = 0.0
    outputs: tuple[str, ...] = ()
    rows: int = 0
    message: str = ""


class RunState:
    """``state.json`` of a run's notebooks; every change is on disk at once.

    Raises:
        InputError: the file is there but is not one of ours, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, NotebookRecord] = {}
        if not path.exists():
            return
        try:
            for name, fields in read_json(path)["notebooks"].items():
                self.records[name] = NotebookRecord(**{**fields, "outputs": tuple(fields["outputs"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: expected the state of a run, got something else; remove it") from error

    def put(self, name: str, record: NotebookRecord) -> None:
        """Remember a notebook's record."""
        self.records[name] = record
        notebooks = {name: asdict(self.records[name]) for name in sorted(self.records)}
        write_json(self.path, {"schema": 1, "notebooks": notebooks})

    def is_current(self, name: str, key: str, out_dir: Path) -> bool:
        """Whether a notebook ended well under this key and all it left is still there."""
        record = self.records.get(name)
        return (
            record is not None
            and record.status == "done"
            and record.key == key
            and (self.path.parent / f"{name}.ipynb").is_file()
            and all((out_dir / path).exists() for path in record.outputs)
            and count_rows(out_dir) >= record.rows
        )

    def shortcoming(self, name: str, key: str) -> str:
        """Why a notebook is not current, as the end of a sentence about it."""
        record = self.records.get(name)
        if record is None:
            return "which has not been run"
        if record.status != "done":
            return "which has not run to its end"
        if record.key != key:
            return "which ran with other settings, data or code"
        return "whose results are not all there any more"


def count_rows(out_dir: Path) -> int:
    """How many scores ``results.json`` holds; another profile run in the folder empties it.

    Raises:
        InputError: the file does not hold the results of a run.
    """
    path = out_dir / RESULTS
    if not path.is_file():
        return 0
    _, results = read_results(path)
    return len(results.cam) + len(results.stages)


def written_files(out_dir: Path, since: float) -> set[str]:
    """Files of a run folder written since a time, as relative paths, without data and executed notebooks.

    Where a folder has a ``manifest.json``, that file alone stands for the folder: it is written last.
    """
    found: set[str] = set()
    for folder, folders, files in os.walk(out_dir):
        here = Path(folder)
        if here == out_dir:
            folders[:] = [name for name in folders if name not in _NOT_OUTPUT]
        if "manifest.json" in files:
            files = ["manifest.json"]
            folders.clear()
        for name in files:
            path = here / name
            # One second of grace: some file systems keep whole seconds only.
            if not name.startswith(".") and path.stat().st_mtime >= since - 1:
                found.add(path.relative_to(out_dir).as_posix())
    return found


def folder_stamp(root: Path) -> str:
    """Hash of all names, sizes and times below a folder: changes whenever a data set is touched."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            status = path.stat()
            entry = [path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns]
            digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


@contextmanager
def run_lock(out_dir: Path) -> Iterator[None]:
    """Keep every other run out of a folder; the lock goes with the process, however that ends.

    Raises:
        InputError: another run is at work in the folder, or it cannot be written to.
    """
    path = out_dir / ".lock"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{out_dir}: expected a writable folder, got {error.strerror}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{out_dir}: expected no other run here, got {_holder(path)}") from error
        os.ftruncate(file, 0)
        os.write(file, json.dumps(_self()).encode())
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def _self() -> dict[str, Any]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    now = time.strftime("%Y-%m-%d %H:%M")
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": now}


def _holder(path: Path) -> str:
    try:
        by = json.loads(path.read_text())
        return f"process {by['pid']} on {by['host']} since {by['since']} ({by['command']})"
    except (OSError, ValueError, KeyError):
        return "one that has just begun"
