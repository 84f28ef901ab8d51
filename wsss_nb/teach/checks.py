"""Immediate checks for the exercises of the notebooks: each says what is wrong, not only that something is.

A check takes the learner's function, tries it on several small inputs, and compares with an independent computation
and with the results of well-known slips. It never raises for a wrong answer; it returns a `Verdict`. A check of your
own is a function of the inputs that gives the right result and those of the slips, see `exercise`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]
Answers = tuple[Any, dict[str, Any]]  # the right result, and by their explanations those of slips


class Verdict(NamedTuple):
    """Whether an exercise is solved, and a sentence about it."""

    ok: bool
    message: str

    def __bool__(self) -> bool:
        """True if solved."""
        return self.ok

    def __repr__(self) -> str:
        return ("✓ " if self.ok else "✗ ") + self.message

    def require(self) -> None:
        """Stop here unless the exercise is solved.

        Raises:
            AssertionError: it is not; the message says why.
        """
        if not self.ok:
            raise AssertionError(self.message)


def exercise(
    praise: str,
    draw: Callable[[torch.Generator], Sequence[Any]] | None = None,
    cases: Sequence[Sequence[Any]] = (),
    then: Callable[[Function], str] = lambda function: "",
) -> Callable[[Callable[..., Answers]], Callable[[Function], Verdict]]:
    """Make a check of a function that gives, for one input, the right result and those of known slips.

    Args:
        praise: said where all results agree.
        draw: makes a random input; three are tried, always the same.
        cases: inputs to try first.
        then: what is still wrong with a function whose results all agree; "" if nothing is.

    Example:
        >>> @exercise("that is the mean", draw=lambda g: [torch.rand(4, generator=g)])
        ... def check_mean(x):
        ...     return x.mean(), {"this is the sum": x.sum()}
        >>> check_mean(torch.sum)
        ✗ sum: this is the sum
    """

    def make(answers: Callable[..., Answers]) -> Callable[[Function], Verdict]:
        def check(function: Function) -> Verdict:
            generator = torch.Generator().manual_seed(2)
            for inputs in [*cases, *(draw(generator) for _ in range(3) if draw)]:
                if problem := _problem(function, inputs, *answers(*inputs)):
                    return Verdict(False, f"{getattr(function, '__name__', 'the function')}{problem}")
            problem = then(function)
            return Verdict(not problem, problem or praise)

        check.__name__, check.__doc__ = answers.__name__, answers.__doc__
        return check

    return make


def _problem(function: Function, inputs: Sequence[Any], expected: Any, slips: dict[str, Any]) -> str:
    """What is wrong with the function's result; "" if nothing is."""
    try:
        answer = function(*(one.clone() if isinstance(one, Tensor) else one for one in inputs))
    except Exception as error:  # a learner's code may raise anything
        return f" stopped with {type(error).__name__}: {error}"
    if answer is None:
        return " returns None: nothing is filled in yet"
    try:
        value, target = _array(answer), _array(expected)
    except (TypeError, ValueError, RuntimeError):
        return f": expected a number or a tensor, got {type(answer).__name__}"
    if value.shape != target.shape:
        return f": expected shape {target.shape}, got {value.shape}"
    if not np.isfinite(value).all():
        return f": got {'nan' if np.isnan(value).any() else 'inf'}; is something divided by 0?"
    if np.allclose(value, target, rtol=1e-4, atol=1e-6):
        return ""
    for explanation, slip in slips.items():
        other = _array(slip)
        if other.shape == value.shape and np.allclose(value, other, rtol=1e-4, atol=1e-6):
            return f": {explanation}"
    if target.ndim == 0:  # the number is for the learner to find
        off = abs(value - target) / max(abs(target), 1e-9)
        far = f"about {float(f'{100 * off:.1g}'):g} %" if off < 1 else "more than its own size"
        return f": got {value:.4g}, too {'large' if value > target else 'small'} by {far}"
    worst = np.unravel_index(int(np.abs(value - target).argmax()), target.shape)
    return f": expected {target[worst]:.4g} at {tuple(int(i) for i in worst)}, got {value[worst]:.4g}"


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)


