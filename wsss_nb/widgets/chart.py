"""Charts of matplotlib as pictures that say in words what they show."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from wsss_nb.widgets.canvas import Picture

__all__ = ["chart"]


def chart(figure: Figure, alt: str) -> Picture:
    """A finished figure as a picture with a description; pyplot forgets the figure, so that it is not shown twice.

    Raises:
        ValueError: alt is empty.

    Example:
        >>> figure, axis = plt.subplots()
        >>> chart(figure, "An empty pair of axes.")
        An empty pair of axes.
    """
    if not alt.strip():
        raise ValueError(f"alt: expected a description of the chart in words, got {alt!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    with Image.open(buffer) as image:
        return Picture(np.array(image.convert("RGB"), dtype=np.uint8), alt)
