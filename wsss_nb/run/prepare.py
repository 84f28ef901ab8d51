"""Before a run: its settings, its data looked at once, and the image-level labels written down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from wsss_nb.data.layout import write_labels
from wsss_nb.data.synthetic import make_synthetic
from wsss_nb.data.voc import VOCFolder, check_folder
from wsss_nb.models.networks import BACKBONES
from wsss_nb.run.profiles import DataConfig, Profile, load_profile, save_profile, validated
from wsss_nb.run.provenance import manifest
from wsss_nb.run.results import RESULTS, DataInfo, Results, read_results
from wsss_nb.run.run import CONFIG, PREPARED, Run, labelled_split
from wsss_nb.run.steps import MANIFEST
from wsss_nb.system.cluster import requested_cluster
from wsss_nb.system.code_version import code_version
from wsss_nb.system.errors import require
from wsss_nb.system.files import json_hash, project_root, read_json, sha256_file, write_json
from wsss_nb.system.plugins import is_plugin, plugin_hash
from wsss_nb.system.processes import processes
from wsss_nb.variants import Variant

__all__ = ["initial_weights", "open_notebook_run", "open_run"]

STAGES = {"cam": "wsss_nb.stages.cam", "scoring": "wsss_nb.stages.scoring", "affinitynet": "wsss_nb.stages.affinitynet",
          "deeplab": "wsss_nb.stages.deeplab"}  # fmt: skip
# fields that say which points a run has and where, and not how a point is trained
_WHICH_POINTS = {"name", "lambdas", "fsl", "variants", "refine", "workers", "seeds"}


def open_run(profile: Profile, out_dir: str | Path) -> Run:
    """Write a run's settings and prepare its data, and open its folder.

    ``config.yaml`` holds the settings, ``data/SPLIT.csv`` the image-level labels, ``data/prepared.json`` what all steps
    share: the data's root and hash, the initial weights, the code of the stages, and who opens the run (``made_by``).

    This is the only place that looks at masks before scoring: to check them, and to derive image-level labels where
    the data set has no others. Training reads ``SPLIT.csv`` and images alone. Files are opened and hashed again only
    after one of them changed.

    Raises:
        InputError: no data folder given or found, a bad file (named; with ``data.skip_bad`` counted and left out), no
            file of ImageNet weights where the profile names one, a run of an earlier layout, or no writable folder.
    """
    out = Path(out_dir).resolve()
    world = processes()
    if world.is_main:
        known = read_results(out / RESULTS) if (out / RESULTS).exists() else None
        prepared = _prepare(profile, out)
        save_profile(profile, out / CONFIG)
        results = _results(profile, out, prepared, known)
        write_json(out / RESULTS, results.model_dump(mode="json", by_alias=True))
    world.barrier()
    torch.set_num_threads(profile.threads)
    run = Run(out, read_results(out / RESULTS))
    run.workers = requested_cluster(out, run.train.root) or profile.workers
    alone = world.count == 1 or isinstance(run.workers, int)
    require(alone, f"--ray-address: expected one process, got {world.count}: Ray and torchrun do not go together")
    return run


def open_notebook_run(profile: str, data_root: str, out_dir: str, seed: int, overrides: str) -> Run:
    """:func:`open_run` from the five parameters that every notebook has.

    A relative folder is meant from the project's root, whether the notebook runs there or in ``notebooks/``. An empty
    ``data_root`` keeps the profile's. ``seed`` replaces the profile's seeds, unless it is the first of them or
    ``overrides`` name some.
    """
    root = project_root()
    chosen = load_profile(profile if not profile.endswith(".yaml") else str(root / profile), overrides)
    data = chosen.data.model_copy(update={"root": str(root / data_root)} if data_root else {})
    seeds = chosen.seeds if seed == chosen.seeds[0] or "seeds=" in overrides else (seed,)
    return open_run(validated({**chosen.model_dump(), "data": data.model_dump(), "seeds": seeds}), root / out_dir)


def _prepare(profile: Profile, out: Path) -> dict[str, Any]:
    """``prepared.json``; the data are looked at where they are not those of the last time."""
    weights = initial_weights(profile)
    data = profile.data
    root = _root(data, out)
    place = root.relative_to(out).as_posix() if root.is_relative_to(out) else str(root)
    code = code_version("wsss_nb.data.voc", "wsss_nb.data.layout")
    stamp = json_hash([place, data.model_dump(mode="json"), code, _folder_stamp(root)])
    path = out / "data" / PREPARED
    before = read_json(path) if path.exists() else {}
    same = isinstance(before, dict) and before.get("stamp") == stamp
    known = same and (out / "data" / f"{data.val_split}.csv").exists()
    looked_at = {name: before[name] for name in ("hash", "bad")} if known else _look_at(data, root, out)
    hashes = {} if weights is None else {"imagenet": weights["sha256"]}
    prepared = {
        "root": place, "stamp": stamp, **looked_at, "weights": weights, "code": {stage: code_version(module) for stage,
        module in STAGES.items()}, "made_by": manifest(profile.model_dump(mode="json"), data_hash=looked_at["hash"],
        weights=hashes)
    }  # fmt: skip
    write_json(path, prepared)
    return prepared


def _look_at(data: DataConfig, root: Path, out: Path) -> dict[str, Any]:
    """Open every file once: hash of the data set, bad images; image-level labels are written down."""
    splits = tuple(dict.fromkeys((data.train_split, data.val_split)))
    # masks nobody looks at need not be there: those of the train split, unless its labels come from them
    needless = VOCFolder(root, data.train_split).label_source != "masks"
    masks = (data.val_split,) if needless else splits
    report = check_folder(root, splits, skip_bad=data.skip_bad, mask_splits=masks, hash_masks=(data.val_split,))
    bad = sorted(report.bad)
    if bad:
        print(f"{root.name}: left out {len(bad)} bad images: {', '.join(bad)}", flush=True)
    for split in splits:
        folder = VOCFolder(root, split).without(report.bad)
        write_labels(folder.labels(), folder.classes, out / "data" / f"{split}.csv")
    return {"hash": json_hash({"splits": dict(report.hashes), "bad": bad})[:16], "bad": bad}


def _folder_stamp(root: Path) -> list[list[Any]]:
    """Names, sizes and times of all files below a folder."""
    files = sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in files]
    return [[name, status.st_size, status.st_mtime_ns] for name, status in stats]


def _root(data: DataConfig, out: Path) -> Path:
    if data.root:
        return Path(data.root).resolve()
    require(data.kind != "voc", "data.root: expected a folder in VOC layout (--data FOLDER), got none")
    spec = {"num_train": data.num_train, "num_val": data.num_val, "seed": data.seed}
    root = out / "data" / f"synthetic-{json_hash({**spec, 'code': code_version('wsss_nb.data.synthetic')})[:8]}"
    if not root.exists():
        make_synthetic(root, **spec)
    return root


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
    file = "ResNet-38's ImageNet weights for MXNet (Model A1 of https://github.com/itijyou/ademxapp)"
    got = f"no file {path} (--imagenet_weights FILE; empty for a random start)"
    require(path.is_file(), f"imagenet_weights: expected the file of {file}, got {got}")
    digest = sha256_file(path)
    print(f"{path.name}: SHA-256 {digest}", flush=True)
    return {"path": str(path.resolve()), "sha256": digest}


def _results(profile: Profile, out: Path, prepared: dict[str, Any], known: Results | None) -> Results:
    """``results.json`` as far as it belongs to these settings, images and weights; other rows come back with their steps."""
    values = profile.model_dump(mode="json")
    facts = {name: value for name, value in values.items() if name not in _WHICH_POINTS}
    facts |= {"first_seed": profile.seeds[0], "data_hash": prepared["hash"], "weights": prepared["weights"]}
    facts["plugins"] = plugin_hashes(profile.cam.model_dump(mode="json"))
    settings = json_hash(facts)
    same = known
    if known is not None and known.settings != settings:  # going back to these settings finds their rows again
        write_json(out / "data" / f"results-{known.settings[:8]}.json", known.model_dump(mode="json", by_alias=True))
        earlier = out / "data" / f"results-{settings[:8]}.json"
        same = read_results(earlier) if earlier.exists() else None
    data, grid = profile.data, profile.grid()
    train, val = (labelled_split(out, prepared, split) for split in (data.train_split, data.val_split))
    about: dict[str, Any] = {"train": len(train.names), "val": len(val.names), "val_names": list(val.names)}
    about |= {name: prepared[name] for name in ("hash", "root")}
    current = {name for name, point in grid.items() if _same_plugins(profile, point, same, out)}
    kept: dict[str, Any] = {
        section: [row for row in getattr(same, section, []) if row.variant in current and row.seed in profile.seeds]
        for section in ("cam", "stages")
    }
    return Results(
        run=out.name, profile=values, settings=settings, synthetic=data.kind == "synthetic" and not data.root,
        classes=list(val.classes), data=DataInfo(**about), weights=(prepared["weights"] or {}).get("sha256"),
        pretrain=None if same is None else same.pretrain, **kept
    )  # fmt: skip


def _same_plugins(profile: Profile, point: Variant, known: Results | None, out: Path) -> bool:
    """Whether the rows of a variant were made by the functions that it names, as they are now."""
    now = plugin_hashes(profile.cam_config(point).model_dump(mode="json"))
    folders = [out / row.steps["model"] for row in known.cam if row.variant == point.name] if known and now else []
    made = [read_json(folder / MANIFEST) for folder in folders if (folder / MANIFEST).exists()]
    return all(step["inputs"].get("plugins") == now for step in made)


def plugin_hashes(values: dict[str, Any]) -> dict[str, str]:
    """Hashes of the sources of all functions that settings name as ``module:function``."""
    return {name: plugin_hash(name) for name in values.values() if isinstance(name, str) and is_plugin(name)}
