"""Region and contour accuracy of label maps: mIoU and contour F-score.

Pure functions count pixels of one image; the ``torchmetrics.Metric`` classes add the counts up over a
split (and across processes) and turn the sums into scores.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = [
    "VOID",
    "ContourFScore",
    "MeanIoU",
    "boundary",
    "confusion_matrix",
    "contour_f",
    "contour_matches",
    "contour_radius",
]

VOID = 255
"""The id of pixels that belong to no class: unlabelled, or the ring VOC draws around objects."""

LabelMap: TypeAlias = "np.ndarray | Tensor"
Void: TypeAlias = Literal["background", "masked"]
Average: TypeAlias = Literal["pooled", "image"]


def boundary(mask: np.ndarray) -> np.ndarray:
    """One-pixel boundary of a binary mask, (H, W) bool -> (H, W) bool.

    ``b[y, x] = 1`` where mask[y, x] differs from its right, its lower or its lower-right neighbour; the last
    row and the last column compare along the edge only, the last corner is 0.

    Args:
        mask: (H, W), bool.

    Example:
        >>> boundary(np.array([[0, 0, 0], [0, 1, 1], [0, 1, 1]], bool)).astype(int).tolist()
        [[1, 1, 1], [1, 0, 0], [1, 0, 0]]

    Perazzi et al. (CVPR 2016), as in their release and in the paper's.
    """
    mask = np.asarray(mask, dtype=bool)
    edge = np.zeros_like(mask)
    inner = mask[:-1, :-1]
    edge[:-1, :-1] = (inner != mask[:-1, 1:]) | (inner != mask[1:, :-1]) | (inner != mask[1:, 1:])
    edge[-1:, :-1] = mask[-1:, :-1] != mask[-1:, 1:]
    edge[:-1, -1:] = mask[:-1, -1:] != mask[1:, -1:]
    return edge


def contour_radius(height: int, width: int, tolerance: float = 0.008) -> int:
    """Matching distance in pixels: ceil(tolerance * sqrt(H^2 + W^2)).

    Args:
        height: H, in pixels.
        width: W, in pixels.
        tolerance: fraction of the diagonal; 1 or more is taken as a distance in pixels (then rounded up).

    Raises:
        ValueError: ``tolerance`` not above 0, or not finite.

    Example:
        >>> contour_radius(375, 500)
        5

    Perazzi et al. (CVPR 2016), as in their release and in the paper's.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance: expected a finite number above 0, got {tolerance!r}")
    return math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(height, width))


