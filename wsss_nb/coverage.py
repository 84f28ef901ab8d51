"""What part of an object was found: how much of heads, bodies and background a label map gets right."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from wsss_nb.metrics import VOID

__all__ = ["PartCoverage", "coverage"]

LabelMap: TypeAlias = "np.ndarray | Tensor"


def coverage(prediction: LabelMap, mask: LabelMap, part: LabelMap) -> dict[str, float]:
    """Which parts of the objects a label map covers.

    ``head = |{part = 2, prediction = mask}| / |{part = 2}|``, body likewise with part = 1, and
    ``background = |{mask = 0, prediction = 0}| / |{mask = 0}|``; void pixels of ``mask`` do not count.

    Args:
        prediction: (H, W) or (B, H, W), class ids.
        mask: true class ids or 255 = void, the same shape as the other two.
        part: 0 background, 1 body, 2 head.

    Returns:
        Fractions ``head``, ``body``, ``background``; nan for a part that does not occur.

    Raises:
        ValueError: shapes differ or ``part`` holds other values.

    Example:
        >>> coverage(np.array([[1, 0, 0]]), np.array([[1, 1, 0]]), np.array([[2, 1, 0]]))
        {'head': 1.0, 'body': 0.0, 'background': 1.0}

    In neither the paper nor the release: only synthetic images know their parts.
    """
    return _fractions(_part_counts(prediction, mask, part))


class PartCoverage(Metric):
    """:func:`coverage` pooled over a split: pixel counts are summed before the fractions are taken.

    ``update(prediction, mask, part)`` takes maps (H, W) or (B, H, W). In neither the paper nor the release.

    Raises:
        ValueError: maps as in :func:`coverage`.

    Example:
        >>> metric = PartCoverage(); metric.update(*np.array([[[1, 0]], [[1, 1]], [[2, 1]]]))
        >>> metric.compute()["head"], metric.compute()["body"]
        (1.0, 0.0)
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """See the class."""
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(3, 2).long(), dist_reduce_fx="sum")

    def update(self, prediction: LabelMap, mask: LabelMap, part: LabelMap) -> None:
        """Add one or more images."""
        self.counts += _part_counts(prediction, mask, part).to(self.counts.device)

    def compute(self) -> dict[str, float]:
        """Fractions ``head``, ``body``, ``background``."""
        return _fractions(self.counts)


def _part_counts(prediction: LabelMap, mask: LabelMap, part: LabelMap) -> Tensor:
    """Right and all pixels (3, 2) of head, body, background."""
    found, true, parts = torch.as_tensor(prediction), torch.as_tensor(mask), torch.as_tensor(part)
    for name, other in (("prediction", found), ("part", parts)):
        if other.shape != true.shape:
            shapes = f"{tuple(true.shape)}, got {tuple(other.shape)}"
            raise ValueError(f"{name}: expected the shape of mask {shapes}")
    if not torch.isin(parts, torch.tensor([0, 1, 2], device=parts.device)).all():
        raise ValueError(f"part: expected 0, 1 or 2, got {parts.max().item()}")
    right, valid = found == true, true != VOID
    regions = (parts == 2) & valid, (parts == 1) & valid, true == 0
    return torch.stack([torch.stack([(right & region).sum(), region.sum()]) for region in regions])


def _fractions(counts: Tensor) -> dict[str, float]:
    right, total = counts.double().unbind(1)
    return dict(zip(("head", "body", "background"), (right / total).tolist(), strict=True))
