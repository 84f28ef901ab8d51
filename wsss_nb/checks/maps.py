"""Checks of notebook 01: class maps, pooling, background rules, IoU."""

from __future__ import annotations

import math

import torch

from wsss_nb.checks.verdict import Function, Verdict, judge

__all__ = ["check_background", "check_class_map", "check_iou", "check_max_gradient"]


def check_class_map(function: Function) -> Verdict:
    """``function(features (C, h, w), weight (C,), bias) -> (h, w)``: M = sum_k w_k f_k + b."""
    generator = torch.Generator().manual_seed(2)
    features, weight = torch.randn(5, 3, 4, generator=generator), torch.randn(5, generator=generator)
    plain = torch.einsum("chw,c->hw", features, weight)
    slips = {
        "the bias is missing": plain,
        "the sum over channels should not be divided by their number": plain / 5 + 0.7,
        "a map keeps its negative values until it is shown": (plain + 0.7).clamp(min=0),
        "the map is transposed (or flipped) in space": (plain + 0.7).flip(0),
    }
    return judge(
        function, (features, weight, 0.7), plain + 0.7, slips, "this is the map; its mean is the logit"
    )


def check_max_gradient(function: Function) -> Verdict:
    """``function(cam (K, h, w)) -> (K, h, w)``: gradient of sum_k max_ij a_kij, one 1 per class."""
    cam = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2))
    flat = cam.flatten(1)
    expected = torch.zeros_like(flat).scatter_(1, flat.argmax(1, keepdim=True), 1.0).view_as(cam)
    overall = torch.zeros(60).scatter_(0, cam.flatten().argmax(), 1.0).view_as(cam)
    slips = {
        "there is one maximum per class, not one for all classes together": overall,
        "the gradient of the maximum is 1 at its place, not the maximum itself": expected * cam,
        "this is the gradient of the average: every pixel gets the same": torch.full_like(cam, 1 / 20),
        "the maximum is over pixels, for each class; this one is over classes, for each pixel": (
            cam == cam.amax(0)
        ).float(),
    }
    return judge(function, (cam,), expected, slips, "one pixel per class learns, the others hear nothing")


def check_background(function: Function) -> Verdict:
    """``function(foreground (K-1, h, w), alpha) -> (h, w)``: (1 - max_k a_k)^alpha."""
    foreground = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(3)) * 0.5
    base = 1 - foreground.amax(0)
    slips = {
        "the exponent is missing": base,
        "the strongest class counts, not the sum of the classes": (1 - foreground.sum(0)) ** 4,
        "the exponent belongs outside: (1 - max)^alpha, not 1 - max^alpha": 1 - foreground.amax(0) ** 4,
        "the maximum is over classes for each pixel": (1 - foreground.amax((1, 2))[:, None, None].amax(0))
        ** 4,
    }
    praise = "the larger alpha, the less background"
    return judge(function, (foreground, 4.0), base**4, slips, praise)


def check_iou(function: Function) -> Verdict:
    """``function(prediction, target) -> number`` for boolean masks (h, w)."""
    prediction, target = torch.zeros(6, 8, dtype=torch.bool), torch.zeros(6, 8, dtype=torch.bool)
    prediction[1:4, 1:6], target[2:6, 2:7] = True, True
    both, either = int((prediction & target).sum()), int((prediction | target).sum())
    slips = {
        "this is accuracy: background pixels count as right": float((prediction == target).float().mean()),
        "this is precision: divided by the predicted pixels only": both / int(prediction.sum()),
        "this is recall: divided by the true pixels only": both / int(target.sum()),
        "the overlap is counted twice below (union = sum of the areas - overlap)": both
        / int(prediction.sum() + target.sum()),
        "this is the Dice score; IoU divides by the union": 2 * both / int(prediction.sum() + target.sum()),
        "this is the inverse": either / both,
    }
    verdict = judge(function, (prediction, target), both / either, slips, "intersection over union")
    if not verdict:
        return verdict
    nothing = torch.zeros_like(prediction)
    try:
        disjoint = float(function(prediction, nothing.clone()))
        empty = float(function(nothing, nothing.clone()))
    except Exception as error:
        return Verdict(False, f"right, but an empty mask stops it with {type(error).__name__}: {error}")
    if disjoint != 0:
        return Verdict(False, f"disjoint masks: expected 0, got {disjoint:.4g}")
    if not math.isfinite(empty):
        return Verdict(False, f"two empty masks: expected a number (their union is 0), got {empty:g}")
    return verdict
