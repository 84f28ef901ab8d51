"""The points of Figure 2 as records: what a variant is called, where it stands, and which settings it changes.

The grid, the command line, the results, the figures and the tables read these records. A new one is one entry of
:data:`VARIANTS`; one of the user's own needs none: ``module:function`` names a function that pools the maps of Eq. 1,
(B, K, H, W), to image-level probabilities (B, K), trained by Eq. 3.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from wsss_nb.system.errors import InputError
from wsss_nb.system.plugins import is_plugin, load_function

__all__ = ["OURS", "SEAM", "STAGES", "STAGE_TITLES", "VARIANTS", "Stage", "Variant", "find_variant", "lambda_variant"]

Stage = Literal["cam", "affinitynet", "deeplab"]
STAGES: tuple[Stage, ...] = ("cam", "affinitynet", "deeplab")
STAGE_TITLES: dict[Stage, str] = {"cam": "CAMs", "affinitynet": "+ AffinityNet", "deeplab": "+ DeepLab-v1"}

OURS = "lambda1_fsl"
"""The paper's own method: importance sampling alone, with the feature-similarity loss."""
SEAM = "seam"
"""The baseline of Fig. 1e and Table 1, the only variant with settings of its own in a profile."""


@dataclass(frozen=True)
class Variant:
    """One way to train the CAM network.

    Attributes:
        name: in results and as a folder.
        title: in figures and tables.
        lam: lambda of Eq. 5, its place on the axis of Figure 2; None for a level line beside the curves.
        fsl: whether the feature-similarity loss (Eq. 6) is on.
        order: where it is listed.
        changes: settings of stage 1 that it replaces.
    """

    name: str
    title: str
    lam: float | None = None
    fsl: bool = False
    order: tuple[float, ...] = (5,)
    changes: Mapping[str, Any] = field(default_factory=dict)


# the release leaves the background channel out of average pooling
_AVERAGE = {"pooling": "average", "sample_background": False}
_LOG_SUM_EXP = {"pooling": "wsss_nb.log_sum_exp:log_sum_exp_pool", "lam": 0.0}
_BINOMIAL = {"posterior": "wsss_nb.binomial:binomial_activation", "lam": 0.2, "num_samples": 10}
_BESIDE = (
    Variant("average", "average pooling", order=(0,), changes=_AVERAGE | {"lam": 0.0}),
    Variant(SEAM, "SEAM", order=(1,)),
    Variant("log_sum_exp", "log-sum-exp pooling", order=(2,), changes=_LOG_SUM_EXP),
    Variant("binomial", "binomial posterior (λ = 0.2) + FSL", fsl=True, order=(3,), changes=_AVERAGE | _BINOMIAL),
)
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _BESIDE}
"""The variants beside the points lambda x FSL of Figure 2, which :func:`lambda_variant` makes."""

_LAMBDA = re.compile(r"lambda(\d+\.?\d*(?:e-?\d+)?)(_fsl)?", re.ASCII)


def lambda_variant(lam: float, fsl: bool, pooling: str = "max") -> Variant:
    """The point of Figure 2 at lambda, with or without the feature-similarity loss.

    Args:
        lam: lambda of Eq. 5, in [0, 1].
        fsl: whether Eq. 6 is on.
        pooling: what the (1 - lambda) term pools, for the title.

    Example:
        >>> lambda_variant(1.0, True).title, lambda_variant(0.8, False).name
        ('sampling (λ = 1) + FSL', 'lambda0.8')
    """
    titles = {0.0: f"{pooling} pooling (λ = 0)", 1.0: "sampling (λ = 1)"}
    title = titles.get(lam, f"λ = {lam:g}") + " + FSL" * fsl
    return Variant(f"lambda{lam:g}{'_fsl' if fsl else ''}", title, lam, fsl, (9, lam, float(fsl)), {"lam": lam})


def find_variant(name: str, pooling: str = "max") -> Variant:
    """A variant by its name: one of :data:`VARIANTS`, ``lambda0.5``, ``lambda1_fsl`` or ``module:function``.

    ``+fsl`` after the name of a variant that has none, and is no lambda, adds the feature-similarity loss.

    Raises:
        InputError: no such variant, lambda outside [0, 1], or a module or function that cannot be had.

    Example:
        >>> find_variant("average+fsl").title
        'average pooling + FSL'
    """
    base = name.removesuffix("+fsl")
    if base != name:
        found = find_variant(base, pooling)
        if found.fsl or found.name == SEAM or found.lam is not None:
            raise InputError(f"variant: expected +fsl after one that has no such loss yet (lambda1_fsl), got {name!r}")
        order = (*found.order, 1)
        return replace(found, name=f"{found.name}+fsl", title=f"{found.title} + FSL", fsl=True, order=order)
    if base in VARIANTS:
        return VARIANTS[base]
    if (match := _LAMBDA.fullmatch(base)) and float(match[1]) <= 1:
        return lambda_variant(float(match[1]), bool(match[2]), pooling)
    if is_plugin(base):
        load_function(base, "variant")
        return Variant(base.replace(":", "."), base.partition(":")[2], changes={"pooling": base, "lam": 0.0})
    known = f"{', '.join(VARIANTS)}, lambda0 to lambda1, lambda0_fsl to lambda1_fsl or module:function"
    raise InputError(f"variant: expected one of {known}, got {name!r}")
