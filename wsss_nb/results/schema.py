"""``results.json`` as typed objects, checked when read."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wsss_nb.published import Method, Stage

__all__ = ["CamResult", "Cost", "DataInfo", "Pretraining", "Results", "Scores", "StageResult"]

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    """Strict types, so that "0.5" or true is no number; fields added later are no reason to refuse a file."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, populate_by_name=True)


class Scores(_Record):
    """Scores of one val split as fractions; ``iou`` has K entries, ``f`` K - 1 (None: class absent)."""

    protocol: dict[str, Any]
    miou: Fraction
    contour_f: Fraction
    iou: list[Fraction | None]
    f: list[Fraction | None]
    confusion: list[list[Count]]
    matches: list[list[Count]]


class Cost(_Record):
    """What a stage took: seconds, peak memory in MB, device and threads.

    ``steps`` are the folders of the steps counted in (``model``, ``val``, ...); older runs do not say.
    """

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_memory_mb: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    device: str = ""
    threads: int | None = None
    steps: list[str] = []


class CamResult(_Record):
    """One training of the CAM network and its CAMs' pseudo-labels; ``weight`` is lambda of Eq. 5."""

    variant: str
    method: Literal["sampling", "average", "seam"]
    weight: Fraction | None = Field(alias="lambda")
    fsl: bool
    seed: int
    folder: str
    scores: Scores
    parts: dict[Literal["head", "body", "background"], Fraction | None] | None = None
    mu_sigma: list[Annotated[list[float], Field(min_length=3, max_length=3)]] | None = None
    cost: Cost | None = None

    @model_validator(mode="after")
    def _lambda_of_sampling(self) -> CamResult:
        if self.method == "sampling" and self.weight is None:
            raise ValueError("lambda: expected a number for method 'sampling', got null")
        return self


class StageResult(_Record):
    """Scores of one stage on the way from CAMs to the final segmentation."""

    stage: Stage
    method: Method
    variant: str
    seed: int
    folder: str
    scores: Scores
    cost: Cost | None = None


class Pretraining(_Record):
    """The classifier that all networks of a run start from, where there are no ImageNet weights."""

    seed: int
    cost: Cost


class DataInfo(_Record):
    """The data set a run used."""

    train: Count | None = None
    val: Count | None = None
    hash: str = ""
    root: str = ""
    val_names: list[str] = []


class Results(_Record):
    """``results.json`` as a whole; ``weights`` is the SHA-256 of the ImageNet weights all networks start from."""

    schema_version: Literal[1] = Field(alias="schema")
    run: str
    profile: dict[str, Any]
    synthetic: bool
    classes: Annotated[list[str], Field(min_length=2)]
    data: DataInfo = DataInfo()
    weights: str | None = None
    pretrain: Pretraining | None = None
    cam: list[CamResult] = []
    stages: list[StageResult] = []

    @model_validator(mode="after")
    def _consistent(self) -> Results:
        k = len(self.classes)
        for place, entry in self._entries():
            scores = entry.scores
            for name, values, length in (("iou", scores.iou, k), ("f", scores.f, k - 1)):
                if len(values) != length:
                    raise ValueError(f"{place}.scores.{name}: expected {length} values, got {len(values)}")
            for name, rows, shape in (
                ("confusion", scores.confusion, (k, k)),
                ("matches", scores.matches, (k - 1, 4)),
            ):
                if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
                    raise ValueError(f"{place}.scores.{name}: expected shape {shape}, got another")
            folder = PurePosixPath(entry.folder)
            if folder.is_absolute() or ".." in folder.parts or not entry.folder:
                raise ValueError(f"{place}.folder: expected a folder inside the run, got {entry.folder!r}")
        cams = Counter((cam.variant, cam.seed) for cam in self.cam)
        stages = Counter((stage.stage, stage.method, stage.variant, stage.seed) for stage in self.stages)
        for kind, counts in (("cam", cams), ("stages", stages)):
            for key, count in counts.items():
                if count > 1:
                    raise ValueError(f"{kind}: expected one entry each, got {count} of {key}")
        return self

    def _entries(self) -> list[tuple[str, CamResult | StageResult]]:
        cams = [(f"cam.{i}", cam) for i, cam in enumerate(self.cam)]
        return [*cams, *((f"stages.{i}", stage) for i, stage in enumerate(self.stages))]
