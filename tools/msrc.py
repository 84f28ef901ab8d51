"""Real photographs: the MSRC object-class database v2 as a folder in VOC's layout.

Sources, not distributed here: the database's ``Images`` (``{scene}_{number}_s.bmp``, Microsoft Research
Cambridge, research use) and the cleaned-up annotation of Malisiewicz and Efros
(``{scene}_{number}_s_GT.mat``)::

    python -m tools.msrc --images DIR|ZIP --annotations DIR|ZIP --out DIR
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss_nb.data.layout import VOC_CLASSES, labels_from_mask, new_folder
from wsss_nb.data.voc import VOCFolder, save_label_map, write_lists
from wsss_nb.data.voc2012 import read_matlab
from wsss_nb.system.config import VOID
from wsss_nb.system.errors import InputError, expecting

__all__ = ["MSRC_CLASSES", "build_msrc", "main", "msrc_mask", "msrc_split"]

MSRC_CLASSES = (
    *("building", "grass", "tree", "cow", "horse", "sheep", "sky", "mountain", "aeroplane", "water", "face"),
    *("car", "bicycle", "flower", "sign", "bird", "book", "chair", "road", "cat", "dog", "body", "boat"),
)
"""The annotation's classes 1..23."""

_VOC_NAME = {"face": "person", "body": "person"}
_NAMES = ["background", *(_VOC_NAME.get(name, name) for name in MSRC_CLASSES)]
# VOC id of the classes 1..23 at the indices 1..23; whatever VOC does not know is background
_VOC_IDS = np.array([VOC_CLASSES.index(name) if name in VOC_CLASSES else 0 for name in _NAMES], dtype=np.uint8)
_IMAGE = re.compile(r"(\d+)_(\d+)_s\.bmp", re.IGNORECASE)
_ANNOTATION = re.compile(r"(\d+)_(\d+)_s_GT\.mat", re.IGNORECASE)
_MAX_FILE = 64 << 20  # bytes; the real files are below a megabyte

_Key = tuple[int, int]
_Files = dict[_Key, tuple[str, Callable[[], bytes]]]


def build_msrc(
    images: str | os.PathLike[str], annotations: str | os.PathLike[str], out: str | os.PathLike[str]
) -> Path:
    """Write the photographs that show at least one of 12 VOC classes as a VOC-layout folder, all or nothing.

    The 403 images of the full sources are ordered by (scene, number); of every five the first three go to
    train (243), the other two to val (160). JPEG quality 92, masks as `msrc_mask`, VOC's 21 classes, and the
    image-level labels as labels.csv, so that training never opens a mask.

    Args:
        images: folder or zip archive with ``{scene}_{number}_s.bmp``, at any depth; other files are ignored.
        annotations: folder or zip archive with ``{scene}_{number}_s_GT.mat``; may be the same.
        out: the new folder.

    Returns:
        The folder.

    Raises:
        InputError: a source is missing, unreadable or empty; an image has no annotation or the other way
            round; a file is malformed or of another size than its counterpart; ``out`` has content or cannot
            be written.

    Example:
        >>> root = build_msrc("Images", "annotation.zip", "msrc")
        >>> VOCFolder(root, "train")
        VOCFolder('msrc', 'train'): 243 images, 21 classes
    """
    with ExitStack() as stack:
        pictures = stack.enter_context(_open_source(Path(images), _IMAGE, "images {scene}_{number}_s.bmp"))
        regions = stack.enter_context(
            _open_source(Path(annotations), _ANNOTATION, "annotations {scene}_{number}_s_GT.mat")
        )
        for key in sorted(pictures.keys() ^ regions.keys()):
            if key in pictures:
                raise InputError(f"{pictures[key][0]}: expected its annotation in {annotations}, got none")
            raise InputError(f"{regions[key][0]}: expected its image in {images}, got none")
        labels: dict[str, npt.NDArray[np.uint8]] = {}
        folder = stack.enter_context(new_folder(out))
        (folder / "JPEGImages").mkdir()
        for key in sorted(pictures):
            mask = _read_mask(*regions[key])
            present = labels_from_mask(mask, len(VOC_CLASSES))
            if not present[1:].any():
                continue
            name = f"{key[0]}_{key[1]}_s"
            image = _read_image(*pictures[key])
            if image.size != (mask.shape[1], mask.shape[0]):
                size, got = f"{image.width}x{image.height}", f"{mask.shape[1]}x{mask.shape[0]}"
                raise InputError(f"{regions[key][0]}: expected the image's size {size}, got {got}")
            image.save(folder / "JPEGImages" / f"{name}.jpg", quality=92)
            save_label_map(folder / "SegmentationClass" / f"{name}.png", mask)
            labels[name] = present
        train, val = msrc_split(list(labels))
        if not train or not val:
            raise InputError(f"{images}: expected at least 4 images with an object class, got {len(labels)}")
        splits = {"train": {n: labels[n] for n in train}, "val": {n: labels[n] for n in val}}
        write_lists(folder, VOC_CLASSES, splits)
    return Path(out)


