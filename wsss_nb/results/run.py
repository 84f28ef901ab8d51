"""A run folder: its results, the pictures behind them, and where its data set is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from wsss_nb.data.palette import read_label_map
from wsss_nb.errors import InputError
from wsss_nb.files import read_json, sha256_file
from wsss_nb.published import Method, Stage
from wsss_nb.results.schema import CamResult, Results, StageResult

if TYPE_CHECKING:
    from wsss_nb.data import VOCFolder

__all__ = [
    "RESULTS",
    "RUN",
    "SYNTHETIC_NOTE",
    "NotHere",
    "NotInRun",
    "Run",
    "find_run",
    "load_run",
    "read_results",
]

RESULTS = "results.json"
RUN = "run.json"
"""Who made the run: the manifest of the command that last had a step to do."""
SYNTHETIC_NOTE = "synthetic data, not VOC"
_VOC_CLASSES, _VOC_VAL = 21, 1449


class NotInRun(InputError):  # noqa: N818 - it reads as what it says
    """What a figure or table needs was not run, or not copied along; the others can still be drawn."""


class NotHere(NotInRun):
    """It was run, but a file of it or the data set is not on this machine."""


@dataclass(frozen=True)
class Run:
    """A run folder with its results, and readers for the pictures behind the scores.

    Attributes:
        folder: the run folder.
        results: its ``results.json``.
        data_root: the data set's folder if it is not where the run recorded it; empty otherwise.
        results_hash: SHA-256 of the ``results.json`` that was read.
    """

    folder: Path
    results: Results
    data_root: str = ""
    results_hash: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, background first."""
        return tuple(self.results.classes)

    @property
    def synthetic(self) -> bool:
        """Whether the data set is the synthetic one."""
        return self.results.synthetic

    @property
    def note(self) -> str:
        """What every figure and table of this run says about its data, empty for VOC 2012 val itself.

        Another split of VOC 2012, or a part of val, is VOC by its folder's name, and says what it is instead.
        """
        if self.synthetic:
            return SYNTHETIC_NOTE
        images = self.results.data.val
        if len(self.classes) == _VOC_CLASSES and images == _VOC_VAL:
            return ""
        name = PurePosixPath(self.results.data.root.replace("\\", "/")).name or "own data set"
        if len(self.classes) == _VOC_CLASSES and name == "VOC2012":
            split = self._split()
            part = "" if images is None else f", {images} of {_VOC_VAL} images"
            return f"VOC 2012 {split}{part if split == 'val' else ', not val'}"
        return f"{name}, not VOC 2012"

    @property
    def backbone(self) -> str:
        """The backbone's name as the profile has it, empty if it does not say."""
        return str(self.results.profile.get("backbone", ""))

    @property
    def pooling(self) -> str:
        """Pooling of the (1 - lambda) term of Eq. 5, "max" unless the profile says otherwise."""
        stage = self.results.profile.get("cam")
        return str(stage.get("pooling", "max")) if isinstance(stage, dict) else "max"

    @property
    def val_names(self) -> tuple[str, ...]:
        """Names of the val images, in the split's order."""
        return tuple(self.results.data.val_names)

    def cams(
        self, method: str = "sampling", weight: float | None = None, fsl: bool | None = None
    ) -> list[CamResult]:
        """CAM trainings of a kind, by seed; ``None`` leaves lambda or FSL open."""
        found = [
            cam
            for cam in self.results.cam
            if cam.method == method
            and (weight is None or (cam.weight is not None and math.isclose(cam.weight, weight)))
            and (fsl is None or cam.fsl == fsl)
        ]
        return sorted(found, key=lambda cam: (cam.variant, cam.seed))

    def stages(self, stage: Stage, method: Method = "ours") -> list[StageResult]:
        """Results of a stage, by seed; of the variant that went furthest if there are several.

        Stage "cam" also holds the seeds that went no further than the sweep.
        """
        variant = self.final_variant(method)
        found = {
            entry.seed: entry
            for entry in self.results.stages
            if entry.stage == stage and entry.method == method and entry.variant == variant
        }
        if stage == "cam":
            for cam in self.results.cam:
                if cam.variant == variant and cam.seed not in found:
                    facts = {
                        key: getattr(cam, key) for key in ("variant", "seed", "folder", "scores", "cost")
                    }
                    found[cam.seed] = StageResult(stage="cam", method=method, **facts)
        return [found[seed] for seed in sorted(found)]

    def final_variant(self, method: Method = "ours") -> str | None:
        """The CAM variant the later stages were built on.

        If there were none: SEAM for "seam"; for "ours" the profile's ``refined_lambda`` with FSL, or the largest
        lambda (with FSL if it was run) where that was not run either.
        """
        order = {"cam": 0, "affinitynet": 1, "deeplab": 2}
        stages = [entry for entry in self.results.stages if entry.method == method]
        if stages:
            return max(stages, key=lambda entry: order[entry.stage]).variant
        kind = "sampling" if method == "ours" else "seam"
        cams = [cam for cam in self.results.cam if cam.method == kind]
        refined = self.results.profile.get("refined_lambda")
        best = max(
            cams,
            key=lambda cam: (cam.fsl and cam.weight == refined, cam.weight or 0.0, cam.fsl),
            default=None,
        )
        return best.variant if best else None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed of the run, ascending."""
        entries: list[CamResult | StageResult] = [*self.results.cam, *self.results.stages]
        return tuple(sorted({entry.seed for entry in entries}))

    def weight_files(self) -> dict[str, Path]:
        """Checkpoints behind the scores, by folder, as far as they lie in the run folder.

        "pretrain" is the classifier that all trainings start from, where there is one.
        """
        places = {name: self.folder / name / "model" / "checkpoint.pt" for name in self._folders()}
        places["pretrain"] = self.folder / "pretrain" / "checkpoint.pt"
        return {folder: path for folder, path in sorted(places.items()) if path.is_file()}

    def code_versions(self) -> dict[str, str]:
        """What each training and each scoring recorded as its code, by folder (``.../model``, ``.../val``).

        Raises:
            InputError: a manifest is broken.
        """
        found = {}
        for name in [
            "pretrain",
            *(f"{folder}/{step}" for folder in self._folders() for step in ("model", "val")),
        ]:
            path = self.folder / name / "manifest.json"
            if path.is_file():
                inputs = _mapping(path).get("inputs")
                if isinstance(inputs, dict) and isinstance(inputs.get("code"), str):
                    found[name] = inputs["code"]
        return found

    def made_by(self) -> dict[str, Any] | None:
        """Where and how the run was made; None where nothing in its folder says so.

        Returns:
            What ``run.json`` says of the last command that trained or scored something (``created``, ``command``,
            ``git``, ``python``, ``packages``, ``hardware``), and ``steps``: for each commit and command the first and
            the last time at which it ended a step, and these steps. Steps of older runs do not say who made them.

        Raises:
            InputError: a file is broken.
        """
        path = self.folder / RUN
        facts = _mapping(path) if path.is_file() else {}
        steps = self._authors()
        if not facts and all(author["git"] is author["command"] is None for author in steps):
            return None
        names = ("created", "command", "git", "python", "packages", "hardware")
        return {**{name: facts.get(name) for name in names}, "steps": steps}

    def _authors(self) -> list[dict[str, Any]]:
        """The steps behind the scores by who made them, in the order of time."""
        authors: dict[str, dict[str, Any]] = {}
        for path in self._manifests():
            said = _mapping(path).get("made_by")
            said = said if isinstance(said, dict) else {}
            git, command, created = (said.get(name) for name in ("git", "command", "created"))
            author = authors.setdefault(
                json.dumps([git, command], sort_keys=True),
                {"git": git, "command": command, "created": [], "steps": []},
            )
            author["created"] += [created] if isinstance(created, str) else []
            author["steps"].append(path.parent.relative_to(self.folder).as_posix())
        for author in authors.values():
            author["created"] = (
                [min(author["created"]), max(author["created"])] if author["created"] else None
            )
        return sorted(authors.values(), key=lambda author: author["created"] or [])

    def _manifests(self) -> list[Path]:
        """The manifests of all steps behind the scores, as far as they lie in the run folder."""
        folders = [self.folder / name for name in self._folders()]
        found = [path for folder in folders for path in sorted(folder.glob("*/manifest.json"))]
        start = self.folder / "pretrain" / "manifest.json"
        return [start, *found] if start.is_file() else found

    def fingerprint(self) -> str:
        """SHA-256 of what figures and tables are drawn from: scores, the manifests behind them, who made them."""
        digest = hashlib.sha256()
        for path in (self.folder / RESULTS, self.folder / RUN, *self._manifests()):
            content = sha256_file(path) if path.is_file() else ""
            digest.update(f"{path.relative_to(self.folder).as_posix()} {content}\n".encode())
        return digest.hexdigest()

    def _folders(self) -> list[str]:
        entries: list[CamResult | StageResult] = [*self.results.cam, *self.results.stages]
        return sorted({entry.folder for entry in entries})

    def label_map(self, entry: CamResult | StageResult, name: str) -> npt.NDArray[np.uint8]:
        """Predicted label map (H, W) uint8 of a val image.

        Raises:
            NotHere: the run folder does not hold it.
            InputError: the file is broken, or holds a class id outside the class list.
        """
        path = self._file(entry, f"{name}.png")
        label_map = read_label_map(path)
        if int(label_map.max()) >= len(self.classes):
            raise InputError(
                f"{path}: expected class ids 0..{len(self.classes) - 1}, got {int(label_map.max())}"
            )
        return label_map

    def activations(
        self, entry: CamResult, name: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Foreground activations of a val image: class ids (n,) and maps (n, H, W) in 0..1.

        Raises:
            NotHere: the run folder does not hold them.
            InputError: the file is broken.
        """
        path = self._file(entry, f"{name}.npz")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                classes = np.asarray(arrays["classes"], dtype=np.int64)
                cam = np.asarray(arrays["cam"], dtype=np.float32)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: expected arrays classes and cam, got {error}") from error
        if cam.ndim != 3 or classes.shape != cam.shape[:1]:
            raise InputError(
                f"{path}: expected classes (n,) and cam (n, H, W), got {classes.shape}, {cam.shape}"
            )
        if classes.size and not 0 < classes.min() <= classes.max() < len(self.classes):
            raise InputError(f"{path}: expected class ids 1..{len(self.classes) - 1}, got {classes.tolist()}")
        return classes, cam

    @cached_property
    def dataset(self) -> VOCFolder:
        """The val split's images and masks.

        Raises:
            NotHere: the folder the run recorded is not on this machine.
            InputError: ``data_root`` was given and is no data set, or the folder has other classes.
        """
        from wsss_nb.data import VOCFolder  # here, because plots and tables do without it

        folder = VOCFolder(self._find_data(), self._split())
        if folder.classes != self.classes:
            raise InputError(
                f"data_root: expected the run's {len(self.classes)} classes "
                f"({', '.join(self.classes[1:4])}...), got {len(folder.classes)} "
                f"({', '.join(folder.classes[1:4])}...) in {folder.root}"
            )
        return folder

    def _split(self) -> str:
        entries: list[CamResult | StageResult] = [*self.results.stages, *self.results.cam]
        for entry in entries:
            split = entry.scores.protocol.get("split")
            if isinstance(split, str):
                return split
        return "val"

    def _find_data(self) -> Path:
        if self.data_root:
            if not (Path(self.data_root) / "JPEGImages").is_dir():
                raise InputError(f"data_root: expected a folder with JPEGImages, got {self.data_root}")
            return Path(self.data_root)
        recorded = self.results.data.root
        place = self.folder / recorded  # an absolute path stays itself when joined
        if recorded and (place / "JPEGImages").is_dir():
            return place
        raise NotHere(
            f"data_root: expected the run's data set, got nothing at {recorded or '(no place recorded)'}; "
            "give its folder on this machine to see pictures (plots and tables do without)"
        )

    def _file(self, entry: CamResult | StageResult, name: str) -> Path:
        path = self.folder / entry.folder / "val" / name
        if not path.is_file():
            raise NotHere(f"{path}: expected a file of the run, got none; was the whole run folder copied?")
        return path


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected names and values, got {type(content).__name__}")
    return content


