"""Checks of notebooks 04-06: losses and rates, pairs and the random walk, segmentation and its score."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wsss_nb.checks.verdict import Function, Verdict, judge

__all__ = [
    "check_confusion_miou",
    "check_ignored_cross_entropy",
    "check_neighbours",
    "check_part_coverage",
    "check_poly_rate",
    "check_total_loss",
    "check_transition",
    "check_view_mean",
    "check_walk",
]


def check_total_loss(function: Function) -> Verdict:
    """``function(weight, max_loss, sampling_loss) -> number``: Eq. 5, (1 - lambda) L_max + lambda L_s."""
    weight, by_max, by_sampling = 0.25, 0.8, 0.3
    slips = {
        "lambda belongs to the sampling term: at 1 sampling is alone": weight * by_max
        + (1 - weight) * by_sampling,
        "the two weights add up to one: the max term carries 1 - lambda": by_max + weight * by_sampling,
        "the max term is missing": weight * by_sampling,
    }
    arguments = (weight, by_max, by_sampling)
    expected = (1 - weight) * by_max + weight * by_sampling
    return judge(function, arguments, expected, slips, "0 is max pooling, 1 is importance sampling alone")


def check_poly_rate(function: Function) -> Verdict:
    """``function(step, total, base) -> number``: base (1 - step / total)^0.9."""
    step, total, base = 300, 400, 0.02
    slips = {
        "the exponent 0.9 is missing: this is linear decay": base * (1 - step / total),
        "it falls: 1 minus the share of the steps done": base * (step / total) ** 0.9,
        "the base rate is outside the power": (base * (1 - step / total)) ** 0.9,
    }
    expected = base * (1 - step / total) ** 0.9
    return judge(function, (step, total, base), expected, slips, "nearly linear, zero at the end")


def check_part_coverage(function: Function) -> Verdict:
    """``function(label_map, parts) -> number``: share of body pixels (part 1) with any label but background."""
    generator = torch.Generator().manual_seed(5)
    parts = torch.randint(0, 3, (9, 11), generator=generator)
    labels = torch.randint(0, 4, (9, 11), generator=generator) * (
        torch.rand(9, 11, generator=generator) < 0.7
    )
    body, found = parts == 1, labels > 0
    slips = {
        "this is the head (part 2)": found[parts == 2].float().mean(),
        "divide by the body's pixels, not by all of the image": (found & body).float().mean(),
        "divide by the body's pixels, not by those that were labelled: that is precision": (
            found & body
        ).sum()
        / found.sum(),
        "head and body together: only part 1 is asked for": found[parts > 0].float().mean(),
        "this counts the body's pixels that were missed": (~found)[body].float().mean(),
    }
    praise = "the recall of the body"
    return judge(function, (labels, parts), found[body].float().mean(), slips, praise)


def check_neighbours(function: Function) -> Verdict:
    """``function(radius) -> int``: unordered directions to pixels closer than the radius (34 for radius 5)."""
    slips = {
        "each pair counts once: (dy, dx) and (-dy, -dx) join the same two pixels": 68,
        "a pixel is no neighbour of itself, and each pair counts once": 69,
        "closer than the radius, in Euclidean distance: neither the radius itself nor the corners": 40,
    }
    praise = "34 pairs per pixel instead of all pixels of the image"
    verdict = judge(function, (5,), 34, slips, praise)
    smaller = "right for radius 5 alone; the count depends on the radius"
    return verdict and judge(function, (3,), 12, {smaller: 34}, praise)


def check_transition(function: Function) -> Verdict:
    """``function(affinity (n, n), beta) -> (n, n)``: T_ij = A_ij^beta / sum_i A_ij^beta."""
    affinity = torch.rand(5, 5, generator=torch.Generator().manual_seed(6)) * 0.8 + 0.1
    affinity = (affinity + affinity.T) / 2
    weight = affinity**3
    slips = {
        "beta is missing: it is what makes weak affinities vanish": affinity / affinity.sum(0),
        "here the rows add up to one; it is the columns that must": weight / weight.sum(1, keepdim=True),
        "first the power, then the division: like this the columns do not add up to one": (
            affinity / affinity.sum(0)
        )
        ** 3,
        "the division is missing: scores would grow with every step": weight,
    }
    praise = "every pixel takes a weighted mean of its neighbours"
    return judge(function, (affinity, 3.0), weight / weight.sum(0), slips, praise)


def check_walk(function: Function) -> Verdict:
    """``function(scores (K, n), transition (n, n), steps) -> (K, n)``: s T^steps."""
    generator = torch.Generator().manual_seed(7)
    scores, weight = torch.rand(2, 4, generator=generator), torch.rand(4, 4, generator=generator)
    transition = weight / weight.sum(0)
    power = torch.linalg.matrix_power
    slips = {
        "that is one step": scores @ transition,
        "T is applied `steps` times, not squared `steps` times": scores @ power(transition, 8),
        "this is T transposed: the columns of T add up to one, so scores go on its left": scores
        @ power(transition.T, 3),
        "scores are multiplied with T, not with T to the power of each element": scores @ transition**3,
    }
    praise = "applied one step at a time, this needs no power of T at all"
    return judge(function, (scores, transition, 3), scores @ power(transition, 3), slips, praise)


def check_ignored_cross_entropy(function: Function) -> Verdict:
    """``function(logits (K, h, w), target (h, w)) -> number``: mean of -log softmax where target is not 255."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(3, 4, 5, generator=generator)
    target = torch.randint(0, 3, (4, 5), generator=generator)
    target[0], target[2, 1:3] = 255, 255
    known = target != 255
    each = F.cross_entropy(logits[None], target[None], ignore_index=255, reduction="none")[0]
    as_background = F.cross_entropy(logits[None], torch.where(known, target, 0)[None])
    slips = {
        "the mean is over the pixels that count, not over all of them": each.sum() / target.numel(),
        "255 is not background: those pixels are left out": as_background,
        "the mean, not the sum": each.sum(),
        "the sign is wrong: a loss falls as the right class's probability rises": -each.sum() / known.sum(),
    }
    expected = each.sum() / known.sum()
    return judge(function, (logits, target), expected, slips, "unsure pixels teach nothing, and cost nothing")


