"""Scores spread along pixel affinities without ever holding the matrix of the walk."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["walk"]


def walk(scores: Tensor, pairs: Tensor, offsets: Sequence[tuple[int, int]], beta: float, steps: int) -> Tensor:
    """``s T^steps``, T the column-normalised W = A^beta of :func:`wsss_nb.affinity.random_walk_dense`.

    W only ever meets the score vectors, as shifts of the flattened map, and T^steps is summed to rounding error from
    its Chebyshev polynomials, ``x^p = sum_k c_k Cheb_k(x)``, ``Cheb_{k+1}(x) = 2 x Cheb_k(x) - Cheb_{k-1}(x)``: the
    eigenvalues of T lie in [-1, 1]. Classes whose scores are all 0 are left out.

    Args:
        scores: s, (K, H, W), floating.
        pairs: A of every pair, (D, n).
        offsets: D offsets (dy, dx) of a half plane, in pixels.
        beta: exponent of the affinities.
        steps: exponent of T.

    Returns:
        (K, H, W), dtype of the scores (computed in float32 or float64).
    """
    height, width = scores.shape[1:]
    size, reach = height * width, max(dy for dy, _ in offsets)
    margin = reach * (width + 1)
    dtype = torch.promote_types(scores.dtype, torch.float32)

    # On the flattened map an offset is one shift; weights of pairs that do not exist stay 0, so that what
    # a shift carries over from the neighbouring row never counts.
    shifts = [dy * width + dx for dy, dx in offsets]
    weights = scores.new_zeros(len(shifts), margin + size, dtype=dtype)
    window = weights[:, margin:].unflatten(1, (height, width))[:, : height - reach, reach : width - reach]
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
        whole = scores.new_zeros(rows, size + 2 * margin, dtype=dtype)
        return whole, whole[:, margin : margin + size]

    ones, inner = padded(1)
    column_sum = multiply(ones.fill_(1), torch.empty_like(inner))
    alive = scores.flatten(1).any(1)
    (last, last_inner), (now, now_inner) = padded(int(alive.sum())), padded(int(alive.sum()))
    now_inner.copy_(scores[alive].flatten(1))
    low, high = now_inner.aminmax(dim=1, keepdim=True)
    coefficients = _power_coefficients(steps, torch.finfo(dtype).eps)
    total, product = coefficients[0] * now_inner, torch.empty_like(now_inner)
    for degree, coefficient in enumerate(coefficients[1:], start=1):
        multiply(now, product).div_(column_sum)
        last_inner.neg_().add_(product, alpha=1 if degree == 1 else 2)
        (last, last_inner), (now, now_inner) = (now, now_inner), (last, last_inner)
        if coefficient:
            total.add_(now_inner, alpha=coefficient)
    total.clamp_(low, high)  # a mean of scores lies between them; rounding may not
    walked = torch.zeros_like(scores)
    walked[alive] = total.unflatten(1, (height, width)).to(scores.dtype)
    return walked


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
