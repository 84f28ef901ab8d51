"""A small drawing surface that is fast enough for dragging: text, images, colour bars and curves on one PNG.

Everything is drawn with Pillow straight into one array; a picture of six panels takes about 30 ms, a tenth of
what a plotting library needs for the same.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "ACTIVATION",
    "BLUE",
    "DIVERGING",
    "GREEN",
    "INK",
    "ORANGE",
    "SKY",
    "Box",
    "Canvas",
    "Color",
    "Picture",
    "color_table",
    "wrap_swatches",
]

ACTIVATION = "viridis"
"""Colour map of activations and probabilities, 0 dark to 1 bright; ordered in every kind of colour vision."""
DIVERGING = "PuOr_r"
"""Colour map of signed quantities: purple negative, white zero, orange positive; safe for colour blindness."""

INK = (34, 34, 34)
GREY = (90, 90, 90)
PALE = (225, 225, 225)
ORANGE = (213, 94, 0)
BLUE = (0, 114, 178)
GREEN = (0, 158, 115)
SKY = (86, 180, 233)

_FINE = 3  # lines are drawn this much larger and reduced

Color = tuple[int, int, int]
Swatch = tuple[str, Color]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished picture with a description in words for those who cannot see it, and the numbers in it.

    Jupyter shows the picture (PNG, or JPEG where that is smaller, to keep notebooks light); a text console shows
    the description.

    Attributes:
        pixels: (H, W, 3) uint8.
        alt: the description.
        values: the numbers.
    """

    pixels: Pixels
    alt: str
    values: Mapping[str, float] = field(default_factory=dict)

    def png(self, small: bool = False) -> bytes:
        """PNG; compressed lightly unless ``small``, because on a screen time matters more than size."""
        return self._encode(format="PNG", **({"optimize": True} if small else {"compress_level": 1}))

    def jpeg(self) -> bytes:
        """JPEG without chroma subsampling: a quarter of the PNG's size where there are photographs."""
        return self._encode(format="JPEG", quality=88, subsampling=0, optimize=True)

    def _encode(self, **options: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, **options)
        return buffer.getvalue()

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        encoded = {"image/png": self.png(small=True), "image/jpeg": self.jpeg()}
        mime = min(encoded, key=lambda kind: len(encoded[kind]))
        text = base64.b64encode(encoded[mime]).decode()
        return {mime: text, "text/plain": self.alt}, {mime: {"alt": self.alt}}

    def __repr__(self) -> str:
        return self.alt


