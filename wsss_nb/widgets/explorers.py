"""Explorers: stock ipywidgets wired to the pure functions of `wsss_nb.widgets.render`."""

# ruff: noqa: RUF001 -- Greek letters and minus signs are what the pictures show

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, get_args

import ipywidgets
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsss_nb.crf import CRFConfig
from wsss_nb.data.synthetic import HEAD, synthetic_sample
from wsss_nb.widgets.canvas import Picture
from wsss_nb.widgets.compute import Pooling, activation, class_logits, image_score, photo_logits, refine_map
from wsss_nb.widgets.photos import CLASS_NAMES, PHOTOS, Photo, class_name, load_photo, read_photo
from wsss_nb.widgets.render import render_cam, render_sampling
from wsss_nb.widgets.threads import single_thread

__all__ = [
    "CamExplorer",
    "Explorer",
    "SamplingExample",
    "SamplingExplorer",
    "imitated_example",
    "menu",
    "photo_options",
    "slider",
]

_WIDE = {"description_width": "110px"}
_COLUMN = {"width": "310px"}


class Explorer(ipywidgets.VBox):
    """Controls above one persistent image that is updated in place, and a line of words below it.

    The words are what a screen reader announces: the picture's description, or what is wrong with the settings.
    (An ipywidgets image has no alternative text, and one with a tooltip does not open in JupyterLab.)
    A subclass makes the controls and draws; nothing that it raises when a control is used reaches the kernel's event
    loop.
    """

    encoding: Literal["png", "jpeg"] = "png"
    _quiet = False

    def __init__(self, controls: Sequence[ipywidgets.Widget], width: int) -> None:
        self.picture = ipywidgets.Image(
            format=self.encoding, layout={"width": "100%", "max_width": f"{width}px"}
        )
        self.words = ipywidgets.HTML()
        self.values: dict[str, float] = {}
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
        if not self._quiet:
            self._guard(self._show)

    def _show(self) -> None:
        with single_thread():
            picture = self.draw()
        self.values = dict(picture.values)
        self.picture.value = picture.png() if self.encoding == "png" else picture.jpeg()
        self.say(picture.alt)

    def _guard(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # memory that ran out, a file that broke off: the kernel goes on
            self.say(str(error) or type(error).__name__, problem=True)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Change several controls without a picture in between."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def say(self, text: str, problem: bool = False) -> None:
        """Put a sentence below the picture."""
        # JupyterLab's colours, which follow its light and dark themes
        color = "var(--jp-error-color1, #b00020)" if problem else "var(--jp-ui-font-color1, #555)"
        self.words.value = (
            f'<div role="status" aria-live="polite" style="color:{color};font-size:12px;line-height:1.3">'
            f"{escape(text)}</div>"
        )

    def watch(self, *controls: ipywidgets.Widget, call: Callable[[Any], None] | None = None) -> None:
        """Redraw (or call something else) whenever one of the controls changes its value or is clicked."""

        def react(change: Any) -> None:
            if not self._quiet:
                self._guard(call or self.refresh, change)

        for control in controls:
            if isinstance(control, ipywidgets.Button):
                control.on_click(react)
            else:
                control.observe(react, names="value")


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


def photo_options() -> list[tuple[str, str]]:
    """The lessons' photographs for a menu: titles and names."""
    return [(load_photo(name).title, name) for name in PHOTOS]


_OWN = "own photo"


class CamExplorer(Explorer):
    """Class activation maps of an ImageNet classifier on photographs, or on one's own upload.

    The picture follows the sliders; with the CRF on, the sliders it depends on wait until they are let go.

    Args:
        photo: name of the photograph to begin with.
    """

    encoding = "jpeg"
    own: Photo  # the upload, once there is one

    def __init__(self, photo: str = "coffee") -> None:
        self.photo_menu = menu(photo_options(), "photograph")
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
        self.pooling = menu(get_args(Pooling), "pooling")
        self.crf = ipywidgets.Checkbox(value=False, description="refine by a dense CRF (slow)", indent=False)
        self._load()
        controls = [
            self.photo_menu, self.upload, self.class_menu, self.stride, self.normalize, self.strength, self.rule,
            self.threshold, self.alpha, self.pooling, self.crf,
        ]  # fmt: skip
        super().__init__(controls, 1100)
        self.watch(self.photo_menu, call=self._change_photo)
        self.watch(self.upload, call=self._take_upload)
        self.watch(self.stride, call=self._change_stride)
        self.watch(self.class_menu, call=self._change_class)
        self.watch(
            self.normalize, self.strength, self.rule, self.threshold, self.alpha, self.pooling, self.crf
        )

    def _load(self, index: int | None = None) -> None:
        """The menu's photograph and its maps; ``index`` is the class to show, the most interesting one if None."""
        name, stride = self.photo_menu.value, self.stride.value
        photo = self.own if name == _OWN else load_photo(name)
        self.logits = class_logits(photo.image, stride) if name == _OWN else photo_logits(name, stride)
        self.photo = photo
        self._refined: dict[tuple[Any, ...], npt.NDArray[np.floating]] = {}
        probability = self.logits.mean((1, 2)).softmax(0)
        first = list(dict.fromkeys((*photo.classes, *(int(k) for k in probability.topk(6).indices))))
        rest = sorted(set(range(len(CLASS_NAMES))) - set(first), key=lambda k: CLASS_NAMES[k].casefold())
        with self.quietly():
            self.class_menu.options = [
                *((f"{class_name(k)}  ({100 * probability[k]:.1f} %)", k) for k in first),
                *((class_name(k), k) for k in rest),
            ]
            self.class_menu.value = first[0] if index is None else index
        self._list_pooling()

    def _list_pooling(self) -> None:
        """What each kind of pooling makes of the class's map, in the menu."""
        kept, options = self.pooling.value, []
        for kind in get_args(Pooling):
            logit, probability = image_score(self.logits, self.class_menu.value, kind)
            options.append((f"{kind}: logit {logit:.1f}, {100 * probability:.1f} %".replace("-", "−"), kind))
        with self.quietly():
            self.pooling.options, self.pooling.value = options, kept

    def _change_photo(self, _: Any) -> None:
        self.say("looking at the photograph …")
        self._load()
        self.refresh()

    def _change_stride(self, _: Any) -> None:
        self.say("looking at the photograph …")
        self._load(self.class_menu.value)
        self.refresh()

    def _change_class(self, _: Any) -> None:
        self._list_pooling()
        self.refresh()

    def _take_upload(self, _: Any) -> None:
        """Choose the uploaded file in the menu; the button forgets it, so that it can be uploaded again."""
        if not self.upload.value:
            return
        self.say("looking at the photograph …")
        (file,) = self.upload.value
        with self.quietly():
            self.upload.value = ()
        self.own = read_photo(bytes(file["content"]), str(file["name"]))
        with self.quietly():
            self.photo_menu.options = [*photo_options(), (f"{_OWN}: {self.own.title}", _OWN)]
            self.photo_menu.value = _OWN
        self._load()
        self.refresh()

    def refresh(self, change: Any = None) -> None:
        """Redraw; with the CRF on, the sliders that it depends on redraw when they are let go."""
        for control in (self.threshold, self.alpha):
            control.continuous_update = not self.crf.value
        super().refresh(change)

    def draw(self) -> Picture:
        """Overlay, label map, scores."""
        rules = {"threshold": f"threshold:{self.threshold.value:g}", "power": f"power:{self.alpha.value:g}"}
        rule = rules.get(self.rule.value, self.rule.value)
        self.threshold.disabled = self.rule.value != "threshold"
        self.alpha.disabled = self.rule.value != "power"
        foreground = activation(self.logits, self.class_menu.value, self.normalize.value)
        return render_cam(
            self.photo.image,
            foreground,
            strength=self.strength.value,
            rule=rule,
            mask=self.photo.mask,
            refined=self._refine(foreground, rule) if self.crf.value else None,
            name=class_name(self.class_menu.value),
            pooling=self.pooling.value,
        )

    def _refine(self, foreground: Tensor, rule: str) -> npt.NDArray[np.floating]:
        """The CRF's result for these settings; kept while others change."""
        settings = (self.class_menu.value, self.normalize.value, rule)
        if settings not in self._refined:
            self.say("dense CRF …")
            self._refined = {
                settings: refine_map(self.photo.image, foreground, rule, CRFConfig(iterations=5))
            }
        return self._refined[settings]


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
        self.watch(self.redraw, call=self._draw_again)

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
