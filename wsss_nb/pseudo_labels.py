"""From foreground activations to label maps: what counts as background, and the argmax.

A CAM network trained on image-level labels says little about background. The rules in use are kept in one
registry, :data:`BACKGROUND_RULES`; which one was used is part of every reported score.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_nb.system.errors import InputError, require

__all__ = [
    "BACKGROUND_RULES", "BackgroundRule", "add_background", "label_map", "normalize_maximum", "parse_background_rule",
    "winner_take_all"
]  # fmt: skip


class BackgroundRule(NamedTuple):
    """One way to score background b from foreground activations a_1 .. a_{K-1} in [0, 1].

    | name         | b                     | value            | where                                   |
    |--------------|-----------------------|------------------|-----------------------------------------|
    | "complement" | max(0, 1 - sum_k a_k) | none             | evaluation of CAMs in the release       |
    | "threshold"  | t                     | 0..1 (0.15)      | a constant, often tuned on ground truth |
    | "power"      | (1 - max_k a_k)^alpha | above 0 (6)      | CRF maps (2, 4; SEAM 4, 24), walk (6)   |

    ``str(rule)`` is what :func:`parse_background_rule` reads.

    Args:
        name: of the table.
        value: t or alpha, without unit; None for "complement".
        background: from (K-1, H, W) activations and the value to b, (H, W).
        accepts: whether a value is in range.
        range: the range in words.

    Example:
        >>> str(parse_background_rule("power:4"))
        'power:4'

    The paper (Section 4.1) names "power" with 2 and 4 only; the others are the release's or common.
    """

    name: str
    value: float | None
    background: Callable[[Tensor, float], Tensor]
    accepts: Callable[[float], bool] = lambda value: False
    range: str = "without a value"

    def __str__(self) -> str:
        """The rule as one word, for command lines and protocols."""
        return self.name if self.value is None else f"{self.name}:{self.value:g}"


def _constant(foreground: Tensor, value: float) -> Tensor:
    return foreground.new_full(foreground.shape[1:], value)


def _power(foreground: Tensor, value: float) -> Tensor:
    strongest = foreground.amax(0) if len(foreground) else foreground.new_zeros(foreground.shape[1:])
    return (1 - strongest).clamp(min=0) ** value


BACKGROUND_RULES: dict[str, BackgroundRule] = {
    "complement": BackgroundRule("complement", None, lambda a, _: (1 - a.sum(0)).clamp(min=0)),
    "threshold": BackgroundRule("threshold", 0.15, _constant, lambda t: 0 <= t <= 1, "from 0 to 1"),
    "power": BackgroundRule("power", 6.0, _power, lambda alpha: 0 < alpha <= 1000, "above 0 to 1000"),
}
"""The background rules by name, with their default values."""


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
    name, colon, number = text.strip().partition(":")
    require(name in BACKGROUND_RULES, f"rule: expected one of {tuple(BACKGROUND_RULES)}, got {name!r}")
    rule = BACKGROUND_RULES[name]
    if not colon:
        return rule
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"rule: expected a number after '{name}:', got {number!r}") from None
    require(rule.accepts(value), f"rule: expected {name} {rule.range}, got {value:g}")
    return rule._replace(value=value)


def add_background(foreground: Tensor, rule: BackgroundRule | str) -> Tensor:
    """Put a background score in front of foreground activations.

    ``s_0 = b(a_1, .., a_{K-1})``, ``s_k = a_k``, with b of :class:`BackgroundRule`

    Args:
        foreground: (K-1, H, W), floating, in [0, 1]; K = 1 is an image of background only, where sum and maximum
            of the activations are 0.
        rule: a :class:`BackgroundRule` or its text.

    Returns:
        (K, H, W), same dtype, background at index 0. The scores need not add up to 1.

    Raises:
        ValueError: not three dimensions, no pixel, or an unknown rule.

    Example:
        >>> add_background(torch.tensor([[[0.25]], [[0.5]]]), "complement").flatten().tolist()
        [0.25, 0.25, 0.5]

    Paper (Section 4.1): "power" with 2 and 4 for the CRF maps; how its CAMs were scored is not said. Release:
    "complement" to score CAMs, "power:6" for the random walk.
    """
    rule = parse_background_rule(rule)
    _check(foreground, "foreground", "(K-1, H, W)", fewest=0)
    return torch.cat([rule.background(foreground, rule.value or 0.0)[None], foreground])


def label_map(scores: Tensor) -> Tensor:
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
    _check(scores, "scores", "(K, H, W)")
    require(len(scores) <= 255, f"scores: expected at most 255 classes, got {len(scores)}")
    return scores.argmax(0).to(torch.uint8)


def winner_take_all(maps: Tensor, dim: int) -> Tensor:
    """Keep the strongest class of every pixel, ``a_k <- a_k [a_k = max_j a_j]``; of equals all stay.

    Args:
        maps: a, (..., K, H, W) or any other shape; without any class they are returned as they are.
        dim: the dimension of the classes.

    Returns:
        The shape of ``maps``, 0 where another class is stronger.

    Example:
        >>> winner_take_all(torch.tensor([[0.2, 0.4], [0.3, 0.1]]), dim=0).tolist()
        [[0.0, 0.4000000059604645], [0.30000001192092896, 0.0]]

    In SEAM (Wang et al., 2020) and the releases; the paper does not mention it.
    """
    return torch.where(maps == maps.amax(dim, keepdim=True), maps, 0) if maps.shape[dim] else maps


def normalize_maximum(foreground: Tensor, winners_only: bool = False) -> Tensor:
    """Stretch every class to a maximum of 1.

    ``a_k <- a_k / (max_xy a_k + 1e-5)``, after :func:`winner_take_all` with ``winners_only``: the order in which the
    release prepares CAMs.

    Args:
        foreground: (K-1, H, W), >= 0; K = 1 is an image of background only.
        winners_only: keep only the strongest class of every pixel.

    Returns:
        (K-1, H, W), same dtype; a class without any activation stays 0.

    Raises:
        ValueError: not three dimensions.

    Example:
        >>> normalize_maximum(torch.tensor([[[0.2, 0.4]]])).round(decimals=3).tolist()
        [[[0.5, 1.0]]]

    In neither the paper nor, as a step of its own, SEAM (Wang et al., 2020); the release's.
    """
    _check(foreground, "foreground", "(K-1, H, W)", fewest=0)
    maps = winner_take_all(foreground, dim=0) if winners_only else foreground
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-5)


def _check(maps: Tensor, name: str, shape: str, fewest: int = 1) -> None:
    if maps.ndim != 3 or 0 in maps.shape[1:] or len(maps) < fewest:
        raise InputError(f"{name}: expected {shape}, got {tuple(maps.shape)}")
    require(maps.is_floating_point(), f"{name}: expected a floating dtype, got {maps.dtype}")
