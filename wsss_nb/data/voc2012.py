"""PASCAL VOC 2012 with SBD's masks, as the field trains on it: fetched, unpacked, converted, counted.

Runs do not depend on this module: what they read is the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from wsss_nb.data.archives import read_archive
from wsss_nb.data.download import Archive, check_archive, fetch
from wsss_nb.data.labels import VOC_CLASSES, labels_from_xml, write_label_rows
from wsss_nb.data.palette import save_label_map
from wsss_nb.data.sbd import sbd_mask, train_aug_names
from wsss_nb.data.voc import VOCFolder
from wsss_nb.errors import InputError
from wsss_nb.files import atomic_path

__all__ = ["VOC_ARCHIVES", "VOC_COUNTS", "build_voc2012", "mirrored"]

VOC_ARCHIVES: Mapping[str, Archive] = {
    "trainval": Archive(
        "VOCtrainval_11-May-2012.tar",
        (
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://data.pjreddie.com/files/VOCtrainval_11-May-2012.tar",
        ),
        1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
    "sbd": Archive(
        "benchmark.tgz",
        (
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        ),
        sha256="6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    ),
    # the organisers' own copy asks for an account; this is the mirror in general use
    "test": Archive(
        "VOC2012test.tar",
        (
            "http://pjreddie.com/media/files/VOC2012test.tar",
            "https://data.pjreddie.com/files/VOC2012test.tar",
        ),
        1_850_626_560,
        "f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
    ),
}
"""The three archives by role. SHA-256 are those that TensorFlow Datasets and torchvision check; SBD's size is not
checked apart."""

VOC_COUNTS: Mapping[str, int] = {"train": 1464, "val": 1449, "train_aug": 10582, "test": 1456}
"""Images of each split."""

_LISTS = PurePosixPath("ImageSets/Segmentation")
_FOLDERS = {"Annotations": ".xml", "JPEGImages": ".jpg", "SegmentationClass": ".png"}

_Lists = dict[str, tuple[str, ...]]


def mirrored(archives: Mapping[str, Archive], base: str) -> dict[str, Archive]:
    """The same archives to be had at ``base/NAME``, same sizes and SHA-256.

    Raises:
        InputError: ``base`` is no http or https address.

    Example:
        >>> mirrored(VOC_ARCHIVES, "https://example.org/voc")["sbd"].urls
        ('https://example.org/voc/benchmark.tgz',)
    """
    if urlsplit(base).scheme not in {"http", "https"} or not urlsplit(base).netloc:
        raise InputError(f"mirror: expected an address http(s)://HOST/FOLDER, got {base!r}")
    return {
        role: replace(archive, urls=(f"{base.rstrip('/')}/{archive.name}",))
        for role, archive in archives.items()
    }


def build_voc2012(
    root: str | os.PathLike[str],
    given: Mapping[str, Path] | None = None,
    *,
    test: bool = False,
    archives: Mapping[str, Archive] = VOC_ARCHIVES,
    counts: Mapping[str, int] = VOC_COUNTS,
    verify: bool = True,
) -> Path:
    """Make ``root/VOCdevkit/VOC2012`` with the splits train, val, train_aug and, if wanted, test.

    train_aug = (VOC train + SBD train + SBD val) - VOC val. SBD's masks become palette PNGs in SegmentationClass for
    the images that have no mask of VOC; labels.csv holds the image-level labels of train_aug and val, from
    the XML annotations. Only what segmentation needs is unpacked.

    Files appear whole, and the list of a split appears after all of its files, so a folder that was killed half way
    has no half split: the same call carries on, and is over at once where all is there. Folders that
    others unpacked are completed; their files are not touched.

    Args:
        root: where ``VOCdevkit`` and, for downloads, ``archives`` go.
        given: archives that are here already, by role ("trainval", "sbd", "test"); the others are downloaded.
        test: also the test split's images.
        archives: what to download, with sizes and SHA-256.
        counts: images of each split; another number is an error.
        verify: whether given archives must be the published ones.

    Returns:
        The folder.

    Raises:
        InputError: no network, a wrong or damaged archive, a file missing in it, other counts, no room.

    Example:
        >>> root = build_voc2012("data", {"trainval": Path("VOCtrainval_11-May-2012.tar")})  # doctest: +SKIP
        >>> VOCFolder(root, "train_aug")  # doctest: +SKIP
        VOCFolder('data/VOCdevkit/VOC2012', 'train_aug'): 10582 images, 21 classes
    """
    root = Path(root)
    voc = root / "VOCdevkit" / "VOC2012"
    given = dict(given or {})
    for role, path in given.items():
        if not path.is_file():
            raise InputError(f"{role}: expected an archive, got no file {path}")

    def archive(role: str) -> Path:
        if role not in given:
            return fetch(archives[role], root / "archives")
        if verify:
            check_archive(given[role], archives[role])
        return given[role]

    lists = voc / _LISTS
    if not all((lists / f"{split}.txt").is_file() for split in ("train", "val")):
        _unpack(archive("trainval"), voc, ("train", "val"), counts)
    if not (lists / "train_aug.txt").is_file():
        _add_sbd(archive("sbd"), voc, counts)
    if test and not (lists / "test.txt").is_file():
        _unpack_test(archive("test"), voc, counts)
    for split in ("train", "val", "train_aug", *(["test"] if test else [])):
        _counted(voc, split, VOCFolder(voc, split).names, counts)
    return voc


def _unpack(path: Path, voc: Path, splits: tuple[str, ...], counts: Mapping[str, int]) -> None:
    """VOC's images, masks and annotations, then the lists of ``splits``."""
    lists: _Lists = {}
    for inside, content in read_archive(path, lambda inside: _voc_place(inside) is not None):
        place = _voc_place(inside)
        assert place is not None
        if place.parent == _LISTS:
            lists[place.stem] = _names(content, f"{path}: {inside}")
        else:
            _write(voc / place, content)
    for split in splits:
        names = _listed(path, lists, split)
        _counted(path, split, names, counts)
        _present(path, voc, split, names, _FOLDERS)
    for split in splits:
        _write_list(voc, split, lists[split])


