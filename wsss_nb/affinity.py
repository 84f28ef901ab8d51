"""Pixel affinities and the random walk over them (Ahn and Kwak, CVPR 2018): stage 2 of the pipeline.

Pairs of pixels closer than ``radius`` are listed once, as 34 half-plane offsets for radius 5. All functions
walk over the offsets with shifted views of the map, so nothing of size (HW)^2 is ever held.
"""

from __future__ import annotations

import math
from functools import lru_cache
from numbers import Integral
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "AffinityLabels",
    "affinity_labels",
    "affinity_loss",
    "fitting_radius",
    "pair_affinity",
    "pair_indices",
    "pair_offsets",
    "random_walk",
]

VOID = 255
Array = TypeVar("Array", np.ndarray, Tensor)


class AffinityLabels(NamedTuple):
    """Which pairs teach what; each is float32 (..., D, n) of zeros and ones and no pair is in two of them.

    Args:
        background: both pixels are background.
        foreground: both pixels are of one object class.
        negative: the pixels are of two classes.

    Example:
        >>> AffinityLabels(*torch.eye(3)).negative
        tensor([0., 0., 1.])

    Ahn and Kwak (2018), Sec. 3.2: P+_bg, P+_fg and P-; publication and release agree.
    """

    background: Tensor
    """Both pixels background: affinity 1."""
    foreground: Tensor
    """Both pixels the same object class: affinity 1."""
    negative: Tensor
    """Pixels of two different classes: affinity 0."""


@lru_cache(maxsize=16)
def pair_offsets(radius: int = 5) -> tuple[tuple[int, int], ...]:
    """Offsets (dy, dx) of a half plane: (0, 1..r-1), then dy = 1..r-1 with dx^2 + dy^2 < r^2.

    With their negatives and (0, 0) they are all offsets shorter than r; r = 5 gives D = 34.

    Args:
        radius: r, in pixels of the map.

    Returns:
        D offsets in pixels, in the order of the release.

    Raises:
        ValueError: radius not an integer of at least 2.

    Example:
        >>> pair_offsets(2)
        ((0, 1), (1, -1), (1, 0), (1, 1))

    Ahn and Kwak (2018), Sec. 3.2, take the pairs within a radius; the paper keeps their 5.
    """
    if isinstance(radius, bool) or not isinstance(radius, Integral) or radius < 2:
        raise ValueError(f"radius: expected an integer of at least 2, got {radius!r}")
    radius = int(radius)
    reach = range(-radius + 1, radius)
    below = ((dy, dx) for dy in reach if dy > 0 for dx in reach if dx * dx + dy * dy < radius * radius)
    return (*((0, dx) for dx in reach if dx > 0), *below)


def fitting_radius(radius: int, height: int, width: int) -> int:
    """The radius used on an H x W map: ``radius``, or (side - 1) // 2 where the shorter side < 2 radius + 1.

    In neither the paper nor the publication (Ahn and Kwak 2018): the release's rule for small images, which every
    function here follows.

    Args:
        radius: wanted radius, in pixels of the map.
        height: H, in pixels.
        width: W, in pixels.

    Raises:
        ValueError: radius below 2, or the shorter side below 5.

    Example:
        >>> fitting_radius(5, 47, 63), fitting_radius(5, 8, 12)
        (5, 3)
    """
    pair_offsets(radius)
    radius, side = int(radius), min(height, width)
    if side < 5:
        raise ValueError(f"height, width: expected a map of at least 5 x 5, got {height} x {width}")
    return (side - 1) // 2 if side < 2 * radius + 1 else radius


