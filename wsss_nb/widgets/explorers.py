"""Explorers: stock ipywidgets wired to the pure functions of `wsss_nb.widgets.render`."""

# ruff: noqa: RUF001 -- Greek letters and minus signs are what the pictures show

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import ipywidgets
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsss_nb.crf import CRFConfig
from wsss_nb.data.synthetic import HEAD, synthetic_sample
from wsss_nb.widgets.canvas import Picture
from wsss_nb.widgets.compute import activation, class_logits, descend, photo_logits, snap_example
from wsss_nb.widgets.photos import PHOTOS, class_name, load_photo, read_photo
from wsss_nb.widgets.render import render_cam, render_sampling, render_similarity
from wsss_nb.widgets.threads import single_thread

__all__ = [
    "CamExplorer",
    "Explorer",
    "SamplingExample",
    "SamplingExplorer",
    "SimilarityExplorer",
    "imitated_example",
    "menu",
    "slider",
]

_WIDE = {"description_width": "110px"}
_COLUMN = {"width": "310px"}


class Explorer(ipywidgets.VBox):
    """Controls above one persistent image that is updated in place, and a line of words below it.

    The words are what a screen reader announces: the picture's description, or what is wrong with the settings.
    (An ipywidgets image has no alternative text, and one with a tooltip does not open in JupyterLab.)
    A subclass makes the controls and draws; nothing it raises reaches the kernel's event loop.
    """

    encoding: Literal["png", "jpeg"] = "png"

    def __init__(self, controls: Sequence[ipywidgets.Widget], width: int) -> None:
        self.picture = ipywidgets.Image(
            format=self.encoding, layout={"width": "100%", "max_width": f"{width}px"}
        )
        self.words = ipywidgets.HTML()
        self.values: dict[str, float] = {}
        self._quiet = False
        columns = {"grid_template_columns": "repeat(auto-fill, 312px)", "grid_gap": "2px 8px"}
        places = {"align_items": "center", "justify_items": "flex-start"}
        box = ipywidgets.GridBox(list(controls), layout={**columns, **places})
        super().__init__([box, self.picture, self.words])
        self.add_class("wsss-explorer")
        self.refresh()

    def draw(self) -> Picture:
        """The picture that the controls ask for."""
        raise ValueError("draw: expected a subclass")

    def refresh(self, _: Any = None) -> None:
        """Redraw; the old picture stays where the settings make none."""
        if self._quiet:
            return
        try:
            with single_thread():
                picture = self.draw()
        except (ValueError, RuntimeError) as error:
            self.say(str(error), problem=True)
            return
        self.values = dict(picture.values)
        self.picture.value = picture.png() if self.encoding == "png" else picture.jpeg()
        self.say(picture.alt)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Change several controls without a picture in between."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def say(self, text: str, problem: bool = False) -> None:
        """Put a sentence below the picture."""
        # JupyterLab's colours, which follow its light and dark themes
        color = "var(--jp-error-color1, #b00020)" if problem else "var(--jp-ui-font-color1, #555)"
        self.words.value = (
            f'<div role="status" aria-live="polite" style="color:{color};font-size:12px;line-height:1.3">'
            f"{escape(text)}</div>"
        )

    def watch(self, *controls: ipywidgets.Widget, call: Callable[[Any], None] | None = None) -> None:
        """Redraw (or call something else) whenever one of the controls changes its value."""
        for control in controls:
            control.observe(call or self.refresh, names="value")


def slider(value: float, low: float, high: float, step: float, text: str, fluent: bool = True) -> Any:
    """A slider of the type of ``value``; not ``fluent``: it reports only when it is let go."""
    make = ipywidgets.IntSlider if isinstance(value, int) else ipywidgets.FloatSlider
    return make(
        value=value, min=low, max=high, step=step, description=text, continuous_update=fluent, style=_WIDE,
        layout=_COLUMN,
    )  # fmt: skip


def menu(options: Sequence[Any], text: str) -> ipywidgets.Dropdown:
    """A menu of options or (text, value) pairs."""
    return ipywidgets.Dropdown(options=options, description=text, style=_WIDE, layout=_COLUMN)


