"""Pictures one after the other: an animation small enough to live in a notebook."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from wsss_nb.widgets.canvas import Picture

__all__ = ["Film", "make_film"]


@dataclass(frozen=True)
class Film:
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
    if len({frame.pixels.shape for frame in frames}) != 1:
        sizes = sorted({frame.pixels.shape[:2] for frame in frames})
        raise ValueError(f"frames: expected pictures of one size, got {sizes}")
    images = [Image.fromarray(frame.pixels) for frame in frames]
    # one palette for all frames, or colours would flicker
    sample = np.concatenate([frame.pixels[::2, ::2] for frame in frames])
    shared = Image.fromarray(sample).quantize(255, dither=Image.Dither.NONE)
    indexed = [image.quantize(palette=shared, dither=Image.Dither.NONE) for image in images]
    times = [round(1000 * seconds)] * len(images)
    times[0] = times[-1] = round(1000 * pause)
    buffer = io.BytesIO()
    indexed[0].save(
        buffer, format="GIF", save_all=True, append_images=indexed[1:], duration=times, loop=0, optimize=False
    )
    return Film(buffer.getvalue(), alt)
