"""Folders in PASCAL VOC's layout: images, masks, splits and image-level labels, with clear errors; label maps as PNGs."""

import copy
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from wsss_nb.data import layout
from wsss_nb.system.config import VOID
from wsss_nb.system.errors import InputError, expecting, require
from wsss_nb.system.files import atomic_path

__all__ = ["VOCFolder", "check_folder", "colorize", "read_label_map", "save_label_map", "voc_colormap", "write_lists"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_Array = npt.NDArray[np.uint8]


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

    def __init__(self, root: str | os.PathLike[str], split: str, labels: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root)
        self.split = split
        got = "one without JPEGImages" if self.root.is_dir() else "no folder"
        require((self.root / "JPEGImages").is_dir(), f"{self.root}: expected a folder in VOC layout, got {got}")
        self.classes = layout.read_classes(self.root / "classes.txt")
        names = layout.list_path(self.root, split)
        with expecting("a list of image names in UTF-8", names):
            self.names = layout.parse_names(names.read_bytes(), names)
        self._csv = Path(labels) if labels is not None else self.root / "labels.csv"
        if labels is not None or self._csv.exists():
            layout.require_file(self._csv, "a CSV of labels")
        self._read: Callable[[Path], bytes] = Path.read_bytes

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __repr__(self) -> str:
        """Root, split and size."""
        return f"VOCFolder({str(self.root)!r}, {self.split!r}): {len(self)} images, {self.num_classes} classes"

    @property
    def num_classes(self) -> int:
        """K, background counted."""
        return len(self.classes)

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
        paths = [self.root / "JPEGImages" / f"{name}{suffix}" for suffix in _IMAGE_SUFFIXES]
        return layout.require_file(next(filter(Path.is_file, paths), paths[0]), "an image")

    def image(self, name: str) -> _Array:
        """The image (H, W, 3) uint8 RGB; grey, palette and CMYK files are converted, turned as EXIF says.

        Raises:
            InputError: the file is missing, corrupt or has more than 8 bits a channel.
        """
        path = self.image_path(name)
        with expecting("a readable image", path), Image.open(BytesIO(self._read(path))) as image:
            eight_bit = image.mode[0] not in "IF"
            require(eight_bit, f"{path}: expected an image of 8 bits a channel, got mode {image.mode}")
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        return pixels

    def mask(self, name: str) -> _Array:
        """The mask (H, W) uint8 of class ids, 255 = ignore.

        Raises:
            InputError: the mask is missing or unreadable, has another size than the image, or holds an id
                outside the list of classes.
        """
        return self._label_map(self.root / "SegmentationClass", name, self.num_classes, "a mask")

    def part(self, name: str) -> _Array:
        """The part mask (H, W) uint8: 0 background, 1 body, 2 head.

        Raises:
            InputError: as `mask`.
        """
        return self._label_map(self.root / "SegmentationParts", name, 3, "a mask")

    def prediction(self, predictions: str | os.PathLike[str], name: str) -> _Array:
        """The label map ``predictions/NAME.png`` (H, W) uint8 of class ids; every pixel has a class, none is 255.

        Raises:
            InputError: it is missing or unreadable, has another size than the image, or other ids.
        """
        return self._label_map(Path(predictions), name, self.num_classes, "a label map", void=False)

    def label(self, name: str) -> _Array:
        """Image-level labels y (K,) uint8 of one image, y[0] = 1; all other zero for an image of background.

        Raises:
            InputError: the source has no entry for the image, or is malformed.
        """
        if self.label_source == "annotations":
            return layout.labels_from_xml(self.root / "Annotations" / f"{name}.xml", self.classes)
        if self.label_source == "masks":
            return layout.labels_from_mask(self.mask(name), self.num_classes)
        require(name in self._rows, f"{self._csv}: expected a row for image {name!r}, got none")
        return self._rows[name].copy()

    def labels(self) -> dict[str, _Array]:
        """Image-level labels (K,) uint8 of every image by name, in the order of the split.

        Raises:
            InputError: as `label`.
        """
        return {name: self.label(name) for name in self.names}

    def subset(self, names: Iterable[str]) -> "VOCFolder":
        """The same folder with only these images, in this order.

        Raises:
            InputError: a name is not in the split, or there is none.
        """
        other = copy.copy(self)
        other.names = tuple(names)
        if unknown := set(other.names) - set(self.names):
            raise InputError(f"names: expected images of split {self.split!r}, got {min(unknown)!r}")
        require(len(other) > 0, f"names: expected at least one image of split {self.split!r}, got none")
        return other

    def without(self, names: Collection[str]) -> "VOCFolder":
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
        return _split_hash(self.classes, {name: self._fingerprint(name, masks=masks) for name in self.names})

    def _fingerprint(self, name: str, *, masks: bool) -> bytes:
        """What the hash of a split takes of one image."""
        digests = hashlib.sha256(self._read(self.image_path(name))).hexdigest().encode() + self.label(name).tobytes()
        for kind in ("SegmentationClass", "SegmentationParts") if masks else ():
            path = self.root / kind / f"{name}.png"
            digests += hashlib.sha256(self._read(path)).hexdigest().encode() if path.is_file() else b"none"
        return digests

    @cached_property
    def _rows(self) -> dict[str, _Array]:
        return layout.labels_from_csv(self._csv, self.classes)

    def _label_map(self, folder: Path, name: str, num_labels: int, what: str, *, void: bool = True) -> _Array:
        path, image_path = (
            layout.require_file(folder / f"{name}.png", f"{what} of image {name!r}"),
            self.image_path(name),
        )
        label_map = read_label_map(path, self._read(path))
        check_size(label_map, path, image_path, self._read(image_path))
        highest = int(label_map.max(initial=0, where=label_map != VOID if void else True))
        allowed = f"0..{num_labels - 1}" + (f" or {VOID}" if void else "")
        require(highest < num_labels, f"{path}: expected class ids {allowed}, got {highest}")
        return label_map


def _split_hash(classes: Sequence[str], fingerprints: Mapping[str, bytes]) -> str:
    head = b"".join(text.encode() + b"\0" for text in (*classes, "", *fingerprints, ""))
    return hashlib.sha256(head + b"".join(fingerprints.values())).hexdigest()


def check_size(label_map: _Array, source: object, image_path: Path, content: bytes) -> None:
    """Compare a label map's size with that of its image, turned as EXIF says.

    Args:
        label_map: (H, W).
        source: where it comes from, for the message.
        image_path: the image.
        content: its bytes; only the header is decoded.

    Raises:
        InputError: the sizes differ, or the image is unreadable.
    """
    with expecting("a readable image", image_path), Image.open(BytesIO(content)) as image:
        turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        width, height = image.size[::-1] if turned else image.size
    size, got = f"{width}x{height}", f"{label_map.shape[1]}x{label_map.shape[0]}"
    require(size == got, f"{source}: expected the image's size {size}, got {got}")


class CheckReport(NamedTuple):
    """What `check_folder` found.

    Attributes:
        bad: the reason for each bad image by name.
        hashes: per split `VOCFolder.split_hash` of what is left without the bad images.
    """

    bad: dict[str, str]
    hashes: dict[str, str]


def check_folder(
    root: str | os.PathLike[str], splits: Sequence[str], skip_bad: bool = False, *,
    mask_splits: Sequence[str] | None = None, hash_masks: Sequence[str] = ()
) -> CheckReport:  # fmt: skip
    """Open every file of some splits of a VOC-layout folder before hours of training depend on them.

    Each file is read once: it is opened and hashed from memory.

    Args:
        root: the folder.
        splits: which lists.
        skip_bad: collect the bad images instead of raising at the first.
        mask_splits: the splits whose masks are opened too; None = all. Training needs only labels, so a train
            split may do without masks where its labels have another source.
        hash_masks: the splits whose hashes take the masks in, as ``split_hash(masks=True)`` does.

    Returns:
        The bad images with their reasons (leave them out by ``folder.without(report.bad)``) and the splits' hashes.

    Raises:
        InputError: the folder or a list is missing or empty, or (without ``skip_bad``) an image, mask or
            label is bad: the first is named. With ``skip_bad`` if every image of a split is bad.

    Example:
        >>> report = check_folder("fish", ["train", "val"])
        >>> report.bad, list(report.hashes)
        ({}, ['train', 'val'])
    """
    bad: dict[str, str] = {}
    found: dict[str, tuple[VOCFolder, dict[str, bytes]]] = {}
    for split in splits:
        folder, good = found[split] = VOCFolder(root, split), {}
        folder._read = lru_cache(maxsize=4)(Path.read_bytes)  # the files of one image
        if folder.label_source == "csv":
            _ = folder._rows  # a malformed CSV is no image's fault
        for name in folder.names:
            try:
                folder.image(name)
                if mask_splits is None or split in mask_splits:
                    folder.mask(name)
                    if folder.has_parts:
                        folder.part(name)
                good[name] = folder._fingerprint(name, masks=split in hash_masks)
            except InputError as error:
                if not skip_bad:
                    raise
                bad[name] = str(error)
        first = bad.get(folder.names[0])
        require(len(good) > 0, f"{root}: expected a usable image in split {split!r}, got none; first: {first}")
    left = {split: {name: good[name] for name in good if name not in bad} for split, (_, good) in found.items()}
    return CheckReport(bad, {split: _split_hash(found[split][0].classes, left[split]) for split in splits})


def write_lists(root: Path, classes: Sequence[str], splits: Mapping[str, Mapping[str, _Array]]) -> None:
    """Write classes.txt, labels.csv and ImageSets/Segmentation/SPLIT.txt.

    Args:
        root: the folder being written.
        classes: names by id, background first.
        splits: per split the vectors y (K,) by image name, in order.

    Example:
        >>> write_lists(Path("."), ["background", "cat"], {"train": {"a": np.array([1, 0], dtype=np.uint8)}})
    """
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for split, labels in splits.items():
        layout.write_list(root, split, labels)
    rows = {name: y for labels in splits.values() for name, y in labels.items()}
    layout.write_labels(rows, classes, root / "labels.csv")


# --- label maps as palette PNGs


@cache
def voc_colormap() -> npt.NDArray[np.uint8]:
    """PASCAL VOC's colours of the 256 labels, (256, 3) uint8, read-only.

    color[l][ch] = sum_b bit(l, 3 b + ch) << (7 - b): the bits of the label, dealt in turn to red, green and
    blue, most significant colour bit first. Label 0 is black, 1 dark red, 255 (void) cream.

    Example:
        >>> voc_colormap()[[0, 1, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [224, 224, 192]]
    """
    label, channel, b = np.ogrid[:256, :3, :8]
    colors = ((label >> (3 * b + channel) & 1) << (7 - b)).sum(-1).astype(np.uint8)
    colors.setflags(write=False)
    return colors


def colorize(label_map: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """RGB picture (H, W, 3) uint8 of a label map (H, W) in VOC's colours.

    Raises:
        InputError: the map is not two-dimensional or holds labels outside 0..255.

    Example:
        >>> colorize(np.array([[0, 1]])).tolist()
        [[[0, 0, 0], [128, 0, 0]]]
    """
    return voc_colormap()[_as_label_map(label_map)]


def save_label_map(path: str | os.PathLike[str], label_map: npt.NDArray[np.integer]) -> None:
    """Write a label map (H, W), labels 0..255, as a palette PNG in VOC's colours; the file appears whole.

    Raises:
        InputError: the map is not two-dimensional, not of integers, or holds labels outside 0..255,
            or the place is not writable.

    Example:
        >>> save_label_map("map.png", np.zeros((4, 6), dtype=np.uint8))
        >>> read_label_map("map.png").shape
        (4, 6)
    """
    image = Image.fromarray(_as_label_map(label_map))
    image.putpalette(voc_colormap().tobytes())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def read_label_map(path: str | os.PathLike[str], content: bytes | None = None) -> npt.NDArray[np.uint8]:
    """Labels (H, W) uint8 of a palette or grey PNG of 1 to 8 bits; the palette's colours play no part.

    Args:
        path: the file.
        content: its bytes, where they have been read already.

    Raises:
        InputError: the file is missing, unreadable, or a colour image (which has no labels to read).

    Example:
        >>> save_label_map("map.png", np.full((2, 3), 255, dtype=np.uint8))
        >>> int(read_label_map("map.png").max())
        255
    """
    with expecting("a readable label map (PNG)", path):
        image = Image.open(BytesIO(Path(path).read_bytes() if content is None else content))
        has_labels = image.mode in ("P", "L", "1")
        require(has_labels, f"{path}: expected a palette or 8-bit grey PNG, got an image of mode {image.mode}")
        # Pillow spreads grey values of 2 and 4 bits over 0..255; labels are the stored numbers
        step = {"L;2": 85, "L;4": 17}.get(str(image.tile[0][3]), 1) if image.format == "PNG" else 1
        label_map = np.array(image, dtype=np.uint8) // np.uint8(step)
    return label_map


def _as_label_map(label_map: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    label_map = np.asarray(label_map)
    require(label_map.ndim == 2 and label_map.size > 0, f"label_map: expected shape (H, W), got {label_map.shape}")
    require(label_map.dtype.kind in "ui", f"label_map: expected integers, got {label_map.dtype}")
    low, high = int(label_map.min()), int(label_map.max())
    require(low >= 0 and high <= 255, f"label_map: expected labels 0..255, got {low}..{high}")
    return label_map.astype(np.uint8, copy=False)