class CamExplorer(Explorer):
    """Class activation maps of an ImageNet classifier on photographs, or on one's own upload.

    Args:
        photo: name of the photograph to begin with.
    """

    encoding = "jpeg"

    def __init__(self, photo: str = "coffee") -> None:
        self.photo_menu = menu([(load_photo(name).title, name) for name in PHOTOS], "photograph")
        self.photo_menu.value = photo
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="own photo")
        self.class_menu = menu([], "class")
        self.stride = menu([("32 pixels", 32), ("16 pixels", 16), ("8 pixels", 8)], "a map pixel is")
        self.stride.value = 16
        self.normalize = menu([("divide by the maximum", "maximum"), ("softmax (Eq. 1)", "softmax")], "scale")
        self.strength = slider(0.6, 0, 1, 0.05, "overlay")
        self.rule = menu(
            [("a > threshold", "threshold"), ("a > (1 − a)^α", "power"), ("a > 1 − a", "complement")],
            "background",
        )
        self.threshold = slider(0.3, 0, 1, 0.01, "threshold")
        self.alpha = slider(4.0, 0.5, 32, 0.5, "α")
        self.pooling = ipywidgets.Checkbox(
            value=False, description="mark what max pooling sees", indent=False
        )
        self.crf = ipywidgets.Checkbox(value=False, description="refine by a dense CRF (slow)", indent=False)
        self._load()
        controls = [
            self.photo_menu, self.upload, self.class_menu, self.stride, self.normalize, self.strength, self.rule,
            self.threshold, self.alpha, self.pooling, self.crf,
        ]  # fmt: skip
        super().__init__(controls, 1100)
        self.watch(self.photo_menu, self.upload, self.stride, call=self._reload)
        self.watch(
            self.class_menu,
            self.normalize,
            self.strength,
            self.rule,
            self.threshold,
            self.alpha,
            self.pooling,
            self.crf,
        )

    def _load(self) -> None:
        """Photograph and its logits, from the menu or the upload."""
        files = self.upload.value
        if files:
            self.photo = read_photo(bytes(files[0]["content"]), str(files[0]["name"]))
            self.logits = class_logits(self.photo.image, self.stride.value)
        else:
            self.photo = load_photo(self.photo_menu.value)
            self.logits = photo_logits(self.photo_menu.value, self.stride.value)
        probability = self.logits.mean((1, 2)).softmax(0)
        likely = [int(k) for k in probability.topk(6).indices]
        listed = list(dict.fromkeys((*self.photo.classes, *likely)))
        kept = self.class_menu.value
        with self.quietly():
            self.class_menu.options = [
                (f"{class_name(k)}  ({100 * probability[k]:.1f} %)", k) for k in listed
            ]
            self.class_menu.value = kept if kept in listed else listed[0]

    def _reload(self, change: dict[str, Any]) -> None:
        self.say("looking at the photograph …")
        if change["owner"] is self.photo_menu and self.upload.value:
            self.upload.value = ()  # comes back here, to load the photograph of the menu
            return
        try:
            self._load()
        except (ValueError, RuntimeError) as error:
            self.say(str(error), problem=True)
            return
        self.refresh()

    def draw(self) -> Picture:
        """Overlay, label map, scores."""
        rule = {"threshold": f"threshold:{self.threshold.value:g}", "power": f"power:{self.alpha.value:g}"}
        self.threshold.disabled = self.rule.value != "threshold"
        self.alpha.disabled = self.rule.value != "power"
        if self.crf.value:
            self.say("dense CRF …")
        return render_cam(
            self.photo.image,
            activation(self.logits, self.class_menu.value, self.normalize.value),
            strength=self.strength.value,
            rule=rule.get(self.rule.value, self.rule.value),
            mask=self.photo.mask,
            crf=CRFConfig(iterations=5) if self.crf.value else None,
            name=class_name(self.class_menu.value),
            pooling="max" if self.pooling.value else None,
        )


@dataclass(frozen=True)
class SamplingExample:
    """What the sampling explorer shows: image (H, W, 3), logits (1, K, h, w), labels (1, K), class names (K)."""

    title: str
    image: npt.NDArray[np.uint8]
    logits: Tensor
    labels: Tensor
    names: Sequence[str]


def imitated_example(index: int = 3, size: int = 96) -> SamplingExample:
    """A synthetic image with the logits that a classifier might have: sure of heads, unsure of bodies, stride 4."""
    sample = synthetic_sample(0, "val", index, size=size, num_classes=4)
    logits = torch.zeros(1, 4, size, size)
    logits[0, 0] = 3
    for k in sample.classes:
        found = torch.from_numpy(sample.mask == k)
        head = torch.from_numpy(sample.part == HEAD)
        logits[0, k][found] = 2.5
        logits[0, k][found & head] = 8
    labels = torch.zeros(1, 4)
    labels[0, [0, *sample.classes]] = 1
    names = ("background", "clownfish", "zebrafish", "leopardfish")
    return SamplingExample(
        "Fish, imitated map", sample.image, torch.nn.functional.avg_pool2d(logits, 4), labels, names
    )


