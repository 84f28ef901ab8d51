"""From arrays to described pictures: a fast canvas, colours on fixed scales, panels in rows, films, and charts.

Everything but a chart is drawn with Pillow straight into one array; a picture of six panels takes about 30 ms, a tenth
of what a plotting library needs for the same.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from wsss_nb.system.errors import require

__all__ = [
    "Panel", "chart", "color_labels", "color_signed", "color_unit", "draw_boundary", "label_key", "make_film",
    "overlay", "render_panels"
]  # fmt: skip

ACTIVATION = "viridis"
"""Colour map of activations and probabilities, 0 dark to 1 bright; ordered in every kind of colour vision."""
DIVERGING = "PuOr_r"
"""Colour map of signed quantities: purple negative, white zero, orange positive; safe for colour blindness."""

INK = (34, 34, 34)
GREY = (90, 90, 90)
PALE = (225, 225, 225)
ORANGE = (213, 94, 0)
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

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        encoded = {"image/png": self.png(small=True), "image/jpeg": self.jpeg()}
        mime = min(encoded, key=lambda kind: len(encoded[kind]))
        text = base64.b64encode(encoded[mime]).decode()
        return {mime: text, "text/plain": self.alt}, {mime: {"alt": self.alt}}

    def __repr__(self) -> str:
        return self.alt


class Box(NamedTuple):
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
def _disk(radius: float, side: int) -> Image.Image:
    """How much of each of side x side pixels a disk in their middle covers, for pasting."""
    mask, low, high = Image.new("L", (side * _FINE,) * 2), (side / 2 - radius) * _FINE, (side / 2 + radius) * _FINE
    ImageDraw.Draw(mask).ellipse((low, low, high, high), fill=255)
    return mask.reduce(_FINE)


def _swatch_width(name: str) -> float:
    return 28 + _font(11, False).getlength(name)


def wrap_swatches(entries: Sequence[Swatch], width: float) -> list[list[Swatch]]:
    """Break a legend into rows of at most ``width`` pixels; a name that is too long by itself gets a row of its own."""
    rows: list[list[Swatch]] = []
    left = 0.0
    for entry in entries:
        if not rows or left < _swatch_width(entry[0]):
            rows.append([])
            left = width
        rows[-1].append(entry)
        left -= _swatch_width(entry[0])
    return rows


class Canvas:
    """A white picture of the given size; boxes and points are in pixels from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self, x: float, y: float, text: str, size: int = 13, color: Color = INK, anchor: str = "la", bold: bool = False
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
        """A vertical colour bar, on its right the labels of its bottom, middle and top."""
        self.image(box, color_table(name)[::-1][:, None], smooth=True)
        self.frame(box, GREY)
        for label, anchor, place in zip(labels, ("ld", "lm", "la"), (1, 0.5, 0), strict=True):
            self.text(box.x + box.width + 4, box.at(0, place)[1], label, size=11, anchor=anchor)

    def swatches(self, x: float, y: float, entries: Sequence[Swatch]) -> None:
        """A legend of coloured squares with names, in one row."""
        for name, color in entries:
            self._draw.rectangle((x, y, x + 11, y + 11), fill=color, outline=GREY)
            self.text(x + 16, y + 6, name, size=11, anchor="lm")
            x += _swatch_width(name)

    def cross(self, x: float, y: float, size: int = 7) -> None:
        """Mark a point with a cross, white in black, visible on any ground."""
        for width, color in ((5, (0, 0, 0)), (2, (255, 255, 255))):
            self._draw.line((x - size, y, x + size, y), fill=color, width=width)
            self._draw.line((x, y - size, x, y + size), fill=color, width=width)

    def dot(self, x: float, y: float, radius: float, color: Color = ORANGE) -> None:
        """A filled dot with a white rim."""
        corner, side = (round(x - radius) - 1, round(y - radius) - 1), 2 * round(radius) + 4
        self._image.paste((255, 255, 255), corner, _disk(radius, side))
        self._image.paste(color, corner, _disk(radius - 0.9, side))

    def line(self, points: npt.NDArray[np.floating], color: Color = INK, width: int = 2) -> None:
        """An antialiased polyline through points (n, 2) of x, y."""
        low = np.floor(points.min(0)).astype(int) - width
        extent = np.ceil(points.max(0)).astype(int) + width - low
        mask = Image.new("L", tuple((extent * _FINE).tolist()))
        path = ((points - low) * _FINE).flatten().tolist()
        ImageDraw.Draw(mask).line(path, fill=255, width=width * _FINE, joint="curve")
        self._image.paste(color, tuple(low.tolist()), mask.reduce(_FINE))

    def polygon(self, points: Sequence[float], color: Color) -> None:
        """A filled polygon through x, y, x, y, ..."""
        self._draw.polygon(points, fill=color)

    def axes(
        self, box: Box, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_label: str
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


_HEX = "ebebeb e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 646464 3c2d00 1e2d4b "
_HEX += "0000c3 d2d2a5 785a3c 3c2d2d c3a5a5 3c87ff a5e1ff 784b78 ff5a78 5a00ff"
LABEL_COLORS = np.frombuffer(bytes.fromhex(_HEX), np.uint8).reshape(21, 3)
"""Colours of label maps for lessons, (21, 3): background light grey, Okabe and Ito's colour-blind-safe eight, and twelve
more that lie as far as possible from all before them and from white, without and with red-green blindness."""

BAR = 64
"""Room beside a panel for its colour bar and labels, in pixels."""
_TITLE, _GAP, _MARGIN, _NOTE = 24, 14, 10, 20
_KEY = 18  # height of a row of the legend


def color_unit(values: npt.NDArray[np.floating]) -> Pixels:
    """Values (H, W) on the fixed scale 0..1 to (H, W, 3) uint8; outside values take the end colours, NaN the low one."""
    return _look_up(np.asarray(values, dtype=np.float32), ACTIVATION)


def color_signed(values: npt.NDArray[np.floating], limit: float) -> Pixels:
    """Values (H, W) on the scale -limit..limit to (H, W, 3) uint8, zero white.

    Raises:
        ValueError: limit is not positive.
    """
    require(limit > 0, f"limit: expected a positive number, got {limit}")
    return _look_up(np.asarray(values, dtype=np.float32) / (2 * limit) + 0.5, DIVERGING)


def _look_up(unit: npt.NDArray[np.float32], name: str) -> Pixels:
    index = np.rint(np.clip(np.nan_to_num(unit, nan=0.0), 0, 1) * 255).astype(np.uint8)
    return color_table(name)[index]


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
    for label in found[(found < 0) | (found >= len(names))]:
        require(label == 255, f"label_maps: expected labels 0..{len(names) - 1} or 255, got {label}")
    words = ["no label" if label == 255 else names[label] for label in found]
    return tuple(zip(words, map(tuple, color_labels(found[None])[0].tolist()), strict=True))


def overlay(image: Pixels, colors: Pixels, strength: float) -> Pixels:
    """(1 - strength) * grey image + strength * colours; the photograph is grey so that it adds no hue of its own.

    Raises:
        ValueError: the sizes differ or strength is outside 0..1.
    """
    require(image.shape == colors.shape, f"colors: expected the image's shape {image.shape}, got {colors.shape}")
    require(0 <= strength <= 1, f"strength: expected 0..1, got {strength}")
    grey = np.rint(image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return np.rint((1 - strength) * grey + strength * colors.astype(np.float32)).astype(np.uint8)


def draw_boundary(image: Pixels, label_map: npt.NDArray[np.generic], color: Color, width: Literal[1, 2] = 2) -> Pixels:
    """Copy of the image with the borders of a label map (H, W) painted in one colour.

    A border runs between neighbours in a row or a column with different labels; one pixel wide it is on the left or
    the upper of the two, two pixels wide on both.
    """
    labels = np.asarray(label_map)
    across, down = labels[:, :-1] != labels[:, 1:], labels[:-1] != labels[1:]
    edge = np.zeros(labels.shape, dtype=bool)
    for shift in range(width):
        edge[:, shift : shift + across.shape[1]] |= across
        edge[shift : shift + len(down)] |= down
    return np.where(edge[..., None], np.array(color, np.uint8), image)


def outlined(image: Pixels, mask: npt.NDArray[np.generic], times: int, color: Color = (255, 255, 255)) -> Pixels:
    """A small image enlarged ``times``, its mask's boundary on it as a line of two (not 2 * times) pixels."""
    large = image.repeat(times, axis=0).repeat(times, axis=1)
    return draw_boundary(large, mask.repeat(times, axis=0).repeat(times, axis=1), color)


class Panel(NamedTuple):
    """One picture of a row: a title above, the pixels, an optional legend on the right and a note below.

    Attributes:
        title: one short line.
        pixels: (h, w, 3) uint8.
        legend: "unit" for the fixed scale 0..1, a positive number for the signed scale -number..number, or None.
        note: one short line below.
        smooth: enlarge with interpolation (photographs) rather than as squares (maps).
        points: (n, 2) rows and columns to mark with dots, in pixels of ``pixels``.
        cross: row and column to mark with a cross.
        draw: draws on the canvas in place of ``pixels``, which then only give the shape of the box.
    """

    title: str
    pixels: Pixels
    legend: Literal["unit"] | float | None = None
    note: str = ""
    smooth: bool = False
    points: npt.NDArray[np.floating] | None = None
    cross: tuple[float, float] | None = None
    draw: Callable[[Canvas, Box], None] | None = None


def render_panels(
    panels: Sequence[Panel], alt: str, *, columns: int | None = None, panel_width: int = 300, values: Mapping[str,
    float] | None = None, key: Sequence[Swatch] = ()
) -> Picture:  # fmt: skip
    """Lay panels out in rows of equal panels.

    Args:
        panels: row by row.
        alt: what is to be seen, in words.
        columns: panels in a row; all of them if None.
        panel_width: pixels.
        values: the numbers in the picture.
        key: names and colours to explain below all panels, see `wsss_nb.teach.label_key`.

    Raises:
        ValueError: no panels.
    """
    require(len(panels) > 0, "panels: expected at least one, got none")
    columns = columns or len(panels)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    tallest = [max(round(panel_width * p.pixels.shape[0] / p.pixels.shape[1]) for p in row) for row in rows]
    heights = [_TITLE + most + _NOTE * any(p.note for p in row) + _GAP for most, row in zip(tallest, rows, strict=True)]
    legends = [any(p.legend is not None for p in panels[column::columns]) for column in range(columns)]
    widths = [panel_width + BAR * has_legend + _GAP for has_legend in legends]
    width = sum(widths) - _GAP
    legend = wrap_swatches(key, width)
    canvas = Canvas(width + 2 * _MARGIN, sum(heights) - (0 if legend else _GAP) + _KEY * len(legend) + 2 * _MARGIN)
    y = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = _MARGIN
        for panel, step in zip(row, widths, strict=False):
            _draw_panel(canvas, panel, x, y, panel_width)
            x += step
        y += height
    for entries in legend:
        canvas.swatches(_MARGIN, y, entries)
        y += _KEY
    return Picture(canvas.pixels(), alt, dict(values or {}))


def _draw_panel(canvas: Canvas, panel: Panel, x: int, y: int, width: int) -> None:
    """A panel with its title, legend and note; (x, y) is its upper left corner, ``width`` that of the image."""
    rows, columns = panel.pixels.shape[:2]
    box = Box(x, y + _TITLE, width, round(width * rows / columns))
    canvas.text(x, y + 3, panel.title, bold=True)
    if panel.draw is not None:
        panel.draw(canvas, box)
        return
    canvas.image(box, panel.pixels, smooth=panel.smooth)
    canvas.frame(box)
    if panel.points is not None:
        radius = 3.5 if len(panel.points) <= 30 else 2.5
        for row, column in panel.points:
            canvas.dot(*box.at((column + 0.5) / columns, (row + 0.5) / rows), radius)
    if panel.cross is not None:
        row, column = panel.cross
        canvas.cross(*box.at((column + 0.5) / columns, (row + 0.5) / rows))
    bar = Box(box.x + box.width + 8, box.y, 12, min(box.height, 160))
    if panel.legend == "unit":
        canvas.color_bar(bar, ACTIVATION, ("0", "0.5", "1"))
    elif panel.legend is not None:  # two digits that fit beside the bar
        limit = f"{panel.legend:.2g}" if panel.legend >= 0.01 else f"{panel.legend:.1e}".replace("e-0", "e-")
        canvas.color_bar(bar, DIVERGING, (f"\N{MINUS SIGN}{limit}", "0", f"+{limit}"))
    if panel.note:
        canvas.text(x, box.y + box.height + 4, panel.note, size=11, color=GREY)


class Film(NamedTuple):
    """An animated GIF that repeats, with a description in words."""

    gif: bytes
    alt: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        data = base64.b64encode(self.gif).decode()
        html = f'<img alt="{escape(self.alt, quote=True)}" src="data:image/gif;base64,{data}">'
        return {"text/html": html, "text/plain": self.alt}

    def __repr__(self) -> str:
        return self.alt


def make_film(frames: Sequence[Picture], alt: str, seconds: float = 0.15, pause: float = 1.5) -> Film:
    """Join pictures of one size; the first and the last are held for ``pause`` seconds.

    Raises:
        ValueError: no pictures, or pictures of different sizes.
    """
    sizes = sorted({frame.pixels.shape[:2] for frame in frames})
    require(len(sizes) == 1, f"frames: expected pictures of one size, got {sizes}")
    # one palette for all frames, or colours would flicker
    sample = Image.fromarray(np.concatenate([frame.pixels[::2, ::2] for frame in frames]))
    palette = sample.quantize(255, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame.pixels).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [round(1000 * seconds)] * len(frames)
    times[0] = times[-1] = round(1000 * pause)
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0, optimize=False)
    return Film(buffer.getvalue(), alt)


def chart(figure: Figure, alt: str) -> Picture:
    """A finished figure as a picture with a description; pyplot forgets the figure, so that it is not shown twice.

    Raises:
        ValueError: alt is empty.

    Example:
        >>> figure, axis = plt.subplots()
        >>> chart(figure, "An empty pair of axes.")
        An empty pair of axes.
    """
    require(bool(alt.strip()), f"alt: expected a description of the chart in words, got {alt!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    with Image.open(buffer) as image:
        return Picture(np.array(image.convert("RGB"), dtype=np.uint8), alt)