def pair_indices(radius: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Flat indices y W + x of the pixels of every pair.

    "From" pixels leave out the last r-1 rows and r-1 columns on each side, so that every offset stays on the
    map: n = (H - r + 1)(W - 2r + 2), with r = :func:`fitting_radius`. This is the release's order; Ahn and
    Kwak (2018), Sec. 3.2, name the pairs only.

    Args:
        radius: r, in pixels of the map; smaller on small maps.
        height: H, in pixels.
        width: W, in pixels.

    Returns:
        from (n,) and to (D, n), int64; pair (d, i) joins from[i] and to[d, i].

    Raises:
        ValueError: the map is smaller than 5 x 5.

    Example:
        >>> start, end = pair_indices(2, 5, 5); start.tolist(), end[:, 0].tolist()
        ([1, 2, 3, 6, 7, 8, 11, 12, 13, 16, 17, 18], [2, 5, 6, 7])

    The release's order of pairs (AffinityNet's, Ahn and Kwak 2018, Sec. 3.2; in neither of the two papers).
    """
    radius = fitting_radius(radius, height, width)
    index = torch.arange(height * width).reshape(height, width)
    start = _from_window(index, radius)
    ends = [_to_window(index, offset, radius) for offset in pair_offsets(radius)]
    return start.reshape(-1), torch.stack([end.reshape(-1) for end in ends])


def affinity_labels(label_map: np.ndarray | Tensor, radius: int = 5) -> AffinityLabels:
    """Pair labels from a map of confident pixels (Ahn and Kwak 2018, Sec. 3.2).

    ``background = [l_i = l_j = 0]``, ``foreground = [l_i = l_j > 0]``, ``negative = [l_i != l_j]``; a pair with an
    ignored pixel (255) is in none of the three.

    Args:
        label_map: (H, W) or (B, H, W), integer ids, 255 = ignore.
        radius: r, in pixels of the map; smaller on small maps, see :func:`fitting_radius`.

    Returns:
        :class:`AffinityLabels` of (D, n) or (B, D, n), float32, pairs as in :func:`pair_indices`.

    Raises:
        ValueError: other dimensions or dtype, or a map smaller than 5 x 5.

    Example:
        >>> label_map = torch.zeros(5, 5, dtype=torch.uint8); label_map[0, 2] = 7
        >>> affinity_labels(label_map, radius=2).negative.sum(1).tolist()
        [2.0, 1.0, 1.0, 1.0]

    Publication and release agree.
    """
    labels = torch.as_tensor(label_map)
    if labels.ndim not in (2, 3):
        raise ValueError(f"label_map: expected (H, W) or (B, H, W), got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"label_map: expected integer class ids, got {labels.dtype}")
    radius = fitting_radius(radius, *labels.shape[-2:])
    start = _from_window(labels, radius).flatten(-2).unsqueeze(-2)
    ends = [_to_window(labels, offset, radius).flatten(-2) for offset in pair_offsets(radius)]
    end = torch.stack(ends, dim=-2)
    known = (start != VOID) & (end != VOID)
    same = known & (start == end)
    kinds = same & (start == 0), same & (start > 0), known & (start != end)
    return AffinityLabels(*(kind.float() for kind in kinds))


def pair_affinity(features: Tensor, radius: int = 5) -> Tensor:
    """Affinity of every pair, ``A_ij = exp(-1/C sum_c |f_ci - f_cj|)`` (Ahn and Kwak 2018, Sec. 3.2).

    The mean over channels is the release's; the publication writes the sum.
    Differentiable once; forward and backward go over the offsets one at a time and keep only features and
    result, O(C H W) instead of O(34 C H W).

    Args:
        features: (B, C, H, W), floating.
        radius: r, in pixels of the map; smaller on small maps, see :func:`fitting_radius`.

    Returns:
        (B, D, n), in (0, 1], pairs as in :func:`pair_indices`.

    Raises:
        ValueError: not four dimensions, or a map smaller than 5 x 5.

    Example:
        >>> pair_affinity(torch.zeros(1, 4, 24, 24)).shape
        torch.Size([1, 34, 320])
    """
    if features.ndim != 4 or not features.is_floating_point():
        got = f"{tuple(features.shape)} {features.dtype}"
        raise ValueError(f"features: expected floating (B, C, H, W), got {got}")
    radius = fitting_radius(radius, *features.shape[-2:])
    result: Tensor = _PairAffinity.apply(features, radius)
    return result


class _PairAffinity(torch.autograd.Function):
    """Offsets one by one, differences recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, radius: int) -> Tensor:
        start = _from_window(features, radius)
        planes = []
        for offset in pair_offsets(radius):
            distance = (start - _to_window(features, offset, radius)).abs_().mean(1)
            planes.append(distance.neg_().exp_().flatten(1))
        affinity = torch.stack(planes, dim=1)
        ctx.radius = radius
        ctx.save_for_backward(features, affinity)
        return affinity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        features, affinity = ctx.saved_tensors
        start = _from_window(features, ctx.radius)
        result = torch.zeros_like(features)
        result_start = _from_window(result, ctx.radius)
        slope = (grad * affinity / -features.shape[1]).unflatten(2, start.shape[2:])
        for plane, offset in zip(slope.unbind(1), pair_offsets(ctx.radius), strict=True):
            step = (start - _to_window(features, offset, ctx.radius)).sign_().mul_(plane.unsqueeze(1))
            result_start += step
            _to_window(result, offset, ctx.radius).sub_(step)
        return result, None