def find_run(out_dir: str | os.PathLike[str]) -> Path:
    """The run folder ``out_dir``, also when a notebook runs with ``notebooks/`` as its working directory.

    A relative path is looked up from the working directory first, then from the project root, which is the
    parent of ``notebooks/`` there.

    Raises:
        InputError: there is no results.json.

    Example:
        >>> run = load_run(find_run("runs/quick"))  # doctest: +SKIP
    """
    here = Path.cwd()
    places = [here / out_dir]
    if here.name == "notebooks":
        places.append(here.parent / out_dir)
    for place in places:
        if (place / RESULTS).is_file():
            return place
    raise InputError(
        f"run_dir or out_dir: expected a run folder with {RESULTS}, got {out_dir}; make one with `wsss-nb run` first"
    )


def read_results(path: Path) -> tuple[dict[str, Any], Results]:
    """Read a ``results.json`` and check it: what is in it, and the same as typed objects.

    Raises:
        InputError: the file is missing, is not JSON, or does not follow the schema (which names the field).
    """
    content = read_json(path)
    try:
        return content, Results.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "results"
        if first["type"] == "value_error":
            raise InputError(f"{path}: {first['ctx']['error']}") from error
        if first["type"] == "missing":
            raise InputError(f"{path}: {place}: expected this field, got none") from error
        given = repr(first["input"])
        given = given if len(given) <= 60 else given[:57] + "..."
        message = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"{path}: {place}: {message}, got {given}") from error


def load_run(folder: str | os.PathLike[str], data_root: str = "") -> Run:
    """A run folder by its ``results.json``, see :func:`read_results`.

    Args:
        folder: the run folder.
        data_root: the data set's folder on this machine, if it differs from what the run recorded.

    Raises:
        InputError: the file is missing, is not JSON, or does not follow the schema (which names the field).

    Example:
        >>> load_run("runs/quick").note  # doctest: +SKIP
        'synthetic data, not VOC'
    """
    folder = Path(folder)
    _, results = read_results(folder / RESULTS)
    return Run(folder, results, data_root, sha256_file(folder / RESULTS))
