"""Photographs that come with scikit-image, with hand-drawn outlines, for lessons without any download."""

import io
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import skimage.data
import yaml
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from wsss_nb.system.errors import InputError, require

__all__ = ["PHOTOS", "class_name", "load_photo", "read_photo"]

CLASS_NAMES = tuple((files(__package__) / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
"""Names of the 1000 ImageNet classes: the first word for each in WordNet, made distinct where two are equal."""

MAX_PIXELS = 50_000_000
"""Uploads of more pixels are refused before they are decoded; Pillow takes four bytes for each."""


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


_SOURCES = yaml.safe_load((files(__package__) / "photos.yaml").read_text(encoding="utf-8"))
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
    source = _SOURCES[name]
    data = getattr(skimage.data, source["loader"])()
    original = Image.fromarray(np.asarray(data[0] if isinstance(data, tuple) else data))
    drawn = Image.new("L", original.size)
    for outline in source["outline"]:
        ImageDraw.Draw(drawn).polygon([int(number) for number in outline.replace(",", " ").split()], fill=255)
    mask = np.asarray(_resize(drawn, short_side)) > 127 if source["outline"] else None
    return Photo(source["title"], np.asarray(_resize(original, short_side)), tuple(source["classes"]), mask)


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