def affinity_loss(
    pairs_affinity: Tensor, labels: AffinityLabels, eps: float = 1e-5, correction: Tensor | None = None
) -> Tensor:
    """Loss of AffinityNet (Ahn and Kwak 2018, Sec. 3.2; a quarter of the published sum, as released).

    ``L = 1/4 <-log A>_background + 1/4 <-log A>_foreground + 1/2 <-log(1 - A)>_negative``, each the mean over
    its pairs (0 if it has none); eps is added inside every logarithm and to every number of pairs.

    Args:
        pairs_affinity: (B, D, n) from :func:`pair_affinity`.
        labels: as :func:`affinity_labels` gives them, same shape.
        eps: guard.
        correction: factors of the three means (background, foreground, negative), where a batch is computed in parts.

    Returns:
        Scalar in nats.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> labels = AffinityLabels(*torch.eye(3).reshape(3, 1, 1, 3))
        >>> affinity_loss(torch.tensor([[[1.0, 1.0, 0.0]]]), labels).abs().item() < 1e-4
        True
    """
    for name, weight in zip(labels._fields, labels, strict=True):
        if weight.shape != pairs_affinity.shape:
            shapes = f"{tuple(pairs_affinity.shape)}, got {tuple(weight.shape)}"
            raise ValueError(f"labels.{name}: expected {shapes}")
    attract = -torch.log(pairs_affinity + eps)
    repel = -torch.log(1 - pairs_affinity + eps)

    def mean(values: Tensor, weight: Tensor) -> Tensor:
        return (values * weight).sum() / (weight.sum() + eps)

    means = [
        mean(attract, labels.background),
        mean(attract, labels.foreground),
        mean(repel, labels.negative),
    ]
    if correction is not None:
        means = [factor * value for factor, value in zip(correction, means, strict=True)]
    return means[0] / 4 + means[1] / 4 + means[2] / 2


@torch.no_grad()
def random_walk(scores: Array, affinity: Tensor | np.ndarray, beta: float = 8, log_t: int = 6) -> Array:
    """Spread scores along affinities, ``s <- s T^(2^log_t)`` (Ahn and Kwak 2018, Sec. 3.3).

    ``W = A^beta`` elementwise, with A symmetric, A_ii = 1 and A_ij = 0 for pixels that are no pair;
    ``T_ij = W_ij / sum_i W_ij``, so every column sums to 1 and each pixel takes a weighted mean of its neighbours
    (W is symmetric, so this is the published T = D^-1 W applied from the left). The release squares a dense
    (HW)^2 matrix log_t times. Here T only ever meets the K score vectors, as shifts of the map, in
    O((K + D) HW) memory; and since the eigenvalues of T lie in [-1, 1], its 64th power is summed to rounding
    error from 40 Chebyshev polynomials of T. Classes whose scores are all 0 are not walked.

    Args:
        scores: (K, H, W), floating; usually CAMs averaged 8 x 8 with a background.
        affinity: (D, n), pairs as in :func:`pair_indices`; D tells the radius.
        beta: exponent, > 0.
        log_t: number of squarings the dense form would take, 0 to 16.

    Returns:
        (K, H, W), type and dtype of ``scores`` (computed in float32 or float64).

    Raises:
        ValueError: shapes do not fit each other, scores that are not finite, affinities outside [0, 1], or
            options out of range.

    Example:
        >>> walked = random_walk(torch.eye(48).reshape(48, 6, 8), torch.ones(4, 30), log_t=1)
        >>> torch.allclose(walked.sum(0), torch.ones(6, 8))  # columns of T still sum to 1
        True
    """
    start = torch.as_tensor(scores)
    pairs = torch.as_tensor(affinity).to(start.device)
    if start.ndim != 3 or not start.is_floating_point():
        raise ValueError(f"scores: expected floating (K, H, W), got {tuple(start.shape)} {start.dtype}")
    if not bool(start.isfinite().all()):
        raise ValueError(f"scores: expected finite values, got {int((~start.isfinite()).sum())} that are not")
    if not beta > 0:
        raise ValueError(f"beta: expected a number above 0, got {beta!r}")
    if isinstance(log_t, bool) or not isinstance(log_t, Integral) or not 0 <= log_t <= 16:
        raise ValueError(f"log_t: expected an integer in [0, 16], got {log_t!r}")
    height, width = start.shape[1:]
    radius = _radius_of(pairs, height, width)
    if not bool(((pairs >= 0) & (pairs <= 1)).all()):
        raise ValueError(f"affinity: expected values in [0, 1], got {pairs.min():g} to {pairs.max():g}")
    dtype = torch.promote_types(start.dtype, torch.float32)

    # On the flattened map an offset is one shift; weights of pairs that do not exist stay 0, so that what
    # a shift carries over from the neighbouring row never counts.
    size = height * width
    margin = (radius - 1) * (width + 1)
    shifts = [dy * width + dx for dy, dx in pair_offsets(radius)]
    weights = torch.zeros(len(shifts), margin + size, dtype=dtype, device=start.device)
    window = _from_window(weights[:, margin:].unflatten(1, (height, width)), radius)
    window.copy_(pairs.to(dtype).pow(beta).reshape(window.shape))

    def multiply(padded: Tensor, result: Tensor) -> Tensor:
        """W times the vectors in the middle of ``padded``."""
        step = 2**19 // max(1, len(result)) + 1  # a block of the result stays in the processor's cache
        for begin in range(0, size, step):
            block = result[:, begin : begin + step]
            middle, length = margin + begin, block.shape[1]
            block.copy_(padded[:, middle : middle + length])
            for shift, weight in zip(shifts, weights, strict=True):
                behind = middle - shift
                block.addcmul_(padded[:, middle + shift :][:, :length], weight[middle : middle + length])
                block.addcmul_(padded[:, behind : behind + length], weight[behind : behind + length])
        return result

    def padded(rows: int) -> tuple[Tensor, Tensor]:
        whole = torch.zeros(rows, size + 2 * margin, dtype=dtype, device=start.device)
        return whole, whole[:, margin : margin + size]

    ones, inner = padded(1)
    column_sum = multiply(ones.fill_(1), torch.empty_like(inner))

    # x^p = sum_k c_k Cheb_k(x), Cheb_{k+1}(x) = 2 x Cheb_k(x) - Cheb_{k-1}(x)
    alive = start.flatten(1).any(1)
    (last, last_inner), (now, now_inner) = padded(int(alive.sum())), padded(int(alive.sum()))
    now_inner.copy_(start[alive].flatten(1))
    low, high = now_inner.aminmax(dim=1, keepdim=True)
    coefficients = _power_coefficients(2 ** int(log_t), torch.finfo(dtype).eps)
    total, product = coefficients[0] * now_inner, torch.empty_like(now_inner)
    for degree, coefficient in enumerate(coefficients[1:], start=1):
        multiply(now, product).div_(column_sum)
        last_inner.neg_().add_(product, alpha=1 if degree == 1 else 2)
        (last, last_inner), (now, now_inner) = (now, now_inner), (last, last_inner)
        if coefficient:
            total.add_(now_inner, alpha=coefficient)
    total.clamp_(low, high)  # a mean of scores lies between them; rounding may not
    walked = torch.zeros_like(start)
    walked[alive] = total.unflatten(1, (height, width)).to(start.dtype)
    return walked if isinstance(scores, Tensor) else walked.numpy()