def contour_matches(
    prediction: LabelMap,
    target: LabelMap,
    num_classes: int,
    tolerance: float = 0.008,
    void: Void = "background",
) -> np.ndarray:
    """Boundary pixels of one image, counted and matched per foreground class (Perazzi et al., CVPR 2016).

    With B_g and B_p the boundaries (:func:`boundary`) of ``target == c`` and ``prediction == c`` and
    D_r the dilation by a disk of radius r = :func:`contour_radius`, row c - 1 of the result is

        m = (|B_g and D_r(B_p)|, |B_p and D_r(B_g)|, |B_g|, |B_p|).

    A class that fills the whole map has no boundary, like one that does not occur: rows of a class that fills one
    of the maps and is absent from the other are (0, 0, 0, 0), as in DAVIS's code.

    Only classes that occur are looked at and only disks around boundary pixels are painted: the dilation to
    the pixel, at a cost of (boundary length) x (disk area).

    Args:
        prediction: (H, W), class ids 0..num_classes-1.
        target: (H, W), class ids or 255 = void.
        num_classes: K, background included.
        tolerance: matching distance as a fraction of the image diagonal; in pixels from 1 on.
        void: "background": void pixels of ``target`` count as background, ``prediction`` stays as it is
            (the variant behind the paper's tables; the void ring moves the true contour inwards).
            "masked": void pixels are background in both maps.

    Returns:
        (K-1, 4), int64.

    Raises:
        ValueError: shapes, dtypes, class ids or options are not as above.

    Example:
        >>> target = np.zeros((20, 20), np.uint8); target[5:12, 5:12] = 1
        >>> contour_matches(target, target, num_classes=2).tolist()
        [[28, 28, 28, 28]]

    Paper (Section 4.1) and release: "background". DAVIS: "masked".
    """
    found, true = _contour_maps(prediction, target, num_classes, void)
    if found.ndim != 2:
        raise ValueError(f"prediction: expected (H, W), got {found.shape}")
    height, width = found.shape
    radius = contour_radius(height, width, tolerance)
    # A frame of `radius` pixels around the map keeps every painted disk inside the array.
    stride = width + 2 * radius
    painted = np.zeros((height + 2 * radius) * stride, dtype=bool)
    dy, dx = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    offsets = (dy * stride + dx)[dy**2 + dx**2 <= radius**2].tolist()

    def pixels(label_map: np.ndarray, label: int) -> np.ndarray:
        flat = np.flatnonzero(boundary(label_map == label))
        return flat + 2 * radius * (flat // width) + radius * (stride + 1)

    def matched(points: np.ndarray, others: np.ndarray) -> int:
        for offset in offsets:
            painted[others + offset] = True
        count = np.count_nonzero(painted[points])
        painted[:] = False
        return int(count)

    matches = np.zeros((num_classes - 1, 4), dtype=np.int64)
    occurs = _histogram(found, num_classes) + _histogram(true, num_classes) > 0
    for label in (np.flatnonzero(occurs[1:]) + 1).tolist():
        points, others = pixels(true, label), pixels(found, label)
        hits = (matched(points, others), matched(others, points)) if len(points) and len(others) else (0, 0)
        matches[label - 1] = *hits, len(points), len(others)
    return matches


def contour_f(matches: LabelMap) -> Tensor:
    """Contour F-score of match counts m (..., 4) as :func:`contour_matches` gives them, or of their sums.

    ``R = m_0 / m_2``, ``P = m_1 / m_3``, ``F = 2 P R / (P + R)``; F = 1 where neither map has a boundary, 0 where only
    one has, or where nothing matches. "No boundary" is said of a class that is absent and of one that fills the
    map, so F = 1 even where it fills one map and is absent from the other. The result (...) is float64 in [0, 1].

    Args:
        matches: m, (..., 4), in pixels.

    Raises:
        ValueError: the last dimension is not 4.

    Example:
        >>> contour_f(np.array([[8, 5, 10, 10], [0, 0, 0, 0]])).tolist()
        [0.6153846153846154, 1.0]

    The paper (Section 4.1) and its release.
    """
    counts = torch.as_tensor(matches).double()
    if counts.ndim == 0 or counts.shape[-1] != 4:
        raise ValueError(f"matches: expected (..., 4), got {tuple(counts.shape)}")
    true_hit, found_hit, true, found = counts.unbind(-1)
    recall, precision = true_hit / true.clamp(min=1), found_hit / found.clamp(min=1)
    f = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where((true == 0) & (found == 0), torch.ones_like(f), f)


def confusion_matrix(prediction: LabelMap, target: LabelMap, num_classes: int) -> Tensor:
    """Pixel counts of a split, ``C_ij = |{true class = i, predicted class = j}|``; void is left out.

    Args:
        prediction: (...), class ids 0..num_classes-1.
        target: the same shape, class ids or 255 = void.
        num_classes: K, background included.

    Returns:
        C, (K, K), int64.

    Raises:
        ValueError: shapes, dtypes or class ids are not as above.

    Example:
        >>> confusion_matrix(np.array([[0, 1]]), np.array([[0, 0]]), 2).tolist()
        [[1, 1], [0, 0]]

    Paper (Section 4.1) and release agree.
    """
    found, true = torch.as_tensor(prediction), torch.as_tensor(target)
    _check_maps(found, true, num_classes)
    valid = true != VOID
    index = true[valid].long() * num_classes + found[valid].long()
    return torch.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


class MeanIoU(Metric):
    """Mean intersection over union of a whole split.

    IoU_k = C_kk / (sum_j C_kj + sum_j C_jk - C_kk) with one :func:`confusion_matrix` C of K = ``num_classes``
    classes pooled over all images, void left out; mIoU = mean over the classes in prediction or target.

    ``update(prediction, target)`` takes label maps of any equal shape. ``compute()`` gives ``miou`` (float in
    [0, 1], nan without any pixel), ``iou`` (K, float64, nan for a class in neither) and ``confusion`` (K, K).

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
        self.num_classes = _check_num_classes(num_classes)
        self.add_state("confusion", torch.zeros(num_classes, num_classes).long(), dist_reduce_fx="sum")

    def update(self, prediction: LabelMap, target: LabelMap) -> None:
        """Add the pixels of one or more images."""
        self.confusion += confusion_matrix(prediction, target, self.num_classes).to(self.confusion.device)

    def compute(self) -> dict[str, Any]:
        """Scores of everything added so far."""
        counts = self.confusion.double()
        hit = counts.diagonal()
        iou = hit / (counts.sum(0) + counts.sum(1) - hit)  # 0 / 0 = nan: absent from both
        return {"miou": iou.nanmean().item(), "iou": iou, "confusion": self.confusion.clone()}


class ContourFScore(Metric):
    """Contour F-score of a whole split.

    Pooled (the paper): ``F = (K - 1)^-1 sum_c F_c(sum_n m_nc)``, the matches m summed over the images n, F_c of
    :func:`contour_f` per foreground class. Per image (DAVIS): F of every image and class that occurs in it (in
    prediction or target), mean over images, then over classes. Either way a class that occurs nowhere has F = 1.

    Args:
        num_classes: K, background included.
        void: see :func:`contour_matches`; on small images the void ring alone can halve F.
        tolerance: matching distance as a fraction of the diagonal; in pixels from 1 on.
        average: "pooled" or "image".
        present_only: mean over the classes that occur in the targets only, for data sets without some of
            the classes (each of those would otherwise add F = 1, or 0 for a single false pixel).

    ``update(prediction, target)`` takes (H, W) or (B, H, W). ``compute()`` gives ``contour_f`` (float in
    [0, 1], nan if no class counts), ``f`` (K-1, float64) and ``matches`` (K-1, 4, int64, summed).

    Raises:
        ValueError: options not as above; maps as in :func:`contour_matches`.

    Example:
        >>> metric = ContourFScore(num_classes=2); maps = np.eye(8, dtype=np.uint8)
        >>> metric.update(maps, maps); metric.compute()["contour_f"]
        1.0

    Paper (Section 4.1) and release: the defaults. DAVIS: void="masked", average="image".
    """

    full_state_update = False
    matches: Tensor
    image_f: Tensor
    image_count: Tensor
    target_pixels: Tensor

    def __init__(
        self,
        num_classes: int,
        void: Void = "background",
        tolerance: float = 0.008,
        average: Average = "pooled",
        present_only: bool = False,
        **kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(**kwargs)
        _check_option("void", void, Void)
        _check_option("average", average, Average)
        contour_radius(1, 1, tolerance)
        self.num_classes = _check_num_classes(num_classes)
        self.void: Void = void
        self.tolerance, self.average, self.present_only = tolerance, average, present_only
        zeros = torch.zeros(num_classes - 1, dtype=torch.int64)
        self.add_state("matches", zeros[:, None].repeat(1, 4), dist_reduce_fx="sum")
        self.add_state("image_f", zeros.double(), dist_reduce_fx="sum")
        self.add_state("image_count", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("target_pixels", zeros.clone(), dist_reduce_fx="sum")

    def update(self, prediction: LabelMap, target: LabelMap) -> None:
        """Add one image (H, W) or several (B, H, W)."""
        found, true = _contour_maps(prediction, target, self.num_classes, self.void)
        if found.ndim not in (2, 3):
            raise ValueError(f"prediction: expected (H, W) or (B, H, W), got {found.shape}")
        maps = (array.reshape(-1, *array.shape[-2:]) for array in (found, true))
        for one, other in zip(*maps, strict=True):
            counts = contour_matches(one, other, self.num_classes, self.tolerance, self.void)
            matches = torch.from_numpy(counts).to(self.matches.device)
            pixels = torch.from_numpy(_histogram(other, self.num_classes)[1:]).to(matches.device)
            occurs = torch.from_numpy(_histogram(one, self.num_classes)[1:]).to(matches.device) + pixels > 0
            self.matches += matches
            self.image_f += contour_f(matches) * occurs
            self.image_count += occurs
            self.target_pixels += pixels

    def compute(self) -> dict[str, Any]:
        """Scores of everything added so far."""
        f = contour_f(self.matches)
        if self.average == "image":
            f = torch.where(self.image_count > 0, self.image_f / self.image_count, torch.ones_like(f))
        counted = f[self.target_pixels > 0] if self.present_only else f
        return {"contour_f": counted.mean().item(), "f": f, "matches": self.matches.clone()}


def _contour_maps(
    prediction: LabelMap, target: LabelMap, num_classes: int, void: Void
) -> tuple[np.ndarray, np.ndarray]:
    _check_option("void", void, Void)
    maps = (prediction, target)
    found, true = (np.asarray(m.cpu() if isinstance(m, Tensor) else m) for m in maps)
    _check_maps(found, true, num_classes)
    return np.where(true == VOID, 0, found) if void == "masked" else found, true


def _histogram(label_map: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels per class, void left out."""
    return np.bincount(label_map.ravel(), minlength=VOID + 1)[:num_classes]


def _check_option(name: str, value: str, options: Any) -> None:
    if value not in get_args(options):
        raise ValueError(f"{name}: expected one of {get_args(options)}, got {value!r}")


def _check_num_classes(num_classes: int) -> int:
    if not 2 <= num_classes <= VOID:
        raise ValueError(f"num_classes: expected 2..{VOID} (background included), got {num_classes!r}")
    return num_classes


def _check_maps(prediction: Any, target: Any, num_classes: int) -> None:
    _check_num_classes(num_classes)
    _check_shape("prediction", prediction, "target", target)
    for name, label_map in (("prediction", prediction), ("target", target)):
        if "int" not in str(label_map.dtype):
            raise ValueError(f"{name}: expected integer class ids, got {label_map.dtype}")
        wrong = (label_map < 0) | (label_map >= num_classes)
        if name == "target":
            wrong &= label_map != VOID
        if wrong.any():
            allowed = f"0..{num_classes - 1}" + (f" or {VOID}" if name == "target" else "")
            raise ValueError(f"{name}: expected class ids {allowed}, got {int(label_map[wrong][0])}")


def _check_shape(name: str, given: Any, like_name: str, like: Any) -> None:
    if given.shape != like.shape:
        shapes = f"{tuple(like.shape)}, got {tuple(given.shape)}"
        raise ValueError(f"{name}: expected the shape of {like_name} {shapes}")
