"""Writing files so that nothing is ever half there."""

import errno
import hashlib
import json
import os
import shlex
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wsss_nb.system.errors import DiskFullError, InputError, expecting

__all__ = [
    "atomic_path", "json_hash", "only_run", "project_root", "read_json", "sha256_file", "waiting_lock", "write_json"
]  # fmt: skip


_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on error.

    The temporary name keeps the suffix, so that writers which choose a format by suffix work.

    Raises:
        InputError: the folder cannot be created or written to.
        DiskFullError: there is no room; a file that was there before is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    with expecting("a writable place", path, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            got = f"{error.strerror}; what is finished is kept, the same command carries on"
            raise DiskFullError(f"{path}: expected room on the disk, got {got}") from error
        if error.errno in _NOT_WRITABLE:
            raise InputError(f"{path}: expected a writable place, got {error.strerror}") from error
        raise
    finally:
        with suppress(OSError):  # the folder itself may be what is missing
            temporary.unlink()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN is refused because it is not JSON."""
    text = json.dumps(value, indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    with expecting("JSON", path):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """SHA-256 of JSON values, whatever the order of their keys: the key of a step, a fingerprint of settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def project_root() -> Path:
    """What relative paths are meant from: here, or the folder above where a notebook runs in ``notebooks``."""
    here = Path.cwd()
    return here.parent if here.name == "notebooks" else here


@contextmanager
def waiting_lock(path: Path, words: str) -> Iterator[None]:
    """Hold a lock file in this block; wait, saying ``words`` once, while another process holds it."""
    with expecting("a writable folder", path.parent, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            print(f"{words}; waiting for it", flush=True)
            held = lock.acquire()
    with held:
        yield


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder; the lock goes with the process, however that ends.

    Raises:
        InputError: another run is at work in the folder, or it cannot be written to.
    """
    holder = folder / ".lock.json"
    with expecting("a writable folder", folder, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(folder / ".lock").acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"{folder}: expected no other run here, got {_holder(holder)}") from error
    with held:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        write_json(holder, {**facts, "since": time.strftime("%Y-%m-%d %H:%M")})
        yield
        holder.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    try:
        by = json.loads(path.read_text(encoding="utf-8"))
        return f"process {by['pid']} on {by['host']} since {by['since']} ({by['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "one that has just begun"