@dataclass(frozen=True)
class Box:
    """A rectangle on the canvas in pixels: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int

    def at(self, column: float, row: float) -> tuple[float, float]:
        """The point at the fractions (0..1) of width and height."""
        return self.x + column * self.width, self.y + row * self.height


@lru_cache(maxsize=8)
def color_table(name: str) -> Pixels:
    """A matplotlib colour map as a table (256, 3) uint8."""
    table = np.asarray(matplotlib.colormaps[name](np.arange(256), bytes=True))[:, :3].copy()
    table.setflags(write=False)
    return table


@lru_cache(maxsize=32)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@lru_cache(maxsize=16)
def _dot_masks(radius: float) -> tuple[Image.Image, Image.Image]:
    """Coverage of the rim's disk and of the dot's, for pasting."""
    side = 2 * round(radius) + 4
    masks = []
    for r in (radius, radius - 0.9):
        mask = Image.new("L", (side * _FINE, side * _FINE))
        middle = (side / 2) * _FINE
        box = (middle - r * _FINE, middle - r * _FINE, middle + r * _FINE, middle + r * _FINE)
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        masks.append(mask.reduce(_FINE))
    return masks[0], masks[1]


def _swatch_width(entry: Swatch) -> float:
    return 28 + _font(11, False).getlength(entry[0])


def wrap_swatches(entries: Sequence[Swatch], width: float) -> list[list[Swatch]]:
    """Break a legend into rows of at most ``width`` pixels; a name that is too long by itself gets a row of its own."""
    rows: list[list[Swatch]] = []
    left = 0.0
    for entry in entries:
        if not rows or left < _swatch_width(entry):
            rows.append([])
            left = width
        rows[-1].append(entry)
        left -= _swatch_width(entry)
    return rows


class Canvas:
    """A white picture of the given size; boxes and points are in pixels from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 13,
        color: Color = INK,
        anchor: str = "la",
        bold: bool = False,
    ) -> None:
        """Write one line; ``anchor`` is Pillow's (l/m/r, then a/m/s/d)."""
        self._draw.text((x, y), text, fill=color, font=_font(size, bold), anchor=anchor)

    def image(self, box: Box, pixels: Pixels, *, smooth: bool = False) -> None:
        """Fill the box with an image (h, w, 3) uint8; enlarged pixels stay squares unless ``smooth``."""
        how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        resized = Image.fromarray(np.ascontiguousarray(pixels)).resize((box.width, box.height), how)
        self._image.paste(resized, (box.x, box.y))

    def frame(self, box: Box, color: Color = PALE) -> None:
        """Draw the outline of a box."""
        self._draw.rectangle((box.x, box.y, box.x + box.width - 1, box.y + box.height - 1), outline=color)

    def color_bar(self, box: Box, name: str, labels: Sequence[str]) -> None:
        """A vertical colour bar, its labels evenly spaced from bottom to top on its right."""
        ramp = color_table(name)[::-1][:, None]
        self.image(box, ramp, smooth=True)
        self.frame(box, GREY)
        for index, label in enumerate(labels):
            _, y = box.at(0, 1 - index / max(len(labels) - 1, 1))
            anchor = "ld" if index == 0 else "la" if index == len(labels) - 1 else "lm"
            self.text(box.x + box.width + 4, y, label, size=11, anchor=anchor)

    def swatches(self, x: float, y: float, entries: Sequence[Swatch]) -> None:
        """A legend of coloured squares with names, in one row."""
        for entry in entries:
            name, color = entry
            self._draw.rectangle((x, y, x + 11, y + 11), fill=color, outline=GREY)
            self.text(x + 16, y + 6, name, size=11, anchor="lm")
            x += _swatch_width(entry)

    def cross(self, x: float, y: float, size: int = 7) -> None:
        """Mark a point with a cross, white in black, visible on any ground."""
        for width, color in ((5, (0, 0, 0)), (2, (255, 255, 255))):
            self._draw.line((x - size, y, x + size, y), fill=color, width=width)
            self._draw.line((x, y - size, x, y + size), fill=color, width=width)

    def dot(self, x: float, y: float, radius: float, color: Color = ORANGE) -> None:
        """A filled dot with a white rim."""
        left, top = round(x - radius) - 1, round(y - radius) - 1
        for mask, fill in zip(_dot_masks(radius), ((255, 255, 255), color), strict=True):
            self._image.paste(fill, (left, top), mask)

    def line(self, points: npt.NDArray[np.floating], color: Color = INK, width: int = 2) -> None:
        """An antialiased polyline through points (n, 2) of x, y."""
        low = np.floor(points.min(0)).astype(int) - width
        extent = np.ceil(points.max(0)).astype(int) + width - low
        mask = Image.new("L", (int(extent[0]) * _FINE, int(extent[1]) * _FINE))
        path = [(float(x), float(y)) for x, y in (points - low) * _FINE]
        ImageDraw.Draw(mask).line(path, fill=255, width=width * _FINE, joint="curve")
        self._image.paste(color, (int(low[0]), int(low[1])), mask.reduce(_FINE))

    def polygon(self, points: npt.NDArray[np.floating], color: Color) -> None:
        """A filled polygon."""
        self._draw.polygon([(float(x), float(y)) for x, y in points], fill=color)

    def axes(
        self,
        box: Box,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
        x_label: str,
    ) -> None:
        """Frame a plot; ticks are (fraction of the axis from the left or the bottom, label)."""
        self.frame(box, GREY)
        for place, label in x_ticks:
            x, bottom = box.at(place, 1)
            self._draw.line((x, bottom, x, bottom + 4), fill=GREY)
            self.text(x, bottom + 6, label, size=11, anchor="ma")
        for place, label in y_ticks:
            left, y = box.at(0, 1 - place)
            self._draw.line((left - 4, y, left, y), fill=GREY)
            self.text(left - 6, y, label, size=11, anchor="rm")
        x, bottom = box.at(0.5, 1)
        self.text(x, bottom + 20, x_label, size=11, anchor="ma")

    def pixels(self) -> Pixels:
        """What has been drawn, (H, W, 3) uint8."""
        return np.array(self._image, dtype=np.uint8)
