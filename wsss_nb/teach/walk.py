"""The random walk and the dense CRF to play with: a pure picture, and the explorer over it."""

# ruff: noqa: RUF001 -- Greek letters are what the pictures show

import operator
from collections.abc import Sequence
from typing import NamedTuple

import ipywidgets
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.affinity import pair_affinity, walk_cam
from wsss_nb.crf import CRFConfig, dense_crf
from wsss_nb.pseudo_labels import add_background, label_map
from wsss_nb.teach.cam import PLAY_CRF, score_labels
from wsss_nb.teach.explorer import Explorer, menu, slider
from wsss_nb.teach.lessons import draw_fish
from wsss_nb.teach.pictures import INK, Color, Panel, Picture, Pixels, color_labels, color_unit, outlined, render_panels

__all__ = ["WalkExample", "WalkExplorer", "imitated_walk", "render_walk"]


class WalkExample(NamedTuple):
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
    fish = draw_fish(1, "val", size=size, first=index)
    present = fish.labels[0, 1:].nonzero().flatten() + 1
    cams = F.avg_pool2d(fish.paint_parts(body=0.35, head=0.95)[0, present], 17, 1, 8)
    mask = sum(number * (fish.masks[0] == k) for number, k in enumerate(present, start=1))
    affinity = pair_affinity(8 * F.avg_pool2d(fish.images, 4), radius=5)[0]
    small = (size // 4, size // 4)
    return WalkExample("Fish, imitated CAM", fish.picture(0), cams, affinity, small, np.asarray(mask, np.uint8))


def render_walk(
    example: WalkExample, *, alpha: float = 6.0, beta: float = 8.0, log_t: int = 6, crf: CRFConfig | None = None
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
        example = example._replace(mask=None)
    before = add_background(example.cam, f"power:{alpha:g}")
    final = walked = walk_cam(example.cam, example.affinity, example.size, alpha=alpha, beta=beta, log_t=log_t)
    after_crf, refined = "", ""
    if crf is not None:
        probabilities = (walked / walked.sum(0).clamp(min=1e-5)).numpy()
        final = torch.from_numpy(dense_crf(example.image.copy(), probabilities, **crf.model_dump()))
        widths = f"{crf.bilateral_sxy:g} pixels, {crf.bilateral_srgb:g} grey levels, {crf.iterations} rounds"
        after_crf, refined = " and CRF", f", the latter after a dense CRF ({widths})"
    steps = f"{2**log_t} step{'s' * (log_t != 0)}"
    exponents = f"background (1 − max a)^{alpha:g}", f"affinities to the power {beta:g}"
    panels = [
        Panel("image", _outlined(example.image, example.mask), smooth=True),
        Panel("CAM: foreground share", color_unit(_share(before)), "unit", note=exponents[0]),
        Panel(f"after {steps}", color_unit(_share(walked)), "unit", note=exponents[1]),
    ]
    values, notes = {"covered": float((label_map(final) > 0).float().mean())}, []
    titles = {"_before": "label map of the CAM", "": f"label map, walk{after_crf}"}
    for (key, title), scores in zip(titles.items(), (before, final), strict=True):
        labels = np.asarray(label_map(scores))
        note = "no mask known" if len(example.cam) else "no class to score"
        if example.mask is not None:
            found = score_labels(labels, example.mask, len(before))
            values |= {f"{name}{key}": value for name, value in found.items()}
            note = f"IoU {100 * found['iou']:.1f}   contour F {100 * found['contour_f']:.1f}"
        notes.append(note.replace("   ", ", "))
        panels.append(Panel(title, _outlined(color_labels(labels), example.mask, INK), note=note))
    alt = (
        f"{example.title}: image, foreground share of the CAM, the same after {steps} of the random walk with "
        f"alpha {alpha:g} and beta {beta:g}, and the label maps of the CAM and of the walk{refined}."
    )
    if example.mask is not None:
        alt += f" Before: {notes[0]}; after: {notes[1]}."
    return render_panels(panels, alt, panel_width=200, values=values)


def _share(scores: Tensor) -> npt.NDArray[np.float32]:
    """1 - s_0 / sum s: how much of a pixel's score is foreground."""
    return np.asarray(1 - scores[0] / scores.sum(0).clamp(min=1e-8))


def _outlined(pixels: Pixels, mask: npt.NDArray[np.uint8] | None, color: Color = (255, 255, 255)) -> Pixels:
    return pixels if mask is None else outlined(pixels, mask, max(400 // max(mask.shape), 1), color)


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
        self, examples: Sequence[WalkExample] = (), *, alpha: float = 6.0, beta: float = 8.0, log_t: int = 6,
        crf: CRFConfig = PLAY_CRF
    ) -> None:  # fmt: skip
        self.examples = list(examples) or [imitated_walk()]
        self.crf_settings = crf
        super().__init__(
            1160, example=menu([(one.title, place) for place, one in enumerate(self.examples)], "image"),
            alpha=slider(float(alpha), 1, 16, 0.5, "α (background)"), beta=slider(float(beta), 1, 16, 0.5,
            "β (affinities)"), log_t=slider(log_t, 0, 10, 1, "log₂ of the steps"), crf=ipywidgets.Checkbox(value=False,
            description="dense CRF afterwards (slow)", indent=False), position=slider(float(crf.bilateral_sxy), 1, 160,
            1, "CRF: pixels", fluent=False), color=slider(float(crf.bilateral_srgb), 1, 60, 1, "CRF: colours",
            fluent=False), iterations=slider(crf.iterations, 1, 10, 1, "CRF: rounds", fluent=False)
        )  # fmt: skip
        links = [(control, "continuous_update") for control in (self.alpha, self.beta, self.log_t)]
        links += [(control, "disabled") for control in (self.position, self.color, self.iterations)]
        for link in links:
            ipywidgets.dlink((self.crf, "value"), link, operator.not_)

    def draw(self) -> Picture:
        """Before, after, scores."""
        crf = None
        if self.crf.value:
            self.say("dense CRF …")
            widths = {"bilateral_sxy": self.position.value, "bilateral_srgb": self.color.value}
            crf = self.crf_settings.model_copy(update={"iterations": self.iterations.value, **widths})
        return render_walk(self.examples[self.example.value], **self.chosen("alpha", "beta", "log_t"), crf=crf)
