"""Scores of a whole split: mIoU, contour F-score and the parts of objects found.

The pixels of one image are counted by the functions of :mod:`wsss_nb.counts`; the ``torchmetrics.Metric`` classes
add the counts up (across processes too) and turn the sums into scores.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from wsss_nb import counts
from wsss_nb.counts import LabelMap, Void, confusion_matrix, contour_f, contour_matches
from wsss_nb.system.config import VOID
from wsss_nb.system.errors import InputError, require

__all__ = ["ContourFScore", "MeanIoU", "PartCoverage", "confusion_matrix", "contour_f", "contour_matches"]

_PIXEL = np.zeros((1, 1), dtype=np.uint8)


class MeanIoU(Metric):
    """Mean intersection over union of a whole split.

    IoU_k = C_kk / (sum_j C_kj + sum_j C_jk - C_kk) with one :func:`confusion_matrix` C of K = ``num_classes``
    classes pooled over all images, void left out; mIoU = mean over the classes in prediction or target.

    ``update(prediction, target)`` takes label maps of any equal shape. ``compute()`` gives ``miou`` (float in
    [0, 1], nan without any pixel) and the arrays ``iou`` (K, float64, nan for a class in neither) and ``confusion``
    (K, K).

    Args:
        num_classes: K, background included.

    Raises:
        ValueError: ``num_classes`` outside 2..255; maps as in :func:`confusion_matrix`.

    Example:
        >>> metric = MeanIoU(num_classes=2); metric.update(np.array([[0, 1]]), np.array([[0, 0]]))
        >>> metric.compute()["miou"]
        0.25

    Paper and release: the mean over all 21 classes of VOC, each of which occurs.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        """See the class."""
        super().__init__(**kwargs)
        self.num_classes = num_classes
        nothing = confusion_matrix(_PIXEL[:0], _PIXEL[:0], num_classes)  # refuses a wrong number at once
        self.add_state("confusion", torch.from_numpy(nothing), dist_reduce_fx="sum")

    def update(self, prediction: LabelMap, target: LabelMap) -> None:
        """Add the pixels of one or more images."""
        added = confusion_matrix(prediction, target, self.num_classes)
        self.confusion += torch.from_numpy(added).to(self.confusion.device)

    def compute(self) -> dict[str, Any]:
        """Scores of everything added so far."""
        confusion = np.array(self.confusion.cpu())
        each = counts.iou(confusion)
        return {"miou": torch.from_numpy(each).nanmean().item(), "iou": each, "confusion": confusion}


class ContourFScore(Metric):
    """Contour F-score of a whole split.

    ``F = (K - 1)^-1 sum_c F_c(sum_n m_nc)``, the matches m summed over the images n, F_c of :func:`contour_f` per
    foreground class. A class that occurs nowhere has F = 1.

    Args:
        num_classes: K, background included.
        void: see :func:`contour_matches`; on small images the void ring alone can halve F.
        present_only: mean over the classes that occur in the targets only, for data sets without some of
            the classes (each of those would otherwise add F = 1, or 0 for a single false pixel).

    ``update(prediction, target)`` takes (H, W) or (B, H, W). ``compute()`` gives ``contour_f`` (float in
    [0, 1], nan if no class counts) and the arrays ``f`` (K-1, float64) and ``matches`` (K-1, 4, int64, summed).

    Raises:
        ValueError: options not as above; maps as in :func:`contour_matches`.

    Example:
        >>> metric = ContourFScore(num_classes=2); maps = np.eye(8, dtype=np.uint8)
        >>> metric.update(maps, maps); metric.compute()["contour_f"]
        1.0

    Paper (Section 4.1) and release: the defaults. DAVIS takes void="masked" and the mean over images, not pooled counts.
    """

    full_state_update = False
    matches: Tensor
    target_pixels: Tensor

    def __init__(self, num_classes: int, void: Void = "background", present_only: bool = False, **kwargs: Any) -> None:
        """See the class."""
        super().__init__(**kwargs)
        self.num_classes, self.void, self.present_only = num_classes, void, present_only
        nothing = contour_matches(_PIXEL, _PIXEL, num_classes, void=void)  # refuses wrong options at once
        self.add_state("matches", torch.from_numpy(nothing), dist_reduce_fx="sum")
        self.add_state("target_pixels", torch.zeros(num_classes - 1).long(), dist_reduce_fx="sum")

    def update(self, prediction: LabelMap, target: LabelMap) -> None:
        """Add one image (H, W) or several (B, H, W)."""
        found, true = counts.checked_maps(prediction, target, self.num_classes)
        require(found.ndim in (2, 3), f"prediction: expected (H, W) or (B, H, W), got {found.shape}")
        maps = (array.reshape(-1, *array.shape[-2:]) for array in (found, true))
        for one, other in zip(*maps, strict=True):
            matches = contour_matches(one, other, self.num_classes, void=self.void)
            pixels = counts.pixels_of(other, self.num_classes)[1:]
            self.matches += torch.from_numpy(matches).to(self.matches.device)
            self.target_pixels += torch.from_numpy(pixels).to(self.matches.device)

    def compute(self) -> dict[str, Any]:
        """Scores of everything added so far."""
        matches = np.array(self.matches.cpu())
        f = contour_f(matches)
        counted = f[np.asarray(self.target_pixels.cpu()) > 0] if self.present_only else f
        return {"contour_f": torch.from_numpy(counted).mean().item(), "f": f, "matches": matches}


class PartCoverage(Metric):
    """Which parts of the objects label maps cover, pooled over a split: heads, bodies and background.

    ``head = |{part = 2, prediction = mask}| / |{part = 2}|``, body likewise with part = 1, and
    ``background = |{mask = 0, prediction = 0}| / |{mask = 0}|``; void pixels of ``mask`` do not count.

    ``update(prediction, mask, part)`` takes maps (H, W) or (B, H, W): class ids, true class ids or 255 = void, and
    0 background, 1 body, 2 head. ``compute()`` gives the fractions ``head``, ``body`` and ``background``, nan for one
    that does not occur.

    Raises:
        ValueError: shapes differ or ``part`` holds other values.

    Example:
        >>> metric = PartCoverage(); metric.update(*np.array([[[1, 0]], [[1, 1]], [[2, 1]]]))
        >>> metric.compute()["head"], metric.compute()["body"]
        (1.0, 0.0)

    In neither the paper nor the release: only synthetic images know their parts.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """See the class."""
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(3, 2).long(), dist_reduce_fx="sum")

    def update(self, prediction: LabelMap, mask: LabelMap, part: LabelMap) -> None:
        """Add one or more images."""
        found, true, parts = counts.as_array(prediction), counts.as_array(mask), counts.as_array(part)
        for name, given in (("prediction", found), ("part", parts)):
            require(given.shape == true.shape, f"{name}: expected the shape of mask {true.shape}, got {given.shape}")
        if not np.isin(parts, (0, 1, 2)).all():
            raise InputError(f"part: expected 0, 1 or 2, got {parts.max()}")
        right, valid = found == true, true != VOID
        regions = (parts == 2) & valid, (parts == 1) & valid, true == 0
        added = [[(right & region).sum(), region.sum()] for region in regions]
        self.counts += torch.tensor(added, device=self.counts.device)

    def compute(self) -> dict[str, float]:
        """Fractions ``head``, ``body``, ``background``."""
        right, total = self.counts.double().unbind(1)
        return dict(zip(("head", "body", "background"), (right / total).tolist(), strict=True))
