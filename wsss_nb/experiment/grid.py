"""The points of a run's grid: lambda with and without FSL, and the baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsss_nb.errors import InputError
from wsss_nb.experiment.profiles import Profile

__all__ = ["OURS", "Variant", "grid", "refined_variant"]

OURS = "lambda1_fsl"
"""The paper's own method: importance sampling alone, with the feature-similarity loss."""


@dataclass(frozen=True)
class Variant:
    """One way to train the CAM network; ``weight`` is lambda, None for the baselines."""

    name: str
    method: Literal["sampling", "average", "seam"]
    weight: float | None
    fsl: bool


def grid(profile: Profile) -> list[Variant]:
    """The points of Figure 2 and the baselines, in the profile's order."""
    points = [
        Variant(f"lambda{weight:g}{'_fsl' if fsl else ''}", "sampling", weight, fsl)
        for fsl in profile.fsl
        for weight in profile.lambdas
    ]
    return points + [Variant(name, name, None, False) for name in profile.baselines]


def refined_variant(profile: Profile, method: str) -> Variant:
    """The point of the grid whose CAMs stages 2 and 3 of a method start from.

    Raises:
        InputError: no such method, or the profile's grid does not train it.
    """
    ours = f"lambda{profile.refined_lambda:g}_fsl"
    names = {"ours": ours, "seam": "seam"}
    if method not in names:
        raise InputError(f"method: expected ours or seam, got {method!r}")
    for variant in grid(profile):
        if variant.name == names[method]:
            return variant
    needed = (
        f"lambdas with {profile.refined_lambda:g} and fsl with true"
        if method == "ours"
        else "baselines with seam"
    )
    raise InputError(f"refine: {method} goes through stages 2 and 3 and needs {needed} in the grid, got "
                     f"{', '.join(variant.name for variant in grid(profile))}")  # fmt: skip