def _uniform(generator: torch.Generator, *size: int) -> Tensor:
    return torch.rand(size, generator=generator)


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(_uniform(generator))


# --- 01: class maps, pooling, background rules, IoU ----------------------------------------------------------


@exercise(
    "this is the map; its mean is the logit",
    lambda g: [torch.randn(5, 3, 4, generator=g), torch.randn(5, generator=g), _between(0.5, 1, g)],
)
def check_class_map(features: Tensor, weight: Tensor, bias: float) -> Answers:
    """``function(features (C, h, w), weight (C,), bias) -> (h, w)``: M = sum_k w_k f_k + b."""
    plain = torch.einsum("chw,c->hw", features, weight)
    return plain + bias, {
        "the bias is missing": plain,
        "the sum over channels should not be divided by their number": plain / len(weight) + bias,
        "a map keeps its negative values until it is shown": (plain + bias).clamp(min=0),
        "the map is transposed (or flipped) in space": (plain + bias).flip(0),
    }


@exercise("one pixel per class learns, the others hear nothing", lambda g: [_uniform(g, 3, 4, 5)])
def check_max_gradient(cam: Tensor) -> Answers:
    """``function(cam (K, h, w)) -> (K, h, w)``: gradient of sum_k max_ij a_kij, one 1 per class."""
    expected = (cam == cam.amax((1, 2), keepdim=True)).float()
    over_classes = "the maximum is over pixels, for each class; this one is over classes, for each pixel"
    return expected, {
        "there is one maximum per class, not one for all classes together": cam == cam.max(),
        "the gradient of the maximum is 1 at its place, not the maximum itself": expected * cam,
        "this is the gradient of the average: every pixel gets the same": torch.full_like(cam, 1 / cam[0].numel()),
        over_classes: cam == cam.amax(0),
    }


@exercise("the larger alpha, the less background", lambda g: [_uniform(g, 2, 3, 4) * 0.5, _between(2, 6, g)])
def check_background(foreground: Tensor, alpha: float) -> Answers:
    """``function(foreground (K-1, h, w), alpha) -> (h, w)``: (1 - max_k a_k)^alpha."""
    most, overall = foreground.amax(0), foreground.amax().expand_as(foreground[0])
    return (1 - most) ** alpha, {
        "the exponent is missing": 1 - most,
        "the strongest class counts, not the sum of the classes": (1 - foreground.sum(0)) ** alpha,
        "the exponent belongs outside: (1 - max)^alpha, not 1 - max^alpha": 1 - most**alpha,
        "the maximum is over classes for each pixel": (1 - overall) ** alpha,
    }


_SHARES = torch.tensor([0.4, 0.6]).view(2, 1, 1)


def _empty_masks(iou: Function) -> str:
    some, none = torch.eye(6, 8) > 0, torch.zeros(6, 8, dtype=torch.bool)
    try:
        disjoint, empty = (float(iou(mask.clone(), none.clone())) for mask in (some, none))
    except Exception as error:
        return f"right, but an empty mask stops it with {type(error).__name__}: {error}"
    if disjoint != 0:
        return f"disjoint masks have no pixel in common, got {disjoint:.4g}"
    return "" if math.isfinite(empty) else f"two empty masks: expected a number (their union is 0), got {empty:g}"


