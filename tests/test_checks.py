"""The exercises' checks: right answers pass, and every known slip is told by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wsss_nb.teach import checks


def _max_gradient(cam):
    flat = cam.flatten(1)
    return torch.nn.functional.one_hot(flat.argmax(1), flat.shape[1]).float().view_as(cam)


def _iou(prediction, target):
    return ((prediction & target).sum() / (prediction | target).sum()).nan_to_num()


def _closed(delta, mu):
    c = math.exp(2 * mu)
    return 1 - 2 * (1 - delta) ** 2 / (c * delta**2 + (1 - delta) ** 2)


def _coverage(labels, parts):
    body = [bool(k) for k, part in zip(labels.flatten(), parts.flatten(), strict=True) if part == 1]
    return sum(body) / len(body)


def _walk(scores, transition, steps):
    for _ in range(steps):
        scores = scores @ transition
    return scores


def _cross_entropy(logits, target):
    values = [
        logits[:, i, j].logsumexp(0) - logits[target[i, j], i, j] for i, j in torch.nonzero(target != 255).tolist()
    ]
    return sum(values) / len(values)


def _miou(confusion):
    hit = confusion.diag()
    return (hit / (confusion.sum(0) + confusion.sum(1) - hit)).nanmean()


SOLUTIONS = {
    checks.check_class_map: lambda f, w, b: torch.tensordot(w, f, 1) + b,
    checks.check_max_gradient: _max_gradient,
    checks.check_background: lambda a, alpha: (1 - a.max(0).values).pow(alpha),
    checks.check_iou: _iou,
    checks.check_pmf: lambda a: a / a.flatten(1).sum(1)[:, None, None],
    checks.check_expected_push: lambda a: a * (1 - a) / a.sum(),
    checks.check_draws_needed: lambda std, wanted: -int(-((std / wanted) ** 2) // 1),
    checks.check_mu_for: lambda d: math.log(1 / d - 1),
    checks.check_closed_form: _closed,
    checks.check_laplacian: lambda M, a: sum(
        M[i, j] * ((a[i] - a[j]) ** 2).sum() / 2 for i in range(len(a)) for j in range(len(a))
    ),
    checks.check_descent_direction: lambda M, a: 2 * (torch.diag(M.sum(0)) - M).mm(a),
    checks.check_total_loss: lambda weight, by_max, by_sampling: by_max + weight * (by_sampling - by_max),
    checks.check_poly_rate: lambda step, total, base: base * math.exp(0.9 * math.log1p(-step / total)),
    checks.check_part_coverage: _coverage,
    checks.check_neighbours: lambda r: sum(
        y * y + x * x < r * r for y in range(-r, r + 1) for x in range(-r, r + 1) if (y, x) > (0, 0)
    ),
    checks.check_transition: lambda A, beta: torch.nn.functional.normalize(A.pow(beta), 1, 0),
    checks.check_walk: _walk,
    checks.check_ignored_cross_entropy: _cross_entropy,
    checks.check_confusion_miou: _miou,
    checks.check_view_mean: lambda a, b: torch.softmax(
        0.5 * a + 0.5 * torch.fliplr(b.permute(1, 2, 0)).permute(2, 0, 1), 0
    ),
}

SLIPS = [
    (checks.check_total_loss, lambda w, m, s: w * m + (1 - w) * s, "lambda belongs to the sampling term"),
    (checks.check_total_loss, lambda w, m, s: m + w * s, "add up to one"),
    (checks.check_total_loss, lambda w, m, s: w * s, "max term is missing"),
    (checks.check_poly_rate, lambda t, T, b: b * (1 - t / T), "linear decay"),
    (checks.check_poly_rate, lambda t, T, b: b * (t / T) ** 0.9, "it falls"),
    (checks.check_poly_rate, lambda t, T, b: (b * (1 - t / T)) ** 0.9, "outside the power"),
    (checks.check_part_coverage, lambda y, p: (y[p == 2] > 0).float().mean(), "this is the head"),
    (checks.check_part_coverage, lambda y, p: ((y > 0) & (p == 1)).float().mean(), "not by all of the image"),
    (checks.check_part_coverage, lambda y, p: (p[y > 0] == 1).float().mean(), "precision"),
    (checks.check_part_coverage, lambda y, p: (y[p > 0] > 0).float().mean(), "head and body together"),
    (checks.check_part_coverage, lambda y, p: (y[p == 1] == 0).float().mean(), "missed"),
    (checks.check_neighbours, lambda r: 68, "counts once"),
    (checks.check_neighbours, lambda r: 34, "right for radius 5 alone"),
    (checks.check_neighbours, lambda r: ((2 * r - 1) ** 2 - 1) // 2, "corners"),
    (checks.check_transition, lambda A, beta: A / A.sum(0), "beta is missing"),
    (checks.check_transition, lambda A, beta: A**beta / (A**beta).sum(1, keepdim=True), "the rows"),
    (checks.check_transition, lambda A, beta: (A / A.sum(0)) ** beta, "first the power"),
    (checks.check_transition, lambda A, beta: A**beta, "division is missing"),
    (checks.check_walk, lambda s, T, n: s @ T, "one step"),
    (checks.check_walk, lambda s, T, n: s @ torch.linalg.matrix_power(T, 2**n), "not squared"),
    (checks.check_walk, lambda s, T, n: _walk(s, T.T, n), "transposed"),
    (checks.check_walk, lambda s, T, n: s @ T**n, "each element"),
    (checks.check_ignored_cross_entropy, lambda x, y: _cross_entropy(x, y) * (y != 255).float().mean(), "not over all"),
    (checks.check_ignored_cross_entropy, lambda x, y: _cross_entropy(x, y * (y != 255)), "not background"),
    (checks.check_ignored_cross_entropy, lambda x, y: _cross_entropy(x, y) * (y != 255).sum(), "not the sum"),
    (checks.check_ignored_cross_entropy, lambda x, y: -_cross_entropy(x, y), "sign"),
    (checks.check_confusion_miou, lambda c: _miou(c) * 3 / 4, "left out of the mean"),
    (checks.check_confusion_miou, lambda c: (c.diag() / c.sum(1)).nanmean(), "recall"),
    (checks.check_confusion_miou, lambda c: (c.diag() / c.sum(0)).nanmean(), "precision"),
    (checks.check_confusion_miou, lambda c: c.trace() / c.sum(), "pixel accuracy"),
    (checks.check_confusion_miou, lambda c: (c.diag() / (c.sum(0) + c.sum(1))).nanmean(), "counted twice"),
    (checks.check_view_mean, lambda a, b: ((a + b) / 2).softmax(0), "mirror it back"),
    (checks.check_view_mean, lambda a, b: ((a + b.flip(1)) / 2).softmax(0), "upside down"),
    (checks.check_view_mean, lambda a, b: (a.softmax(0) + b.flip(2).softmax(0)) / 2, "softmax comes last"),
    (checks.check_view_mean, lambda a, b: (a + b.flip(2)) / 2, "softmax over classes is missing"),
    (checks.check_class_map, lambda f, w, b: torch.tensordot(w, f, 1), "bias is missing"),
    (checks.check_class_map, lambda f, w, b: (w[:, None, None] * f).mean(0) + b, "not be divided"),
    (checks.check_class_map, lambda f, w, b: (torch.tensordot(w, f, 1) + b).relu(), "negative values"),
    (checks.check_max_gradient, lambda a: _max_gradient(a) * a, "not the maximum itself"),
    (checks.check_max_gradient, lambda a: torch.full_like(a, 1 / a[0].numel()), "gradient of the average"),
    (checks.check_max_gradient, lambda a: (a == a.max()).float(), "one maximum per class"),
    (checks.check_max_gradient, lambda a: (a == a.amax(0)).float(), "over pixels, for each class"),
    (checks.check_background, lambda a, alpha: 1 - a.amax(0), "exponent is missing"),
    (checks.check_background, lambda a, alpha: (1 - a.sum(0)) ** alpha, "not the sum"),
    (checks.check_background, lambda a, alpha: 1 - a.amax(0) ** alpha, "exponent belongs outside"),
    (checks.check_iou, lambda p, t: (p == t).float().mean(), "accuracy"),
    (checks.check_iou, lambda p, t: (p & t).sum() / p.sum(), "precision"),
    (checks.check_iou, lambda p, t: (p & t).sum() / t.sum(), "recall"),
    (checks.check_iou, lambda p, t: 2 * (p & t).sum() / (p.sum() + t.sum()), "Dice"),
    (checks.check_pmf, lambda a: a / a.sum(0), "over the classes of a pixel"),
    (checks.check_pmf, lambda a: a / a.sum(), "each class needs its own"),
    (checks.check_pmf, lambda a: a / a.amax((1, 2), keepdim=True), "maximum instead of the sum"),
    (checks.check_pmf, lambda a: a.flatten(1).softmax(1).view_as(a), "softmax over pixels"),
    (checks.check_expected_push, lambda a: torch.full_like(a, 1 / a.sum().item()), "chain rule"),
    (checks.check_expected_push, lambda a: -a * (1 - a) / a.sum(), "the sign"),
    (checks.check_expected_push, lambda a: 1 - a, "probability of the draw"),
    (checks.check_draws_needed, lambda std, wanted: math.ceil(std / wanted), "square root"),
    (checks.check_draws_needed, lambda std, wanted: int((std / wanted) ** 2), "a little too noisy"),
    (checks.check_draws_needed, lambda std, wanted: (std / wanted) ** 2, "whole numbers"),
    (checks.check_draws_needed, lambda std, wanted: int((std / wanted) ** 2) + 1, "whole already"),
    (checks.check_mu_for, lambda d: math.log(d / (1 - d)), "the sign"),
    (checks.check_mu_for, lambda d: -math.log(d), "needs the logit"),
    (checks.check_mu_for, lambda d: 1 / (1 + math.exp(d)), "cross-over for a given mu"),
    (checks.check_closed_form, lambda d, mu: _closed(d, mu / 2), "exp(2 mu)"),
    (checks.check_closed_form, lambda d, mu: -_closed(d, mu), "the sign"),
    (checks.check_closed_form, lambda d, mu: _closed(d, 0), "mu is ignored"),
    (checks.check_closed_form, lambda d, mu: torch.tanh(mu + torch.log(d / (1 - d)) * 0 / 0), "nan"),
    (checks.check_closed_form, lambda d, mu: torch.tanh(mu + torch.log(d / (1 - d))), "logarithm"),
    (checks.check_closed_form, lambda d, mu: torch.tanh(mu + torch.logit(d)), "derivative"),
    (checks.check_laplacian, lambda M, a: torch.einsum("ik,ij,jk->", a, M, a), "degrees D"),
    (checks.check_laplacian, lambda M, a: 2 * SOLUTIONS[checks.check_laplacian](M, a), "factor 1/2"),
    (checks.check_laplacian, lambda M, a: -SOLUTIONS[checks.check_laplacian](M, a), "D - M, not M - D"),
    (checks.check_descent_direction, lambda M, a: 2 * (M - torch.diag(M.sum(0))) @ a, "goes against it"),
    (checks.check_descent_direction, lambda M, a: (torch.diag(M.sum(0)) - M) @ a, "carries a 2"),
    (checks.check_descent_direction, lambda M, a: -2 * M @ a, "diagonal of row sums"),
]


def test_every_check_is_tested():
    names = {name for name in checks.__all__ if name.startswith("check_")}
    assert names == {check.__name__ for check in SOLUTIONS} == {check.__name__ for check, _, _ in SLIPS}


@pytest.mark.parametrize("check", SOLUTIONS, ids=lambda check: check.__name__)
def test_solutions_pass(check):
    verdict = check(SOLUTIONS[check])
    assert verdict and repr(verdict).startswith("✓ "), verdict


@pytest.mark.parametrize(("check", "answer", "words"), SLIPS)
def test_slips_are_named(check, answer, words):
    verdict = check(answer)
    assert not verdict and words in verdict.message and repr(verdict).startswith("✗ "), verdict


def test_every_slip_is_explained_and_every_explanation_used(monkeypatch):
    seen = set()
    monkeypatch.setattr(checks, "_problem", lambda function, inputs, right, slips: seen.update(slips))
    assert all(check(SOLUTIONS[check]).message == checks._SAID[check.__name__]["praise"] for check in SOLUTIONS)
    assert seen == {words for said in checks._SAID.values() for name, words in said.items() if name != "praise"}


@pytest.mark.parametrize("check", SOLUTIONS, ids=lambda check: check.__name__)
def test_unfinished_and_broken_answers(check):
    def stub(*arguments):
        return None

    def broken(*arguments):
        raise KeyError("no such thing")

    assert check(stub).message == "stub returns None: nothing is filled in yet"
    assert "broken stopped with KeyError: 'no such thing'" in check(broken).message
    assert "expected a number or a tensor, got str" in check(lambda *arguments: "seven").message
    assert "expected shape" in check(lambda *arguments: torch.zeros(7, 7, 7)).message


@pytest.mark.parametrize("check", SOLUTIONS, ids=lambda check: check.__name__)
def test_a_result_that_ignores_the_inputs_fails(check):
    """The first right result, kept for whatever comes after."""
    kept = []

    def constant(*arguments):
        kept.append(SOLUTIONS[check](*arguments))
        return kept[0]

    assert not check(constant) and len(kept) > 1, "right once, and asked again"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (2.0, "<lambda>: got 2, too small by about 9 %"),
        (2.5, "got 2.5, too large by about 10 %"),
        (-7, "by more than its own size"),
    ],
)
def test_a_wrong_number_is_told_how_far_off_it_is_and_not_the_right_one(answer, words):
    message = checks.check_mu_for(lambda delta: answer).message
    assert words in message and "2.19" not in message
    assert "expected 0." in checks.check_pmf(lambda cam: cam * 0).message, "one element of a map may be told"


def test_draws_that_are_whole_already():
    right = SOLUTIONS[checks.check_draws_needed]
    assert right(0.4, 0.1) == 16 and right(0.5, 0.125) == 16
    assert checks.check_draws_needed(lambda std, wanted: math.ceil(std**2 / wanted**2)), "in any order"


def test_a_verdict_can_be_required():
    checks.check_mu_for(SOLUTIONS[checks.check_mu_for]).require()
    with pytest.raises(AssertionError, match="the sign: mu is minus the logit"):
        checks.check_mu_for(lambda delta: math.log(delta / (1 - delta))).require()


def test_a_teacher_s_own_check():
    @checks.exercise("that is the mean", lambda g: [torch.rand(4, generator=g)], cases=[(torch.ones(2),)])
    def check_mean(x):
        """``function(x (n,)) -> number``."""
        return x.mean(), {"this is the sum": x.sum()}

    assert check_mean.__name__ == "check_mean" and "function(x" in check_mean.__doc__
    assert (
        check_mean(torch.mean).message == "that is the mean" and check_mean(torch.sum).message == "sum: this is the sum"
    )


def test_iou_is_asked_for_disjoint_and_for_empty_masks():
    def counts(prediction, target):
        return int((prediction & target).sum()), int((prediction | target).sum())

    def one_if_disjoint(prediction, target):
        both, either = counts(prediction, target)
        return both / either if both else 1.0

    def divides_by_zero(prediction, target):
        both, either = counts(prediction, target)
        return both / either

    def not_a_number(prediction, target):
        return (prediction & target).sum() / (prediction | target).sum()

    def one_if_empty(prediction, target):
        both, either = counts(prediction, target)
        return both / either if either else 1.0

    assert "disjoint masks have no pixel in common, got 1" in checks.check_iou(one_if_disjoint).message
    words = "an empty mask stops it with ZeroDivisionError: division by zero"
    assert words in checks.check_iou(divides_by_zero).message
    assert "two empty masks: expected a number (their union is 0), got nan" in checks.check_iou(not_a_number).message
    assert checks.check_iou(one_if_empty), "0 or 1, that is a matter of taste"


@pytest.mark.parametrize("guard", [1e-12, 1e-6])
def test_a_guard_in_the_closed_form_is_seen(guard):
    def guarded(delta, mu):
        return torch.tanh(mu + torch.log((delta + guard) / (1 - delta + guard)))

    assert "exactly -1 and 1" in checks.check_closed_form(guarded).message


def test_numpy_and_plain_numbers_are_welcome_in_the_closed_form():
    """Autograd cannot follow them; they are judged by their values."""
    assert checks.check_closed_form(lambda delta, mu: np.array([_closed(float(d), mu) for d in delta]))
    assert checks.check_closed_form(lambda delta, mu: _closed(delta.numpy(), mu))


def test_praise_does_not_claim_what_was_not_asked():
    """Answers that are right in another way than the lesson's are not told that they went the lesson's way."""
    assert "became" not in checks.check_laplacian(SOLUTIONS[checks.check_laplacian]).message
    power = checks.check_walk(lambda s, T, n: s @ torch.linalg.matrix_power(T, n))
    assert power and "was ever needed" not in power.message


def test_answers_cannot_change_the_question():
    def spoils(cam):
        cam.zero_()
        return cam

    assert not checks.check_pmf(spoils)
    assert checks.check_pmf(SOLUTIONS[checks.check_pmf])
