"""The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011): masks of most of VOC's other images."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from wsss_nb.data.labels import VOC_CLASSES
from wsss_nb.data.matlab import read_matlab
from wsss_nb.errors import InputError

__all__ = ["sbd_mask", "train_aug_names"]


def sbd_mask(content: bytes, source: str) -> npt.NDArray[np.uint8]:
    """Class mask (H, W) uint8 of a ``cls/NAME.mat``: ``GTcls.Segmentation``, ids 0..20 as in VOC.

    SBD's masks have no void ring; its class numbers are VOC's.

    Args:
        content: the file.
        source: its name, for messages.

    Raises:
        InputError: not a MATLAB 5 file, no such field, or other ids.
    """
    try:
        mask = read_matlab(content, ["GTcls"], source)["GTcls"][0, 0]["Segmentation"]
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: expected GTcls.Segmentation, got {' '.join(str(error).split())}"
        ) from error
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "ui":
        raise InputError(f"{source}: expected a mask (H, W) of integers, got {mask.dtype} {mask.shape}")
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high >= len(VOC_CLASSES):
        raise InputError(f"{source}: expected class ids 0..{len(VOC_CLASSES) - 1}, got {low}..{high}")
    return mask.astype(np.uint8)


def train_aug_names(
    train: Iterable[str], sbd_train: Iterable[str], sbd_val: Iterable[str], val: Collection[str]
) -> tuple[str, ...]:
    """The augmented train split, sorted: (VOC train + SBD train + SBD val) - VOC val; 10,582 names of VOC 2012.

    Example:
        >>> train_aug_names(["b"], ["a", "c"], ["b", "d"], ["c"])
        ('a', 'b', 'd')
    """
    return tuple(sorted({*train, *sbd_train, *sbd_val} - set(val)))
