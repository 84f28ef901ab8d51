"""Pixel affinities and the random walk over them (Ahn and Kwak, CVPR 2018): stage 2 of the pipeline.

Pairs of pixels closer than ``radius`` are listed once, as 34 half-plane offsets for radius 5. All functions
walk over the offsets with shifted views of the map, so nothing of size (HW)^2 is ever held; the definition of the
walk by such a matrix is :func:`random_walk_dense`.
"""

from functools import lru_cache
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss_nb.fast.walk import walk
from wsss_nb.pseudo_labels import add_background
from wsss_nb.system.config import VOID
from wsss_nb.system.errors import InputError, require

__all__ = [
    "AffinityLabels", "affinity_labels", "affinity_loss", "fitting_radius", "pair_affinity", "pair_indices",
    "pair_offsets", "random_walk", "random_walk_dense", "walk_cam"
]  # fmt: skip


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
        raise InputError(f"radius: expected an integer of at least 2, got {radius!r}")
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
    require(side >= 5, f"height, width: expected a map of at least 5 x 5, got {height} x {width}")
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
    start = _window(index, radius)
    ends = [_window(index, radius, offset) for offset in pair_offsets(radius)]
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
    require(labels.ndim in (2, 3), f"label_map: expected (H, W) or (B, H, W), got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"label_map: expected integer class ids, got {labels.dtype}")
    radius = fitting_radius(radius, *labels.shape[-2:])
    start = _window(labels, radius).flatten(-2).unsqueeze(-2)
    ends = [_window(labels, radius, offset).flatten(-2) for offset in pair_offsets(radius)]
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
        raise InputError(f"features: expected floating (B, C, H, W), got {tuple(features.shape)} {features.dtype}")
    result: Tensor = _PairAffinity.apply(features, fitting_radius(radius, *features.shape[-2:]))
    return result


class _PairAffinity(torch.autograd.Function):
    """Offsets one by one, differences recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, radius: int) -> Tensor:
        start, offsets = _window(features, radius), pair_offsets(radius)
        distances = ((start - _window(features, radius, offset)).abs_().mean(1) for offset in offsets)
        affinity = torch.stack([distance.neg_().exp_().flatten(1) for distance in distances], dim=1)
        ctx.radius = radius
        ctx.save_for_backward(features, affinity)
        return affinity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        features, affinity = ctx.saved_tensors
        start = _window(features, ctx.radius)
        result = torch.zeros_like(features)
        result_start = _window(result, ctx.radius)
        slope = (grad * affinity / -features.shape[1]).unflatten(2, start.shape[2:])
        for plane, offset in zip(slope.unbind(1), pair_offsets(ctx.radius), strict=True):
            step = (start - _window(features, ctx.radius, offset)).sign_().mul_(plane.unsqueeze(1))
            result_start += step
            _window(result, ctx.radius, offset).sub_(step)
        return result, None


def affinity_loss(
    pairs_affinity: Tensor, labels: AffinityLabels, eps: float = 1e-5, counts: Tensor | None = None
) -> Tensor:
    """Loss of AffinityNet (Ahn and Kwak 2018, Sec. 3.2; a quarter of the published sum, as released).

    ``L = 1/4 <-log A>_background + 1/4 <-log A>_foreground + 1/2 <-log(1 - A)>_negative``, each the mean over
    its pairs (0 if it has none); eps is added inside every logarithm and to every number of pairs.

    Args:
        pairs_affinity: (B, D, n) from :func:`pair_affinity`.
        labels: as :func:`affinity_labels` gives them, same shape.
        eps: guard.
        counts: (3,), numbers of pairs (background, foreground, negative) that the sums are divided by, those of
            the whole batch where several processes share it; those of ``labels`` if None.

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
        shapes = tuple(pairs_affinity.shape), tuple(weight.shape)
        require(shapes[0] == shapes[1], f"labels.{name}: expected {shapes[0]}, got {shapes[1]}")
    attract = -torch.log(pairs_affinity + eps)
    repel = -torch.log(1 - pairs_affinity + eps)
    numbers = [weight.sum() for weight in labels] if counts is None else counts
    background, foreground, negative = (
        (values * weight).sum() / (number + eps)
        for values, weight, number in zip((attract, attract, repel), labels, numbers, strict=True)
    )
    return background / 4 + foreground / 4 + negative / 2


@torch.no_grad()
def random_walk(scores: Tensor, affinity: Tensor, beta: float = 8, log_t: int = 6) -> Tensor:
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
        (K, H, W), dtype of ``scores`` (computed in float32 or float64).

    Raises:
        ValueError: shapes do not fit each other, scores that are not finite, affinities outside [0, 1], or
            options out of range.

    Example:
        >>> walked = random_walk(torch.eye(48).reshape(48, 6, 8), torch.ones(4, 30), log_t=1)
        >>> torch.allclose(walked.sum(0), torch.ones(6, 8))  # columns of T still sum to 1
        True
    """
    if scores.ndim != 3 or not scores.is_floating_point():
        raise InputError(f"scores: expected floating (K, H, W), got {tuple(scores.shape)} {scores.dtype}")
    infinite = int((~scores.isfinite()).sum())
    require(infinite == 0, f"scores: expected finite values, got {infinite} that are not")
    require(beta > 0, f"beta: expected a number above 0, got {beta!r}")
    if isinstance(log_t, bool) or not isinstance(log_t, Integral) or not 0 <= log_t <= 16:
        raise InputError(f"log_t: expected an integer in [0, 16], got {log_t!r}")
    offsets = pair_offsets(_radius_of(affinity, *scores.shape[1:]))
    low, high = torch.stack(affinity.aminmax()).tolist()  # one wait for a GPU
    require(0 <= low <= high <= 1, f"affinity: expected values in [0, 1], got {low:g} to {high:g}")
    return walk(scores, affinity.to(scores.device), offsets, beta, 2 ** int(log_t))


def random_walk_dense(scores: Tensor, affinity: Tensor, beta: float = 8, log_t: int = 6) -> Tensor:
    """The definition of :func:`random_walk`: ``s <- s T^(2^log_t)`` with the matrix T written out and squared.

    In O((HW)^2) memory and O((HW)^3) time, for small maps and as the measure of the fast form.

    Args:
        scores: (K, H, W), floating.
        affinity: (D, n), pairs as in :func:`pair_indices`, same dtype.
        beta: exponent, > 0.
        log_t: number of squarings.

    Returns:
        (K, H, W).

    Raises:
        ValueError: shapes do not fit each other.

    Example:
        >>> random_walk_dense(torch.ones(1, 6, 8), torch.rand(4, 30)).shape  # constants stay as they are
        torch.Size([1, 6, 8])

    Publication (Ahn and Kwak 2018, Sec. 3.3) and release agree.
    """
    H, W = scores.shape[1:]
    start, end = pair_indices(_radius_of(affinity, H, W), H, W)
    weights = torch.eye(H * W, dtype=affinity.dtype, device=affinity.device)
    weights[start, end] = weights[end, start] = affinity**beta
    transition = weights / weights.sum(0)
    for _ in range(log_t):
        transition = transition @ transition
    return (scores.flatten(1) @ transition).view_as(scores)


def walk_cam(
    foreground: Tensor, affinity: Tensor, size: tuple[int, int], *, alpha: float = 6, beta: float = 8, log_t: int = 6
) -> Tensor:
    r"""Spread a CAM along pixel affinities: pseudo-label scores of the paper's second stage (Section 4.3).

    ``s = (1 - max_k a_k)^alpha, a_1, .., a_{K-1}``; averaged to the map of the affinities (adaptive), walked as
    s T^(2^log_t) with :func:`random_walk`, resized to the image (bilinear).

    Args:
        foreground: activations a (K-1, H, W) in [0, 1], at image size in pixels; K = 1 is an image of background only.
        affinity: (D, n), of :func:`pair_affinity`.
        size: (h, w) of the map the affinities belong to, in map pixels.
        alpha: exponent of the background, > 0.
        beta: exponent of the affinities, > 0.
        log_t: the walk takes 2^log_t steps.

    Returns:
        (K, H, W), background at index 0.

    Raises:
        ValueError: as :func:`~wsss_nb.pseudo_labels.add_background` and :func:`random_walk`.

    Example:
        >>> walk_cam(torch.rand(2, 24, 32), torch.ones(4, 30), (6, 8), log_t=1).shape
        torch.Size([3, 24, 32])

    Paper: alpha is not given. Release: alpha 6, beta 8, 2^6 steps, on maps of an eighth of the image.
    """
    scores = F.adaptive_avg_pool2d(add_background(foreground, f"power:{alpha:g}"), size)
    walked = random_walk(scores, affinity, beta=beta, log_t=log_t)
    return F.interpolate(walked[None], foreground.shape[-2:], mode="bilinear", align_corners=False)[0]


def _window(maps: Tensor, radius: int, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """The pixels that pairs go from, or those that they go to, by an offset."""
    reach, (dy, dx) = radius - 1, offset
    return maps[..., dy : maps.shape[-2] - reach + dy, reach + dx : maps.shape[-1] - reach + dx]


def _radius_of(pairs: Tensor, height: int, width: int) -> int:
    """The radius with as many offsets as ``pairs`` has rows."""
    radius, rows = 2, pairs.shape[-2] if pairs.ndim > 1 else 0
    while len(pair_offsets(radius)) < rows:
        radius += 1
    radius = fitting_radius(radius, height, width)
    expected = len(pair_offsets(radius)), (height - radius + 1) * (width - 2 * radius + 2)
    shapes = f"(D, n) = {expected} for a {height} x {width} map, got {tuple(pairs.shape)}"
    require(pairs.shape == expected, f"affinity: expected {shapes}")
    return radius
