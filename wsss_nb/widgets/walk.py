"""The random walk and the dense CRF to play with: a pure picture, and the explorer over it."""

# ruff: noqa: RUF001 -- Greek letters are what the pictures show

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.affinity import pair_affinity
from wsss_nb.crf import CRFConfig, dense_crf
from wsss_nb.data.synthetic import HEAD, synthetic_sample
from wsss_nb.metrics import confusion_matrix, contour_f, contour_matches
from wsss_nb.pseudo_labels import add_background, label_map, walk_cam
from wsss_nb.widgets.canvas import INK, Picture, Pixels
from wsss_nb.widgets.explorers import Explorer, menu, slider
from wsss_nb.widgets.maps import color_labels, color_unit, outlined
from wsss_nb.widgets.render import Panel, render_panels

__all__ = ["WalkExample", "WalkExplorer", "imitated_walk", "render_walk"]

_CRF = CRFConfig(iterations=5)  # half the rounds of the default, to play with


@dataclass(frozen=True, eq=False)
class WalkExample:
    """What the walk starts from.

    Attributes:
        title: in the menu.
        image: (H, W, 3) uint8.
        cam: activations of the image's classes (n, H, W) in 0..1, without background.
        affinity: (D, m), pairs as in ``wsss_nb.affinity.pair_indices``.
        size: (h, w) of the map that the affinities belong to.
        mask: true labels (H, W), 0 background, k the k-th of the classes, 255 ignored; None where nobody knows.
    """

    title: str
    image: Pixels
    cam: Tensor
    affinity: Tensor
    size: tuple[int, int]
    mask: npt.NDArray[np.uint8] | None = None