def check_confusion_miou(function: Function) -> Verdict:
    """``function(confusion (K, K)) -> number``: rows are the truth; classes that never occur are left out."""
    confusion = torch.tensor([[50.0, 3, 2, 0], [4, 20, 1, 0], [6, 0, 10, 0], [0, 0, 0, 0]])
    hit = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - hit
    iou = (hit / union)[:3]
    slips = {
        "a class that never occurs has no IoU; it is left out of the mean": iou.sum() / 4,
        "background is a class too": iou[1:].mean(),
        "this is recall: false positives are missing below the line": (hit / confusion.sum(1))[:3].mean(),
        "this is precision: misses are missing below the line": (hit / confusion.sum(0))[:3].mean(),
        "this is pixel accuracy": hit.sum() / confusion.sum(),
        "the hits are counted twice below the line": (hit / (union + hit))[:3].mean(),
    }
    return judge(function, (confusion,), iou.mean(), slips, "as in Table 1")


def check_view_mean(function: Function) -> Verdict:
    """``function(plain (K, h, w), mirrored (K, h, w)) -> (K, h, w)``: softmax of the mean logits of two views."""
    generator = torch.Generator().manual_seed(9)
    plain, mirrored = torch.randn(2, 3, 4, 5, generator=generator)
    expected = ((plain + mirrored.flip(-1)) / 2).softmax(0)
    slips = {
        "the mirrored view shows another place: mirror it back first": ((plain + mirrored) / 2).softmax(0),
        "it was mirrored left to right, not upside down": ((plain + mirrored.flip(-2)) / 2).softmax(0),
        "here the logits are averaged, and softmax comes last": (
            plain.softmax(0) + mirrored.flip(-1).softmax(0)
        )
        / 2,
        "the softmax over classes is missing": (plain + mirrored.flip(-1)) / 2,
    }
    return judge(function, (plain, mirrored), expected, slips, "two views, one map")
