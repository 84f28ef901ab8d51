from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss_nb.data import VOCFolder, check_folder, make_synthetic, save_label_map, write_labels
from wsss_nb.system.errors import InputError

CLASSES = ("background", "cat", "dog")
# 255 is unlabelled, c shows background only, d is wholly unlabelled
MASKS = {"a": [[0, 1], [1, 255]], "b": [[2, 0], [1, 0]], "c": [[0, 0], [0, 0]], "d": [[255, 255], [255, 255]]}
LABELS = {"a": [1, 1, 0], "b": [1, 1, 1], "c": [1, 0, 0], "d": [1, 0, 0]}


def _scaled(mask: list[list[int]]) -> np.ndarray:
    return np.kron(np.array(mask, dtype=np.uint8), np.ones((8, 12), dtype=np.uint8))  # 16 rows, 24 columns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, mask in MASKS.items():
        pixels = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        save_label_map(root / "SegmentationClass" / f"{name}.png", _scaled(mask))
    (root / "ImageSets/Segmentation/train.txt").write_text("b\na\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("c\nd")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


_OPENED: list[str] | None = None


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _OPENED is not None and event == "open":
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_record)


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Every path the process opens meanwhile, whatever code opens it."""
    global _OPENED
    _OPENED = []
    try:
        yield _OPENED
    finally:
        _OPENED = None


def test_what_a_folder_holds(root: Path) -> None:
    folder = VOCFolder(root, "train")
    assert (folder.root, folder.split, folder.names) == (root, "train", ("b", "a"))
    assert (folder.classes, folder.num_classes, len(folder)) == (CLASSES, 3, 2)
    assert folder.image("a").shape == (16, 24, 3)
    assert folder.image("a").dtype == np.uint8
    np.testing.assert_array_equal(folder.mask("a"), _scaled(MASKS["a"]))
    assert not folder.has_parts
    assert repr(folder).endswith("'train'): 2 images, 3 classes")


def test_without_classes_txt_the_classes_are_vocs(root: Path) -> None:
    (root / "classes.txt").unlink()
    assert VOCFolder(root, "train").num_classes == 21
    assert VOCFolder(str(root), "train").classes[15] == "person"


def test_labels_from_masks(root: Path) -> None:
    for split in ("train", "val"):
        folder = VOCFolder(root, split)
        assert folder.label_source == "masks"
        assert {n: y.tolist() for n, y in folder.labels().items()} == {n: LABELS[n] for n in folder.names}
        assert tuple(folder.labels()) == folder.names


def test_labels_csv_beats_annotations_beat_masks(root: Path, tmp_path: Path) -> None:
    (root / "Annotations").mkdir()
    for name in MASKS:
        xml = "<annotation><object><name>dog</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    assert VOCFolder(root, "train").label("a").tolist() == [1, 0, 1]
    assert VOCFolder(root, "train").label_source == "annotations"
    (root / "labels.csv").write_text("a,cat\nb,\nother,dog\n")
    assert VOCFolder(root, "train").label("a").tolist() == [1, 1, 0]
    assert VOCFolder(root, "train").label("b").tolist() == [1, 0, 0]
    (tmp_path / "own.csv").write_text("a,cat dog\nb,cat\n")
    assert VOCFolder(root, "train", labels=tmp_path / "own.csv").label("a").tolist() == [1, 1, 1]


def test_labels_are_the_callers_own(root: Path) -> None:
    folder = VOCFolder(root, "train")
    folder.label("a")[:] = 7
    assert folder.label("a").tolist() == LABELS["a"]


def test_written_labels_read_back(root: Path, tmp_path: Path) -> None:
    (root / "classes.txt").write_text("background\npolar bear\nsmall-cat\n")
    folder = VOCFolder(root, "train")
    write_labels(folder.labels(), folder.classes, tmp_path / "train.csv")
    again = VOCFolder(root, "train", labels=tmp_path / "train.csv")
    assert again.label_source == "csv"
    assert {n: y.tolist() for n, y in again.labels().items()} == {"b": LABELS["b"], "a": LABELS["a"]}


def test_training_opens_no_mask(tmp_path: Path) -> None:
    root = make_synthetic(tmp_path / "fish", num_train=4, num_val=2, size=48)
    with opened_files() as opened:
        report = check_folder(root, ["train"], mask_splits=[])
        folder = VOCFolder(root, "train").without(report.bad).subset(VOCFolder(root, "train").names[:3])
        folder.labels()
        folder.split_hash()
        write_labels(folder.labels(), folder.classes, tmp_path / "labels.csv")
        for name in folder.names:
            folder.image(name)
        assert folder.has_parts
    assert sum("JPEGImages" in path for path in opened) >= 4  # the record does see files
    assert [path for path in opened if "SegmentationClass" in path or "SegmentationParts" in path] == []
    with opened_files() as opened:
        folder.mask(folder.names[0])
        folder.part(folder.names[0])
    assert sum("SegmentationClass" in path for path in opened) == 1
    assert sum("SegmentationParts" in path for path in opened) == 1


def test_a_folder_without_masks_can_be_trained_on(root: Path) -> None:
    (root / "labels.csv").write_text("a,cat\nb,\n")
    shutil.rmtree(root / "SegmentationClass")
    folder = VOCFolder(root, "train")
    assert check_folder(root, ["train"], mask_splits=[]).bad == {}
    assert folder.labels()["a"].tolist() == [1, 1, 0]
    with pytest.raises(InputError, match=r"SegmentationClass.a\.png: expected a mask of image 'a', got no file"):
        folder.mask("a")


def test_odd_names(root: Path) -> None:
    names = ["a b", "ä.ö", "x,y;z", "100%", "#1 'q\"", "-rf", "日本", "a.jpg"]
    for name in names:
        shutil.copy(root / "JPEGImages/a.jpg", root / "JPEGImages" / f"{name}.jpg")
        shutil.copy(root / "SegmentationClass/a.png", root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets/Segmentation/odd.txt").write_text("\n".join(names), encoding="utf-8")
    folder = VOCFolder(root, "odd")
    assert list(folder.names) == names
    write_labels(folder.labels(), folder.classes, root / "labels.csv")
    again = VOCFolder(root, "odd")
    assert again.label_source == "csv"
    assert all(again.label(name).tolist() == LABELS["a"] for name in names)
    assert all(again.mask(name).shape == again.image(name).shape[:2] for name in names)


def test_lists_of_windows_editors(root: Path) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_bytes(b"\xef\xbb\xbfb\r\n\r\na \r\n")
    assert VOCFolder(root, "train").names == ("b", "a")


def test_photographs_are_turned_as_their_exif_says(root: Path) -> None:
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:, :4] = 255  # the left edge as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(stored).save(root / "JPEGImages" / "a.jpg", exif=exif, quality=100)
    image = VOCFolder(root, "train").image("a")
    assert image.shape == (24, 16, 3)
    assert image[:3].min() > 200 and image[5:].max() < 50, "the stored left edge is the upper one"
    with pytest.raises(InputError, match="expected the image's size 16x24, got 24x16"):
        VOCFolder(root, "train").mask("a")
    save_label_map(root / "SegmentationClass/a.png", _scaled(MASKS["a"]).T)
    assert VOCFolder(root, "train").mask("a").shape == image.shape[:2]


def test_grey_palette_and_cmyk_images_become_rgb(root: Path) -> None:
    grey = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (16, 1))
    Image.fromarray(grey).save(root / "JPEGImages/a.jpg", quality=100)
    image = VOCFolder(root, "train").image("a")
    assert image.shape == (16, 24, 3)
    assert np.ptp(image, axis=2).max() == 0
    np.testing.assert_allclose(image[..., 0], grey, atol=3)

    Image.new("RGB", (24, 16), (200, 100, 50)).convert("CMYK").save(root / "JPEGImages/a.jpg", quality=100)
    np.testing.assert_allclose(VOCFolder(root, "train").image("a")[3, 4], (200, 100, 50), atol=6)

    (root / "JPEGImages/a.jpg").unlink()
    Image.new("RGB", (24, 16), (200, 100, 50)).quantize(4).save(root / "JPEGImages/a.png")
    np.testing.assert_allclose(VOCFolder(root, "train").image("a")[3, 4], (200, 100, 50), atol=3)
    Image.new("RGBA", (24, 16), (200, 100, 50, 9)).save(root / "JPEGImages/a.png")
    assert VOCFolder(root, "train").image("a")[3, 4].tolist() == [200, 100, 50]


def test_sixteen_bit_images_are_refused(root: Path) -> None:
    (root / "JPEGImages/a.jpg").unlink()
    Image.fromarray(np.full((16, 24), 40000, dtype=np.uint16)).save(root / "JPEGImages/a.png")
    with pytest.raises(InputError, match=r"a\.png: expected an image of 8 bits a channel, got mode I"):
        VOCFolder(root, "train").image("a")


def _truncate(root: Path) -> None:
    path = root / "JPEGImages/a.jpg"
    path.write_bytes(path.read_bytes()[:500])


def _garbage(root: Path) -> None:
    (root / "JPEGImages/a.jpg").write_bytes(b"no picture")


def _empty(root: Path) -> None:
    (root / "JPEGImages/a.jpg").write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _garbage, _empty])
def test_corrupt_jpegs_are_named_in_one_line(root: Path, damage: Any) -> None:
    damage(root)
    with pytest.raises(InputError, match=r"JPEGImages.a\.jpg: expected a readable image, got ") as caught:
        VOCFolder(root, "train").image("a")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"JPEGImages.a\.jpg: expected a readable image, got "):
        check_folder(root, ["train", "val"])


def test_missing_image(root: Path) -> None:
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(InputError, match=r"JPEGImages.a\.jpg: expected an image, got no file"):
        VOCFolder(root, "train").image("a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"a\.png: expected a mask of image 'a', got no file"),
        (
            lambda path: save_label_map(path, np.zeros((16, 23), dtype=np.uint8)),
            r"a\.png: expected the image's size 24x16, got 23x16",
        ),
        (
            lambda path: save_label_map(path, np.full((16, 24), 3, dtype=np.uint8)),
            r"a\.png: expected class ids 0\.\.2 or 255, got 3",
        ),
        (lambda path: path.write_bytes(b"x"), r"a\.png: expected a readable label map"),
        (lambda path: Image.new("RGB", (24, 16)).save(path), r"a\.png: expected a palette or 8-bit grey PNG"),
    ],
)
def test_bad_masks(root: Path, change: Any, message: str) -> None:
    change(root / "SegmentationClass/a.png")
    folder = VOCFolder(root, "train")
    with pytest.raises(InputError, match=message):
        folder.mask("a")
    with pytest.raises(InputError, match=message):
        folder.labels()
    with pytest.raises(InputError, match=message):
        check_folder(root, ["train"])
    report = check_folder(root, ["train"], skip_bad=True)
    assert list(report.bad) == ["a"]


def test_the_ignore_label_is_not_the_largest_id_only(root: Path) -> None:
    save_label_map(root / "SegmentationClass/a.png", _scaled([[254, 255], [0, 0]]))
    with pytest.raises(InputError, match=r"expected class ids 0\.\.2 or 255, got 254"):
        VOCFolder(root, "train").mask("a")


def test_bad_part_masks(root: Path) -> None:
    save_label_map(root / "SegmentationParts/a.png", _scaled([[0, 1], [2, 2]]))
    folder = VOCFolder(root, "train")
    assert folder.has_parts
    assert np.unique(folder.part("a")).tolist() == [0, 1, 2]
    save_label_map(root / "SegmentationParts/a.png", _scaled([[0, 1], [2, 3]]))
    with pytest.raises(InputError, match=r"SegmentationParts.a\.png: expected class ids 0\.\.2 or 255, got 3"):
        folder.part("a")


def _make_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), "voc: expected a folder in VOC layout, got no folder"),
        (lambda root: shutil.rmtree(root / "JPEGImages"), "voc: expected .* got one without JPEGImages"),
        (
            lambda root: (root / "ImageSets/Segmentation/train.txt").unlink(),
            r"train\.txt: expected a list of image names in UTF-8, got no file",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("\n \n"),
            r"train\.txt: expected at least one image name, got an empty list",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\na\n"),
            r"train\.txt: expected each image once, got 'a' again",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("..\n"),
            r"train\.txt: expected names of files, got '\.\.'",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("../secret\n"),
            r"train\.txt: expected names of files, got '\.\./secret'",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/train.txt").write_bytes(b"\xff\xfe"),
            r"train\.txt: expected a list of image names in UTF-8, got .*decode",
        ),
        (lambda root: (root / "classes.txt").write_text("cat\ndog\n"), "expected 'background' .* got 'cat'"),
        (lambda root: (root / "classes.txt").write_text("background\n"), "expected 2 to 255 class names"),
        (lambda root: (root / "classes.txt").write_text("background\n\ncat\n"), "expected 2 to 255 class names"),
        (lambda root: (root / "classes.txt").write_text("background\ncat\ncat\n"), "once, got 'cat' again"),
        (lambda root: (root / "classes.txt").write_text("background\ncat;dog\n"), "without ';' .* got 'cat;dog'"),
        (lambda root: _make_folder(root / "classes.txt"), r"classes\.txt: expected class names in UTF-8, got a folder"),
        (lambda root: _make_folder(root / "labels.csv"), r"labels\.csv: expected a CSV of labels, got a folder"),
    ],
)
def test_bad_folders(root: Path, change: Any, message: str) -> None:
    change(root)
    with pytest.raises(InputError, match=message) as caught:
        VOCFolder(root, "train")
    assert "\n" not in str(caught.value)


def test_bad_label_sources(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: expected a CSV of labels, got no file"):
        VOCFolder(root, "train", labels=tmp_path / "none.csv")
    (root / "labels.csv").write_text("b,cat\n")
    with pytest.raises(InputError, match=r"labels\.csv: expected a row for image 'a', got none"):
        VOCFolder(root, "train").labels()
    (root / "labels.csv").unlink()
    (root / "Annotations").mkdir()
    with pytest.raises(InputError, match=r"b\.xml: expected a VOC annotation \(XML\), got no file"):
        VOCFolder(root, "train").labels()


def test_subset_and_without(root: Path) -> None:
    folder = VOCFolder(root, "train")
    assert folder.subset(["a"]).names == ("a",)
    assert folder.subset(["a"]).labels().keys() == {"a"}
    assert folder.names == ("b", "a")
    assert folder.without({"b": "reason"}).names == ("a",)
    with pytest.raises(InputError, match="names: expected images of split 'train', got 'c'"):
        folder.subset(["c"])
    with pytest.raises(InputError, match="names: expected at least one image of split 'train', got none"):
        folder.without(["a", "b"])


def test_a_folder_travels_to_worker_processes(root: Path) -> None:
    folder = pickle.loads(pickle.dumps(VOCFolder(root, "train")))
    assert folder.labels()["b"].tolist() == LABELS["b"]


def test_split_hash_tells_what_changed(root: Path) -> None:
    (root / "labels.csv").write_text("a,cat\nb,dog\n")
    first, with_masks = VOCFolder(root, "train").split_hash(), VOCFolder(root, "train").split_hash(masks=True)
    moved = root.with_name("elsewhere")
    shutil.copytree(root, moved)
    assert VOCFolder(moved, "train").split_hash() == first
    assert VOCFolder(root, "train").subset(["a", "b"]).split_hash() != first

    save_label_map(root / "SegmentationClass/a.png", _scaled([[0, 0], [0, 2]]))
    assert VOCFolder(root, "train").split_hash() == first
    assert VOCFolder(root, "train").split_hash(masks=True) != with_masks
    (root / "labels.csv").write_text("a,cat\nb,cat\n")
    assert VOCFolder(root, "train").split_hash() != first
    shutil.copy(moved / "labels.csv", root / "labels.csv")
    assert VOCFolder(root, "train").split_hash() == first
    (root / "classes.txt").write_text("background\ncat\ndog\nelk\n")
    assert VOCFolder(root, "train").split_hash() != first
    shutil.copy(moved / "classes.txt", root / "classes.txt")
    Image.new("RGB", (24, 16)).save(root / "JPEGImages/a.jpg")
    assert VOCFolder(root, "train").split_hash() != first


def test_check_folder_counts_and_skips(root: Path) -> None:
    report = check_folder(root, ["train", "val"])
    assert report.bad == {}
    _garbage(root)
    (root / "SegmentationClass/d.png").unlink()
    report = check_folder(root, ["train", "val"], skip_bad=True)
    assert list(report.bad) == ["a", "d"]
    assert "a.jpg: expected a readable image" in report.bad["a"]
    assert "d.png: expected a mask" in report.bad["d"]
    assert VOCFolder(root, "train").without(report.bad).names == ("b",)


@pytest.mark.parametrize("labels", ["csv", "annotations", "masks"])
def test_check_folder_hashes_what_it_opens_in_one_pass(root: Path, labels: str) -> None:
    if labels == "csv":
        (root / "labels.csv").write_text("a,cat\nb,dog\nc,\nd,\n")
    elif labels == "annotations":
        (root / "Annotations").mkdir()
        for name in MASKS:
            (root / "Annotations" / f"{name}.xml").write_text(
                "<annotation><object><name>dog</name></object></annotation>"
            )
    for name in MASKS:
        save_label_map(root / "SegmentationParts" / f"{name}.png", _scaled([[0, 1], [2, 0]]))
    (root / "ImageSets/Segmentation/all.txt").write_text("d\na\nb\n")
    _garbage(root)
    with opened_files() as opened:
        report = check_folder(root, ["val", "train"], skip_bad=True, hash_masks=["val"])
    files = [path for path in opened if path.endswith((".jpg", ".png"))]
    assert len(files) == len(set(files)) == 3 * 3 + 1  # of the bad image nothing but itself
    assert list(report.bad) == ["a"]
    for split, masks in (("train", False), ("val", True)):
        assert report.hashes[split] == VOCFolder(root, split).without(report.bad).split_hash(masks=masks)
    assert report.hashes["val"] != VOCFolder(root, "val").split_hash()

    # what is bad in one split is left out of all
    (root / "SegmentationParts/d.png").unlink()
    report = check_folder(root, ["all", "val"], skip_bad=True, mask_splits=["val"], hash_masks=["val"])
    assert sorted(report.bad) == ["a", "d"]
    assert report.hashes["all"] == VOCFolder(root, "all").subset(["b"]).split_hash()
    assert report.hashes["val"] == VOCFolder(root, "val").subset(["c"]).split_hash(masks=True)


def test_check_folder_needs_something_usable(root: Path) -> None:
    for name in ("a", "b"):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a usable image in split 'train', got none; first: .*b\.jpg"):
        check_folder(root, ["train", "val"], skip_bad=True)


def test_check_folder_looks_at_labels_too(root: Path) -> None:
    (root / "labels.csv").write_text("b,cat\n")
    with pytest.raises(InputError, match="expected a row for image 'a'"):
        check_folder(root, ["train"])
    assert list(check_folder(root, ["train"], skip_bad=True).bad) == ["a"]
    (root / "labels.csv").write_text("b,cow\n")
    with pytest.raises(InputError, match="expected one of the 3 classes, got 'cow'"):
        check_folder(root, ["train"], skip_bad=True)


def test_check_folder_opens_masks_of_the_chosen_splits_only(root: Path) -> None:
    (root / "labels.csv").write_text("a,cat\nb,\nc,\nd,\n")
    (root / "SegmentationClass/a.png").unlink()
    assert check_folder(root, ["train", "val"], mask_splits=["val"]).bad == {}
    (root / "SegmentationClass/c.png").unlink()
    with pytest.raises(InputError, match="mask of image 'c'"):
        check_folder(root, ["train", "val"], mask_splits=["val"])
