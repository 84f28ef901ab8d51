"""Classes and image-level labels: from a CSV, from VOC's XML annotations, or from a mask; and the CSV writer."""

import csv
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsss_nb.data.layout import check_unique
from wsss_nb.system.config import VOID
from wsss_nb.system.errors import expecting, require
from wsss_nb.system.files import atomic_path

__all__ = ["VOC_CLASSES", "labels_from_csv", "labels_from_mask", "labels_from_xml", "read_classes", "write_labels"]

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""PASCAL VOC's 21 classes in the order of their ids."""

_Labels = npt.NDArray[np.uint8]


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
    vector = np.zeros(len(classes), dtype=np.uint8)
    vector[0] = 1
    for name in present:
        require(name in classes, f"{source}: expected one of the {len(classes)} classes, got {name!r}")
        vector[classes.index(name)] = 1
    return vector


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
    vector = np.zeros(num_classes, dtype=np.uint8)
    vector[[0, *ids]] = 1
    return vector


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
