"""``wsss-nb evaluate``: score a checkpoint, or a folder of label maps, whoever made them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wsss_nb.cli.experiment import protocol_line
from wsss_nb.errors import InputError

if TYPE_CHECKING:
    from wsss_nb.data import VOCFolder

__all__ = ["add_evaluate"]

_OF_CHECKPOINTS = ("profile", "method", "cams", "out")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``evaluate``."""
    from wsss_nb.experiment.options import add_profile_flags
    from wsss_nb.experiment.profiles import PROFILES, Profile

    parser.usage = (
        f"{parser.prog} [-h] (--checkpoint FILE | --predictions DIR) --data DIR [options] [--FIELD VALUE ...]"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--checkpoint", metavar="FILE",
        help="CAM network, AffinityNet or DeepLab, of this package or published; its names tell which",
    )  # fmt: skip
    what.add_argument("--predictions", metavar="DIR", help="label maps NAME.png")
    parser.add_argument("--data", required=True, metavar="DIR", help="data set in VOC layout")
    parser.add_argument("--split", default="val", metavar="NAME", help="default: val")
    parser.add_argument(
        "--void", choices=("background", "masked"),
        help="what the contour score does with void (255); default: the profile's, background as in the paper",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write scores and protocol there")
    group = parser.add_argument_group("of a checkpoint")
    group.add_argument(
        "--profile", choices=sorted(PROFILES), help="inference settings; default: that of its backbone"
    )
    group.add_argument(
        "--method", choices=("ours", "seam"),
        help="seam: a CAM network of SEAM, or CAMs of one; its names do not tell; default: ours",
    )  # fmt: skip
    group.add_argument(
        "--cams",
        metavar="DIR|FILE",
        help="for AffinityNet: CAMs NAME.npz, or the CAM network that makes them",
    )
    group.add_argument(
        "--out", metavar="DIR",
        help="label maps; default: runs/evaluate/CHECKPOINT-DIGEST-SPLIT, of the file's name and its SHA-256",
    )  # fmt: skip
    add_profile_flags(parser, Profile)
    parser.set_defaults(handler=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from wsss_nb.data import VOCFolder
    from wsss_nb.files import write_json

    folder = VOCFolder(options.data, options.split)
    scores = _checkpoint_scores(options, folder) if options.checkpoint else _map_scores(options, folder)
    if scores is None:
        return 0
    width = max(len(name) for name in folder.classes)
    print(f"{'':{width}}{'IoU':>8}{'F':>8}")
    for name, area, contour in zip(folder.classes, scores["iou"], [None, *scores["f"]], strict=True):
        print(f"{name:{width}}{_percent(area)}{_percent(contour)}")
    print(f"{'mean':{width}}{_percent(scores['miou'])}{_percent(scores['contour_f'])}")
    stated = {name: value for name, value in scores["protocol"].items() if value is not None}
    unknown = "; how the label maps were made is not known here" if options.predictions else ""
    print(f"protocol: {protocol_line(stated)}{unknown}")
    if options.json:
        write_json(options.json, scores)
    return 0


def _map_scores(options: argparse.Namespace, folder: VOCFolder) -> dict[str, Any]:
    """Of a folder of label maps; each is there, has its image's size and holds class ids only."""
    from wsss_nb.stages.scoring import score_label_maps

    given = [f"--{name}" for name in _OF_CHECKPOINTS if getattr(options, name) is not None]
    if given or options.overrides:
        first = given[0] if given else f"--{options.overrides[0].partition('=')[0]}"
        raise InputError(f"{first}: expected with --checkpoint only, got it with --predictions")
    predictions = Path(options.predictions)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: expected a folder of label maps, got none")
    for name in folder.names:
        folder.mask(name)
        folder.prediction(predictions, name)
    protocol = {"predictions": predictions.name, "image_labels": None, "crf": None, "background": None}
    return score_label_maps(folder, predictions, protocol, options.void or "background")


def _checkpoint_scores(options: argparse.Namespace, folder: VOCFolder) -> dict[str, Any] | None:
    from wsss_nb.experiment.evaluation import evaluate_checkpoint, open_checkpoint, profile_for
    from wsss_nb.experiment.profiles import load_profile

    checkpoint = open_checkpoint(Path(options.checkpoint))
    identity = checkpoint.identity
    profile = load_profile(options.profile or profile_for(identity.backbone), options.overrides)
    method: Literal["ours", "seam"] = options.method or "ours"
    # a run's checkpoints all have one name
    name = f"{checkpoint.path.stem}-{checkpoint.digest[:8]}-{options.split}"
    out = Path(options.out) if options.out else Path("runs") / "evaluate" / name
    print(
        f"{checkpoint.path}: network {identity.network} ({method}) on {identity.backbone}, "
        f"settings of profile {profile.name}",
        flush=True,
    )
    scores = evaluate_checkpoint(
        checkpoint, folder, profile, out, method=method, void=options.void,
        cams=Path(options.cams) if options.cams else None,
    )  # fmt: skip
    print(
        f"{out / 'maps'}: {len(folder)} label maps" + ("" if scores else "; the split has no masks, no score")
    )
    return scores


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{100 * value:>8.1f}"
