"""Writing a folder in VOC's layout, all or nothing: shared by everything that makes a data set."""

from __future__ import annotations

import csv
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from wsss_nb.errors import InputError

__all__ = ["new_folder", "write_lists"]


@contextmanager
def new_folder(root: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``root``; rename it to ``root`` on success, remove it on error.

    Raises:
        InputError: ``root`` exists and is not an empty folder, or the place is not writable.

    Example:
        >>> with new_folder("fish") as folder:
        ...     write_lists(folder, ["background", "cat"], {"train": {"a": ["cat"]}})
    """
    root = Path(os.path.abspath(root))
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise InputError(f"{root}: expected a new or empty folder, got one with content")
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = root.with_name(f".{root.name}.{uuid.uuid4().hex[:8]}")
        try:
            temporary.mkdir()
            yield temporary
            if root.exists():
                root.rmdir()
            temporary.rename(root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{root}: expected a writable place, got {error.strerror or error}") from error


def write_lists(
    root: Path, classes: Sequence[str], splits: Mapping[str, Mapping[str, Sequence[str]]]
) -> None:
    """Write classes.txt, labels.csv and ImageSets/Segmentation/SPLIT.txt.

    Args:
        root: the folder being written.
        classes: names by id, background first.
        splits: per split the image names, in order, with their class names.

    Example:
        >>> write_lists(Path("."), ["background", "cat"], {"train": {"a": ["cat"], "b": []}})
    """
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    with open(root / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "classes"])
        for split, images in splits.items():
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in images), encoding="utf-8")
            writer.writerows([name, ";".join(present)] for name, present in images.items())
