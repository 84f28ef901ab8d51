"""Image-level labels: from a CSV, from VOC's XML annotations, or from a mask; and the CSV writer."""

from __future__ import annotations

import csv
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsss_nb.data.palette import IGNORE
from wsss_nb.errors import InputError
from wsss_nb.files import atomic_path

if TYPE_CHECKING:
    from wsss_nb.data.voc import VOCFolder

__all__ = [
    "VOC_CLASSES",
    "label_vector",
    "labels_from_csv",
    "labels_from_mask",
    "labels_from_xml",
    "write_label_rows",
    "write_labels",
]

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""PASCAL VOC's 21 classes in the order of their ids."""

_Labels = npt.NDArray[np.uint8]


def label_vector(present: Iterable[str], classes: Sequence[str], source: str) -> _Labels:
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
    index = {name: k for k, name in enumerate(classes)}
    vector = np.zeros(len(classes), dtype=np.uint8)
    vector[0] = 1
    for name in present:
        if name not in index:
            raise InputError(f"{source}: expected one of the {len(classes)} classes, got {name!r}")
        vector[index[name]] = 1
    return vector


def labels_from_mask(mask: npt.NDArray[np.uint8], num_classes: int) -> _Labels:
    """Vector y (K,) uint8 of the classes that occur in a mask (H, W); 255 is no class, y[0] = 1 always.

    Raises:
        ValueError: an id that is neither below ``num_classes`` nor 255.

    Example:
        >>> labels_from_mask(np.array([[2, 255]], dtype=np.uint8), 3).tolist()
        [1, 0, 1]
    """
    ids = np.unique(mask)
    ids = ids[ids != IGNORE]
    if ids.size and ids[-1] >= num_classes:
        raise ValueError(f"mask: expected class ids below {num_classes} or {IGNORE}, got {ids[-1]}")
    vector = np.zeros(num_classes, dtype=np.uint8)
    vector[ids] = 1
    vector[0] = 1
    return vector


def labels_from_xml(path: str | os.PathLike[str], classes: Sequence[str]) -> _Labels:
    """Vector y (K,) uint8 of the classes of all objects of a VOC annotation (difficult ones included).

    Raises:
        InputError: the file is missing, is not XML, or names a class that is not in the list.

    Example:
        >>> _ = Path("a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
        >>> labels_from_xml("a.xml", ["background", "cat"]).tolist()
        [1, 1]
    """
    path = Path(path)
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise InputError(f"{path}: expected a VOC annotation, got {_reason(error)}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: unknown encoding
        raise InputError(f"{path}: expected XML, got {error}") from error
    names = [(element.text or "").strip() for element in root.iterfind("object/name")]
    return label_vector(names, classes, str(path))


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
    path = Path(path)
    labels: dict[str, _Labels] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not any(cell.strip() for cell in row) or (not labels and row[0].strip() == "name"):
                    continue
                source = f"{path}: line {reader.line_num}"
                name = row[0].strip()
                if not name:
                    raise InputError(f"{source}: expected an image name in the first column, got none")
                if name in labels:
                    raise InputError(f"{source}: expected each image once, got {name!r} again")
                labels[name] = label_vector(_split_classes(row[1:], classes), classes, source)
    except OSError as error:
        raise InputError(f"{path}: expected a CSV of labels, got {_reason(error)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a CSV of labels in UTF-8, got {error}") from error
    return labels


def write_labels(folder: VOCFolder, path: str | os.PathLike[str]) -> None:
    """Write the image-level labels of a split as CSV, ``name,classes`` with semicolons between the classes.

    Raises:
        InputError: the labels cannot be had, or the place is not writable.

    Example:
        >>> write_labels(VOCFolder("fish", "train"), "train_labels.csv")
        >>> VOCFolder("fish", "train", labels="train_labels.csv").label_source
        'csv'
    """
    write_label_rows(folder.labels(), folder.classes, path)


def write_label_rows(
    labels: Mapping[str, _Labels], classes: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Write vectors y (K,) by image name as the CSV that `labels_from_csv` reads.

    Raises:
        InputError: the place is not writable.

    Example:
        >>> write_label_rows({"a": np.array([1, 1], dtype=np.uint8)}, ["background", "cat"], "labels.csv")
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "classes"])
        for name, vector in labels.items():
            writer.writerow([name, ";".join(classes[int(k)] for k in np.flatnonzero(vector) if k)])


def _split_classes(cells: Iterable[str], classes: Sequence[str]) -> list[str]:
    names: list[str] = []
    for cell in cells:
        for piece in cell.split(";"):
            piece = piece.strip()
            # a class of one's own may hold a space, so try the whole before its words
            names += [piece] if piece in classes else piece.split()
    return names


def _reason(error: OSError) -> str:
    return "no file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
