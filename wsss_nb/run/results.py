"""``results.json``: the scores of a run as typed objects, checked when read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsss_nb.system.command_line import similar_names
from wsss_nb.system.errors import InputError, require
from wsss_nb.system.files import read_json
from wsss_nb.variants import Stage

__all__ = [
    "RESULTS", "CamResult", "Cost", "DataInfo", "Pretraining", "Results", "Scores", "StageResult", "read_results",
    "wrong_field"
]  # fmt: skip

RESULTS = "results.json"

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
    """What steps took together: seconds, peak memory in MB, device and threads."""

    seconds: Measure
    peak_memory_mb: Measure | None = None
    device: str = ""
    threads: int | None = None


class _Entry(_Record):
    """What the training of one variant and seed left: folders of its steps by name, scores of the step "val"."""

    variant: str
    title: str
    seed: int
    steps: dict[str, str]
    scores: Scores
    cost: Cost

    @property
    def folder(self) -> str:
        """Folder of the label maps that were scored, below the run's."""
        return self.steps["val"]

    @model_validator(mode="after")
    def _inside(self) -> _Entry:
        for name, folder in {"val": "", **self.steps}.items():
            place = PurePosixPath(folder)
            if place.is_absolute() or ".." in place.parts or not folder:
                raise ValueError(f"steps.{name}: expected a folder inside the run, got {folder!r}")
        return self


class CamResult(_Entry):
    """One training of the CAM network and its CAMs' label maps; the variant's record is ``wsss_nb.variants.Variant``."""

    lam: Fraction | None = Field(alias="lambda")
    fsl: bool
    order: list[float]
    parts: dict[Literal["head", "body", "background"], Fraction | None] | None = None
    mu_sigma: list[Annotated[list[float], Field(min_length=3, max_length=3)]] | None = None


class StageResult(_Entry):
    """Scores of one stage on the way from CAMs to the final segmentation."""

    stage: Stage

    @classmethod
    def of_cam(cls, row: CamResult) -> StageResult:
        """Stage "cam" as a training of the CAM network left it."""
        return cls(stage="cam", **{name: getattr(row, name) for name in _Entry.model_fields})


class Pretraining(_Record):
    """The classifier that all networks of a run start from, where there are no ImageNet weights."""

    seed: int
    folder: str
    cost: Cost


class DataInfo(_Record):
    """The data set a run used."""

    train: Count | None = None
    val: Count | None = None
    hash: str = ""
    root: str = ""
    val_names: list[str] = []


class Results(_Record):
    """``results.json`` as a whole.

    Attributes:
        settings: hash of what every row depends on; rows of other settings are not among these.
        weights: SHA-256 of the ImageNet weights that all networks start from.
    """

    schema_version: Literal[2] = Field(2, alias="schema")
    run: str
    profile: dict[str, Any]
    settings: str = ""
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
        shapes = {"iou": (k,), "f": (k - 1,), "confusion": (k, k), "matches": (k - 1, 4)}
        entries = {f"{kind}.{i}": entry for kind in ("cam", "stages") for i, entry in enumerate(getattr(self, kind))}
        for place, entry in entries.items():
            for name, shape in shapes.items():
                values = getattr(entry.scores, name)
                if len(values) != shape[0] or (len(shape) > 1 and any(len(row) != shape[1] for row in values)):
                    raise ValueError(f"{place}.scores.{name}: expected shape {shape}, got another")
        keys = Counter((getattr(entry, "stage", "CAM"), entry.variant, entry.seed) for entry in entries.values())
        for key, count in keys.most_common(1):
            if count > 1:
                raise ValueError(f"expected one entry each, got {count} of {key}")
        return self


def read_results(path: Path) -> Results:
    """Read a ``results.json`` and check it.

    Raises:
        InputError: the file is missing, is not JSON, is of a run of an earlier version, or does not follow the schema
            (which names the field).
    """
    content = read_json(path)
    earlier = isinstance(content, dict) and content.get("schema") == 1
    got = "one of an earlier layout; run into another folder"
    require(not earlier, f"{path}: expected a run of this version, got {got}")
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {wrong_field(error, 'results')}") from error


def wrong_field(error: ValidationError, whole: str, known: Sequence[str] = ()) -> str:
    """The first thing that is wrong, in one line.

    Args:
        error: from pydantic.
        whole: name of what is checked, for errors that are of no single field.
        known: dotted names of all fields; the likely one is suggested for an unknown name.
    """
    first = error.errors(include_url=False)[0]
    place, what, given = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "), first["input"]
    if first["type"] == "missing":
        what, given = "expected this field, got none", {}
    elif first["type"] == "extra_forbidden":
        near = similar_names(place, known)
        what = "no such field" + (f" (did you mean {' or '.join(near)}?)" if near else "")
    # of several fields the message names those that are wrong
    got = "" if isinstance(given, Mapping) else f", got {repr(given)[:60]}"
    return f"{place or whole}: {what}{got}"
