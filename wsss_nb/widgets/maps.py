"""Arrays to colours: activations, signed fields, label maps and overlays, each on a fixed scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsss_nb.widgets.canvas import ACTIVATION, DIVERGING, Color, Pixels, color_table

__all__ = [
    "LABEL_COLORS",
    "boundary",
    "color_labels",
    "color_signed",
    "color_unit",
    "draw_boundary",
    "grey",
    "label_key",
    "outlined",
    "overlay",
]

LABEL_COLORS: npt.NDArray[np.uint8] = np.array(
    [
        (235, 235, 235), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
        (213, 94, 0), (204, 121, 167), (100, 100, 100), (60, 45, 0), (30, 45, 75), (0, 0, 195), (210, 210, 165),
        (120, 90, 60), (60, 45, 45), (195, 165, 165), (60, 135, 255), (165, 225, 255), (120, 75, 120),
        (255, 90, 120), (90, 0, 255),
    ],
    dtype=np.uint8,
)  # fmt: skip
"""Colours of label maps for lessons, (21, 3): background light grey, Okabe and Ito's colour-blind-safe eight, and twelve
more that lie as far as possible from all before them and from white, without and with red-green blindness."""


def color_unit(values: npt.NDArray[np.floating]) -> Pixels:
    """Values (H, W) on the fixed scale 0..1 to (H, W, 3) uint8; outside values take the end colours, NaN the low one."""
    return _look_up(np.asarray(values, dtype=np.float32), ACTIVATION)


def color_signed(values: npt.NDArray[np.floating], limit: float) -> Pixels:
    """Values (H, W) on the scale -limit..limit to (H, W, 3) uint8, zero white.

    Raises:
        ValueError: limit is not positive.
    """
    if not limit > 0:
        raise ValueError(f"limit: expected a positive number, got {limit}")
    return _look_up(np.asarray(values, dtype=np.float32) / (2 * limit) + 0.5, DIVERGING)


def color_labels(label_map: npt.NDArray[np.integer]) -> Pixels:
    """Label map (H, W) to colours; labels beyond the table repeat it (background excepted), 255 is white."""
    labels = np.asarray(label_map).astype(np.int64)
    wrapped = np.where(labels == 0, 0, 1 + (labels - 1) % (len(LABEL_COLORS) - 1))
    return np.where((labels == 255)[..., None], np.uint8(255), LABEL_COLORS[wrapped]).astype(np.uint8)


def label_key(names: Sequence[str], *label_maps: npt.NDArray[np.integer]) -> tuple[tuple[str, Color], ...]:
    """Name and colour of each class that occurs in label maps (H, W), for ``render_panels(key=...)``; 255 is "no label".

    Args:
        names: of the classes, background first.
        label_maps: as given to `color_labels`.

    Raises:
        ValueError: a label has no name.

    Example:
        >>> label_key(("background", "cat"), np.array([[0, 1]]))
        (('background', (235, 235, 235)), ('cat', (230, 159, 0)))
    """
    found = np.unique(np.concatenate([np.unique(labels) for labels in label_maps])).astype(np.int64)
    for label in found[found != 255]:
        if not 0 <= label < len(names):
            raise ValueError(f"label_maps: expected labels 0..{len(names) - 1} or 255, got {label}")
    words = ["no label" if label == 255 else names[label] for label in found]
    colors = color_labels(found[None])[0].tolist()
    return tuple((word, (r, g, b)) for word, (r, g, b) in zip(words, colors, strict=True))


def grey(image: Pixels) -> Pixels:
    """Luminance of an image (H, W, 3), as three equal channels."""
    luminance = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(np.rint(luminance).astype(np.uint8)[..., None], 3, axis=2)


def overlay(image: Pixels, colors: Pixels, strength: float) -> Pixels:
    """(1 - strength) * grey image + strength * colours; the photograph is grey so that it adds no hue of its own.

    Raises:
        ValueError: the sizes differ or strength is outside 0..1.
    """
    if image.shape != colors.shape:
        raise ValueError(f"colors: expected the image's shape {image.shape}, got {colors.shape}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0..1, got {strength}")
    mixed = (1 - strength) * grey(image).astype(np.float32) + strength * colors.astype(np.float32)
    return np.rint(mixed).astype(np.uint8)


def boundary(label_map: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) whose right or lower neighbour has another label."""
    labels = np.asarray(label_map)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def draw_boundary(
    image: Pixels, label_map: npt.NDArray[np.generic], color: tuple[int, int, int], width: Literal[1, 2] = 2
) -> Pixels:
    """Copy of the image with the label map's boundary painted in one colour, on one or on both sides of it."""
    edge = boundary(label_map)
    if width == 2:
        labels = np.asarray(label_map)
        edge[:, 1:] |= labels[:, :-1] != labels[:, 1:]
        edge[1:] |= labels[:-1] != labels[1:]
    painted = image.copy()
    painted[edge] = color
    return painted


def outlined(
    image: Pixels, mask: npt.NDArray[np.generic], times: int, color: tuple[int, int, int] = (255, 255, 255)
) -> Pixels:
    """A small image enlarged ``times``, its mask's boundary on it as a line of two (not 2 * times) pixels."""
    large = image.repeat(times, axis=0).repeat(times, axis=1)
    return draw_boundary(large, mask.repeat(times, axis=0).repeat(times, axis=1), color)


def _look_up(unit: npt.NDArray[np.float32], name: str) -> Pixels:
    index = np.rint(np.clip(np.nan_to_num(unit, nan=0.0), 0, 1) * 255).astype(np.uint8)
    return color_table(name)[index]
