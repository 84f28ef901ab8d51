"""Folders in PASCAL VOC's layout: images, masks, splits and image-level labels, with clear errors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from wsss_nb.data.labels import VOC_CLASSES, labels_from_csv, labels_from_mask, labels_from_xml
from wsss_nb.data.palette import IGNORE, read_label_map
from wsss_nb.errors import InputError
from wsss_nb.files import sha256_file

__all__ = ["CheckReport", "VOCFolder", "check_folder"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_EIGHT_BIT_MODES = ("RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA", "PA", "RGBX", "LAB", "HSV")
_Image = npt.NDArray[np.uint8]


class VOCFolder:
    """One split of a folder in VOC's layout.

    ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` (palette PNG, 255 = ignore),
    ``ImageSets/Segmentation/SPLIT.txt`` (one name a line), and optionally ``classes.txt`` (one name a line,
    background first; without it VOC's 21), ``labels.csv``, ``Annotations/NAME.xml``,
    ``SegmentationParts/NAME.png`` (0 background, 1 body, 2 head).

    Image-level labels come from the CSV ``labels``, else labels.csv, else Annotations, else the masks. No
    mask is opened but by `mask`, `part`, and labels that have no other source.

    Args:
        root: the folder.
        split: name of the list in ImageSets/Segmentation, without ``.txt``.
        labels: a CSV of image-level labels (see `labels_from_csv`).

    Raises:
        InputError: the folder, a part of it, or the list is missing or malformed.

    Example:
        >>> folder = VOCFolder("VOCdevkit/VOC2012", "train")
        >>> folder.image(folder.names[0]).shape, folder.num_classes
        ((281, 500, 3), 21)
    """

    def __init__(
        self, root: str | os.PathLike[str], split: str, labels: str | os.PathLike[str] | None = None
    ) -> None:
        self.root = Path(root)
        self.split = split
        if not self.root.is_dir():
            raise InputError(f"{self.root}: expected a folder in VOC layout, got no folder")
        if not (self.root / "JPEGImages").is_dir():
            raise InputError(f"{self.root}: expected a folder in VOC layout, got one without JPEGImages")
        self.classes: tuple[str, ...] = _read_classes(self.root / "classes.txt")
        self.names: tuple[str, ...] = _read_split(self.root / "ImageSets" / "Segmentation" / f"{split}.txt")
        self._csv = Path(labels) if labels is not None else self.root / "labels.csv"
        if labels is not None and not self._csv.is_file():
            raise InputError(f"{self._csv}: expected a CSV of labels, got no file")
        self._rows: dict[str, npt.NDArray[np.uint8]] | None = None
        self._known: dict[str, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __repr__(self) -> str:
        """Root, split and size."""
        return (
            f"VOCFolder({str(self.root)!r}, {self.split!r}): {len(self)} images, {self.num_classes} classes"
        )

    @property
    def num_classes(self) -> int:
        """K, background counted."""
        return len(self.classes)

    @property
    def has_masks(self) -> bool:
        """Whether there is a SegmentationClass folder."""
        return (self.root / "SegmentationClass").is_dir()

    @property
    def has_parts(self) -> bool:
        """Whether there are part masks (the synthetic data set has them)."""
        return (self.root / "SegmentationParts").is_dir()

    @property
    def label_source(self) -> str:
        """Where image-level labels come from: "csv", "annotations" or "masks"."""
        if self._csv.is_file():
            return "csv"
        return "annotations" if (self.root / "Annotations").is_dir() else "masks"

    def image_path(self, name: str) -> Path:
        """The image's file.

        Raises:
            InputError: there is none.
        """
        for suffix in _IMAGE_SUFFIXES:
            path = self.root / "JPEGImages" / f"{name}{suffix}"
            if path.is_file():
                return path
        raise InputError(f"{self.root / 'JPEGImages' / name}.jpg: expected an image, got no file")

    def image(self, name: str) -> _Image:
        """The image (H, W, 3) uint8 RGB; grey, palette and CMYK files are converted, turned as EXIF says.

        Raises:
            InputError: the file is missing, corrupt or has more than 8 bits a channel.
        """
        path = self.image_path(name)
        try:
            with Image.open(path) as image:
                if image.mode in _EIGHT_BIT_MODES:
                    return np.array(ImageOps.exif_transpose(image).convert("RGB"))
                mode = image.mode
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: expected a readable image, got {_one_line(error, path)}") from error
        raise InputError(f"{path}: expected an image of 8 bits a channel, got mode {mode}")

    def mask(self, name: str) -> _Image:
        """The mask (H, W) uint8 of class ids, 255 = ignore.

        Raises:
            InputError: the mask is missing or unreadable, has another size than the image, or holds an id
                outside the list of classes.
        """
        path = self.root / "SegmentationClass" / f"{name}.png"
        return self._label_map(path, name, self.num_classes, "a mask")

    def part(self, name: str) -> _Image:
        """The part mask (H, W) uint8: 0 background, 1 body, 2 head.

        Raises:
            InputError: as `mask`.
        """
        path = self.root / "SegmentationParts" / f"{name}.png"
        return self._label_map(path, name, 3, "a mask")

    def prediction(self, predictions: str | os.PathLike[str], name: str) -> _Image:
        """The label map ``predictions/NAME.png`` (H, W) uint8 of class ids; every pixel has a class, none is 255.

        Raises:
            InputError: it is missing or unreadable, has another size than the image, or other ids.
        """
        path = Path(predictions) / f"{name}.png"
        return self._label_map(path, name, self.num_classes, "a label map", ignore=False)

    def label(self, name: str) -> npt.NDArray[np.uint8]:
        """Image-level labels y (K,) uint8 of one image, y[0] = 1; all other zero for an image of background.

        Raises:
            InputError: the source has no entry for the image, or is malformed.
        """
        if name not in self._known:
            self._known[name] = self._find_label(name)
        return self._known[name].copy()

    def labels(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Image-level labels (K,) uint8 of every image by name, in the order of the split.

        Raises:
            InputError: as `label`.
        """
        return {name: self.label(name) for name in self.names}

    def subset(self, names: Iterable[str]) -> VOCFolder:
        """The same folder with only these images, in this order.

        Raises:
            InputError: a name is not in the split, or there is none.
        """
        names = tuple(names)
        known = set(self.names)
        for name in names:
            if name not in known:
                raise InputError(f"names: expected images of split {self.split!r}, got {name!r}")
        if not names:
            raise InputError(f"names: expected at least one image of split {self.split!r}, got none")
        other = VOCFolder.__new__(VOCFolder)
        other.__dict__.update(self.__dict__)
        other.names = names
        return other

    def without(self, names: Collection[str]) -> VOCFolder:
        """The same folder without these images (those a `CheckReport` calls bad).

        Raises:
            InputError: nothing is left.
        """
        return self.subset(name for name in self.names if name not in names)

    def split_hash(self, *, masks: bool = False) -> str:
        """SHA-256 of the split: class names, image names, the files' bytes and the labels.

        Args:
            masks: also the bytes of the masks and part masks (for scores; training must not open them).

        Raises:
            InputError: a file is missing.
        """
        digest = hashlib.sha256()
        for text in (*self.classes, "", *self.names, ""):
            digest.update(text.encode() + b"\0")
        for name in self.names:
            digest.update(sha256_file(self.image_path(name)).encode())
            digest.update(self.label(name).tobytes())
            for kind in ("SegmentationClass", "SegmentationParts") if masks else ():
                path = self.root / kind / f"{name}.png"
                digest.update(sha256_file(path).encode() if path.is_file() else b"none")
        return digest.hexdigest()

    def _find_label(self, name: str) -> npt.NDArray[np.uint8]:
        source = self.label_source
        if source == "annotations":
            return labels_from_xml(self.root / "Annotations" / f"{name}.xml", self.classes)
        if source == "masks":
            return labels_from_mask(self.mask(name), self.num_classes)
        if self._rows is None:
            self._rows = labels_from_csv(self._csv, self.classes)
        if name not in self._rows:
            raise InputError(f"{self._csv}: expected a row for image {name!r}, got none")
        return self._rows[name]

    def _label_map(self, path: Path, name: str, num_labels: int, what: str, *, ignore: bool = True) -> _Image:
        if not path.is_file():
            raise InputError(f"{path}: expected {what} of image {name!r}, got no file")
        label_map = read_label_map(path)
        image_path = self.image_path(name)
        try:
            with Image.open(image_path) as image:  # the header only
                width, height = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = _one_line(error, image_path)
            raise InputError(f"{image_path}: expected a readable image, got {reason}") from error
        if label_map.shape != (height, width):
            got = f"{label_map.shape[1]}x{label_map.shape[0]}"
            raise InputError(f"{path}: expected the image's size {width}x{height}, got {got}")
        present = np.bincount(label_map.reshape(-1), minlength=256)
        if ignore:
            present[IGNORE] = 0
        top = int(np.flatnonzero(present)[-1]) if present.any() else 0
        if top >= num_labels:
            allowed = f"0..{num_labels - 1}" + (f" or {IGNORE}" if ignore else "")
            raise InputError(f"{path}: expected class ids {allowed}, got {top}")
        return label_map


@dataclass(frozen=True)
class CheckReport:
    """What `check_folder` found: the reason for each bad image by name, and how many images it opened."""

    bad: dict[str, str]
    counted: int

    def __str__(self) -> str:
        """One line for a log."""
        if not self.bad:
            return f"{self.counted} images, none bad"
        reasons = "; ".join(self.bad.values())
        return f"{self.counted} images, {len(self.bad)} bad ones skipped: {reasons}"


def check_folder(
    root: str | os.PathLike[str],
    splits: Sequence[str],
    skip_bad: bool = False,
    *,
    labels: str | os.PathLike[str] | None = None,
    mask_splits: Sequence[str] | None = None,
) -> CheckReport:
    """Open every file of some splits of a VOC-layout folder before hours of training depend on them.

    Args:
        root: the folder.
        splits: which lists.
        skip_bad: collect the bad images instead of raising at the first.
        labels: a CSV of image-level labels, as for `VOCFolder`.
        mask_splits: the splits whose masks are opened too; None = all. Training needs only labels, so a train
            split may do without masks where its labels have another source.

    Returns:
        The bad images with their reasons; leave them out by ``folder.without(report.bad)``.

    Raises:
        InputError: the folder or a list is missing or empty, or (without ``skip_bad``) an image, mask or
            label is bad: the first is named. With ``skip_bad`` if every image of a split is bad.

    Example:
        >>> report = check_folder("fish", ["train", "val"])
        >>> print(report)
        750 images, none bad
    """
    mask_splits = splits if mask_splits is None else mask_splits
    bad: dict[str, str] = {}
    counted = 0
    for split in splits:
        folder = VOCFolder(root, split, labels)
        if folder.label_source == "csv":
            folder._rows = labels_from_csv(folder._csv, folder.classes)  # a malformed CSV is no image's fault
        good = 0
        for name in folder.names:
            try:
                folder.image(name)
                if split in mask_splits:
                    folder.mask(name)
                    if folder.has_parts:
                        folder.part(name)
                folder.label(name)
                good += 1
            except InputError as error:
                if not skip_bad:
                    raise
                bad[name] = str(error)
        counted += len(folder)
        if not good:
            first = bad[folder.names[0]]
            raise InputError(f"{root}: expected a usable image in split {split!r}, got none; first: {first}")
    return CheckReport(bad, counted)


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return VOC_CLASSES
    classes = tuple(line.strip() for line in _read_text(path).rstrip().splitlines())
    if len(classes) < 2 or len(classes) > IGNORE or not all(classes):
        raise InputError(f"{path}: expected 2 to {IGNORE} class names, one a line, got {len(classes)} lines")
    if classes[0] != "background":
        raise InputError(f"{path}: expected 'background' in the first line, got {classes[0]!r}")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise InputError(f"{path}: expected each class once, got {twice!r} again")
    return classes


def _read_split(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise InputError(f"{path}: expected a list of image names, got no file")
    names = tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())
    if not names:
        raise InputError(f"{path}: expected at least one image name, got an empty list")
    seen: set[str] = set()
    for name in names:
        # names become file names of results, so none may point out of its folder
        if name in (".", "..") or any(character in name for character in "/\\\0"):
            raise InputError(f"{path}: expected names of files, got {name!r}")
        if name in seen:
            raise InputError(f"{path}: expected each image once, got {name!r} again")
        seen.add(name)
    return names


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, got {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, got {error}") from error


def _one_line(error: BaseException, path: Path) -> str:
    return " ".join(str(error).replace(repr(str(path)), "it").split()) or type(error).__name__
