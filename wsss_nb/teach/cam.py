"""Class activation maps of an ImageNet classifier: their numbers, their picture, and the explorer over it."""

# ruff: noqa: RUF001 -- Greek letters and minus signs are what the pictures show

import operator
from functools import lru_cache
from typing import Any

import ipywidgets
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.cam import class_activation_map
from wsss_nb.counts import confusion_matrix, contour_f, contour_matches, iou
from wsss_nb.crf import CRFConfig, dense_crf
from wsss_nb.data.transforms import to_tensor
from wsss_nb.models.networks import create_imagenet_classifier
from wsss_nb.pseudo_labels import add_background, label_map
from wsss_nb.sampling import POOLINGS
from wsss_nb.system.errors import require
from wsss_nb.teach.explorer import Explorer, menu, photo_options, slider
from wsss_nb.teach.photos import CLASS_NAMES, Photo, class_name, load_photo, read_photo
from wsss_nb.teach.pictures import SKY, Panel, Picture, Pixels, color_unit, draw_boundary, overlay, render_panels

__all__ = [
    "CamExplorer", "activation", "class_logits", "enlarge", "photo_logits", "refine_map", "render_cam", "score_map"
]  # fmt: skip

PLAY_CRF = CRFConfig(iterations=5)
"""The CRF of the explorers: half the rounds of the default, to play with."""

_OFFERED = ("average", "max")  # of the poolings, in the menu
_CLASSIFIERS = lru_cache(maxsize=3)(create_imagenet_classifier)


def class_logits(image: Pixels, stride: int = 16) -> Tensor:
    """Class activation maps of the ImageNet classifier before any normalisation, s_c = W_c f + b_c, (1000, h, w)."""
    net = _CLASSIFIERS(stride)
    with torch.inference_mode():
        features = net.features(to_tensor(image)[None])
        return torch.einsum("ck,bkhw->bchw", net.fc.weight, features)[0] + net.fc.bias[:, None, None]


@lru_cache(maxsize=12)
def photo_logits(name: str, stride: int = 16) -> Tensor:
    """`class_logits` of one of the lessons' photographs; computed once."""
    return class_logits(load_photo(name).image, stride)


def activation(logits: Tensor, index: int, normalize: str = "maximum") -> Tensor:
    """Map of one class in 0..1, (h, w), from the logits of all classes (C, h, w).

    "maximum": max(s, 0) / max_xy s, the classic CAM; "softmax": Eq. 1 over all C classes.

    Raises:
        ValueError: unknown normalisation or class.
    """
    kinds = ("maximum", "softmax")
    require(normalize in kinds, f"normalize: expected one of {kinds}, got {normalize!r}")
    require(0 <= index < len(logits), f"index: expected 0..{len(logits) - 1}, got {index}")
    if normalize == "softmax":
        return class_activation_map(logits[None])[0, index]
    return logits[index].clamp(min=0) / logits[index].max().clamp(min=1e-5)


def enlarge(coarse: Tensor, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """A map (h, w) resized bilinearly to (H, W) = size, clipped to 0..1."""
    large = F.interpolate(coarse.detach().float()[None, None], size=size, mode="bilinear")[0, 0]
    return np.asarray(large.clamp(0, 1))


def score_labels(labels: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], num_classes: int = 2) -> dict[str, float]:
    """Scores "iou" and "contour_f" of a label map (H, W), means over the foreground classes; 255 in mask is ignored."""
    overlap = np.nan_to_num(iou(confusion_matrix(labels, mask, num_classes))[1:])  # 0 for a class in neither
    contour = contour_f(contour_matches(labels, mask, num_classes, void="masked"))
    return {"iou": float(overlap.mean()), "contour_f": float(contour.mean())}


