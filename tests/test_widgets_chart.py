"""Charts as described pictures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from wsss_nb import widgets


def test_a_chart_is_its_figure_in_pixels_with_a_description():
    figure = plt.figure(figsize=(2, 1), dpi=90)
    figure.add_axes((0, 0, 1, 0.5)).set_axis_off()
    figure.axes[0].axvspan(0, 1, color="#ff0000")
    figure.axes[0].set(xlim=(0, 1))
    picture = widgets.chart(figure, "red below")
    assert picture.pixels.shape == (90, 180, 3) and picture.pixels.dtype == np.uint8
    assert (picture.pixels[:40] == 255).all() and (picture.pixels[50:] == (255, 0, 0)).all()
    data, metadata = picture._repr_mimebundle_()
    (kind,) = (name for name in data if name.startswith("image/"))
    assert metadata == {kind: {"alt": "red below"}}
    assert not plt.fignum_exists(figure.number), "or the notebook would show it a second time"


def test_a_chart_without_words_is_refused():
    with pytest.raises(ValueError, match="alt: expected a description of the chart in words, got ' '"):
        widgets.chart(plt.figure(), " ")
