from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_nb.data.layout import (
    VOC_CLASSES,
    label_vector,
    labels_from_csv,
    labels_from_mask,
    labels_from_xml,
    write_labels,
)
from wsss_nb.data.voc import write_lists
from wsss_nb.system.errors import InputError

CLASSES = ("background", "cat", "dog", "polar bear")


def _csv(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_voc_has_its_21_classes() -> None:
    assert len(VOC_CLASSES) == 21
    assert (VOC_CLASSES[0], VOC_CLASSES[1], VOC_CLASSES[15], VOC_CLASSES[20]) == (
        "background",
        "aeroplane",
        "person",
        "tvmonitor",
    )
    assert list(VOC_CLASSES[1:]) == sorted(VOC_CLASSES[1:])


def test_label_vector_by_hand() -> None:
    vector = label_vector(["dog", "dog"], CLASSES, "here")
    assert vector.dtype == np.uint8
    assert vector.tolist() == [1, 0, 1, 0]
    assert label_vector([], CLASSES, "here").tolist() == [1, 0, 0, 0]
    with pytest.raises(InputError, match="here: expected one of the 4 classes, got 'cow'"):
        label_vector(["cow"], CLASSES, "here")


def test_labels_from_mask_by_hand() -> None:
    mask = np.array([[0, 255], [3, 3]], dtype=np.uint8)
    assert labels_from_mask(mask, 4).tolist() == [1, 0, 0, 1]
    assert labels_from_mask(np.full((2, 2), 255, dtype=np.uint8), 4).tolist() == [1, 0, 0, 0]
    assert labels_from_mask(np.full((2, 2), 2, dtype=np.uint8), 4).tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="mask: expected class ids below 3 or 255, got 3"):
        labels_from_mask(mask, 3)


@pytest.mark.parametrize("header", ["", "name,classes\n"])
def test_csv_by_hand(tmp_path: Path, header: str) -> None:
    rows = 'a,cat;dog\nb,cat dog\nc,cat,dog\nd,\ne\n"x, y;z",polar bear\nf,polar bear; cat\n\ng,background\n'
    labels = labels_from_csv(_csv(tmp_path, header + rows), CLASSES)
    assert {name: vector.tolist() for name, vector in labels.items()} == {
        "a": [1, 1, 1, 0],
        "b": [1, 1, 1, 0],
        "c": [1, 1, 1, 0],
        "d": [1, 0, 0, 0],
        "e": [1, 0, 0, 0],
        "x, y;z": [1, 0, 0, 1],
        "f": [1, 1, 0, 1],
        "g": [1, 0, 0, 0],
    }


def test_csv_of_a_spreadsheet_with_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    labels = labels_from_csv(_csv(tmp_path, b"\xef\xbb\xbfname,classes\r\na,cat\r\n"), CLASSES)
    assert labels.keys() == {"a"}


def test_name_may_be_an_image_called_name(tmp_path: Path) -> None:
    assert labels_from_csv(_csv(tmp_path, "a,cat\nname,dog\n"), CLASSES)["name"].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,cat\nb,cow\n", r"labels\.csv: line 2: expected one of the 4 classes, got 'cow'"),
        ("a,cat\na,dog\n", r"labels\.csv: line 2: expected each image once, got 'a' again"),
        (",cat\n", r"labels\.csv: line 1: expected an image name in the first column, got none"),
        (b"a,\xff\xfe\n", r"labels\.csv: expected a CSV of labels in UTF-8, got "),
        ('a,"cat\n', r"labels\.csv: expected a CSV of labels in UTF-8, got "),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labels_from_csv(_csv(tmp_path, text), CLASSES)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: expected a CSV of labels in UTF-8, got no file"):
        labels_from_csv(tmp_path / "none.csv", CLASSES)
    with pytest.raises(InputError, match=r": expected a CSV of labels in UTF-8, got a folder"):
        labels_from_csv(tmp_path, CLASSES)
    with pytest.raises(InputError, match=r"none\.xml: expected a VOC annotation \(XML\), got no file"):
        labels_from_xml(tmp_path / "none.xml", CLASSES)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=";"), min_size=1), unique=True),
    st.data(),
)
def test_whatever_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, names: list[str], data: Any) -> None:
    classes = ("background", *(name for name in names if name != "background"))
    vectors = st.lists(st.sampled_from([0, 1]), min_size=len(classes) - 1, max_size=len(classes) - 1)
    labels = {f"x, {i}": np.array([1, *data.draw(vectors)], dtype=np.uint8) for i in range(3)}
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    write_labels(labels, classes, path)
    again = labels_from_csv(path, classes)
    assert {name: y.tolist() for name, y in again.items()} == {name: y.tolist() for name, y in labels.items()}


def test_a_class_that_would_be_split_is_not_written(tmp_path: Path) -> None:
    labels = {"a": np.array([1, 1], dtype=np.uint8)}
    message = r"labels\.csv: expected class names without ';' \(it separates classes\), got 'cat;dog'"
    with pytest.raises(InputError, match=message):
        write_labels(labels, ("background", "cat;dog"), tmp_path / "labels.csv")
    with pytest.raises(InputError, match=message):
        write_lists(tmp_path, ("background", "cat;dog"), {"train": labels})
    assert not (tmp_path / "labels.csv").exists()


def test_xml_counts_objects_not_their_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        "<annotation><object><name> dog </name><difficult>1</difficult>"
        "<part><name>head</name></part></object><object><name>dog</name></object></annotation>"
    )
    assert labels_from_xml(path, CLASSES).tolist() == [1, 0, 1, 0]
    path.write_text("<annotation/>")
    assert labels_from_xml(path, CLASSES).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object><name>cow</name></object></annotation>", "expected one of the 4 classes, got 'cow'"),
        ("<annotation><object></annotation>", r"expected a VOC annotation \(XML\), got mismatched tag"),
        ("", r"expected a VOC annotation \(XML\), got no element"),
        (
            '<?xml version="1.0" encoding="nonsense"?><annotation/>',
            r"expected a VOC annotation \(XML\), got unknown enc",
        ),
        ("<annotations><image/></annotations>", "expected <annotation> with .* got <annotations> with 0 names"),
        (
            '<annotation xmlns="x"><object><name>cat</name></object></annotation>',
            r".* no namespace, got <\{x\}annotation>",
        ),
        (
            '<annotation><o:object xmlns:o="x"><name>cat</name></o:object></annotation>',
            ".* no namespace, got <annotation>",
        ),
        (
            "<annotation><object><label>cat</label></object></annotation>",
            ".* a <name> in each <object> .* with 0 names",
        ),
        ("<annotation><a><object><name>cat</name></object></a></annotation>", ".* a <name> in each <object>"),
        ("<annotation><object><name/></object></annotation>", "expected one of the 4 classes, got ''"),
    ],
)
def test_malformed_xml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.xml: " + message):
        labels_from_xml(path, CLASSES)