def msrc_mask(newseg: npt.NDArray[np.integer], newlabels: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Mask (H, W) uint8 in VOC's ids from an annotation's regions.

    mask[p] = voc(newlabels[newseg[p] - 1]), where voc maps face and body to person, the other object
    classes to their namesake and stuff to 0; pixels of region R + 1 are unlabelled, 255.

    Args:
        newseg: (H, W) region numbers from 1.
        newlabels: (1, R) or (R,), the class 1..23 of region r at r - 1.

    Raises:
        ValueError: region numbers outside 1..R+1 or classes outside 1..23.

    Example:
        >>> msrc_mask(np.array([[1, 2, 3]]), np.array([[2, 4]])).tolist()  # grass, cow, unlabelled
        [[0, 10, 255]]
    """
    newseg, classes = np.asarray(newseg), np.asarray(newlabels).reshape(-1)
    if newseg.ndim != 2 or newseg.size == 0:
        raise ValueError(f"newseg: expected (H, W), got {newseg.shape}")
    if classes.size and not (classes.min() >= 1 and classes.max() <= len(MSRC_CLASSES)):
        got = f"{classes.min()}..{classes.max()}"
        raise ValueError(f"newlabels: expected classes 1..{len(MSRC_CLASSES)}, got {got}")
    if newseg.min() < 1 or newseg.max() > classes.size + 1:
        got = f"{newseg.min()}..{newseg.max()}"
        raise ValueError(f"newseg: expected regions 1..{classes.size + 1}, got {got}")
    lookup = np.append(_VOC_IDS[classes.astype(np.int64)], np.uint8(VOID))
    return lookup[newseg.astype(np.int64) - 1]


def msrc_split(names: list[str]) -> tuple[list[str], list[str]]:
    """Split names ``{scene}_{number}_s`` into train and val: of every five, three and two, in numeric order.

    Example:
        >>> msrc_split(["1_10_s", "1_9_s", "2_1_s", "2_2_s", "2_3_s"])
        (['1_9_s', '1_10_s', '2_1_s'], ['2_2_s', '2_3_s'])
    """
    ordered = sorted(names, key=lambda name: tuple(int(part) for part in name.split("_")[:2]))
    train = [name for i, name in enumerate(ordered) if i % 5 < 3]
    return train, [name for i, name in enumerate(ordered) if i % 5 >= 3]


@contextmanager
def _open_source(path: Path, pattern: re.Pattern[str], what: str) -> Iterator[_Files]:
    """The matching files of a folder or zip archive, each with its name and a reader."""
    files: _Files = {}

    def add(match: re.Match[str] | None, name: str, read: Callable[[], bytes]) -> None:
        if match is None:
            return
        key = (int(match[1]), int(match[2]))
        if key in files:
            raise InputError(f"{name}: expected each file once, got {files[key][0]} too")
        files[key] = (name, read)

    if not path.exists():
        raise InputError(f"{path}: expected a folder or zip archive of {what}, got nothing")
    with ExitStack() as stack:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                add(pattern.fullmatch(file.name), str(file), file.read_bytes)
        else:
            with expecting("a folder or zip archive", path):
                archive = stack.enter_context(zipfile.ZipFile(path))
            for info in archive.infolist():
                base = info.filename.rsplit("/", 1)[-1]
                add(pattern.fullmatch(base), f"{path}/{info.filename}", _member_reader(archive, info))
        if not files:
            raise InputError(f"{path}: expected {what}, got none")
        yield files


def _member_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        if info.file_size > _MAX_FILE:
            raise ValueError(f"{info.file_size} bytes")
        return archive.read(info)

    return read


def _read_image(name: str, read: Callable[[], bytes]) -> Image.Image:
    with expecting("a readable image", name), Image.open(io.BytesIO(read())) as image:
        picture = image.convert("RGB")
    return picture


def _read_mask(name: str, read: Callable[[], bytes]) -> npt.NDArray[np.uint8]:
    with expecting("a readable file", name):
        file = read()
    content = read_matlab(file, ("newseg", "newlabels"), name)
    for key in ("newseg", "newlabels"):
        kind = content[key].dtype.kind
        # MATLAB's own numbers are floating point, so whole ones are fine
        if kind not in "uif" or (kind == "f" and not (np.mod(content[key], 1) == 0).all()):
            raise InputError(f"{name}: expected whole numbers in {key}, got {content[key].dtype}")
    try:
        return msrc_mask(content["newseg"], content["newlabels"])
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the folder that the command line names; 2 where a source is wrong."""
    parser = argparse.ArgumentParser("python -m tools.msrc", description="MSRC v2 as a folder in VOC's layout.")
    parser.add_argument("--images", required=True, metavar="DIR|ZIP", help="*_s.bmp of MSRC v2")
    parser.add_argument("--annotations", required=True, metavar="DIR|ZIP", help="*_s_GT.mat of the clean masks")
    parser.add_argument("--out", required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        root = build_msrc(options.images, options.annotations, options.out)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    sizes = {split: len(VOCFolder(root, split)) for split in ("train", "val")}
    print(f"{root}: {sizes['train']} train and {sizes['val']} val images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
