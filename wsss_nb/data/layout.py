"""The text files of a folder in VOC's layout: classes, lists of names, image-level labels; all-or-nothing writing.

Image-level labels come from a CSV, from VOC's XML annotations, or from a mask.
"""

import csv
import os
import re
import shutil
import uuid
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsss_nb.system.config import VOID
from wsss_nb.system.errors import expecting, require
from wsss_nb.system.files import atomic_path

__all__ = ["VOC_CLASSES", "labels_from_csv", "labels_from_mask", "labels_from_xml", "new_folder", "write_labels"]

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""PASCAL VOC's 21 classes in the order of their ids."""

_Labels = npt.NDArray[np.uint8]


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


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names by id of a ``classes.txt``, one a line, background first; VOC's 21 where there is none.

    Raises:
        InputError: the file is unreadable, has fewer than 2 or more than 255 names, does not begin with background,
            or has a name twice or with a semicolon, which separates classes in labels.csv.

    Example:
        >>> _ = Path("classes.txt").write_text("background\\ncat\\n")
        >>> read_classes(Path("classes.txt"))
        ('background', 'cat')
    """
    if not path.exists():
        return VOC_CLASSES
    with expecting("class names in UTF-8", path):
        classes = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines())
    enough = 2 <= len(classes) <= VOID and all(classes)
    require(enough, f"{path}: expected 2 to {VOID} class names, one a line, got {len(classes)} lines")
    require(classes[0] == "background", f"{path}: expected 'background' in the first line, got {classes[0]!r}")
    check_unique(classes, f"{path}: expected each class once")
    _no_semicolon(classes, path)
    return classes


def label_vector(present: Iterable[str], classes: Sequence[str], source: object) -> _Labels:
    """Vector y (K,) uint8 with y[k] = 1 where class k is named in ``present``, and y[0] = 1 always.

    Args:
        present: class names; none at all is allowed (an image of background only).
        classes: the K names by id, background first.
        source: where the names come from, for the message.

    Raises:
        InputError: a name that is not one of the classes.

    Example:
        >>> label_vector(["dog"], ["background", "cat", "dog"], "here").tolist()
        [1, 0, 1]
    """
    names = [classes[0], *present]
    for name in names:
        require(name in classes, f"{source}: expected one of the {len(classes)} classes, got {name!r}")
    return np.isin(classes, names).astype(np.uint8)


def labels_from_mask(mask: npt.NDArray[np.uint8], num_classes: int) -> _Labels:
    """Vector y (K,) uint8 of the classes that occur in a mask (H, W); 255 is no class, y[0] = 1 always.

    Raises:
        InputError: an id that is neither below ``num_classes`` nor 255.

    Example:
        >>> labels_from_mask(np.array([[2, 255]], dtype=np.uint8), 3).tolist()
        [1, 0, 1]
    """
    ids = np.setdiff1d(mask, [VOID])
    highest = ids.max(initial=0)
    require(highest < num_classes, f"mask: expected class ids below {num_classes} or {VOID}, got {highest}")
    return np.isin(range(num_classes), [0, *ids]).astype(np.uint8)


def labels_from_xml(path: str | os.PathLike[str], classes: Sequence[str]) -> _Labels:
    """Vector y (K,) uint8 of the classes of all objects of a VOC annotation (difficult ones included).

    An annotation without any object is an image of background only.

    Raises:
        InputError: the file is missing, is not XML, is another kind of XML than VOC's, or names a class that is not
            in the list.

    Example:
        >>> _ = Path("a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
        >>> labels_from_xml("a.xml", ["background", "cat"]).tolist()
        [1, 1]
    """
    with expecting("a VOC annotation (XML)", path):
        root = ElementTree.parse(path).getroot()
    names = [(element.text or "").strip() for element in root.iterfind("object/name")]
    tags = [element.tag for element in root.iter()]
    sound = root.tag == "annotation" and len(names) == tags.count("object") and not any(tag[0] == "{" for tag in tags)
    expected = "<annotation> with a <name> in each <object> and no namespace"
    require(sound, f"{path}: expected {expected}, got <{root.tag}> with {len(names)} names")
    return label_vector(names, classes, path)


def labels_from_csv(path: str | os.PathLike[str], classes: Sequence[str]) -> dict[str, _Labels]:
    """Vectors y (K,) uint8 by image name, from rows ``name,class;class;...``.

    Classes are separated by semicolons, spaces or further columns; none means an image of background only. A
    first row ``name,...`` is a header. Names holding commas are quoted as usual in CSV.

    Raises:
        InputError: the file is missing or not text, a class is unknown, a row has no name, or a name comes
            twice.

    Example:
        >>> _ = Path("labels.csv").write_text("name,classes\\na,cat\\nb,\\n")
        >>> {k: y.tolist() for k, y in labels_from_csv("labels.csv", ["background", "cat"]).items()}
        {'a': [1, 1], 'b': [1, 0]}
    """
    labels: dict[str, _Labels] = {}
    with expecting("a CSV of labels in UTF-8", path), open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        for row in reader:
            if not any(cell.strip() for cell in row) or (not labels and row[0].strip() == "name"):
                continue
            source = f"{path}: line {reader.line_num}"
            name = row[0].strip()
            require(bool(name), f"{source}: expected an image name in the first column, got none")
            require(name not in labels, f"{source}: expected each image once, got {name!r} again")
            pieces = [piece.strip() for cell in row[1:] for piece in cell.split(";")]
            # a class of one's own may hold a space, so the whole is tried before its words
            words = (word for piece in pieces for word in ([piece] if piece in classes else piece.split()))
            labels[name] = label_vector(words, classes, source)
    return labels


def write_labels(labels: Mapping[str, _Labels], classes: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Write vectors y (K,) by image name as the CSV that `labels_from_csv` reads.

    Raises:
        InputError: a class name holds a semicolon, or the place is not writable.

    Example:
        >>> write_labels({"a": np.array([1, 1], dtype=np.uint8)}, ["background", "cat"], "labels.csv")
    """
    _no_semicolon(classes, path)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "classes"])
        for name, vector in labels.items():
            writer.writerow([name, ";".join(classes[int(k)] for k in np.flatnonzero(vector) if k)])


def _no_semicolon(classes: Sequence[str], source: object) -> None:
    for name in classes:
        require(";" not in name, f"{source}: expected class names without ';' (it separates classes), got {name!r}")
