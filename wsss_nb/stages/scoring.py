"""Scores of a folder of label maps, with the protocol they were made under."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from wsss_nb.data.voc import VOCFolder, read_label_map
from wsss_nb.metrics import ContourFScore, MeanIoU, PartCoverage
from wsss_nb.system.processes import processes
from wsss_nb.system.workers import Workers, finished_results

__all__ = ["part_coverage", "score_label_maps"]

SHARD = 250
"""Images counted in one go; a split of more is spread over the workers."""

Void: TypeAlias = Literal["background", "masked"]


def score_label_maps(
    folder: VOCFolder, predictions: Path, protocol: dict[str, Any], void: Void = "background", workers: Workers = 0
) -> dict[str, Any]:
    """mIoU and contour F of ``predictions/NAME.png`` against the masks of ``folder``.

    mIoU is the mean over the classes that occur in a mask or a prediction of the split; contour F the mean over the
    foreground classes that occur in a mask. All counts are summed over the split first, so that the images of a large
    split can be counted in ``workers`` processes or on a cluster. Processes that train together count a share each.

    Returns:
        ``protocol``, ``miou``, ``contour_f`` (fractions), ``iou`` (K, null where the class does not occur), ``f`` (K - 1),
        ``confusion`` (K, K; rows are the truth), ``matches`` (K - 1, 4).
    """
    world = processes()
    names = world.shard(folder.names)
    parts = [names[start : start + SHARD] for start in range(0, len(names), SHARD)]
    if len(parts) <= 1 or workers in (0, 1):
        area, contour = _counted(folder, names, predictions, void)
    else:
        jobs = {f"{part[0]} to {part[-1]}": (folder.subset(part), part, predictions, void) for part in parts}
        (area, contour), *others = [metrics for _, metrics in finished_results(_counted, jobs, workers, "scoring")]
        for other in others:
            for whole, piece in zip((area, contour), other, strict=True):
                for state, counts in piece.metric_state.items():
                    setattr(whole, state, getattr(whole, state) + counts)
    if world.count > 1:  # torchmetrics adds the states up, where the processes' network reaches them
        area.to(world.device)
        contour.to(world.device)
    areas, contours = area.compute(), contour.compute()
    facts = {"void": void, "contour_classes": "present", "images": len(folder.names)}
    return {
        "protocol": {"split": folder.split, **protocol, **facts}, "miou": float(areas["miou"]),
        "contour_f": float(contours["contour_f"]), "iou": _jsonable(areas["iou"]), "f": _jsonable(contours["f"]),
        "confusion": areas["confusion"].tolist(), "matches": contours["matches"].tolist()
    }  # fmt: skip


def _counted(folder: VOCFolder, names: Sequence[str], predictions: Path, void: Void) -> tuple[MeanIoU, ContourFScore]:
    area = MeanIoU(folder.num_classes)
    contour = ContourFScore(folder.num_classes, void=void, present_only=True)
    for name in names:
        target = torch.from_numpy(folder.mask(name).astype(np.int64))
        prediction = torch.from_numpy(read_label_map(predictions / f"{name}.png").astype(np.int64))
        area.update(prediction, target)
        contour.update(prediction, target)
    return area, contour


def _jsonable(values: Iterable[Any]) -> list[float | None]:
    return [None if np.isnan(float(value)) else float(value) for value in values]


def part_coverage(folder: VOCFolder, predictions: Path) -> dict[str, float] | None:
    """:func:`~wsss_nb.metrics.PartCoverage` of the split, of the parts that occur; None without part masks."""
    if not folder.has_parts:
        return None
    metric = PartCoverage()
    for name in folder.names:
        metric.update(read_label_map(predictions / f"{name}.png"), folder.mask(name), folder.part(name))
    return {part: value for part, value in metric.compute().items() if not np.isnan(value)}
