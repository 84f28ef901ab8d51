"""Before a run: check the data, make the synthetic set, write down the image-level labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsss_nb.code_version import code_version
from wsss_nb.data import VOCFolder, check_folder, make_synthetic, write_labels
from wsss_nb.errors import InputError
from wsss_nb.experiment.profiles import DataConfig, Profile
from wsss_nb.experiment.provenance import manifest
from wsss_nb.files import sha256_file, write_json
from wsss_nb.models import BACKBONES
from wsss_nb.stages.steps import step_key

__all__ = ["initial_weights", "prepare", "project_root"]

_STAGES = ("cam", "scoring", "affinitynet", "deeplab")


def prepare(profile: Profile, out: Path) -> None:
    """Write ``out/data``: ``SPLIT.csv`` with the image-level labels, ``prepared.json`` with all that the steps share.

    That is the data's root and hash, the initial weights, the code of the stages, and who opens the run (``made_by``).

    This is the only place that looks at masks before scoring: to check them, and to derive image-level labels where
    the data set has no others. Training reads ``SPLIT.csv`` and images alone.

    Raises:
        InputError: no data folder given or found, a bad file (named; with ``data.skip_bad`` counted and left out),
            no file of ImageNet weights where the profile names one.
    """
    weights = initial_weights(profile)
    data = profile.data
    root = _root(data, out)
    splits = tuple(dict.fromkeys((data.train_split, data.val_split)))
    # masks nobody looks at need not be there: those of the train split, unless its labels come from them
    needless = VOCFolder(root, data.train_split).label_source != "masks"
    masks = (data.val_split,) if needless else splits
    report = check_folder(root, splits, skip_bad=data.skip_bad, mask_splits=masks)
    bad = sorted(report.bad)
    if bad:
        print(f"{root.name}: left out {len(bad)} bad images: {', '.join(bad)}", flush=True)
    hashes = {}
    for split in splits:
        folder = VOCFolder(root, split).without(report.bad)
        write_labels(folder, out / "data" / f"{split}.csv")
        hashes[split] = folder.split_hash(masks=split == data.val_split)
    data_hash = step_key({"splits": hashes, "bad": bad})[:16]
    start = {} if weights is None else {"imagenet": weights["sha256"]}
    prepared = {
        "root": root.relative_to(out).as_posix() if root.is_relative_to(out) else str(root),
        "hash": data_hash,
        "bad": bad,
        "weights": weights,
        "code": {stage: code_version(f"wsss_nb.stages.{stage}") for stage in _STAGES},
        "made_by": manifest(profile, data_hash=data_hash, weights=start),
    }
    write_json(out / "data" / "prepared.json", prepared)


def project_root() -> Path:
    """What relative paths are meant from: here, or the folder above where a notebook runs in ``notebooks``."""
    here = Path.cwd()
    return here.parent if here.name == "notebooks" else here


def initial_weights(profile: Profile) -> dict[str, Any] | None:
    """The ImageNet weights that all networks start from; None where they start at random.

    Returns:
        ``sha256`` of the file, and ``path``: its place where the profile names one, None where it is pip's, which the
        backbone finds by itself.

    Raises:
        InputError: the profile names a file that is not there.
    """
    if not profile.imagenet_weights:
        installed = BACKBONES[profile.backbone].pretrained_file
        return None if installed is None else {"path": None, "sha256": sha256_file(installed())}
    path = project_root() / profile.imagenet_weights
    if not path.is_file():
        raise InputError(
            "imagenet_weights: expected the file of ResNet-38's ImageNet weights for MXNet (Model A1 of "
            f"https://github.com/itijyou/ademxapp), got no file {path} (--imagenet_weights FILE; empty for a random start)"
        )
    digest = sha256_file(path)
    print(f"{path.name}: SHA-256 {digest}", flush=True)
    return {"path": str(path.resolve()), "sha256": digest}


def _root(data: DataConfig, out: Path) -> Path:
    if data.root:
        return Path(data.root).resolve()
    if data.kind == "voc":
        raise InputError("data.root: expected a folder in VOC layout (--data FOLDER), got none")
    spec = {"num_train": data.num_train, "num_val": data.num_val, "seed": data.seed}
    key = step_key({**spec, "code": code_version("wsss_nb.data.synthetic")})
    root = out / "data" / f"synthetic-{key[:8]}"
    if not root.exists():
        make_synthetic(root, **spec)
    return root
