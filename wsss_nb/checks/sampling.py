"""Checks of notebook 02: the probability mass of Eq. 4 and its draws."""

from __future__ import annotations

import math

import torch

from wsss_nb.checks.verdict import Function, Verdict, judge

__all__ = ["check_draws_needed", "check_expected_push", "check_pmf"]


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
    return judge(function, (cam,), cam / cam.sum((1, 2), keepdim=True), slips, praise)


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
    return judge(function, (a,), p * (1 - a), slips, praise)


def check_draws_needed(function: Function) -> Verdict:
    """``function(std_of_one_draw, wanted_std) -> int``: the smallest S with std / sqrt(S) <= wanted."""
    slips = {
        "the standard deviation falls with the square root of the number of draws, the variance with the number": 10,
        "nearly: round up, or the mean is still a little too noisy": math.floor((0.4 / 0.041) ** 2),
        "nearly: draws come in whole numbers, so round up": (0.4 / 0.041) ** 2,
        "this is the inverse": (0.041 / 0.4) ** 2,
    }
    praise = "four times the draws for half the noise"
    return judge(function, (0.4, 0.041), math.ceil((0.4 / 0.041) ** 2), slips, praise)
