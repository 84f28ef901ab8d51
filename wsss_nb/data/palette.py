"""Label maps as palette PNGs: the VOC colour map, one atomic writer and one checking reader."""

import os
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss_nb.system.errors import expecting, require
from wsss_nb.system.files import atomic_path

__all__ = ["colorize", "read_label_map", "save_label_map", "voc_colormap"]


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
