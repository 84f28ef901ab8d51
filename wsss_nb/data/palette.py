"""Label maps as palette PNGs: the VOC colour map, one atomic writer and one checking reader."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss_nb.errors import InputError
from wsss_nb.files import atomic_path

__all__ = ["IGNORE", "colorize", "read_label_map", "save_label_map", "voc_colormap"]

IGNORE = 255
"""Label of pixels without a class (VOC's "void" ring, unlabelled regions, padding)."""

_INDEX_MODES = ("P", "L", "1")


@lru_cache(maxsize=1)
def _colormap() -> npt.NDArray[np.uint8]:
    index = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colors.setflags(write=False)
    return colors


def voc_colormap() -> npt.NDArray[np.uint8]:
    """PASCAL VOC's colours of the 256 labels, (256, 3) uint8, read-only.

    color[l][ch] = sum_b bit(l, 3 b + ch) << (7 - b): the bits of the label, dealt in turn to red, green and
    blue, most significant colour bit first. Label 0 is black, 1 dark red, 255 (ignore) cream.

    Example:
        >>> voc_colormap()[[0, 1, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [224, 224, 192]]
    """
    return _colormap()


def colorize(label_map: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """RGB picture (H, W, 3) uint8 of a label map (H, W) in VOC's colours.

    Raises:
        ValueError: the map is not two-dimensional or holds labels outside 0..255.

    Example:
        >>> colorize(np.array([[0, 1]])).tolist()
        [[[0, 0, 0], [128, 0, 0]]]
    """
    return _colormap()[_as_label_map(label_map)]


def save_label_map(path: str | os.PathLike[str], label_map: npt.NDArray[np.integer]) -> None:
    """Write a label map (H, W), labels 0..255, as a palette PNG in VOC's colours; the file appears whole.

    Raises:
        ValueError: the map is not two-dimensional, not of integers, or holds labels outside 0..255.
        InputError: the place is not writable.

    Example:
        >>> save_label_map("map.png", np.zeros((4, 6), dtype=np.uint8))
        >>> read_label_map("map.png").shape
        (4, 6)
    """
    image = Image.fromarray(_as_label_map(label_map))
    image.putpalette(_colormap().tobytes())
    try:
        with atomic_path(path) as temporary:
            image.save(temporary, format="PNG")
    except OSError as error:
        raise InputError(f"{path}: expected a writable place, got {error.strerror or error}") from error


def read_label_map(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Labels (H, W) uint8 of a palette or grey PNG; the palette's colours play no part.

    Raises:
        InputError: the file is missing, unreadable, or a colour image (which has no labels to read).

    Example:
        >>> save_label_map("map.png", np.full((2, 3), 255, dtype=np.uint8))
        >>> int(read_label_map("map.png").max())
        255
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode in _INDEX_MODES:
                return np.array(image, dtype=np.uint8)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a label map (PNG), got no file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: expected a readable PNG, got {_one_line(error)}") from error
    raise InputError(f"{path}: expected a palette or 8-bit grey PNG, got an image of mode {mode}")


def _as_label_map(label_map: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or label_map.size == 0:
        raise ValueError(f"label_map: expected shape (H, W), got {label_map.shape}")
    if not np.issubdtype(label_map.dtype, np.integer):
        raise ValueError(f"label_map: expected integers, got {label_map.dtype}")
    low, high = int(label_map.min()), int(label_map.max())
    if low < 0 or high > 255:
        raise ValueError(f"label_map: expected labels 0..255, got {low}..{high}")
    return label_map.astype(np.uint8, copy=False)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
