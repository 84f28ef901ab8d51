"""A run: one folder with the settings, the steps and the results of an experiment, and readers for all of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from wsss_nb.data.voc import VOCFolder, read_label_map
from wsss_nb.run.results import RESULTS, CamResult, Results, StageResult, read_results
from wsss_nb.run.steps import MANIFEST
from wsss_nb.system.errors import InputError, expecting, require
from wsss_nb.system.files import json_hash, project_root, read_json, sha256_file, waiting_lock, write_json
from wsss_nb.variants import OURS, SEAM, STAGES, Stage

__all__ = [
    "AUTHOR", "CONFIG", "PREPARED", "SYNTHETIC_NOTE", "NotInRun", "NotOnThisMachine", "Run", "find_run", "load_run"
]  # fmt: skip

AUTHOR = "run.json"
"""Who made the run: the manifest of the command that last had a step to do."""
SYNTHETIC_NOTE = "synthetic data, not VOC"
CONFIG = "config.yaml"
"""The settings of a run."""
PREPARED = "prepared.json"
"""What all steps of a run share, in its folder ``data``."""
_VOC_CLASSES, _VOC_VAL = 21, 1449


class NotInRun(InputError):  # noqa: N818 - it reads as what it says
    """What a figure or table needs was not run; the others can still be drawn."""


class NotOnThisMachine(NotInRun):
    """It was run, but a file of it or the data set is missing here."""


@dataclass
class Run:
    """A run's folder: its results, the pictures behind the scores, its data and who made it.

    Made by :func:`load_run` to look at a run, by ``wsss_nb.run.prepare.open_run`` to go on with one.

    Attributes:
        folder: the run's folder.
        results: its ``results.json``.
        data_root: the data set's folder if it is not where the run recorded it; empty otherwise.
        workers: where sweep, CRF and scores are computed: a number of processes, or a cluster.
    """

    folder: Path
    results: Results
    data_root: str = ""
    workers: Any = 0

    @cached_property
    def config(self) -> Any:
        """The settings, a ``wsss_nb.run.profiles.Profile``; 07 and 08 do without and so without torch."""
        from wsss_nb.run.profiles import read_profile

        return read_profile(self.folder / CONFIG)

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """What all steps share: hashes of data and code, weights, who opened the run."""
        return _mapping(self.folder / "data" / PREPARED)

    @cached_property
    def train(self) -> VOCFolder:
        """The train split's images with the image-level labels that were written down."""
        return labelled_split(self.folder, self.prepared, self.config.data.train_split)

    @cached_property
    def val(self) -> VOCFolder:
        """The val split's images and masks, without the bad ones."""
        return labelled_split(self.folder, self.prepared, self.config.data.val_split)

    def record(self, section: str, rows: list[CamResult] | list[StageResult], pretrain: Any = None) -> None:
        """Put rows into ``results.json``, in place of earlier ones of the same variant, stage and seed."""
        with waiting_lock(self.folder / f".{RESULTS}.lock", f"{RESULTS}: another process writes"):
            now = read_results(self.folder / RESULTS)

            def identity(row: CamResult | StageResult) -> tuple[Any, ...]:
                return getattr(row, "stage", None), row.variant, row.seed

            merged = {identity(row): row for row in [*getattr(now, section), *rows]}
            update = {section: list(merged.values()), **({} if pretrain is None else {"pretrain": pretrain})}
            self.results = now.model_copy(update=update)
            write_json(self.folder / RESULTS, self.results.model_dump(mode="json", by_alias=True))

    @property
    def results_hash(self) -> str:
        """SHA-256 of ``results.json``."""
        return sha256_file(self.folder / RESULTS)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, background first."""
        return tuple(self.results.classes)

    @property
    def note(self) -> str:
        """What every figure and table of this run says about its data, empty for VOC 2012 val itself.

        Another split of VOC 2012, or a part of val, is VOC by its folder's name, and says what it is instead.
        """
        if self.results.synthetic:
            return SYNTHETIC_NOTE
        images, voc = self.results.data.val, len(self.classes) == _VOC_CLASSES
        if voc and images == _VOC_VAL:
            return ""
        name = PurePosixPath(self.results.data.root.replace("\\", "/")).name or "own data set"
        if not voc or name != "VOC2012":
            return f"{name}, not VOC 2012"
        return f"VOC 2012 {self.split}, " + (f"{images} of {_VOC_VAL} images" if self.split == "val" else "not val")

    @property
    def backbone(self) -> str:
        """The backbone's name as the profile has it, empty if it does not say."""
        return str(self.results.profile.get("backbone", ""))

    @property
    def val_names(self) -> tuple[str, ...]:
        """Names of the val images, in the split's order."""
        return tuple(self.results.data.val_names)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed of the run, ascending."""
        return tuple(sorted({entry.seed for entry in self._entries}))

    @property
    def split(self) -> str:
        """The split that was scored."""
        found = [entry.scores.protocol["split"] for entry in self._entries if "split" in entry.scores.protocol]
        return str(found[0]) if found else "val"

    @property
    def _entries(self) -> list[CamResult | StageResult]:
        return [*self.results.stages, *self.results.cam]

    def cams(self, variant: str | None = None, *, on_curve: bool | None = None) -> list[CamResult]:
        """CAM trainings in the variants' order, by seed: of one variant, of Figure 2's curves, or of the lines beside."""
        found = [cam for cam in self.results.cam if variant in (None, cam.variant)]
        found = [cam for cam in found if on_curve in (None, cam.lam is not None)]
        return sorted(found, key=lambda cam: (cam.order, cam.seed))

    def stages(self, stage: Stage, variant: str | None = None) -> list[StageResult]:
        """Results of a stage, by seed; of :attr:`ours` if no variant is named.

        Stage "cam" also holds the seeds that went no further than the sweep.
        """
        variant = variant or self.ours
        rows = [StageResult.of_cam(cam) for cam in self.cams(variant)] if stage == "cam" else []
        rows += [row for row in self.results.stages if row.stage == stage and row.variant == variant]
        found = {row.seed: row for row in rows}
        return [found[seed] for seed in sorted(found)]

    @property
    def ours(self) -> str:
        """The CAM variant that stands for the paper's method: the one that went furthest, else the one that was to.

        If neither was run: the largest lambda, with the feature-similarity loss if that was run.
        """
        rows = [row for row in self.results.stages if row.variant != SEAM]
        if rows:
            return max(rows, key=lambda row: STAGES.index(row.stage)).variant
        planned = next((name for name in self.results.profile.get("refine", ()) if name != SEAM), OURS)
        run = {cam.variant: (cam.lam or 0, cam.fsl) for cam in self.cams(on_curve=True)}
        return planned if planned in run or not run else max(run, key=run.__getitem__)

    def label_map(self, entry: CamResult | StageResult, name: str) -> npt.NDArray[np.uint8]:
        """Predicted label map (H, W) uint8 of a val image.

        Raises:
            NotOnThisMachine: the run folder does not hold it.
            InputError: the file is broken, or holds a class id outside the class list.
        """
        path, highest = self._file(entry, f"{name}.png"), len(self.classes) - 1
        label_map = read_label_map(path)
        require(label_map.max() <= highest, f"{path}: expected class ids 0..{highest}, got {label_map.max()}")
        return label_map

    def activations(self, entry: CamResult, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Foreground activations of a val image: class ids (n,) and maps (n, H, W) in 0..1.

        Raises:
            NotOnThisMachine: the run folder does not hold them.
            InputError: the file is broken.
        """
        path = self._file(entry, f"{name}.npz")
        with expecting("arrays classes and cam", path), np.load(path, allow_pickle=False) as arrays:
            classes, cam = arrays["classes"].astype(np.int64), arrays["cam"].astype(np.float32)
        fits = cam.ndim == 3 and classes.shape == cam.shape[:1]
        require(fits, f"{path}: expected classes (n,) and cam (n, H, W), got {classes.shape}, {cam.shape}")
        known = all(0 < index < len(self.classes) for index in classes)
        require(known, f"{path}: expected class ids 1..{len(self.classes) - 1}, got {classes.tolist()}")
        return classes, cam

    def _file(self, entry: CamResult | StageResult, name: str) -> Path:
        path = self.folder / entry.folder / name
        if not path.is_file():
            raise NotOnThisMachine(f"{path}: expected a file of the run, got none; was the whole run folder copied?")
        return path

    @cached_property
    def dataset(self) -> VOCFolder:
        """The val split's images and masks.

        Raises:
            NotOnThisMachine: the folder the run recorded is not on this machine.
            InputError: ``data_root`` was given and is no data set, or the folder has other classes.
        """
        recorded = self.results.data.root
        place = Path(self.data_root) if self.data_root else self.folder / recorded  # an absolute path stays itself
        there = (place / "JPEGImages").is_dir()
        require(there or not self.data_root, f"data_root: expected a folder with JPEGImages, got {self.data_root}")
        if not there:
            advice = "give its folder on this machine to see pictures (plots and tables do without)"
            got = f"nothing at {recorded or '(no place recorded)'}; {advice}"
            raise NotOnThisMachine(f"data_root: expected the run's data set, got {got}")
        folder = VOCFolder(place, self.split)
        ours, theirs = (f"{len(of)} classes ({', '.join(of[1:4])}...)" for of in (self.classes, folder.classes))
        same = folder.classes == self.classes
        require(same, f"data_root: expected the run's {ours}, got {theirs} in {folder.root}")
        return folder

    # Who made it

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The manifests of all steps behind the scores, by the step's folder, as far as they are here.

        Raises:
            InputError: one is broken.
        """
        start = self.results.pretrain
        folders = {folder for entry in self._entries for folder in entry.steps.values()}
        folders |= {start.folder} if start else set()
        paths = {folder: self.folder / folder / MANIFEST for folder in sorted(folders)}
        return {folder: _mapping(path) for folder, path in paths.items() if path.is_file()}

    def weight_files(self) -> dict[str, Path]:
        """Checkpoints behind the scores, by the folder of the step, as far as they are here."""
        paths = {folder: self.folder / folder / "checkpoint.pt" for folder in self.manifests()}
        return {folder: path for folder, path in paths.items() if path.is_file()}

    def made_by(self) -> dict[str, Any] | None:
        """Where and how the run was made; None where nothing in its folder says so.

        Returns:
            What ``run.json`` says of the last command that had a step to do (``created``, ``command``, ``git``,
            ``python``, ``packages``, ``hardware``), and ``steps``: for each commit and command the first and the last
            time at which it ended a step, and these steps.

        Raises:
            InputError: a file is broken.
        """
        authors: dict[str, dict[str, Any]] = {}
        for folder, made in self.manifests().items():
            said = made.get("made_by") or {}
            facts = {"git": said.get("git"), "command": said.get("command")}
            author = authors.setdefault(json.dumps(facts, sort_keys=True), {**facts, "created": [], "steps": []})
            author["created"] += [said["created"]] if "created" in said else []
            author["steps"].append(folder)
        for author in authors.values():
            author["created"] = [min(author["created"]), max(author["created"])] if author["created"] else None
        path = self.folder / AUTHOR
        facts = _mapping(path) if path.is_file() else {}
        if not facts and all(author["git"] is author["command"] is None for author in authors.values()):
            return None
        names = ("created", "command", "git", "python", "packages", "hardware")
        steps = sorted(authors.values(), key=lambda author: author["created"] or [])
        return {**{name: facts.get(name) for name in names}, "steps": steps}

    def fingerprint(self) -> str:
        """Hash of what figures and tables are drawn from: scores, the manifests behind them, who made them."""
        author = self.folder / AUTHOR
        return json_hash([self.results_hash, self.manifests(), sha256_file(author) if author.is_file() else ""])


def labelled_split(out: Path, prepared: dict[str, Any], split: str) -> VOCFolder:
    """A split of a run's data set with the labels that were written down, without bad images."""
    root = out / prepared["root"]  # an absolute path stays itself
    return VOCFolder(root, split, labels=out / "data" / f"{split}.csv").without(prepared["bad"])


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    require(isinstance(content, dict), f"{path}: expected names and values, got {type(content).__name__}")
    return dict(content)


def find_run(out_dir: str | os.PathLike[str]) -> Path:
    """The run folder ``out_dir``, also when a notebook runs with ``notebooks/`` as its working directory.

    Raises:
        InputError: there is no results.json.

    Example:
        >>> run = load_run(find_run("runs/quick"))  # doctest: +SKIP
    """
    for place in (Path.cwd() / out_dir, project_root() / out_dir):
        if (place / RESULTS).is_file():
            return place
    expected = f"a run folder with {RESULTS}, got {out_dir}; make one with `wsss-nb run`"
    raise InputError(f"run_dir or out_dir: expected {expected}")


def load_run(folder: str | os.PathLike[str], data_root: str = "") -> Run:
    """A run folder by its ``results.json``.

    Args:
        folder: the run folder.
        data_root: the data set's folder on this machine, if it differs from what the run recorded.

    Raises:
        InputError: as :func:`~wsss_nb.run.results.read_results`.

    Example:
        >>> load_run("runs/quick").note  # doctest: +SKIP
        'synthetic data, not VOC'
    """
    return Run(Path(folder), read_results(Path(folder) / RESULTS), data_root)
