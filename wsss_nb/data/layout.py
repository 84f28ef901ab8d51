"""Files of a folder in VOC's layout: lists of names, and all-or-nothing writing."""

import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wsss_nb.system.errors import expecting, require
from wsss_nb.system.files import atomic_path

__all__ = ["check_unique", "list_path", "new_folder", "parse_names", "require_file", "write_list"]


def require_file(path: Path, what: str) -> Path:
    """The path, if there is a file.

    Raises:
        InputError: there is none, or a folder.
    """
    require(path.is_file(), f"{path}: expected {what}, got {'a folder' if path.is_dir() else 'no file'}")
    return path


@contextmanager
def new_folder(root: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``root``; rename it to ``root`` on success, remove it on error.

    Raises:
        InputError: ``root`` exists and is not an empty folder, or the place is not writable.

    Example:
        >>> with new_folder("fish") as folder:
        ...     write_list(folder, "train", ["a"])
    """
    root = Path(os.path.abspath(root))
    temporary = root.with_name(f".{root.name}.{uuid.uuid4().hex[:8]}")
    with expecting("a writable place", root, OSError):
        free = not root.exists() or (root.is_dir() and not any(root.iterdir()))
        require(free, f"{root}: expected a new or empty folder, got one with content")
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if root.exists():
                root.rmdir()
            temporary.rename(root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def list_path(root: Path, split: str) -> Path:
    """Where the list of a split is."""
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def parse_names(content: bytes, source: object) -> tuple[str, ...]:
    """Image names of a list, one a line.

    Raises:
        InputError: not UTF-8, no name, a name that is no file's, or one that comes twice.

    Example:
        >>> parse_names(b"a\\nb\\n", "train.txt")
        ('a', 'b')
    """
    with expecting("a list of image names in UTF-8", source):
        lines = content.decode("utf-8-sig").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    require(len(names) > 0, f"{source}: expected at least one image name, got an empty list")
    # names become file names of results, so none may point out of its folder
    for name in names:
        is_file_name = name not in (".", "..") and not re.search(r"[/\\\0]", name)
        require(is_file_name, f"{source}: expected names of files, got {name!r}")
    check_unique(names, f"{source}: expected each image once")
    return names


def check_unique(names: Sequence[str], expected: str) -> None:
    """Look for a name that comes twice.

    Args:
        names: of images or classes.
        expected: beginning of the error: where they come from, and that each should be there once.

    Raises:
        InputError: there is one, the first is named.
    """
    for name, count in Counter(names).items():
        require(count == 1, f"{expected}, got {name!r} again")


def write_list(root: Path, split: str, names: Iterable[str]) -> None:
    """Write the list of a split; it appears whole.

    Raises:
        InputError: the place is not writable.
    """
    with atomic_path(list_path(root, split)) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