def _from_window(maps: Tensor, radius: int) -> Tensor:
    reach = radius - 1
    return maps[..., : maps.shape[-2] - reach, reach : maps.shape[-1] - reach]


def _to_window(maps: Tensor, offset: tuple[int, int], radius: int) -> Tensor:
    reach, (dy, dx) = radius - 1, offset
    return maps[..., dy : maps.shape[-2] - reach + dy, reach + dx : maps.shape[-1] - reach + dx]


def _power_coefficients(power: int, tail: float) -> list[float]:
    """c_0, c_1, ... of x^power in Chebyshev polynomials, up to where the rest sums to less than ``tail``.

    c_k = 2^(1-power) binomial(power, (power-k)/2) for k of the parity of ``power``, else 0; c_0 is half that.
    They sum to 1.
    """
    share, rest, coefficients = math.comb(power, power // 2) / 2**power, 1.0, []
    for k in range(power + 1):
        coefficients.append(0.0)
        if k % 2 == power % 2:
            coefficients[k] = 2 * share if k else share
            share *= ((power - k) // 2) / ((power + k) // 2 + 1)
            rest -= coefficients[k]
        if rest < max(tail, 1e-14):
            break
    return coefficients


def _radius_of(pairs: Tensor, height: int, width: int) -> int:
    """The radius with as many offsets as ``pairs`` has rows."""
    radius = 2
    while pairs.ndim == 2 and len(pair_offsets(radius)) < pairs.shape[0]:
        radius += 1
    count = max(height - radius + 1, 0) * max(width - 2 * radius + 2, 0)
    if count == 0 or pairs.shape != (len(pair_offsets(radius)), count):
        radius = fitting_radius(5, height, width)
        n = (height - radius + 1) * (width - 2 * radius + 2)
        expected = f"(D, n) = {(len(pair_offsets(radius)), n)} for a {height} x {width} map"
        raise ValueError(f"affinity: expected {expected}, got {tuple(pairs.shape)}")
    return radius
