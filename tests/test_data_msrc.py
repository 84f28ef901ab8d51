from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tools.msrc import MSRC_CLASSES, build_msrc, main, msrc_mask, msrc_split
from wsss_nb.data.layout import VOC_CLASSES
from wsss_nb.data.voc import VOCFolder, check_folder, read_label_map
from wsss_nb.system.errors import InputError

# the annotation's class -> VOC's id, from the two published lists
VOC_ID = {9: 1, 13: 2, 16: 3, 23: 4, 12: 7, 20: 8, 18: 9, 4: 10, 21: 12, 5: 13, 11: 15, 22: 15, 6: 17}
# (scene, number): classes of the regions 1.., laid side by side; the last column is unlabelled
SCENES: dict[tuple[int, int], list[int]] = {
    (1, 2): [2, 4],
    (1, 10): [2, 4, 7],
    (2, 1): [2, 3, 7],  # stuff only: left out
    (2, 2): [9, 2],
    (3, 1): [11, 22],
    (3, 11): [6],
    (3, 9): [13, 19],
    (10, 1): [20, 21],
    (9, 1): [23, 10],
    (9, 5): [1, 10],  # left out
    (9, 6): [5],
}


def _regions(classes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(1, len(classes) + 2, dtype=np.uint8)[None], 12, axis=0).repeat(8, axis=1)


def _image(scene: int, number: int) -> Image.Image:
    width = 8 * (len(SCENES[scene, number]) + 1)
    rows = np.linspace(0, 200, 12, dtype=np.uint8)
    return Image.fromarray(np.stack([np.tile(rows[:, None], (1, width))] * 3, axis=-1) + np.uint8(number))


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    images, annotations = tmp_path / "db" / "Images", tmp_path / "annotation"
    images.mkdir(parents=True)
    annotations.mkdir()
    for (scene, number), classes in SCENES.items():
        _image(scene, number).save(images / f"{scene}_{number}_s.bmp")
        content = {"newseg": _regions(classes), "newlabels": np.array([classes], dtype=np.uint8)}
        savemat(annotations / f"{scene}_{number}_s_GT.mat", content)
    (images / "Thumbs.db").write_bytes(b"")
    (images.parent / "GroundTruth").mkdir()
    _image(1, 2).save(images.parent / "GroundTruth" / "1_2_s_GT.bmp")
    return images.parent, annotations


def _zip(folder: Path, prefix: str) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{prefix}/{file.relative_to(folder)}")
        archive.writestr(f"__MACOSX/{prefix}/._1_2_s.bmp", b"resource fork")
    return path


def test_class_lists() -> None:
    assert len(MSRC_CLASSES) == 23
    assert (MSRC_CLASSES[0], MSRC_CLASSES[3], MSRC_CLASSES[22]) == ("building", "cow", "boat")
    names = {MSRC_CLASSES[k - 1]: VOC_CLASSES[i] for k, i in VOC_ID.items()}
    assert {name for name, voc in names.items() if name != voc} == {"face", "body"}
    assert names["face"] == names["body"] == "person"


def test_every_class_is_mapped_as_published() -> None:
    newseg = np.arange(1, 25)[None]
    expected = [VOC_ID.get(k, 0) for k in range(1, 24)] + [255]
    mask = msrc_mask(newseg, np.arange(1, 24)[None])
    assert mask.dtype == np.uint8
    assert mask.tolist() == [expected]


def test_mask_by_hand() -> None:
    newseg = np.array([[1, 1, 2], [3, 3, 2]], dtype=np.uint8)
    assert msrc_mask(newseg, np.array([[6, 2]], dtype=np.uint8)).tolist() == [[17, 17, 0], [255, 255, 0]]
    assert msrc_mask(newseg, np.array([[6, 2, 11]], dtype=np.float64)).tolist() == [[17, 17, 0], [15, 15, 0]]
    assert msrc_mask(np.ones((1, 2)), np.zeros((1, 0))).tolist() == [[255, 255]]


