"""``wsss-nb evaluate``: score a folder of label maps, whoever made them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wsss_nb.cli.experiment import protocol_line
from wsss_nb.errors import InputError

if TYPE_CHECKING:
    from wsss_nb.data import VOCFolder

__all__ = ["add_evaluate"]


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``evaluate``."""
    parser.add_argument("--predictions", required=True, metavar="DIR", help="label maps NAME.png")
    parser.add_argument("--data", required=True, metavar="DIR", help="data set in VOC layout")
    parser.add_argument("--split", default="val", metavar="NAME", help="default: val")
    parser.add_argument(
        "--void", choices=("background", "masked"), default="background",
        help="what the contour score does with void (255); default: background, as the paper",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write scores and protocol there")
    parser.set_defaults(handler=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from wsss_nb.data import VOCFolder
    from wsss_nb.files import write_json
    from wsss_nb.stages.scoring import score_label_maps

    folder = VOCFolder(options.data, options.split)
    predictions = Path(options.predictions)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: expected a folder of label maps, got none")
    _check_predictions(folder, predictions)
    protocol = {"predictions": predictions.name, "image_labels": None, "crf": None, "background": None}
    scores = score_label_maps(folder, predictions, protocol, options.void)
    width = max(len(name) for name in folder.classes)
    print(f"{'':{width}}{'IoU':>8}{'F':>8}")
    for name, area, contour in zip(folder.classes, scores["iou"], [None, *scores["f"]], strict=True):
        print(f"{name:{width}}{_percent(area)}{_percent(contour)}")
    print(f"{'mean':{width}}{_percent(scores['miou'])}{_percent(scores['contour_f'])}")
    stated = {name: value for name, value in scores["protocol"].items() if value is not None}
    print(f"protocol: {protocol_line(stated)}; how the label maps were made is not known here")
    if options.json:
        write_json(options.json, scores)
    return 0


def _check_predictions(folder: VOCFolder, predictions: Path) -> None:
    """Every label map is there, has its mask's size and holds class ids only; the first bad one is named."""
    from wsss_nb.data import read_label_map

    for name in folder.names:
        path = predictions / f"{name}.png"
        label_map, mask = read_label_map(path), folder.mask(name)
        if label_map.shape != mask.shape:
            raise InputError(f"{path}: expected the mask's size {mask.shape}, got {label_map.shape}")
        if label_map.max() >= folder.num_classes:
            raise InputError(f"{path}: expected class ids 0..{folder.num_classes - 1}, got {label_map.max()}")


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{100 * value:>8.1f}"
