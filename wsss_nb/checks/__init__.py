"""Immediate checks for the exercises of the notebooks: each says what is wrong, not only that something is.

A check takes the learner's function, tries it on small inputs, and compares with an independent computation and
with the results of well-known slips. It never raises for a wrong answer; it returns a `Verdict`.
"""

from wsss_nb.checks.maps import check_background, check_class_map, check_iou, check_max_gradient
from wsss_nb.checks.sampling import check_draws_needed, check_expected_push, check_pmf
from wsss_nb.checks.similarity import (
    check_closed_form,
    check_descent_direction,
    check_laplacian,
    check_mu_for,
)
from wsss_nb.checks.stages import (
    check_confusion_miou,
    check_ignored_cross_entropy,
    check_neighbours,
    check_part_coverage,
    check_poly_rate,
    check_total_loss,
    check_transition,
    check_view_mean,
    check_walk,
)
from wsss_nb.checks.verdict import Verdict

__all__ = [
    "Verdict",
    "check_background",
    "check_class_map",
    "check_closed_form",
    "check_confusion_miou",
    "check_descent_direction",
    "check_draws_needed",
    "check_expected_push",
    "check_ignored_cross_entropy",
    "check_iou",
    "check_laplacian",
    "check_max_gradient",
    "check_mu_for",
    "check_neighbours",
    "check_part_coverage",
    "check_pmf",
    "check_poly_rate",
    "check_total_loss",
    "check_transition",
    "check_view_mean",
    "check_walk",
]