@pytest.mark.parametrize(
    ("newseg", "newlabels", "message"),
    [
        ([[1, 4]], [1, 2], r"newseg: expected regions 1\.\.3, got 1\.\.4"),
        ([[0, 1]], [1, 2], r"newseg: expected regions 1\.\.3, got 0\.\.1"),
        ([[1, 2]], [1, 24], r"newlabels: expected classes 1\.\.23, got 1\.\.24"),
        ([[1, 2]], [0, 3], r"newlabels: expected classes 1\.\.23, got 0\.\.3"),
        ([1, 2], [1, 2], r"newseg: expected \(H, W\), got \(2,\)"),
    ],
)
def test_bad_regions(newseg: Any, newlabels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        msrc_mask(np.array(newseg), np.array(newlabels))


def test_split_of_403_images_is_243_and_160() -> None:
    names = [f"{scene}_{number}_s" for scene in range(1, 14) for number in range(1, 32)]
    assert len(names) == 403
    train, val = msrc_split(sorted(names))
    assert (len(train), len(val)) == (243, 160)
    assert train[:4] == ["1_1_s", "1_2_s", "1_3_s", "1_6_s"]
    assert val[:3] == ["1_4_s", "1_5_s", "1_9_s"]
    assert sorted(train + val) == sorted(names)


def test_the_folder_follows_the_published_rules(sources: tuple[Path, Path], tmp_path: Path) -> None:
    root = build_msrc(*sources, tmp_path / "msrc")
    assert root == tmp_path / "msrc"
    assert sorted(os.listdir(root)) == ["ImageSets", "JPEGImages", "SegmentationClass", "classes.txt", "labels.csv"]
    train, val = VOCFolder(root, "train"), VOCFolder(root, "val")
    # sorted as integers: (9, 1) before (10, 1), (3, 9) before (3, 11); three to train, two to val, and again
    assert train.names == ("1_2_s", "1_10_s", "2_2_s", "3_11_s", "9_1_s", "9_6_s")
    assert val.names == ("3_1_s", "3_9_s", "10_1_s")
    assert train.classes == VOC_CLASSES
    assert check_folder(root, ["train", "val"]).bad == {}
    for folder in (train, val):
        for name in folder.names:
            scene, number = (int(part) for part in name.split("_")[:2])
            classes = SCENES[scene, number]
            expected = np.array([VOC_ID.get(k, 0) for k in classes] + [255])[_regions(classes) - 1]
            np.testing.assert_array_equal(read_label_map(root / "SegmentationClass" / f"{name}.png"), expected)
            present = {VOC_ID[k] for k in classes if k in VOC_ID}
            assert set(np.flatnonzero(folder.label(name))) == {0} | present


def test_images_are_jpegs_of_quality_92(sources: tuple[Path, Path], tmp_path: Path) -> None:
    root = build_msrc(*sources, tmp_path / "msrc")
    buffer = io.BytesIO()
    _image(1, 10).save(buffer, "JPEG", quality=92)
    assert (root / "JPEGImages" / "1_10_s.jpg").read_bytes() == buffer.getvalue()


def test_zip_archives_give_the_same_folder(sources: tuple[Path, Path], tmp_path: Path) -> None:
    images, annotations = sources
    expected = build_msrc(images, annotations, tmp_path / "folders")
    archive = _zip(images, "MSRC_ObjCategImageDatabase_v2")
    got = build_msrc(archive, _zip(annotations, "newsegmentations"), tmp_path / "archives")
    files = [path.relative_to(expected) for path in expected.rglob("*") if path.is_file()]
    assert len(files) == 2 + 2 + 9 + 9
    assert {path.relative_to(got) for path in got.rglob("*") if path.is_file()} == set(files)
    for file in files:
        assert (got / file).read_bytes() == (expected / file).read_bytes()


def test_one_folder_may_hold_both(sources: tuple[Path, Path], tmp_path: Path) -> None:
    images, annotations = sources
    shutil.copytree(annotations, images / "GT")
    assert len(VOCFolder(build_msrc(images, images, tmp_path / "msrc"), "val")) == 3


def _write_mat(annotations: Path, **content: Any) -> None:
    savemat(annotations / "3_1_s_GT.mat", content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda i, a: (i / "Images/3_1_s.bmp").unlink(), r"3_1_s_GT\.mat: expected its image in .*db, got none"),
        (lambda i, a: (a / "3_1_s_GT.mat").unlink(), r"3_1_s\.bmp: expected its annotation in .*annotation, got"),
        (lambda i, a: (i / "Images/3_1_s.bmp").write_bytes(b"x"), r"3_1_s\.bmp: expected a readable image, got "),
        (lambda i, a: (a / "3_1_s_GT.mat").write_bytes(b"x" * 200), r"3_1_s_GT\.mat: expected a MATLAB 5 file"),
        (lambda i, a: (a / "3_1_s_GT.mat").write_bytes(b""), r"3_1_s_GT\.mat: expected a MATLAB 5 file"),
        (
            lambda i, a: (a / "3_1_s_GT.mat").write_bytes((a / "3_1_s_GT.mat").read_bytes()[:300]),
            r"3_1_s_GT\.mat: expected ",
        ),
        (lambda i, a: _write_mat(a, newseg=np.ones((12, 24))), "expected newseg and newlabels, got no newlabels"),
        (
            lambda i, a: _write_mat(a, newseg="text", newlabels=np.ones((1, 1))),
            "expected whole numbers in newseg, got <U",
        ),
        (
            lambda i, a: _write_mat(a, newseg=np.full((12, 24), 1.5), newlabels=np.ones((1, 2))),
            "expected whole numbers in newseg, got float64",
        ),
        (
            lambda i, a: _write_mat(a, newseg=np.ones((12, 23)), newlabels=np.array([[4]])),
            r"3_1_s_GT\.mat: expected the image's size 24x12, got 23x12",
        ),
        (
            lambda i, a: _write_mat(a, newseg=np.full((12, 24), 9), newlabels=np.array([[4]])),
            r"3_1_s_GT\.mat: newseg: expected regions 1\.\.2, got 9\.\.9",
        ),
        (
            lambda i, a: shutil.copy(i / "Images/3_1_s.bmp", i / "GroundTruth/3_1_s.bmp"),
            r"3_1_s\.bmp: expected each file once, got ",
        ),
        (lambda i, a: shutil.rmtree(a), "annotation: expected a folder or zip archive of annotations .*, got nothing"),
        (lambda i, a: shutil.rmtree(i / "Images"), r"db: expected images \{scene\}_\{number\}_s\.bmp, got none"),
    ],
)
def test_bad_sources(sources: tuple[Path, Path], tmp_path: Path, damage: Any, message: str) -> None:
    damage(*sources)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        build_msrc(*sources, tmp_path / "msrc")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before  # nothing half-made stays


