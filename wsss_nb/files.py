"""Writing files so that nothing is ever half there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wsss_nb.errors import DiskFullError, InputError

__all__ = ["atomic_path", "read_json", "sha256_file", "write_json"]


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: expected a writable place, got {error.strerror or error}") from error
    try:
        yield temporary
        os.replace(temporary, path)
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise InputError(f"{path}: expected a writable place, got {error.strerror or error}") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(
                f"{path}: expected room on the disk, got {error.strerror}; what is finished is kept, the same command "
                "carries on"
            ) from error
        if error.errno == errno.EROFS:
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
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a JSON file, got none") from error
    except OSError as error:
        raise InputError(f"{path}: expected a readable JSON file, got {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected JSON, got {error}") from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