@exercise("intersection over union", lambda g: list(_uniform(g, 2, 6, 8) < _SHARES), then=_empty_masks)
def check_iou(prediction: Tensor, target: Tensor) -> Answers:
    """``function(prediction, target) -> number`` for boolean masks (h, w)."""
    both, either = (prediction & target).sum(), (prediction | target).sum()
    areas = prediction.sum() + target.sum()
    return both / either, {
        "this is accuracy: background pixels count as right": (prediction == target).float().mean(),
        "this is precision: divided by the predicted pixels only": both / prediction.sum(),
        "this is recall: divided by the true pixels only": both / target.sum(),
        "the overlap is counted twice below (union = sum of the areas - overlap)": both / areas,
        "this is the Dice score; IoU divides by the union": 2 * both / areas,
        "this is the inverse": either / both,
    }


# --- 02: the probability mass of Eq. 4 and its draws ---------------------------------------------------------


@exercise("each class has its own distribution over the pixels", lambda g: [_uniform(g, 3, 2, 4) + 0.1])
def check_pmf(cam: Tensor) -> Answers:
    """``function(cam (K, h, w)) -> (K, h, w)``: Eq. 4, p = a / sum of a over the pixels of the class."""
    softmax = cam.flatten(1).softmax(1).view_as(cam)
    return cam / cam.sum((1, 2), keepdim=True), {
        "this sums to one over the classes of a pixel; Eq. 4 sums to one over the pixels of a class": cam / cam.sum(0),
        "one sum for all classes together: each class needs its own": cam / cam.sum(),
        "divided by the maximum instead of the sum": cam / cam.amax((1, 2), keepdim=True),
        "this is a softmax over pixels; a is a probability already, so divide by its sum": softmax,
    }


@exercise("largest where a (1 - a) is: at the frontier of the map", lambda g: [_uniform(g, 3, 4) * 0.9 + 0.05])
def check_expected_push(a: Tensor) -> Answers:
    """``function(a (h, w)) -> (h, w)``: minus d/ds of E[-log a], a = sigmoid(s): a (1 - a) / sum a."""
    p = a / a.sum()
    return p * (1 - a), {
        "this is the derivative with respect to a; the chain rule adds da/ds = a (1 - a)": p / a,
        "the sign: the push is minus the gradient, upwards where the class is present": p * (a - 1),
        "the probability of the draw is missing": 1 - a,
        "da/ds = a (1 - a): the second factor is missing": p,
        "da/ds is in, but d(-log a)/da = -1/a is missing": p * a * (1 - a),
    }


# the whole numbers come from powers of two, which every order of division and power keeps whole
@exercise("four times the draws for half the noise", cases=[(0.4, 0.041), (0.5, 0.125), (1.0, 0.3), (2.0, 0.25)])
def check_draws_needed(std: float, wanted: float) -> Answers:
    """``function(std_of_one_draw, wanted_std) -> int``: the smallest S with std / sqrt(S) <= wanted."""
    draws, root = (std / wanted) ** 2, math.ceil(std / wanted)
    return math.ceil(draws), {
        "the standard deviation falls with the square root of the number of draws, the variance with the number": root,
        "nearly: round up, or the mean is still a little too noisy": math.floor(draws),
        "nearly: draws come in whole numbers, so round up": draws,
        "nearly: a number that is whole already needs no draw more": math.floor(draws) + 1,
        "this is the inverse": 1 / draws,
    }


# --- 03: f in closed form, the Laplacian, the descent --------------------------------------------------------


@exercise("mu = 2.5 means: alike up to a difference of 7.6 %", lambda g: [_between(0.02, 0.45, g)], [(0.1,)])
def check_mu_for(delta: float) -> Answers:
    """``function(delta) -> mu`` such that f(delta) = 0: mu = log((1 - delta) / delta)."""
    mu = math.log((1 - delta) / delta)
    return mu, {
        "the sign: mu is minus the logit of delta": -mu,
        "a cross-over below one half needs the logit, not only log(delta)": -math.log(delta),
        "without the factor 1/2: tanh is zero where its argument is, whatever its slope": mu / 2,
        "this is the cross-over for a given mu; asked is mu for a given cross-over": 1 / (1 + math.exp(delta)),
    }