def score_map(
    foreground: npt.NDArray[np.floating], rule: str, mask: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
    """Label map (H, W) of one foreground map under a background rule, with its scores against a mask.

    Scores are "covered" (fraction of the image called foreground) and, with a mask, "iou" of the foreground and
    "contour_f".
    """
    labels = label_map(add_background(torch.as_tensor(foreground, dtype=torch.float32)[None], rule)).numpy()
    scores = {} if mask is None else score_labels(labels, mask.astype(np.uint8))
    return labels, {"covered": float((labels == 1).mean()), **scores}


def refine_map(image: Pixels, activation: Tensor, rule: str, crf: CRFConfig) -> npt.NDArray[np.floating]:
    """Foreground probability (H, W) after a dense CRF of one map (h, w) and the background that a rule gives it.

    Args:
        image: (H, W, 3).
        activation: in 0..1, enlarged to the image.
        rule: background rule, such as "threshold:0.3".
        crf: parameters of the CRF.
    """
    scores = add_background(torch.from_numpy(enlarge(activation, image.shape[:2]))[None], rule).numpy()
    return np.asarray(dense_crf(image.copy(), scores / scores.sum(0).clip(1e-5), **crf.model_dump())[1])


def render_cam(
    image: Pixels, activation: Tensor, *, strength: float = 0.6, rule: str = "threshold:0.3",
    mask: npt.NDArray[np.bool_] | None = None, refined: npt.NDArray[np.floating] | None = None, name: str = "object",
    pooling: str = "average"
) -> Picture:  # fmt: skip
    """Overlay of one class's map, the label map that a background rule makes of it, and its scores.

    Args:
        image: photograph (H, W, 3).
        activation: map of the class (h, w) in 0..1, resized to the photograph bilinearly.
        strength: of the overlay, 0..1.
        rule: background rule, such as "threshold:0.3", "power:4" or "complement".
        mask: the true object (H, W), for IoU and contour F.
        refined: what a dense CRF made of map and rule, (H, W), see `wsss_nb.teach.refine_map`.
        name: of the class.
        pooling: "max" marks the one pixel that max pooling looks at; "average" looks at all alike.

    Returns:
        Picture with the values of `score_map`.

    Raises:
        ValueError: unknown rule or pooling.
    """
    require(pooling in POOLINGS, f"pooling: expected one of {tuple(POOLINGS)}, got {pooling!r}")
    full = enlarge(activation, (image.shape[0], image.shape[1]))
    # what the CRF returns sums to one with its background, so "complement" is its argmax
    labels, values = score_map(full, rule, mask) if refined is None else score_map(refined, "complement", mask)
    found = draw_boundary(np.where(labels[..., None] == 0, image // 3, image), labels, SKY)
    note, scores = f"{100 * values['covered']:.0f} % of the image", f"covered {100 * values['covered']:.1f} %"
    if mask is not None:
        found = draw_boundary(found, mask, (255, 255, 255))
        percents = f"IoU {100 * values['iou']:.1f}", f"contour F {100 * values['contour_f']:.1f}"
        note, scores = "   ".join((*percents, "(white: outlined by hand)")), ", ".join((scores, *percents))
    size = f"{activation.shape[1]} × {activation.shape[0]} map"
    map_note, cross, said = f"{size}, enlarged; scale is always 0 to 1", None, ""
    if pooling == "max":
        row, column = divmod(int(full.argmax()), full.shape[1])
        map_note, cross = f"{size}, scale 0 to 1; max pooling sees the cross alone", (float(row), float(column))
        said = f" A cross marks the map's maximum, in row {row} and column {column}."
    title, colors = f"label map, {rule}" + ", CRF" * (refined is not None), overlay(image, color_unit(full), strength)
    panels = [
        Panel("photograph", image, smooth=True),
        Panel(f"map of “{name}”", colors, "unit", note=map_note, smooth=True, cross=cross),
        Panel(title, found, note=note, smooth=True),
    ]
    how = rule + " and a dense CRF" * (refined is not None)
    alt = f"Photograph, activation map of {name} on a scale of 0 to 1, and the label map by {how}: {scores}.{said}"
    return render_panels(panels, alt, panel_width=330, values=values)


_OWN = "own photo"


class CamExplorer(Explorer):
    """Class activation maps of an ImageNet classifier on photographs, or on one's own upload.

    The picture follows the sliders; with the CRF on, the sliders it depends on wait until they are let go.

    Args:
        photo: name of the photograph to begin with.
    """

    encoding = "jpeg"
    photo = own = Photo("", np.zeros((1, 1, 3), np.uint8))  # what is shown; the upload, once there is one

    def __init__(self, photo: str = "coffee") -> None:
        rules = [("a > threshold", "threshold"), ("a > (1 − a)^α", "power"), ("a > 1 − a", "complement")]
        restart = dict.fromkeys(("photo_menu", "stride"), self.restart)
        super().__init__(
            1100, {**restart, "upload": self._take_upload}, photo_menu=menu(photo_options(), "photograph", photo),
            upload=ipywidgets.FileUpload(accept="image/*", multiple=False, description=_OWN), class_menu=menu([],
            "class"), stride=menu([(f"{pixels} pixels", pixels) for pixels in (32, 16, 8)], "a map pixel is", 16),
            normalize=menu([("divide by the maximum", "maximum"), ("softmax (Eq. 1)", "softmax")], "scale"),
            strength=slider(0.6, 0, 1, 0.05, "overlay"), rule=menu(rules, "background"), threshold=slider(0.3, 0, 1,
            0.01, "threshold"), alpha=slider(4.0, 0.5, 32, 0.5, "α"), pooling=menu(_OFFERED, "pooling"),
            crf=ipywidgets.Checkbox(value=False, description="refine by a dense CRF (slow)", indent=False)
        )  # fmt: skip
        for control in (self.threshold, self.alpha):
            ipywidgets.dlink((self.crf, "value"), (control, "continuous_update"), operator.not_)

    def load(self) -> None:
        """The menu's photograph and its maps; another photograph is shown with its most interesting class."""
        self.say("looking at the photograph …")
        name, stride = self.photo_menu.value, self.stride.value
        photo = self.own if name == _OWN else load_photo(name)
        self.logits = class_logits(photo.image, stride) if name == _OWN else photo_logits(name, stride)
        kept = self.class_menu.value if photo is self.photo else None
        self.photo, self._kept = photo, lru_cache(maxsize=1)(self._refine)
        self._scores = {kind: POOLINGS[kind](self.logits[None])[0] for kind in _OFFERED}
        probability = self._scores["average"].softmax(0)
        first = list(dict.fromkeys((*photo.classes, *probability.topk(6).indices.tolist())))
        rest = sorted(set(range(len(CLASS_NAMES))) - set(first), key=lambda k: CLASS_NAMES[k].casefold())
        options = [(f"{class_name(k)}  ({100 * probability[k]:.1f} %)", k) for k in first]
        with self.quietly():
            self.class_menu.options = [*options, *((class_name(k), k) for k in rest)]
            self.class_menu.value = first[0] if kept is None else kept

    def _take_upload(self, _: Any) -> None:
        """Choose the uploaded file in the menu; the button forgets it, so that it can be uploaded again."""
        if not self.upload.value:
            return
        with self.quietly():
            (file,), self.upload.value = self.upload.value, ()
            self.own = read_photo(bytes(file["content"]), str(file["name"]))
            self.photo_menu.options = [*photo_options(), (f"{_OWN}: {self.own.title}", _OWN)]
            self.photo_menu.value = _OWN
        self.restart()

    def draw(self) -> Picture:
        """Overlay, label map, scores; in the menu, what each kind of pooling makes of the class's map."""
        index, kept, options = self.class_menu.value, self.pooling.value, []
        for kind, scores in self._scores.items():
            words = f"{kind}: logit {scores[index]:.1f}, {100 * scores.softmax(0)[index]:.1f} %"
            options.append((words.replace("-", "−"), kind))
        with self.quietly():
            self.pooling.options, self.pooling.value = options, kept
        rules = {"threshold": f"threshold:{self.threshold.value:g}", "power": f"power:{self.alpha.value:g}"}
        rule = rules.get(self.rule.value, self.rule.value)
        self.threshold.disabled = self.rule.value != "threshold"
        self.alpha.disabled = self.rule.value != "power"
        foreground = activation(self.logits, index, self.normalize.value)
        given = {"mask": self.photo.mask, "name": class_name(index), "rule": rule}
        if self.crf.value:
            given["refined"] = self._kept(index, self.normalize.value, rule)
        return render_cam(self.photo.image, foreground, **given, **self.chosen("strength", "pooling"))

    def _refine(self, index: int, normalize: str, rule: str) -> npt.NDArray[np.floating]:
        self.say("dense CRF …")
        return refine_map(self.photo.image, activation(self.logits, index, normalize), rule, PLAY_CRF)