class SamplingExplorer(Explorer):
    """Eq. 4 and 5 on given maps: draws, the mass they come from, and where the loss pushes.

    Args:
        examples: images with their logits; an imitated one if none.
    """

    def __init__(self, examples: Sequence[SamplingExample] = ()) -> None:
        self.examples = list(examples) or [imitated_example()]
        self.example = menu([(one.title, place) for place, one in enumerate(self.examples)], "map of")
        self.class_menu = menu([], "class")
        steps = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
        self.num_samples = ipywidgets.SelectionSlider(
            options=steps, value=10, description="draws", style=_WIDE, layout=_COLUMN
        )
        self.weight = slider(1.0, 0, 1, 0.05, "λ")
        self.seed = 0
        self.redraw = ipywidgets.Button(description="draw again", icon="refresh")
        self._list_classes()
        super().__init__([self.example, self.class_menu, self.num_samples, self.weight, self.redraw], 1200)
        self.watch(self.example, call=self._change_example)
        self.watch(self.class_menu, self.num_samples, self.weight)
        self.redraw.on_click(self._draw_again)

    def _list_classes(self) -> None:
        one = self.examples[self.example.value]
        listed = [k for k in range(len(one.names)) if one.labels[0, k] > 0 and k > 0]
        absent = [k for k in range(1, len(one.names)) if k not in listed]
        options = [(one.names[k], k) for k in listed] + [
            (f"{one.names[k]} (not in the image)", k) for k in absent
        ]
        with self.quietly():
            self.class_menu.options = [*options, ("background", 0)]
            self.class_menu.value = self.class_menu.options[0][1]

    def _change_example(self, _: Any) -> None:
        self._list_classes()
        self.refresh()

    def _draw_again(self, _: Any) -> None:
        self.seed += 1
        self.refresh()

    def draw(self) -> Picture:
        """Draws, map, pushes."""
        one, index = self.examples[self.example.value], self.class_menu.value
        return render_sampling(
            one.image,
            one.logits,
            one.labels,
            index=index,
            num_samples=self.num_samples.value,
            weight=self.weight.value,
            seed=self.seed,
            name=one.names[index],
        )


class SimilarityExplorer(Explorer):
    """Eq. 6-8 around a pixel of an image; "descend" lets the map follow the loss.

    Args:
        photo: name of the photograph to begin with, or "fish".
        size: of the map in pixels.
    """

    def __init__(self, photo: str = "coffee", size: int = 56) -> None:
        self.size = size
        names = [(load_photo(name).title, name) for name in PHOTOS]
        self.photo_menu = menu([*names, ("Synthetic fish", "fish")], "image")
        self.photo_menu.value = photo
        self.mu = slider(2.5, -2, 6, 0.1, "μ")
        self.sigma = slider(3.0, 0.5, 12, 0.1, "σ (map pixels)")
        self.row = slider(size // 2, 0, size - 1, 1, "row of i")
        self.column = slider(size // 2, 0, size - 1, 1, "column of i")
        self.descend = ipywidgets.Button(
            description="descend 10 steps", icon="arrow-down", layout={"width": "auto"}
        )
        self.reset = ipywidgets.Button(description="reset the map", icon="undo", layout={"width": "auto"})
        self.steps = 0
        self._load()
        controls = [
            self.photo_menu, self.mu, self.sigma, self.row, self.column,
            ipywidgets.Box([self.descend, self.reset]),
        ]  # fmt: skip
        super().__init__(controls, 1120)
        self.watch(self.photo_menu, call=self._restart)
        self.watch(self.mu, self.sigma, self.row, self.column)
        self.descend.on_click(self._descend)
        self.reset.on_click(self._restart)

    def _load(self) -> None:
        self.image, self.foreground, self.mask = snap_example(self.photo_menu.value, self.size)
        self.steps = 0

    def _restart(self, _: Any) -> None:
        self._load()
        self.refresh()

    def _descend(self, _: Any) -> None:
        self.say("descending …")
        path = descend(self.foreground, self.image, self.mu.value, self.sigma.value, steps=10)
        self.foreground = torch.from_numpy(path.maps[-1])
        self.steps += 10
        self.refresh()

    def draw(self) -> Picture:
        """Curve, weights, field and gradient."""
        return render_similarity(
            self.image,
            self.foreground,
            mu=self.mu.value,
            sigma=self.sigma.value,
            pixel=(self.row.value, self.column.value),
            mask=self.mask,
        )