def imitated_walk(index: int = 3, size: int = 96) -> WalkExample:
    """A synthetic image with a blurred CAM that is surest of the heads, and affinities taken from its colours, stride 4."""
    sample = synthetic_sample(0, "val", index, size=size, num_classes=4)
    mask = np.zeros((size, size), np.uint8)
    cams = []
    for number, k in enumerate(sample.classes, start=1):
        mask[sample.mask == k] = number
        found = torch.from_numpy(sample.mask == k)
        head = torch.from_numpy(sample.part == HEAD)
        sure = 0.35 * found.float() + 0.6 * (found & head).float()
        cams.append(F.avg_pool2d(sure[None, None], 17, 1, 8)[0, 0])
    image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 255
    colors = F.avg_pool2d(image, 4)
    affinity = pair_affinity(8 * colors, radius=5)[0]
    return WalkExample(
        "Fish, imitated CAM", sample.image, torch.stack(cams), affinity, (size // 4, size // 4), mask
    )


def render_walk(
    example: WalkExample,
    *,
    alpha: float = 6.0,
    beta: float = 8.0,
    log_t: int = 6,
    crf: CRFConfig | None = None,
) -> Picture:
    """A CAM before and after the random walk, and after a dense CRF of the result if wanted.

    Args:
        example: image, CAM and affinities.
        alpha: exponent of the background (1 - max a)^alpha.
        beta: exponent of the affinities.
        log_t: the walk takes 2^log_t steps.
        crf: parameters of the CRF; None leaves it out.

    Returns:
        Picture with "covered" (share of the image that is foreground) and, with a mask, "iou" and "contour_f" of the
        final map and "iou_before" and "contour_f_before" of the CAM's; means over the foreground classes.
    """
    if not len(example.cam):  # an image of background only
        example = replace(example, mask=None)
    before = add_background(example.cam, f"power:{alpha:g}")
    walked = walk_cam(example.cam, example.affinity, example.size, alpha=alpha, beta=beta, log_t=log_t)
    final = walked
    if crf is not None:
        probabilities = (walked / walked.sum(0).clamp(min=1e-5)).numpy()
        final = torch.from_numpy(dense_crf(example.image.copy(), probabilities, **vars(crf)))
    steps = 2**log_t
    word = "step" if steps == 1 else "steps"
    panels = [
        Panel("image", _outlined(example.image, example.mask), smooth=True),
        Panel("CAM: foreground share", color_unit(_share(before)), "unit", note=f"background (1 − max a)^{alpha:g}"),
        Panel(f"after {steps} {word}", color_unit(_share(walked)), "unit", note=f"affinities to the power {beta:g}"),
    ]  # fmt: skip
    values = {"covered": float((label_map(final) > 0).float().mean())}
    notes = {}
    for key, scores in (("_before", before), ("", final)):
        labels = label_map(scores).numpy().astype(np.uint8)
        notes[key] = "" if len(example.cam) else "no class to score"
        if example.mask is not None:
            iou, contour = _scores(labels, example.mask, len(before))
            values |= {f"iou{key}": iou, f"contour_f{key}": contour}
            notes[key] = f"IoU {100 * iou:.1f}   contour F {100 * contour:.1f}"
        title = "label map of the CAM" if key else f"label map, walk{' and CRF' if crf else ''}"
        panels.append(
            Panel(
                title, _outlined(color_labels(labels), example.mask, INK), note=notes[key] or "no mask known"
            )
        )
    refined = ""
    if crf is not None:
        refined = (
            f", the latter after a dense CRF ({crf.bilateral_sxy:g} pixels, {crf.bilateral_srgb:g} grey levels, "
            f"{crf.iterations} rounds)"
        )
    alt = (
        f"{example.title}: image, foreground share of the CAM, the same after {steps} {word} of the random walk with "
        f"alpha {alpha:g} and beta {beta:g}, and the label maps of the CAM and of the walk{refined}. "
        + (
            f"Before: {notes['_before']}; after: {notes['']}.".replace("   ", ", ")
            if example.mask is not None
            else ""
        )
    )
    return render_panels(panels, alt.strip(), panel_width=200, values=values)


def _share(scores: Tensor) -> npt.NDArray[np.float32]:
    """1 - s_0 / sum s: how much of a pixel's score is foreground."""
    return (1 - scores[0] / scores.sum(0).clamp(min=1e-8)).numpy()


def _outlined(
    pixels: Pixels, mask: npt.NDArray[np.uint8] | None, color: tuple[int, int, int] = (255, 255, 255)
) -> Pixels:
    return pixels if mask is None else outlined(pixels, mask, max(400 // max(mask.shape), 1), color)


def _scores(
    labels: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], num_classes: int
) -> tuple[float, float]:
    confusion = confusion_matrix(labels, mask, num_classes)
    hit = confusion.diag()
    iou = hit / (confusion.sum(0) + confusion.sum(1) - hit).clamp(min=1)
    return float(iou[1:].mean()), float(
        contour_f(contour_matches(labels, mask, num_classes, void="masked")).mean()
    )


def _slider_around(value: float, low: float, high: float, step: float, text: str, fluent: bool = True) -> Any:
    """A slider whose range is widened where the value to begin with lies outside."""
    return slider(value, min(low, value), max(high, value), step, text, fluent)


class WalkExplorer(Explorer):
    """Random walk and CRF on given CAMs and affinities.

    The walk follows the sliders; the CRF, which takes a second, waits until a slider is let go.

    Args:
        examples: what to walk on; an imitated one if none.
        alpha: exponent of the background to begin with.
        beta: exponent of the affinities to begin with.
        log_t: 2^log_t steps to begin with.
        crf: parameters of the CRF to begin with; it stays off until it is ticked.
    """

    def __init__(
        self,
        examples: Sequence[WalkExample] = (),
        *,
        alpha: float = 6.0,
        beta: float = 8.0,
        log_t: int = 6,
        crf: CRFConfig = _CRF,
    ) -> None:
        self.examples = list(examples) or [imitated_walk()]
        self.example = menu([(one.title, place) for place, one in enumerate(self.examples)], "image")
        self.alpha = _slider_around(float(alpha), 1, 16, 0.5, "α (background)")
        self.beta = _slider_around(float(beta), 1, 16, 0.5, "β (affinities)")
        self.log_t = _slider_around(log_t, 0, 10, 1, "log₂ of the steps")
        self.crf = ipywidgets.Checkbox(value=False, description="dense CRF afterwards (slow)", indent=False)
        self.crf_settings = crf
        self.position = _slider_around(float(crf.bilateral_sxy), 1, 160, 1, "CRF: pixels", fluent=False)
        self.color = _slider_around(float(crf.bilateral_srgb), 1, 60, 1, "CRF: colours", fluent=False)
        self.iterations = _slider_around(crf.iterations, 1, 10, 1, "CRF: rounds", fluent=False)
        controls = [
            self.example, self.alpha, self.beta, self.log_t, self.crf, self.position, self.color, self.iterations,
        ]  # fmt: skip
        super().__init__(controls, 1160)
        self.watch(*controls)

    def refresh(self, change: Any = None) -> None:
        """Redraw; with the CRF on, a slider of the walk redraws when it is let go."""
        for control in (self.alpha, self.beta, self.log_t):
            control.continuous_update = not self.crf.value
        for control in (self.position, self.color, self.iterations):
            control.disabled = not self.crf.value
        super().refresh(change)

    def draw(self) -> Picture:
        """Before, after, scores."""
        crf = None
        if self.crf.value:
            self.say("dense CRF …")
            crf = replace(
                self.crf_settings,
                iterations=self.iterations.value,
                bilateral_sxy=self.position.value,
                bilateral_srgb=self.color.value,
            )
        return render_walk(
            self.examples[self.example.value],
            alpha=self.alpha.value,
            beta=self.beta.value,
            log_t=self.log_t.value,
            crf=crf,
        )
