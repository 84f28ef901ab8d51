"""Immediate checks for the exercises of the notebooks: each says what is wrong, not only that something is.

A check takes the learner's function, tries it on several small inputs, and compares with an independent computation
and with the results of well-known slips. It never raises for a wrong answer; it returns a `Verdict`. A check of your
own is a function of the inputs that gives the right result and those of the slips, see `exercise`. What the checks of
the lessons say stands in ``checks.yaml``.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

_SAID = yaml.safe_load((files(__package__) / "checks.yaml").read_text(encoding="utf-8"))
Function = Callable[..., Any]
Answers = tuple[Any, dict[str, Any]]
"""The right result, and those of slips by their explanations or by the names that these have in ``checks.yaml``."""


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
    praise: str = "", draw: Callable[[torch.Generator], Sequence[Any]] | None = None,
    cases: Sequence[Sequence[Any]] = (), then: Callable[[Function], str] = lambda function: ""
) -> Callable[[Callable[..., Answers]], Callable[[Function], Verdict]]:  # fmt: skip
    """Make a check of a function that gives, for one input, the right result and those of known slips.

    Args:
        praise: said where all results agree; what ``checks.yaml`` has for this check if empty.
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
            generator, said = torch.Generator().manual_seed(2), _SAID.get(answers.__name__, {})
            for inputs in [*cases, *(draw(generator) for _ in range(3) if draw)]:
                right, slips = answers(*inputs)
                if problem := _problem(function, inputs, right, {said.get(slip, slip): slips[slip] for slip in slips}):
                    return Verdict(False, f"{getattr(function, '__name__', 'the function')}{problem}")
            problem = then(function)
            return Verdict(not problem, problem or praise or said.get("praise", "solved"))

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


@exercise(draw=lambda g: [torch.randn(5, 3, 4, generator=g), torch.randn(5, generator=g), _between(0.5, 1, g)])
def check_class_map(features: Tensor, weight: Tensor, bias: float) -> Answers:
    """``function(features (C, h, w), weight (C,), bias) -> (h, w)``: M = sum_k w_k f_k + b."""
    plain = torch.einsum("chw,c->hw", features, weight)
    right, mean = plain + bias, plain / len(weight) + bias
    return right, {"no_bias": plain, "mean": mean, "clamped": right.clamp(min=0), "flipped": right.flip(0)}


@exercise(draw=lambda g: [_uniform(g, 3, 4, 5)])
def check_max_gradient(cam: Tensor) -> Answers:
    """``function(cam (K, h, w)) -> (K, h, w)``: gradient of sum_k max_ij a_kij, one 1 per class."""
    right, average = (cam == cam.amax((1, 2), keepdim=True)).float(), torch.full_like(cam, 1 / cam[0].numel())
    over = {"one_for_all": cam == cam.max(), "over_classes": cam == cam.amax(0)}
    return right, {"scaled": right * cam, "average": average, **over}


@exercise(draw=lambda g: [_uniform(g, 2, 3, 4) * 0.5, _between(2, 6, g)])
def check_background(foreground: Tensor, alpha: float) -> Answers:
    """``function(foreground (K-1, h, w), alpha) -> (h, w)``: (1 - max_k a_k)^alpha."""
    most, over_pixels = foreground.amax(0), (1 - foreground.amax().expand_as(foreground[0])) ** alpha
    by_sum = (1 - foreground.sum(0)) ** alpha
    slips = {"no_exponent": 1 - most, "sum": by_sum, "inside": 1 - most**alpha, "over_pixels": over_pixels}
    return (1 - most) ** alpha, slips


def _empty_masks(iou: Function) -> str:
    some, none = torch.eye(6, 8) > 0, torch.zeros(6, 8, dtype=torch.bool)
    try:
        disjoint, empty = (float(iou(mask.clone(), none.clone())) for mask in (some, none))
    except Exception as error:
        return f"right, but an empty mask stops it with {type(error).__name__}: {error}"
    if disjoint != 0:
        return f"disjoint masks have no pixel in common, got {disjoint:.4g}"
    return "" if math.isfinite(empty) else f"two empty masks: expected a number (their union is 0), got {empty:g}"


