"""Immediate checks for the exercises of the notebooks: each says what is wrong, not only that something is.

A check takes the learner's function, tries it on small inputs, and compares with an independent computation and
with the results of well-known slips. It never raises for a wrong answer; it returns a `Verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Verdict",
    "check_answer",
    "check_background",
    "check_class_map",
    "check_closed_form",
    "check_descent_direction",
    "check_draws_needed",
    "check_expected_push",
    "check_iou",
    "check_laplacian",
    "check_max_gradient",
    "check_mu_for",
    "check_pmf",
]

Function = Callable[..., Any]


@dataclass(frozen=True)
class Verdict:
    """Whether an exercise is solved, and a sentence about it."""

    ok: bool
    message: str

    def __bool__(self) -> bool:
        """True if solved."""
        return self.ok

    def __repr__(self) -> str:
        return ("✓ " if self.ok else "✗ ") + self.message


def _judge(
    function: Function,
    arguments: tuple[Any, ...],
    expected: Any,
    slips: Mapping[str, Any],
    praise: str,
    tolerance: float = 1e-4,
) -> Verdict:
    """Call the function, compare with the expected value, else name the slip that gives the same result."""
    name = getattr(function, "__name__", "the function")
    try:
        answer = function(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
    except Exception as error:  # a learner's code may raise anything
        return Verdict(False, f"{name} stopped with {type(error).__name__}: {error}")
    if answer is None:
        return Verdict(False, f"{name} returns None: nothing is filled in yet")
    try:
        value = _array(answer)
    except (TypeError, ValueError, RuntimeError):
        return Verdict(False, f"{name}: expected a number or a tensor, got {type(answer).__name__}")
    target = _array(expected)
    if value.shape != target.shape:
        return Verdict(False, f"{name}: expected shape {target.shape}, got {value.shape}")
    if not np.isfinite(value).all():
        return Verdict(
            False, f"{name}: got {'nan' if np.isnan(value).any() else 'inf'}; is something divided by 0?"
        )
    if _close(value, target, tolerance):
        return Verdict(True, praise)
    for explanation, wrong in slips.items():
        other = _array(wrong)
        if other.shape == value.shape and _close(value, other, tolerance):
            return Verdict(False, f"{name}: {explanation}")
    worst = np.unravel_index(int(np.abs(value - target).argmax()), target.shape)
    where = f" at {tuple(int(i) for i in worst)}" if target.ndim else ""
    return Verdict(False, f"{name}: expected {target[worst]:.4g}{where}, got {value[worst]:.4g}")


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def _close(value: np.ndarray, target: np.ndarray, tolerance: float) -> bool:
    return bool(np.allclose(value, target, rtol=tolerance, atol=tolerance * 1e-2))


def check_answer(answer: Any, expected: Any, hint: str, tolerance: float = 1e-3) -> Verdict:
    """Compare a single answer (number, word, truth value) with the expected one; the hint goes with a wrong one.

    Example:
        >>> check_answer("lambda0", "lambda1", "the paper keeps lambda = 1")
        ✗ got 'lambda0': the paper keeps lambda = 1
    """
    if answer is None or answer is ...:
        return Verdict(False, "nothing is filled in yet")
    if isinstance(answer, (np.generic, Tensor)) and answer.ndim == 0:
        answer = answer.item()
    if isinstance(expected, bool | str) or isinstance(answer, bool | str):
        right = type(answer) is type(expected) and answer == expected
    else:
        try:
            right = math.isclose(float(answer), float(expected), rel_tol=tolerance, abs_tol=tolerance)
        except (TypeError, ValueError):
            right = False
    return Verdict(True, f"right: {hint}") if right else Verdict(False, f"got {answer!r}: {hint}")


# --- 01 ----------------------------------------------------------------------------------------------------


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
    return _judge(
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
    return _judge(function, (cam,), expected, slips, "one pixel per class learns, the others hear nothing")


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
    return _judge(function, (foreground, 4.0), base**4, slips, praise)


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
    verdict = _judge(function, (prediction, target), both / either, slips, "intersection over union")
    if not verdict:
        return verdict
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    try:
        empty = float(function(prediction, torch.zeros_like(prediction)))
        function(nothing, ~nothing)
    except Exception as error:
        return Verdict(False, f"right, but empty masks stop it with {type(error).__name__}: {error}")
    return verdict if empty == 0 else Verdict(False, f"disjoint masks: expected 0, got {empty:.4g}")


# --- 02 ----------------------------------------------------------------------------------------------------


def check_pmf(function: Function) -> Verdict:
    """``function(cam (K, h, w)) -> (K, h, w)``: Eq. 4, p = a / sum of a over the pixels of the class."""
    cam = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(4)) + 0.1
    slips = {
        "this sums to one over the classes of a pixel; Eq. 4 sums to one over the pixels of a class": cam
        / cam.sum(0),
        "one sum for all classes together: each class needs its own": cam / cam.sum(),
        "divided by the maximum instead of the sum": cam / cam.amax((1, 2), keepdim=True),
        "this is a softmax over pixels; a is a probability already, so divide by its sum": cam.flatten(1)
        .softmax(1)
        .view_as(cam),
    }
    praise = "each class has its own distribution over the pixels"
    return _judge(function, (cam,), cam / cam.sum((1, 2), keepdim=True), slips, praise)


def check_expected_push(function: Function) -> Verdict:
    """``function(a (h, w)) -> (h, w)``: minus d/ds of E[-log a], a = sigmoid(s): a (1 - a) / sum a."""
    a = torch.rand(3, 4, generator=torch.Generator().manual_seed(5)) * 0.9 + 0.05
    p = a / a.sum()
    slips = {
        "this is the derivative with respect to a; the chain rule adds da/ds = a (1 - a)": p / a,
        "the sign: the push is minus the gradient, upwards where the class is present": -p * (1 - a),
        "the probability of the draw is missing": 1 - a,
        "da/ds = a (1 - a): the second factor is missing": p,
        "da/ds is in, but d(-log a)/da = -1/a is missing": p * a * (1 - a),
    }
    praise = "largest where a (1 - a) is: at the frontier of the map"
    return _judge(function, (a,), p * (1 - a), slips, praise)


def check_draws_needed(function: Function) -> Verdict:
    """``function(std_of_one_draw, wanted_std) -> int``: the smallest S with std / sqrt(S) <= wanted."""
    slips = {
        "the standard deviation falls with the square root of the number of draws, the variance with the number": 10,
        "nearly: round up, or the mean is still a little too noisy": math.floor((0.4 / 0.041) ** 2),
        "this is the inverse": (0.041 / 0.4) ** 2,
    }
    praise = "four times the draws for half the noise"
    return _judge(function, (0.4, 0.041), math.ceil((0.4 / 0.041) ** 2), slips, praise)


# --- 03 ----------------------------------------------------------------------------------------------------


def check_mu_for(function: Function) -> Verdict:
    """``function(delta) -> mu`` such that f(delta) = 0: mu = log((1 - delta) / delta)."""
    slips = {
        "the sign: mu is minus the logit of delta": math.log(0.1 / 0.9),
        "a cross-over below one half needs the logit, not only log(delta)": -math.log(0.1),
        "without the factor 1/2: tanh is zero where its argument is, whatever its slope": math.log(9) / 2,
        "this is the cross-over for a given mu; asked is mu for a given cross-over": 1 / (1 + math.exp(0.1)),
    }
    return _judge(function, (0.1,), math.log(9), slips, "mu = 2.5 means: alike up to a difference of 7.6 %")


def check_closed_form(function: Function) -> Verdict:
    """``function(delta, mu) -> f`` without logarithm, finite at 0 and 1."""
    delta = torch.tensor([0.0, 0.02, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    c = math.exp(2 * 1.5)

    def form(c: float) -> Tensor:
        return (c * delta**2 - (1 - delta) ** 2) / (c * delta**2 + (1 - delta) ** 2)

    half = math.exp(1.5)
    slips = {
        "c is exp(2 mu), because tanh(x) = (e^2x - 1) / (e^2x + 1)": form(half),
        "delta and 1 - delta come squared": (c * delta - (1 - delta)) / (c * delta + (1 - delta)),
        "the sign: alike (delta = 0) must give -1": -form(c),
        "mu is ignored": form(1.0),
    }
    return _judge(function, (delta, 1.5), form(c), slips, "exact at both ends, no guard needed")


def _small_graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    M = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return M + M.T, torch.rand(6, 2, generator=generator, dtype=torch.float64)


def check_laplacian(function: Function) -> Verdict:
    """``function(M (n, n), a (n, K)) -> number``: sum_ij M_ij 1/2 |a_i - a_j|^2."""
    M, a = _small_graph()
    squared = ((a[:, None] - a[None]) ** 2).sum(-1)
    expected = (M * squared / 2).sum()
    quadratic = torch.einsum("ik,ij,jk->", a, M, a)
    slips = {
        "the factor 1/2 of g is missing (or the pairs are counted twice)": 2 * expected,
        "each pair is counted once here; Eq. 6 sums over both orders": expected / 2,
        "this is a^T M a: the degrees D on the diagonal are missing": quadratic,
        "the sign: D - M, not M - D": -expected,
        "D + M in place of D - M": (M.sum(1)[:, None] * a**2).sum() + quadratic,
    }
    return _judge(function, (M, a), expected, slips, "n^2 differences became one matrix product")


def check_descent_direction(function: Function) -> Verdict:
    """``function(M (n, n), a (n, K)) -> (n, K)``: minus the gradient of L = -sum_k a_k^T (D - M) a_k."""
    M, a = _small_graph()
    laplacian = M.sum(1, keepdim=True) * a - M @ a
    slips = {
        "this is the gradient of the loss; descent goes against it": -2 * laplacian,
        "the derivative of a quadratic form carries a 2": laplacian,
        "the loss has a minus sign and the direction another: they cancel; and there is a 2": -laplacian,
        "D is the diagonal of row sums; its term is missing": -2 * (M @ a),
    }
    return _judge(function, (M, a), 2 * laplacian, slips, "one more matrix product gives the gradient")
