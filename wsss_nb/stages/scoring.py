"""Scores of a folder of label maps, with the protocol they were made under."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from wsss_nb.coverage import PartCoverage
from wsss_nb.data import VOCFolder, read_label_map
from wsss_nb.metrics import ContourFScore, MeanIoU
from wsss_nb.stages.processes import processes

__all__ = ["part_coverage", "score_label_maps"]


def score_label_maps(
    folder: VOCFolder,
    predictions: Path,
    protocol: dict[str, Any],
    void: Literal["background", "masked"] = "background",
) -> dict[str, Any]:
    """mIoU and contour F of ``predictions/NAME.png`` against the masks of ``folder``.

    mIoU is the mean over the classes that occur in a mask or a prediction of the split; contour F the mean over the
    foreground classes that occur in a mask. All counts are summed over the split first, and over the processes.

    Returns:
        ``protocol``, ``miou``, ``contour_f`` (fractions), ``iou`` (K, null where the class does not occur), ``f`` (K - 1),
        ``confusion`` (K, K; rows are the truth), ``matches`` (K - 1, 4).
    """
    area = MeanIoU(folder.num_classes)
    contour = ContourFScore(folder.num_classes, void=void, present_only=True)
    crew = processes()
    if crew.count > 1:  # torchmetrics adds the states up, where the processes' network reaches them
        area.to(crew.device)
        contour.to(crew.device)
    for name in crew.share(folder.names):
        target = torch.from_numpy(folder.mask(name).astype(np.int64))
        prediction = torch.from_numpy(read_label_map(predictions / f"{name}.png").astype(np.int64))
        area.update(prediction, target)
        contour.update(prediction, target)
    areas, contours = area.compute(), contour.compute()
    return {
        "protocol": {
            "split": folder.split,
            **protocol,
            "void": void,
            "contour_classes": "present",
            "images": len(folder.names),
        },
        "miou": float(areas["miou"]),
        "contour_f": float(contours["contour_f"]),
        "iou": _jsonable(areas["iou"]),
        "f": _jsonable(contours["f"]),
        "confusion": areas["confusion"].tolist(),
        "matches": contours["matches"].tolist(),
    }


def _jsonable(values: Iterable[Any]) -> list[float | None]:
    return [None if np.isnan(float(value)) else float(value) for value in values]


def part_coverage(folder: VOCFolder, predictions: Path) -> dict[str, float] | None:
    """:func:`~wsss_nb.coverage.coverage` of the split, of the parts that occur; None without part masks."""
    if not folder.has_parts:
        return None
    metric = PartCoverage()
    for name in folder.names:
        metric.update(read_label_map(predictions / f"{name}.png"), folder.mask(name), folder.part(name))
    return {part: value for part, value in metric.compute().items() if not np.isnan(value)}
