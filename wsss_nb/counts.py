"""Pixels of label maps counted: confusion matrices, matched boundaries. NumPy only, no torch.

The scores made of such counts over a split are in :mod:`wsss_nb.metrics`.
"""

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from wsss_nb.system.config import VOID
from wsss_nb.system.errors import InputError, require

__all__ = ["boundary", "confusion_matrix", "contour_f", "contour_matches", "contour_radius", "iou", "mean_iou"]

LabelMap: TypeAlias = Any  # array or tensor of class ids
Void: TypeAlias = Literal["background", "masked"]


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
    require(0 < tolerance < math.inf, f"tolerance: expected a finite number above 0, got {tolerance!r}")
    return math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(height, width))


def contour_matches(
    prediction: LabelMap, target: LabelMap, num_classes: int, tolerance: float = 0.008, void: Void = "background"
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
    require(void in get_args(Void), f"void: expected one of {get_args(Void)}, got {void!r}")
    found, true = checked_maps(prediction, target, num_classes)
    if void == "masked":
        found = np.where(true == VOID, 0, found)
    require(found.ndim == 2, f"prediction: expected (H, W), got {found.shape}")
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
    occurs = pixels_of(found, num_classes) + pixels_of(true, num_classes) > 0
    for label in (np.flatnonzero(occurs[1:]) + 1).tolist():
        points, others = pixels(true, label), pixels(found, label)
        hits = (matched(points, others), matched(others, points)) if len(points) and len(others) else (0, 0)
        matches[label - 1] = *hits, len(points), len(others)
    return matches


def contour_f(matches: LabelMap) -> np.ndarray:
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
    counts = as_array(matches)
    require(counts.shape[-1:] == (4,), f"matches: expected (..., 4), got {counts.shape}")
    true_hit, found_hit, true, found = np.moveaxis(counts, -1, 0).astype(np.float64)
    recall, precision = true_hit / true.clip(1), found_hit / found.clip(1)
    f = 2 * precision * recall / (precision + recall).clip(np.finfo(np.float64).tiny)
    return np.where((true == 0) & (found == 0), 1.0, f)


def confusion_matrix(prediction: LabelMap, target: LabelMap, num_classes: int) -> np.ndarray:
    """Pixel counts of label maps, ``C_ij = |{true class = i, predicted class = j}|``; void is left out.

    Args:
        prediction: (...), class ids 0..num_classes-1; an array or a tensor, like the target.
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
    found, true = checked_maps(prediction, target, num_classes)
    valid = true != VOID
    index = true[valid].astype(np.int64) * num_classes + found[valid].astype(np.int64)
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, ``IoU_k = C_kk / (sum_j C_kj + sum_j C_jk - C_kk)``.

    Args:
        confusion: C, (..., K, K), of :func:`confusion_matrix`, or sums of them.

    Returns:
        (..., K), float64 in [0, 1]; nan for a class that neither map has.

    Example:
        >>> iou(np.array([[1, 1], [0, 0]])).tolist()
        [0.5, 0.0]

    Paper (Section 4.1) and release agree.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """``mIoU = mean_k IoU_k`` over the classes that prediction or target have, with :func:`iou` per class.

    Args:
        confusion: C, (..., K, K), as for :func:`iou`.

    Returns:
        (...), float64 in [0, 1]; nan without any pixel.

    Example:
        >>> mean_iou(np.array([[1, 1], [0, 0]])).item()
        0.25

    Paper (Section 4.1) and release: the mean over all 21 classes of VOC, each of which occurs.
    """
    each = iou(confusion)
    count = (~np.isnan(each)).sum(-1)
    return np.where(count > 0, np.nansum(each, -1) / np.maximum(count, 1), np.nan)


def pixels_of(label_map: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class, (K,), void left out."""
    return np.bincount(label_map.ravel(), minlength=VOID + 1)[:num_classes]


def checked_maps(prediction: LabelMap, target: LabelMap, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The two maps as arrays of one shape with ids below K, void in the target only."""
    require(2 <= num_classes <= VOID, f"num_classes: expected 2..{VOID} (background included), got {num_classes!r}")
    found, true = as_array(prediction), as_array(target)
    require(found.shape == true.shape, f"prediction: expected the shape of target {true.shape}, got {found.shape}")
    for name, label_map, allowed in (("prediction", found, ""), ("target", true, f" or {VOID}")):
        require(label_map.dtype.kind in "iu", f"{name}: expected integer class ids, got {label_map.dtype}")
        wrong = label_map[(label_map < 0) | (label_map >= num_classes)]
        wrong = wrong[wrong != VOID] if allowed else wrong
        if wrong.size:
            raise InputError(f"{name}: expected class ids 0..{num_classes - 1}{allowed}, got {wrong[0]}")
    return found, true


def as_array(given: LabelMap) -> np.ndarray:
    """An array of what may be a tensor, on a GPU too."""
    return np.asarray(given.cpu() if hasattr(given, "cpu") else given)