def test_a_file_that_is_no_archive(sources: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"images\.zip: expected a folder or zip archive, got "):
        build_msrc(tmp_path / "images.zip", sources[1], tmp_path / "msrc")


def test_a_damaged_archive_names_the_member(sources: tuple[Path, Path], tmp_path: Path) -> None:
    images, annotations = sources
    archive = _zip(images, "db")
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        start = file.getinfo("db/Images/1_2_s.bmp").header_offset
    content[start + 200] ^= 0xFF  # the check sum no longer fits
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"db\.zip/db/Images/1_2_s\.bmp: expected a readable image, got Bad CRC"):
        build_msrc(archive, annotations, tmp_path / "msrc")


def test_too_few_images(sources: tuple[Path, Path], tmp_path: Path) -> None:
    images, annotations = sources
    for scene, number in list(SCENES)[3:]:
        (images / "Images" / f"{scene}_{number}_s.bmp").unlink()
        (annotations / f"{scene}_{number}_s_GT.mat").unlink()
    with pytest.raises(InputError, match="expected at least 4 images with an object class, got 2"):
        build_msrc(images, annotations, tmp_path / "msrc")


def test_an_existing_folder_is_kept(sources: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a new or empty folder, got one with content"):
        build_msrc(*sources, sources[0])


def test_command(sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--images", str(sources[0]), "--annotations", str(sources[1]), "--out"]
    assert main([*flags, str(tmp_path / "msrc")]) == 0
    assert "msrc: 6 train and 3 val images\n" in capsys.readouterr().out
    assert main([*flags, str(sources[0])]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
