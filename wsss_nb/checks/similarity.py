"""Checks of notebook 03: f in closed form, the Laplacian, the descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsss_nb.checks.verdict import Function, Verdict, judge

__all__ = ["check_closed_form", "check_descent_direction", "check_laplacian", "check_mu_for"]


def check_mu_for(function: Function) -> Verdict:
    """``function(delta) -> mu`` such that f(delta) = 0: mu = log((1 - delta) / delta)."""
    slips = {
        "the sign: mu is minus the logit of delta": math.log(0.1 / 0.9),
        "a cross-over below one half needs the logit, not only log(delta)": -math.log(0.1),
        "without the factor 1/2: tanh is zero where its argument is, whatever its slope": math.log(9) / 2,
        "this is the cross-over for a given mu; asked is mu for a given cross-over": 1 / (1 + math.exp(0.1)),
    }
    return judge(function, (0.1,), math.log(9), slips, "mu = 2.5 means: alike up to a difference of 7.6 %")


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
    praise = "exact at both ends, where the logarithm of Eq. 8 would have needed a guard"
    verdict = judge(function, (delta, 1.5), form(c), slips, praise)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    if verdict and not judge(function, (ends, 40.0), 2 * ends - 1, {}, praise, tolerance=0):
        words = "delta 0 and 1 give exactly -1 and 1, for mu = 40 as well; a guard in a logarithm moves them"
        return Verdict(False, f"nearly: {words}")
    return verdict


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
    return judge(
        function, (M, a), expected, slips, "and it is a^T (D - M) a, without any difference of pairs"
    )


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
    return judge(function, (M, a), 2 * laplacian, slips, "one more matrix product gives the gradient")
