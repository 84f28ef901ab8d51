"""Photographs that come with scikit-image, with hand-drawn outlines, for lessons without any download."""

from __future__ import annotations

import io
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from wsss_nb.system.errors import InputError, require

__all__ = ["PHOTOS", "class_name", "load_photo", "read_photo"]

CLASS_NAMES = tuple((files(__package__) / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
"""Names of the 1000 ImageNet classes: the first word for each in WordNet, made distinct where two are equal."""

MAX_PIXELS = 50_000_000
"""Uploads of more pixels are refused before they are decoded; Pillow takes four bytes for each."""

Polygon = tuple[tuple[int, int], ...]


class Photo(NamedTuple):
    """A photograph of the lessons.

    Attributes:
        title: what one reads in a menu.
        image: (H, W, 3) uint8.
        classes: ImageNet ids worth looking at, best first.
        mask: (H, W) bool, the object of the first class as outlined by hand, or None.
    """

    title: str
    image: npt.NDArray[np.uint8]
    classes: tuple[int, ...] = ()
    mask: npt.NDArray[np.bool_] | None = None


def _polygon(points: str) -> Polygon:
    """From "x,y x,y ...", as in SVG."""
    return tuple((int(x), int(y)) for x, y in (point.split(",") for point in points.split()))


def _wheel(x: int, y: int, width: int, height: int, tilt: int = 0) -> Polygon:
    """An ellipse around (x, y) in 40 points."""
    turns = np.linspace(0, 2 * np.pi, 40)
    columns = x + width * np.cos(turns) + tilt * np.sin(turns)
    rows = y + height * np.sin(turns) + tilt * np.cos(turns)
    return tuple(zip(np.rint(columns).astype(int).tolist(), np.rint(rows).astype(int).tolist(), strict=True))


_CAT = _polygon(
    "38,0 34,45 31,80 36,108 18,124 0,134 0,299 238,299 262,283 286,271 306,257 318,242 315,226 321,204 338,184 "
    "354,166 361,141 362,104 357,76 370,50 385,25 398,0"
)
_CUP = _polygon(
    "174,108 178,82 192,57 215,36 247,22 285,18 322,22 354,34 380,51 397,72 407,100 408,120 402,150 392,178 "
    "382,200 366,225 348,243 330,246 318,258 300,278 290,284 272,283 258,277 254,262 250,250 243,262 236,282 "
    "226,300 213,306 200,300 196,280 204,258 218,240 205,218 190,192 179,160 174,130"
)
_MOTORCYCLE = _polygon(
    "92,203 130,195 140,167 142,146 162,146 157,161 190,162 247,166 268,187 312,192 357,189 385,174 358,172 "
    "385,146 331,139 336,124 385,113 384,131 410,122 430,119 463,131 502,104 494,82 506,80 541,100 536,120 "
    "558,131 572,118 582,132 564,145 561,173 550,190 580,259 620,273 644,305 627,316 560,330 520,318 505,325 "
    "513,295 527,284 505,226 480,234 463,245 480,290 474,329 452,363 413,383 342,375 342,430 322,433 326,380 "
    "290,352 220,300 230,268 190,236 112,248"
)
_WHEELS = (_wheel(205, 318, 82, 82), _wheel(598, 373, 84, 75, 22))

# title, loader of skimage.data, classes, outline as polygons in pixels of the original photograph
_SOURCES: dict[str, tuple[str, str, tuple[int, ...], tuple[Polygon, ...]]] = {
    "cat": ("Cat (Chelsea)", "chelsea", (285, 282, 281, 287), (_CAT,)),
    "coffee": ("Cup of coffee", "coffee", (968, 967, 504, 809), (_CUP,)),
    "motorcycle": ("Motorcycle", "stereo_motorcycle", (665, 670, 535, 518), (_MOTORCYCLE, *_WHEELS)),
    "astronaut": ("Astronaut (Eileen Collins)", "astronaut", (652, 518, 812, 560), ()),
}

PHOTOS: tuple[str, ...] = tuple(_SOURCES)
"""Names of the photographs, as `load_photo` takes them."""


def class_name(index: int) -> str:
    """Name of an ImageNet class.

    Raises:
        ValueError: there is no such class.

    Example:
        >>> class_name(872)
        'tripod'
    """
    require(0 <= index < len(CLASS_NAMES), f"index: expected 0..{len(CLASS_NAMES) - 1}, got {index}")
    return CLASS_NAMES[index]


@lru_cache(maxsize=16)
def load_photo(name: str, short_side: int = 320) -> Photo:
    """One of scikit-image's photographs (freely licensed), its short side resized to ``short_side`` pixels.

    Raises:
        ValueError: unknown name.

    Example:
        >>> load_photo("cat").image.shape
        (320, 481, 3)
    """
    require(name in _SOURCES, f"name: expected one of {PHOTOS}, got {name!r}")
    title, loader, classes, outline = _SOURCES[name]
    data = getattr(skimage.data, loader)()
    original = Image.fromarray(np.asarray(data[0] if isinstance(data, tuple) else data))
    mask = None
    if outline:
        drawn = Image.new("L", original.size)
        for polygon in outline:
            ImageDraw.Draw(drawn).polygon(polygon, fill=255)
        mask = np.asarray(_resize(drawn, short_side)) > 127
    return Photo(title, np.asarray(_resize(original, short_side)), classes, mask)


def read_photo(content: bytes, title: str = "upload", short_side: int = 320) -> Photo:
    """A photograph from the bytes of an image file, upright, RGB, resized; at most 4 times as long as wide.

    Raises:
        InputError: the bytes are no image that can be read, or one of more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            most = f"{MAX_PIXELS / 1e6:g} million pixels"
            require(width * height <= MAX_PIXELS, f"{title}: expected at most {most}, got {width} x {height}")
            narrow = max(width, height) > 4 * min(width, height)
            require(not narrow, f"{title}: expected sides of at most 4 to 1, got {width} x {height}")
            scale = 2 * short_side / min(width, height)
            opened.draft(None, (round(scale * width), round(scale * height)))  # JPEG decodes to a fraction
            ImageOps.exif_transpose(opened, in_place=True)
            image = opened if opened.mode == "RGB" else opened.convert("RGB")
            return Photo(title, np.asarray(_resize(image, short_side)))
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)  # whose text shows the buffer
        found = "another kind of file" if unknown else " ".join(str(error).split())
        raise InputError(f"{title}: expected an image file, got {found}") from error


def _resize(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.BICUBIC)
