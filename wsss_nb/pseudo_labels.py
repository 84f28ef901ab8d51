"""From foreground activations to label maps: what counts as background, and the argmax.

A CAM network trained on image-level labels says little about background. The rules in use are kept in one
registry, :data:`BACKGROUND_RULES`; which one was used is part of every reported score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.affinity import random_walk

__all__ = [
    "BACKGROUND_RULES",
    "BackgroundRule",
    "add_background",
    "label_map",
    "normalize_maximum",
    "parse_background_rule",
    "walk_cam",
]

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class _Formula:
    """How one rule computes the background, and which value it takes."""

    background: Callable[[Tensor, float], Tensor]
    default: float | None
    lowest: float
    highest: float


def _complement(foreground: Tensor, _: float) -> Tensor:
    return (1 - foreground.sum(0)).clamp(min=0)


def _threshold(foreground: Tensor, value: float) -> Tensor:
    return foreground.new_full(foreground.shape[1:], value)


def _power(foreground: Tensor, value: float) -> Tensor:
    return (1 - _strongest(foreground)).clamp(min=0) ** value


def _strongest(foreground: Tensor) -> Tensor:
    """max_k a_k, 0 without classes."""
    return foreground.amax(0) if len(foreground) else foreground.new_zeros(foreground.shape[1:])


BACKGROUND_RULES: dict[str, _Formula] = {
    "complement": _Formula(_complement, None, math.nan, math.nan),
    "threshold": _Formula(_threshold, 0.15, 0.0, 1.0),
    "power": _Formula(_power, 6.0, 0.0, 1000.0),
}
"""The background rules by name: formula, default value, range of the value."""


@dataclass(frozen=True)
class BackgroundRule:
    """One way to score background b from foreground activations a_1 .. a_{K-1} in [0, 1].

    | name         | b                     | value            | where                                   |
    |--------------|-----------------------|------------------|-----------------------------------------|
    | "complement" | max(0, 1 - sum_k a_k) | none             | evaluation of CAMs in the release       |
    | "threshold"  | t                     | 0..1 (0.15)      | a constant, often tuned on ground truth |
    | "power"      | (1 - max_k a_k)^alpha | above 0 (6)      | CRF maps (2, 4; SEAM 4, 24), walk (6)   |

    ``str(rule)`` is what :func:`parse_background_rule` reads.

    Args:
        name: of the table.
        value: t or alpha, without unit; the default of the table if None.

    Raises:
        ValueError: unknown name, a value outside its range, or a value for "complement".

    Example:
        >>> str(BackgroundRule("power", 4))
        'power:4'

    The paper (Section 4.1) names "power" with 2 and 4 only.
    """

    name: str
    value: float | None = None

    def __post_init__(self) -> None:
        """Fill in the default value and check the range."""
        if self.name not in BACKGROUND_RULES:
            raise ValueError(f"rule: expected one of {tuple(BACKGROUND_RULES)}, got {self.name!r}")
        formula = BACKGROUND_RULES[self.name]
        if formula.default is None:
            if self.value is not None:
                raise ValueError(f"rule: expected {self.name} without a value, got {self.name}:{self.value}")
            return
        value = formula.default if self.value is None else float(self.value)
        if not formula.lowest <= value <= formula.highest or (self.name == "power" and value == 0):
            low = "above 0" if self.name == "power" else f"from {formula.lowest:g}"
            raise ValueError(f"rule: expected {self.name} {low} to {formula.highest:g}, got {value:g}")
        object.__setattr__(self, "value", value)

    def __str__(self) -> str:
        """The rule as one word, for command lines and protocols."""
        return self.name if self.value is None else f"{self.name}:{self.value:g}"


def parse_background_rule(text: str | BackgroundRule) -> BackgroundRule:
    """Read "complement", "threshold:0.15" or "power:6"; without a number the default is taken.

    Args:
        text: a rule's name, with or without ":value"; a rule is returned as it is.

    Raises:
        ValueError: no such rule, or the value is not a number in its range.

    Example:
        >>> parse_background_rule("threshold").value
        0.15

    Defaults are the release's; the paper (Section 4.1) names alpha for the CRF maps only.
    """
    if isinstance(text, BackgroundRule):
        return text
    name, colon, value = text.strip().partition(":")
    try:
        number = float(value) if colon else None
    except ValueError:
        raise ValueError(f"rule: expected a number after '{name}:', got {value!r}") from None
    return BackgroundRule(name, number)


def add_background(foreground: Array, rule: BackgroundRule | str) -> Array:
    """Put a background score in front of foreground activations.

    ``s_0 = b(a_1, .., a_{K-1})``, ``s_k = a_k``, with b of :class:`BackgroundRule`

    Args:
        foreground: (K-1, H, W), floating, in [0, 1]; K = 1 is an image of background only, where sum and maximum
            of the activations are 0.
        rule: a :class:`BackgroundRule` or its text.

    Returns:
        (K, H, W), same type and dtype, background at index 0. The scores need not add up to 1.

    Raises:
        ValueError: not three dimensions, no pixel, or an unknown rule.

    Example:
        >>> add_background(torch.tensor([[[0.25]], [[0.5]]]), "complement").flatten().tolist()
        [0.25, 0.25, 0.5]

    Paper (Section 4.1): "power" with 2 and 4 for the CRF maps; how its CAMs were scored is not said. Release:
    "complement" to score CAMs, "power:6" for the random walk.
    """
    rule = parse_background_rule(rule)
    scores = _maps(foreground, "foreground", "(K-1, H, W)", fewest=0)
    background = BACKGROUND_RULES[rule.name].background(scores, 0.0 if rule.value is None else rule.value)
    return _like(torch.cat([background[None], scores]), foreground)


def label_map(scores: Array) -> Array:
    """Class of the highest score per pixel, ``y = argmax_k s_k``; the lowest id wins a tie.

    Args:
        scores: (K, H, W), background at index 0, K <= 255.

    Returns:
        (H, W), uint8.

    Raises:
        ValueError: not three dimensions, or more than 255 classes.

    Example:
        >>> label_map(torch.tensor([[[0.2, 0.6]], [[0.7, 0.4]]])).tolist()
        [[1, 0]]

    Paper (Section 4.3) and release agree.
    """
    maps = _maps(scores, "scores", "(K, H, W)")
    if len(maps) > 255:
        raise ValueError(f"scores: expected at most 255 classes, got {len(maps)}")
    return _like(maps.argmax(0).to(torch.uint8), scores)


def normalize_maximum(foreground: Array, winner_take_all: bool = False) -> Array:
    """Stretch every class to a maximum of 1.

    ``a_k <- a_k / (max_xy a_k + 1e-5)``, after ``a_k <- a_k * [a_k = max_j a_j]`` with ``winner_take_all``: the
    order in which the release prepares CAMs.

    Args:
        foreground: (K-1, H, W), >= 0; K = 1 is an image of background only.
        winner_take_all: keep only the strongest class of every pixel.

    Returns:
        (K-1, H, W), same type and dtype; a class without any activation stays 0.

    Raises:
        ValueError: not three dimensions.

    Example:
        >>> normalize_maximum(torch.tensor([[[0.2, 0.4]]])).round(decimals=3).tolist()
        [[[0.5, 1.0]]]

    In neither the paper nor, as a step of its own, SEAM (Wang et al., 2020); the release's.
    """
    maps = _maps(foreground, "foreground", "(K-1, H, W)", fewest=0)
    if winner_take_all:
        maps = torch.where(maps == _strongest(maps), maps, torch.zeros_like(maps))
    return _like(maps / (maps.amax((1, 2), keepdim=True) + 1e-5), foreground)


def walk_cam(
    foreground: Tensor,
    affinity: Tensor,
    size: tuple[int, int],
    *,
    alpha: float = 6,
    beta: float = 8,
    log_t: int = 6,
) -> Tensor:
    r"""Spread a CAM along pixel affinities: pseudo-label scores of the paper's second stage (Section 4.3).

    ``s = (1 - max_k a_k)^alpha, a_1, .., a_{K-1}``; averaged to the map of the affinities (adaptive), walked as
    s T^(2^log_t) with :func:`~wsss_nb.affinity.random_walk`, resized to the image (bilinear).

    Args:
        foreground: activations a (K-1, H, W) in [0, 1], at image size in pixels; K = 1 is an image of background only.
        affinity: (D, n), of :func:`~wsss_nb.affinity.pair_affinity`.
        size: (h, w) of the map the affinities belong to, in map pixels.
        alpha: exponent of the background, > 0.
        beta: exponent of the affinities, > 0.
        log_t: the walk takes 2^log_t steps.

    Returns:
        (K, H, W), background at index 0.

    Raises:
        ValueError: as :func:`add_background` and :func:`~wsss_nb.affinity.random_walk`.

    Example:
        >>> walk_cam(torch.rand(2, 24, 32), torch.ones(4, 30), (6, 8), log_t=1).shape
        torch.Size([3, 24, 32])

    Paper: alpha is not given. Release: alpha 6, beta 8, 2^6 steps, on maps of an eighth of the image.
    """
    scores = F.adaptive_avg_pool2d(add_background(foreground, f"power:{alpha:g}"), size)
    walked = random_walk(scores, affinity, beta=beta, log_t=log_t)
    return F.interpolate(walked[None], foreground.shape[-2:], mode="bilinear", align_corners=False)[0]


def _maps(array: np.ndarray | Tensor, name: str, shape: str, fewest: int = 1) -> Tensor:
    maps = torch.as_tensor(array)
    if maps.ndim != 3 or 0 in maps.shape[1:] or len(maps) < fewest:
        raise ValueError(f"{name}: expected {shape}, got {tuple(maps.shape)}")
    if not maps.is_floating_point():
        raise ValueError(f"{name}: expected a floating dtype, got {maps.dtype}")
    return maps


def _like(result: Tensor, argument: Array) -> Array:
    return result if isinstance(argument, Tensor) else result.numpy()