@exercise(draw=lambda g: list(_uniform(g, 2, 6, 8) < torch.tensor([0.4, 0.6]).view(2, 1, 1)), then=_empty_masks)
def check_iou(prediction: Tensor, target: Tensor) -> Answers:
    """``function(prediction, target) -> number`` for boolean masks (h, w)."""
    both, either = (prediction & target).sum(), (prediction | target).sum()
    found, true = prediction.sum(), target.sum()
    divided = {"precision": both / found, "recall": both / true, "areas": both / (found + true)}
    dice, accuracy = 2 * both / (found + true), (prediction == target).float().mean()
    return both / either, {"accuracy": accuracy, **divided, "dice": dice, "inverse": either / both}


# --- 02: the probability mass of Eq. 4 and its draws ---------------------------------------------------------


@exercise(draw=lambda g: [_uniform(g, 3, 2, 4) + 0.1])
def check_pmf(cam: Tensor) -> Answers:
    """``function(cam (K, h, w)) -> (K, h, w)``: Eq. 4, p = a / sum of a over the pixels of the class."""
    softmax, maximum = cam.flatten(1).softmax(1).view_as(cam), cam / cam.amax((1, 2), keepdim=True)
    slips = {"over_classes": cam / cam.sum(0), "one_for_all": cam / cam.sum(), "maximum": maximum, "softmax": softmax}
    return cam / cam.sum((1, 2), keepdim=True), slips


@exercise(draw=lambda g: [_uniform(g, 3, 4) * 0.9 + 0.05])
def check_expected_push(a: Tensor) -> Answers:
    """``function(a (h, w)) -> (h, w)``: minus d/ds of E[-log a], a = sigmoid(s): a (1 - a) / sum a."""
    p = a / a.sum()
    factors = {"no_probability": 1 - a, "one_factor": p, "no_logarithm": p * a * (1 - a)}
    return p * (1 - a), {"by_a": p / a, "sign": p * (a - 1), **factors}


# the whole numbers come from powers of two, which every order of division and power keeps whole
@exercise(cases=[(0.4, 0.041), (0.5, 0.125), (1.0, 0.3), (2.0, 0.25)])
def check_draws_needed(std: float, wanted: float) -> Answers:
    """``function(std_of_one_draw, wanted_std) -> int``: the smallest S with std / sqrt(S) <= wanted."""
    draws, root = (std / wanted) ** 2, math.ceil(std / wanted)
    nearly = {"down": math.floor(draws), "unrounded": draws, "one_more": math.floor(draws) + 1}
    return math.ceil(draws), {"root": root, **nearly, "inverse": 1 / draws}


# --- 03: f in closed form, the Laplacian, the descent --------------------------------------------------------


@exercise(draw=lambda g: [_between(0.02, 0.45, g)], cases=[(0.1,)])
def check_mu_for(delta: float) -> Answers:
    """``function(delta) -> mu`` such that f(delta) = 0: mu = log((1 - delta) / delta)."""
    mu, cross_over = math.log((1 - delta) / delta), 1 / (1 + math.exp(delta))
    return mu, {"sign": -mu, "logarithm": -math.log(delta), "half": mu / 2, "cross_over": cross_over}


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


@exercise(cases=[(_DELTA, mu) for mu in (1.5, -0.5, 3.0)], then=_both_ends)
def check_closed_form(delta: Tensor, mu: float) -> Answers:
    """``function(delta, mu) -> f`` without logarithm, with a finite derivative at delta 0 and 1 too."""
    c = math.exp(2 * mu)
    right, no_two, no_mu = (_closed_form(delta, factor) for factor in (c, math.exp(mu), 1.0))
    not_squared = (c * delta - (1 - delta)) / (c * delta + (1 - delta))
    return right, {"no_two": no_two, "not_squared": not_squared, "sign": -right, "no_mu": no_mu}


