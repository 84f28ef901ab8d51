"""Which images a figure shows, and how good the label maps of single images are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsss_nb.data.palette import IGNORE
from wsss_nb.errors import InputError
from wsss_nb.results import CamResult, NotInRun, Run, StageResult

__all__ = ["MAX_IMAGES", "candidates", "image_confusion", "image_mious", "image_scores", "typical"]

MAX_IMAGES = 400
"""Of larger splits this many evenly spaced images are looked at, so that drawing takes seconds."""


def candidates(run: Run) -> list[str]:
    """Val images to choose from: all, or an evenly spaced subset of ``MAX_IMAGES``.

    Raises:
        NotInRun: the run names no val images.
    """
    names = run.val_names
    if not names:
        raise NotInRun("results.json: data.val_names: expected the val images' names, got none")
    if len(names) <= MAX_IMAGES:
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, MAX_IMAGES).round().astype(int)]


def image_confusion(
    prediction: npt.NDArray[np.integer], target: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Pixels of each (target, predicted) pair, (K, K); pixels whose target is 255 are left out."""
    kept = target != IGNORE
    pairs = target[kept].astype(np.int64) * num_classes + prediction[kept]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def image_mious(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Mean IoU of confusion matrices (..., K, K) over the classes that occur in prediction or target."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    occurring = union > 0
    iou = np.where(occurring, hits / np.maximum(union, 1), 0.0)
    count = occurring.sum(-1)
    return np.where(count > 0, iou.sum(-1) / np.maximum(count, 1), np.nan)


def image_scores(
    run: Run, entries: Sequence[CamResult | StageResult], names: Sequence[str]
) -> npt.NDArray[np.float64]:
    """mIoU of each image by each entry's label maps, (entries, images) in 0..1; NaN where all is void.

    Where all images are scored, their pixels must add up to the confusion matrix in results.json, so that
    another data set's masks, or label maps of another run, are found out.

    Raises:
        NotInRun: masks or label maps are not there.
        InputError: a label map's size is not its mask's, the scores are not those of these files, or the masks are
            void alone.
    """
    k = len(run.classes)
    scores = np.empty((len(entries), len(names)))
    total = np.zeros((len(entries), k, k), dtype=np.int64)
    for column, name in enumerate(names):
        target = run.dataset.mask(name)
        for row, entry in enumerate(entries):
            prediction = run.label_map(entry, name)
            if prediction.shape != target.shape:
                raise InputError(
                    f"{entry.folder}/val/{name}.png: expected size {target.shape}, got {prediction.shape}"
                )
            confusion = image_confusion(prediction, target, k)
            scores[row, column] = image_mious(confusion)
            total[row] += confusion
    if sorted(names) == sorted(run.val_names):
        for entry, confusion in zip(entries, total, strict=True):
            if not np.array_equal(confusion, entry.scores.confusion):
                raise InputError(
                    f"data_root: expected the masks that {entry.folder} was scored on, got others "
                    f"({run.dataset.root})"
                )
    if not np.isfinite(scores).any():
        raise InputError(f"{run.dataset.root}: expected val masks with labelled pixels, got void alone")
    return scores


def typical(
    run: Run, values: npt.NDArray[np.float64], names: Sequence[str], count: int
) -> tuple[list[str], int]:
    """Names of ``count`` images whose values lie near the median, and from how many of the nearest.

    Among the nearest fifth (at least twice ``count``), nearest first, an image that shows a class not shown
    yet goes before the others; nothing else, in particular not the value's sign or size, plays a part.
    """
    order = np.argsort(np.abs(values - np.nanmedian(values)), kind="stable")
    order = order[np.isfinite(values[order])]
    near = [names[i] for i in order[: max(2 * count, len(names) // 5)]]
    shown: set[int] = set()
    fresh = []
    for name in near:
        found = set(np.unique(run.dataset.mask(name)).tolist()) - {0, IGNORE}
        if found - shown:
            fresh.append(name)
            shown |= found
    rest = [name for name in near if name not in fresh]
    return [*fresh, *rest][:count], len(near)
