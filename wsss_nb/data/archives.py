"""Reading tar archives of others: plain files only, and none that would land outside."""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from wsss_nb.errors import InputError

__all__ = ["read_archive"]

_MAX_FILE = 64 << 20  # bytes; the largest image of VOC has a hundredth


def read_archive(
    path: Path, wanted: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The wanted files of a tar archive (plain, gz, bz2, xz) as path and bytes.

    Nothing is written here. All entries are looked at before the first file is read: an archive in which any name is
    absolute or climbs out by ``..``, or a wanted entry is a link, a device or too large, is refused whole.

    Args:
        path: the archive.
        wanted: which paths inside are read; others are skipped unread.

    Raises:
        InputError: the archive is missing, damaged, or not to be trusted.

    Example:
        >>> for inside, content in read_archive(Path("a.tar"), lambda inside: inside.suffix == ".txt"):
        ...     print(inside, len(content))
        lists/train.txt 12
    """
    try:
        with tarfile.open(path, "r:*") as archive:
            chosen = []
            for member in archive:
                inside = _inside(path, member.name)
                if member.isdir() or not wanted(inside):
                    continue
                if not member.isreg():
                    raise InputError(f"{path}: expected plain files, got a link or device {member.name!r}")
                if member.size > _MAX_FILE:
                    raise InputError(
                        f"{path}: expected files up to {_MAX_FILE} bytes, got {member.name!r} of {member.size}"
                    )
                chosen.append((inside, member))
            for inside, member in chosen:
                file = archive.extractfile(member)
                assert file is not None  # a regular file
                yield inside, file.read()
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a tar archive, got no file") from error
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected a whole tar archive, got {error}") from error


def _inside(path: Path, name: str) -> PurePosixPath:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or re.search(r"[\\\0]|^[A-Za-z]:", name):
        raise InputError(f"{path}: expected names inside the archive's own folder, got {name!r}")
    return inside
