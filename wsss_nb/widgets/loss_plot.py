"""A loss curve that grows while a stage trains."""

from __future__ import annotations

import os

import matplotlib.pyplot as plt
from IPython.display import display
from ipywidgets import Image
from matplotlib.ticker import MaxNLocator

from wsss_nb.stages.loop import History
from wsss_nb.widgets.canvas import Picture
from wsss_nb.widgets.chart import chart

__all__ = ["LossPlot", "render_history"]

_NOT_LOSSES = {"epoch", "step", "seconds", "mu", "sigma"}


def render_history(history: History, title: str = "training") -> Picture:
    """Every loss against the epoch; the axes start at zero where no loss is negative."""
    figure, axis = plt.subplots(figsize=(5, 2.4), dpi=100)
    epochs = [row["epoch"] for row in history]
    words = []
    names = [key for key in history[-1] if key not in _NOT_LOSSES]
    for name in names:
        alone = (
            name.endswith("1") and f"{name[:-1]}2" not in names
        )  # the first of two branches, of which there is one
        label = name[:-1] if alone else name
        axis.plot(epochs, [row[name] for row in history], marker="o", markersize=3, label=label)
        words.append(f"{label} {history[0][name]:.3g} to {history[-1][name]:.3g}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")
    axis.set_ylabel("loss (weighted)")
    axis.set_title(title, fontsize=10)
    if axis.get_ylim()[0] > 0:
        axis.set_ylim(bottom=0)
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    return chart(
        figure, f"Loss curves of {title}, epochs {epochs[0]:g} to {epochs[-1]:g}: {', '.join(words)}."
    )


class LossPlot:
    """Callable for ``on_epoch``: redraws one persistent image after each epoch; none when headless.

    :meth:`show` ends it and leaves a static picture, also of a training that was done before.
    """

    def __init__(self, title: str = "training") -> None:
        self.title = title
        self.image = Image(format="png")
        self._shown = bool(os.environ.get("WSSS_NB_HEADLESS"))

    def __call__(self, history: History) -> None:
        """Draw ``history``."""
        self.image.value = render_history(history, self.title).png()
        if not self._shown:
            self._shown = True
            display(self.image)

    def show(self, history: History) -> None:
        """Leave a static picture of ``history`` in the notebook, for readers and headless runs."""
        self.image.close()
        display(render_history(history, self.title))