def _small_graph(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    M = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return M + M.T, torch.rand(6, 2, generator=generator, dtype=torch.float64)


@exercise(draw=_small_graph)
def check_laplacian(M: Tensor, a: Tensor) -> Answers:
    """``function(M (n, n), a (n, K)) -> number``: sum_ij M_ij 1/2 |a_i - a_j|^2."""
    right, quadratic = (M * ((a[:, None] - a[None]) ** 2).sum(-1) / 2).sum(), (a * (M @ a)).sum()
    times = {"no_half": 2 * right, "once": right / 2, "no_degrees": quadratic}
    return right, {**times, "sign": -right, "plus": right + 2 * quadratic}


@exercise(draw=_small_graph)
def check_descent_direction(M: Tensor, a: Tensor) -> Answers:
    """``function(M (n, n), a (n, K)) -> (n, K)``: minus the gradient of L = -sum_k a_k^T (D - M) a_k."""
    half = M.sum(1, keepdim=True) * a - M @ a
    return 2 * half, {"uphill": -2 * half, "no_two": half, "cancelled": -half, "no_degrees": -2 * (M @ a)}


# --- 04: the total loss, the learning rate, the coverage of parts --------------------------------------------


@exercise(draw=lambda g: [_between(0.1, 0.4, g), _between(0.5, 1, g), _between(0.1, 0.4, g)])
def check_total_loss(weight: float, by_max: float, by_sampling: float) -> Answers:
    """``function(weight, max_loss, sampling_loss) -> number``: Eq. 5, (1 - lambda) L_max + lambda L_s."""
    swapped, sampled = weight * by_max + (1 - weight) * by_sampling, weight * by_sampling
    return (1 - weight) * by_max + sampled, {"swapped": swapped, "whole_max": by_max + sampled, "no_max": sampled}


@exercise(cases=[(300, 400, 0.02), (100, 1000, 0.5), (5, 8, 0.001), (0, 10, 0.01)])
def check_poly_rate(step: int, total: int, base: float) -> Answers:
    """``function(step, total, base) -> number``: base (1 - step / total)^0.9."""
    left, rising = 1 - step / total, base * (step / total) ** 0.9
    return base * left**0.9, {"linear": base * left, "rising": rising, "base_inside": (base * left) ** 0.9}


def _parts(g: torch.Generator) -> list[Tensor]:
    labels = torch.randint(0, 4, (9, 11), generator=g) * (_uniform(g, 9, 11) < 0.7)
    return [labels, torch.randint(0, 3, (9, 11), generator=g)]


@exercise(draw=_parts)
def check_part_coverage(labels: Tensor, parts: Tensor) -> Answers:
    """``function(label_map, parts) -> number``: share of body pixels (part 1) with any label but background."""
    found, body = (labels > 0).float(), (parts == 1).float()
    right, head, both = (found[where].mean() for where in (parts == 1, parts == 2, parts > 0))
    slips = {"head": head, "whole_image": (found * body).mean(), "precision": body[labels > 0].mean()}
    return right, {**slips, "both": both, "missed": 1 - right}


# --- 05: pairs and the random walk ---------------------------------------------------------------------------


@exercise(cases=[(5,), (3,), (2,), (7,)])
def check_neighbours(radius: int) -> Answers:
    """``function(radius) -> int``: unordered directions to pixels closer than the radius (34 for radius 5)."""
    reach = range(1 - radius, radius)
    both = sum(0 < y * y + x * x < radius * radius for y in reach for x in reach)
    corners = (len(reach) ** 2 - 1) // 2
    return both // 2, {"always_34": 34, "twice": both, "itself": both + 1, "corners": corners}


def _affinity(g: torch.Generator) -> list[Any]:
    affinity = _uniform(g, 5, 5) * 0.8 + 0.1
    return [(affinity + affinity.T) / 2, _between(2, 5, g)]


@exercise(draw=_affinity)
def check_transition(affinity: Tensor, beta: float) -> Answers:
    """``function(affinity (n, n), beta) -> (n, n)``: T_ij = A_ij^beta / sum_i A_ij^beta."""
    weight, share = affinity**beta, affinity / affinity.sum(0)
    rows = weight / weight.sum(1, keepdim=True)
    return weight / weight.sum(0), {"no_beta": share, "rows": rows, "power_last": share**beta, "undivided": weight}


def _chain(g: torch.Generator) -> list[Any]:
    weight = _uniform(g, 4, 4)
    return [_uniform(g, 2, 4), weight / weight.sum(0), int(torch.randint(2, 6, (), generator=g))]


@exercise(draw=_chain)
def check_walk(scores: Tensor, transition: Tensor, steps: int) -> Answers:
    """``function(scores (K, n), transition (n, n), steps) -> (K, n)``: s T^steps."""
    powers = {"right": (transition, steps), "squared": (transition, 2**steps), "turned": (transition.T, steps)}
    walked = {name: scores @ torch.linalg.matrix_power(*power) for name, power in powers.items()}
    return walked.pop("right"), {"one_step": scores @ transition, **walked, "elements": scores @ transition**steps}


# --- 06: segmentation and its score --------------------------------------------------------------------------


def _partly_labelled(g: torch.Generator) -> list[Tensor]:
    target = torch.randint(0, 3, (4, 5), generator=g)
    target[0], target[2, 1:3] = 255, 255
    return [torch.randn(3, 4, 5, generator=g), target]


@exercise(draw=_partly_labelled)
def check_ignored_cross_entropy(logits: Tensor, target: Tensor) -> Answers:
    """``function(logits (K, h, w), target (h, w)) -> number``: mean of -log softmax where target is not 255."""
    known = target != 255
    right = F.cross_entropy(logits[None], target[None], ignore_index=255)
    background = F.cross_entropy(logits[None], torch.where(known, target, 0)[None])
    over_all = right * known.float().mean()
    return right, {"over_all": over_all, "background": background, "sum": right * known.sum(), "sign": -right}


def _three_of_four_classes(g: torch.Generator) -> list[Tensor]:
    confusion = torch.randint(1, 9, (4, 4), generator=g).float() + 20 * torch.eye(4)
    confusion[3], confusion[:, 3] = 0, 0
    return [confusion]


@exercise(draw=_three_of_four_classes)
def check_confusion_miou(confusion: Tensor) -> Answers:
    """``function(confusion (K, K)) -> number``: rows are the truth; classes that never occur are left out."""
    hit, true, found = confusion.diag(), confusion.sum(1), confusion.sum(0)
    iou = hit / (true + found - hit)
    below = {"recall": true, "precision": found, "twice": true + found}
    slips = {name: (hit / divisor).nanmean() for name, divisor in below.items()}
    slips |= {"no_background": iou[1:].nanmean(), "accuracy": hit.sum() / confusion.sum()}
    return iou.nanmean(), {"over_all": iou.nansum() / len(iou), **slips}


@exercise(draw=lambda g: list(torch.randn(2, 3, 4, 5, generator=g)))
def check_view_mean(plain: Tensor, mirrored: Tensor) -> Answers:
    """``function(plain (K, h, w), mirrored (K, h, w)) -> (K, h, w)``: softmax of the mean logits of two views."""
    means = [(plain + view) / 2 for view in (mirrored.flip(-1), mirrored, mirrored.flip(-2))]
    right, not_back, upside_down = (mean.softmax(0) for mean in means)
    softmax_first = (plain.softmax(0) + mirrored.flip(-1).softmax(0)) / 2
    turned = {"not_back": not_back, "upside_down": upside_down}
    return right, {**turned, "softmax_first": softmax_first, "no_softmax": means[0]}


__all__ = ["Verdict", "exercise", *(name for name in dir() if name.startswith("check_"))]