def _unpack_test(path: Path, voc: Path, counts: Mapping[str, int]) -> None:
    """The images of the segmentation test split alone (the archive has eleven times as many), then its list."""
    lists: _Lists = {}
    for inside, content in read_archive(path, lambda inside: _voc_place(inside) == _LISTS / "test.txt"):
        lists["test"] = _names(content, f"{path}: {inside}")
    names = _listed(path, lists, "test")
    _counted(path, "test", names, counts)
    wanted = {PurePosixPath("JPEGImages") / f"{name}.jpg" for name in names}
    for inside, content in read_archive(path, lambda inside: _voc_place(inside) in wanted):
        place = _voc_place(inside)
        assert place is not None
        _write(voc / place, content)
    _present(path, voc, "test", names, {"JPEGImages": ".jpg"})
    _write_list(voc, "test", names)


def _add_sbd(path: Path, voc: Path, counts: Mapping[str, int]) -> None:
    """SBD's masks where VOC has none, the image-level labels, and last the list train_aug."""
    lists: _Lists = {}
    for inside, content in read_archive(path, _in_sbd):
        if inside.suffix == ".txt":
            lists[inside.stem] = _names(content, f"{path}: {inside}")
            continue
        mask = voc / "SegmentationClass" / f"{inside.stem}.png"
        if not mask.exists():
            value = sbd_mask(content, f"{path}: {inside}")
            _same_size(voc, inside.stem, value, f"{path}: {inside}")
            save_label_map(mask, value)
    val = VOCFolder(voc, "val").names
    names = train_aug_names(
        VOCFolder(voc, "train").names, _listed(path, lists, "train"), _listed(path, lists, "val"), val
    )
    _counted(path, "train_aug", names, counts)
    _present(path, voc, "train_aug", names, _FOLDERS)
    if not (voc / "labels.csv").exists():
        labels = {
            name: labels_from_xml(voc / "Annotations" / f"{name}.xml", VOC_CLASSES) for name in (*names, *val)
        }
        write_label_rows(labels, VOC_CLASSES, voc / "labels.csv")
    _write_list(voc, "train_aug", names)


def _voc_place(inside: PurePosixPath) -> PurePosixPath | None:
    """Where a file of a VOC archive goes in VOC2012; None for what segmentation does not need."""
    if "VOC2012" not in inside.parts:
        return None
    place = PurePosixPath(*inside.parts[inside.parts.index("VOC2012") + 1 :])
    if place.parent == _LISTS and place.suffix == ".txt":
        return place
    if len(place.parts) == 2 and _FOLDERS.get(place.parts[0]) == place.suffix and place.name[0] != ".":
        return place
    return None


def _in_sbd(inside: PurePosixPath) -> bool:
    """dataset/{train,val}.txt and dataset/cls/NAME.mat; images and instances are not needed."""
    if inside.name.startswith("."):
        return False
    *_, above, folder = ("", "", *inside.parts[:-1])
    if (above, folder) == ("dataset", "cls"):
        return inside.suffix == ".mat"
    return folder == "dataset" and inside.name in {"train.txt", "val.txt"}


def _names(content: bytes, source: str) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in content.decode("utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: expected a list of image names, got {error}") from error
    for name in names:
        if name.startswith(".") or any(character in name for character in "/\\\0"):
            raise InputError(f"{source}: expected names of files, got {name!r}")
    return names


def _listed(path: Path, lists: _Lists, split: str) -> tuple[str, ...]:
    if not lists.get(split):
        raise InputError(f"{path}: expected the list {split}.txt, got none")
    return lists[split]


def _counted(source: Path, split: str, names: Iterable[str], counts: Mapping[str, int]) -> None:
    count = len(set(names))
    if split in counts and count != counts[split]:
        raise InputError(f"{source}: expected {counts[split]} names in {split}, got {count}")


def _present(path: Path, voc: Path, split: str, names: Iterable[str], folders: Mapping[str, str]) -> None:
    for name in names:
        for folder, suffix in folders.items():
            if not (voc / folder / f"{name}{suffix}").is_file():
                raise InputError(f"{path}: expected {folder}/{name}{suffix} of split {split}, got none")


def _same_size(voc: Path, name: str, mask: np.ndarray, source: str) -> None:
    path = voc / "JPEGImages" / f"{name}.jpg"
    try:
        with Image.open(path) as image:  # the header only
            size = image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{source}: expected its image {path} to be readable, got {error}") from error
    if size != mask.shape[::-1]:
        got = f"{mask.shape[1]}x{mask.shape[0]}"
        raise InputError(f"{source}: expected the image's size {size[0]}x{size[1]}, got {got}")


def _write(path: Path, content: bytes) -> None:
    """Write a file unless it is there: what is there was written whole, or is somebody's own."""
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


def _write_list(voc: Path, split: str, names: Iterable[str]) -> None:
    with atomic_path(voc / _LISTS / f"{split}.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