def _closed_form(delta: Tensor, c: float) -> Tensor:
    return (c * delta**2 - (1 - delta) ** 2) / (c * delta**2 + (1 - delta) ** 2)


_DELTA = torch.tensor([0.0, 0.02, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)


def _both_ends(f: Function) -> str:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    if not np.array_equal(_array(f(ends.clone(), 40.0)), _array(2 * ends - 1)):
        words = "delta 0 and 1 give exactly -1 and 1, for mu = 40 as well; a guard in a logarithm moves them"
        return f"nearly: {words}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors turned into plain numbers
            finite = bool(torch.autograd.functional.jacobian(lambda delta: f(delta, 1.5), _DELTA).isfinite().all())
    except Exception:  # computed with NumPy or with plain numbers, which autograd cannot follow
        return ""
    words = "its derivative is not finite at delta 0 and 1: a logarithm is infinite there"
    return "" if finite else f"nearly: the values are right, but {words}"


@exercise(
    "exact at both ends, where the logarithm of Eq. 8 would have needed a guard",
    cases=[(_DELTA, mu) for mu in (1.5, -0.5, 3.0)],
    then=_both_ends,
)
def check_closed_form(delta: Tensor, mu: float) -> Answers:
    """``function(delta, mu) -> f`` without logarithm, with a finite derivative at delta 0 and 1 too."""
    c = math.exp(2 * mu)
    return _closed_form(delta, c), {
        "c is exp(2 mu), because tanh(x) = (e^2x - 1) / (e^2x + 1)": _closed_form(delta, math.exp(mu)),
        "delta and 1 - delta come squared": (c * delta - (1 - delta)) / (c * delta + (1 - delta)),
        "the sign: alike (delta = 0) must give -1": -_closed_form(delta, c),
        "mu is ignored": _closed_form(delta, 1.0),
    }


def _small_graph(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    M = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return M + M.T, torch.rand(6, 2, generator=generator, dtype=torch.float64)


@exercise("and it is a^T (D - M) a, without any difference of pairs", _small_graph)
def check_laplacian(M: Tensor, a: Tensor) -> Answers:
    """``function(M (n, n), a (n, K)) -> number``: sum_ij M_ij 1/2 |a_i - a_j|^2."""
    expected, quadratic = (M * ((a[:, None] - a[None]) ** 2).sum(-1) / 2).sum(), (a * (M @ a)).sum()
    return expected, {
        "the factor 1/2 of g is missing (or the pairs are counted twice)": 2 * expected,
        "each pair is counted once here; Eq. 6 sums over both orders": expected / 2,
        "this is a^T M a: the degrees D on the diagonal are missing": quadratic,
        "the sign: D - M, not M - D": -expected,
        "D + M in place of D - M": expected + 2 * quadratic,
    }


@exercise("one more matrix product gives the gradient", _small_graph)
def check_descent_direction(M: Tensor, a: Tensor) -> Answers:
    """``function(M (n, n), a (n, K)) -> (n, K)``: minus the gradient of L = -sum_k a_k^T (D - M) a_k."""
    laplacian = M.sum(1, keepdim=True) * a - M @ a
    return 2 * laplacian, {
        "this is the gradient of the loss; descent goes against it": -2 * laplacian,
        "the derivative of a quadratic form carries a 2": laplacian,
        "the loss has a minus sign and the direction another: they cancel; and there is a 2": -laplacian,
        "D is the diagonal of row sums; its term is missing": -2 * (M @ a),
    }


# --- 04: the total loss, the learning rate, the coverage of parts --------------------------------------------


@exercise(
    "0 is max pooling, 1 is importance sampling alone",
    lambda g: [_between(0.1, 0.4, g), _between(0.5, 1, g), _between(0.1, 0.4, g)],
)
def check_total_loss(weight: float, by_max: float, by_sampling: float) -> Answers:
    """``function(weight, max_loss, sampling_loss) -> number``: Eq. 5, (1 - lambda) L_max + lambda L_s."""
    swapped = weight * by_max + (1 - weight) * by_sampling
    return (1 - weight) * by_max + weight * by_sampling, {
        "lambda belongs to the sampling term: at 1 sampling is alone": swapped,
        "the two weights add up to one: the max term carries 1 - lambda": by_max + weight * by_sampling,
        "the max term is missing": weight * by_sampling,
    }


@exercise("nearly linear, zero at the end", cases=[(300, 400, 0.02), (100, 1000, 0.5), (5, 8, 0.001), (0, 10, 0.01)])
def check_poly_rate(step: int, total: int, base: float) -> Answers:
    """``function(step, total, base) -> number``: base (1 - step / total)^0.9."""
    left = 1 - step / total
    return base * left**0.9, {
        "the exponent 0.9 is missing: this is linear decay": base * left,
        "it falls: 1 minus the share of the steps done": base * (step / total) ** 0.9,
        "the base rate is outside the power": (base * left) ** 0.9,
    }


def _parts(g: torch.Generator) -> list[Tensor]:
    labels = torch.randint(0, 4, (9, 11), generator=g) * (_uniform(g, 9, 11) < 0.7)
    return [labels, torch.randint(0, 3, (9, 11), generator=g)]


@exercise("the recall of the body", _parts)
def check_part_coverage(labels: Tensor, parts: Tensor) -> Answers:
    """``function(label_map, parts) -> number``: share of body pixels (part 1) with any label but background."""
    found, body = (labels > 0).float(), (parts == 1).float()
    precision = body[labels > 0].mean()
    return found[parts == 1].mean(), {
        "this is the head (part 2)": found[parts == 2].mean(),
        "divide by the body's pixels, not by all of the image": (found * body).mean(),
        "divide by the body's pixels, not by those that were labelled: that is precision": precision,
        "head and body together: only part 1 is asked for": found[parts > 0].mean(),
        "this counts the body's pixels that were missed": 1 - found[parts == 1].mean(),
    }


# --- 05: pairs and the random walk ---------------------------------------------------------------------------


@exercise("34 pairs per pixel instead of all pixels of the image", cases=[(5,), (3,), (2,), (7,)])
def check_neighbours(radius: int) -> Answers:
    """``function(radius) -> int``: unordered directions to pixels closer than the radius (34 for radius 5)."""
    reach = range(1 - radius, radius)
    both = sum(0 < y * y + x * x < radius * radius for y in reach for x in reach)
    corners = "closer than the radius, in Euclidean distance: neither the radius itself nor the corners"
    return both // 2, {
        "right for radius 5 alone; the count depends on the radius": 34,
        "each pair counts once: (dy, dx) and (-dy, -dx) join the same two pixels": both,
        "a pixel is no neighbour of itself, and each pair counts once": both + 1,
        corners: (len(reach) ** 2 - 1) // 2,
    }


def _affinity(g: torch.Generator) -> list[Any]:
    affinity = _uniform(g, 5, 5) * 0.8 + 0.1
    return [(affinity + affinity.T) / 2, _between(2, 5, g)]


@exercise("every pixel takes a weighted mean of its neighbours", _affinity)
def check_transition(affinity: Tensor, beta: float) -> Answers:
    """``function(affinity (n, n), beta) -> (n, n)``: T_ij = A_ij^beta / sum_i A_ij^beta."""
    weight, share = affinity**beta, affinity / affinity.sum(0)
    return weight / weight.sum(0), {
        "beta is missing: it is what makes weak affinities vanish": share,
        "here the rows add up to one; it is the columns that must": weight / weight.sum(1, keepdim=True),
        "first the power, then the division: like this the columns do not add up to one": share**beta,
        "the division is missing: scores would grow with every step": weight,
    }


def _chain(g: torch.Generator) -> list[Any]:
    weight = _uniform(g, 4, 4)
    return [_uniform(g, 2, 4), weight / weight.sum(0), int(torch.randint(2, 6, (), generator=g))]


@exercise("applied one step at a time, this needs no power of T at all", _chain)
def check_walk(scores: Tensor, transition: Tensor, steps: int) -> Answers:
    """``function(scores (K, n), transition (n, n), steps) -> (K, n)``: s T^steps."""
    power = torch.linalg.matrix_power
    turned = scores @ power(transition.T, steps)
    return scores @ power(transition, steps), {
        "that is one step": scores @ transition,
        "T is applied `steps` times, not squared `steps` times": scores @ power(transition, 2**steps),
        "this is T transposed: the columns of T add up to one, so scores go on its left": turned,
        "scores are multiplied with T, not with T to the power of each element": scores @ transition**steps,
    }


# --- 06: segmentation and its score --------------------------------------------------------------------------


def _partly_labelled(g: torch.Generator) -> list[Tensor]:
    target = torch.randint(0, 3, (4, 5), generator=g)
    target[0], target[2, 1:3] = 255, 255
    return [torch.randn(3, 4, 5, generator=g), target]


@exercise("unsure pixels teach nothing, and cost nothing", _partly_labelled)
def check_ignored_cross_entropy(logits: Tensor, target: Tensor) -> Answers:
    """``function(logits (K, h, w), target (h, w)) -> number``: mean of -log softmax where target is not 255."""
    known = target != 255
    expected = F.cross_entropy(logits[None], target[None], ignore_index=255)
    as_background = F.cross_entropy(logits[None], torch.where(known, target, 0)[None])
    return expected, {
        "the mean is over the pixels that count, not over all of them": expected * known.float().mean(),
        "255 is not background: those pixels are left out": as_background,
        "the mean, not the sum": expected * known.sum(),
        "the sign is wrong: a loss falls as the right class's probability rises": -expected,
    }


def _three_of_four_classes(g: torch.Generator) -> list[Tensor]:
    confusion = torch.randint(1, 9, (4, 4), generator=g).float() + 20 * torch.eye(4)
    confusion[3], confusion[:, 3] = 0, 0
    return [confusion]


@exercise("as in Table 1", _three_of_four_classes)
def check_confusion_miou(confusion: Tensor) -> Answers:
    """``function(confusion (K, K)) -> number``: rows are the truth; classes that never occur are left out."""
    hit, true, found = confusion.diag(), confusion.sum(1), confusion.sum(0)
    iou = hit / (true + found - hit)
    return iou.nanmean(), {
        "a class that never occurs has no IoU; it is left out of the mean": iou.nansum() / len(iou),
        "background is a class too": iou[1:].nanmean(),
        "this is recall: false positives are missing below the line": (hit / true).nanmean(),
        "this is precision: misses are missing below the line": (hit / found).nanmean(),
        "this is pixel accuracy": hit.sum() / confusion.sum(),
        "the hits are counted twice below the line": (hit / (true + found)).nanmean(),
    }


@exercise("two views, one map", lambda g: list(torch.randn(2, 3, 4, 5, generator=g)))
def check_view_mean(plain: Tensor, mirrored: Tensor) -> Answers:
    """``function(plain (K, h, w), mirrored (K, h, w)) -> (K, h, w)``: softmax of the mean logits of two views."""
    back = mirrored.flip(-1)
    return ((plain + back) / 2).softmax(0), {
        "the mirrored view shows another place: mirror it back first": ((plain + mirrored) / 2).softmax(0),
        "it was mirrored left to right, not upside down": ((plain + mirrored.flip(-2)) / 2).softmax(0),
        "here the logits are averaged, and softmax comes last": (plain.softmax(0) + back.softmax(0)) / 2,
        "the softmax over classes is missing": (plain + back) / 2,
    }


__all__ = ["Verdict", "exercise", *(name for name in dir() if name.startswith("check_"))]
