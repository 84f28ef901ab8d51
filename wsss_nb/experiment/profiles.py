"""Profiles: everything a run depends on, typed and frozen, under a name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from wsss_nb.config import Config
from wsss_nb.errors import InputError
from wsss_nb.models import BACKBONES
from wsss_nb.stages.config import (
    AffinityNetConfig,
    CamConfig,
    CRFStageConfig,
    DeepLabConfig,
    InferenceConfig,
    OptimizerConfig,
    PretrainConfig,
    ViewsConfig,
)

__all__ = ["PROFILES", "DataConfig", "Profile", "load_profile"]


class DataConfig(Config):
    """Which images: a VOC-layout folder, or the synthetic set with its size and seed."""

    kind: Literal["synthetic", "voc"] = "voc"
    root: str = Field("", description="folder; empty = runs' own synthetic set")
    train_split: str = "train"
    val_split: str = "val"
    num_train: Annotated[int, Field(ge=1)] = 600
    num_val: Annotated[int, Field(ge=1)] = 150
    seed: int = 0
    void: Literal["background", "masked"] = "background"
    skip_bad: bool = False


class Profile(Config):
    """One experiment: data, backbone, the grid of Figure 2, baselines, and the three stages.

    ``cam`` is what every point of the grid shares; lambda, FSL and method are set by the point. ``refine`` lists the
    methods ("ours" = ``refined_lambda`` with FSL, "seam") that go through stages 2 and 3.
    """

    name: str
    data: DataConfig = DataConfig()
    backbone: str = "resnet38"
    seeds: tuple[int, ...] = (0,)
    lambdas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    fsl: tuple[bool, ...] = (False, True)
    baselines: tuple[Literal["average", "seam"], ...] = ("average", "seam")
    refine: tuple[Literal["ours", "seam"], ...] = ("ours", "seam")
    refined_lambda: Annotated[float, Field(ge=0, le=1)] = 1.0
    workers: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = Field(
        1, description="of every network that is trained alone; changes the last digits"
    )
    imagenet_weights: str = Field(
        "",
        description="file all networks start from, MXNet's .params or PyTorch; empty = what pip has, else random",
    )
    pretrain: PretrainConfig | None = None
    cam: CamConfig = CamConfig()
    seam: CamConfig = CamConfig(method="seam", pooling="average")
    inference: InferenceConfig = InferenceConfig()
    seam_inference: InferenceConfig = InferenceConfig(background="threshold:0.3")
    affinitynet: AffinityNetConfig = AffinityNetConfig()
    seam_affinitynet: AffinityNetConfig = AffinityNetConfig(alpha_amplified=4, alpha_weakened=24)
    deeplab: DeepLabConfig = DeepLabConfig()

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        if value not in BACKBONES:
            raise ValueError(f"expected one of {', '.join(BACKBONES)}")
        return value

    @field_validator("seeds", "lambdas", "fsl", "baselines")
    @classmethod
    def _once_each(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(set(value)) != len(value) or (info.field_name == "seeds" and not value):
            raise ValueError("expected at least one value and no value twice")
        return value

    @model_validator(mode="after")
    def _some_point(self) -> Profile:
        if not self.baselines and not (self.lambdas and self.fsl):
            raise ValueError("expected at least one point: lambdas and fsl, or baselines")
        if self.imagenet_weights and self.pretrain is not None:
            raise ValueError("expected imagenet_weights or pretrain, got both")
        return self


def _quick() -> Profile:
    """Synthetic images, tiny net from scratch, two CPU cores: everything in minutes."""
    views = ViewsConfig(cached=True, sizes=((96, 96),))
    cam = CamConfig(
        epochs=12, batch_size=16, optimizer=OptimizerConfig(learning_rate=0.025), views=views, num_samples=8,
        similarity_weight=2.0, mu=2.0, sigma=2.0, siamese=False, siamese_scale=0.5, dropout=0.0,
    )  # fmt: skip
    affinity = AffinityNetConfig(
        epochs=4, batch_size=16, optimizer=OptimizerConfig(learning_rate=0.01, head_multiplier=5.0), views=views,
        crf=CRFStageConfig(iterations=5, bilateral_sxy=20, gaussian_sxy=2), log_t=5,
    )  # fmt: skip
    return Profile(
        name="quick",
        data=DataConfig(kind="synthetic"),
        backbone="tiny",
        workers=2,
        threads=2,
        pretrain=PretrainConfig(
            epochs=12, batch_size=16, views=views,
            optimizer=OptimizerConfig(learning_rate=0.1, head_multiplier=1.0, warmup=0.2),
        ),
        cam=cam,
        seam=cam.model_copy(update={"method": "seam", "pooling": "average"}),
        inference=InferenceConfig(scales=(1.0,), max_normalize=False),
        seam_inference=InferenceConfig(scales=(1.0,), background="threshold:0.3"),
        affinitynet=affinity,
        seam_affinitynet=affinity.model_copy(update={"alpha_amplified": 4.0, "alpha_weakened": 24.0}),
        deeplab=DeepLabConfig(
            epochs=8, batch_size=16, optimizer=OptimizerConfig(learning_rate=0.02), views=views,
            scales=(1.0,), crf=CRFStageConfig(iterations=1, bilateral_sxy=20, gaussian_sxy=2),
        ),
    )  # fmt: skip


def _photos() -> Profile:
    """Photographs in VOC layout, EfficientNet-Lite0 with ImageNet weights: two CPU cores in about two hours."""
    views = ViewsConfig(cached=True, sizes=((224, 320),))
    optimizer = OptimizerConfig(learning_rate=0.005)
    cam = CamConfig(
        epochs=20, batch_size=8, optimizer=optimizer, views=views, num_samples=1,
        similarity_weight=1.5, similarity_warmup=2 / 3, mu=2.5, sigma=2.5, siamese=False, siamese_scale=0.5,
    )  # fmt: skip
    affinity = AffinityNetConfig(
        epochs=4, batch_size=8, optimizer=optimizer, views=views,
    )  # fmt: skip
    return Profile(
        name="photos",
        data=DataConfig(kind="voc", void="masked"),
        backbone="efficientnet_lite0",
        seeds=(0, 1, 2),
        lambdas=(0.0, 1.0),
        baselines=("average", "seam"),
        refine=("ours",),
        workers=2,
        threads=2,
        cam=cam,
        seam=cam.model_copy(update={"method": "seam", "pooling": "average"}),
        inference=InferenceConfig(scales=(1.0,), max_normalize=False),
        seam_inference=InferenceConfig(scales=(1.0,), background="threshold:0.3"),
        affinitynet=affinity,
        seam_affinitynet=affinity.model_copy(update={"alpha_amplified": 4.0, "alpha_weakened": 24.0}),
        deeplab=DeepLabConfig(
            epochs=12, batch_size=8, optimizer=optimizer, views=views,
            scales=(0.75, 1.0, 1.25), interpolation="bilinear",
        ),
    )  # fmt: skip


_QUIRK = OptimizerConfig(decay_as_momentum=True)
IMAGENET_FILE = "data/ilsvrc-cls_rna-a1_cls1000_ep-0001.params"


def _paper() -> Profile:
    """The paper on VOC 2012 + SBD with ResNet-38 on GPUs; mu and sigma are learned from the release's values.

    The optimiser is the release's with its quirk. The paper states neither the weight of the feature-similarity loss nor the
    rate of mu and sigma: the weight and its normaliser are the release's here. The CRF is pydensecrf, as in the paper.
    """
    views = ViewsConfig(loader_workers=8)
    cam = CamConfig(optimizer=_QUIRK, views=views, learn_similarity=True)
    affinity = AffinityNetConfig(
        optimizer=_QUIRK,
        views=views.model_copy(update={"long_side": None}),
        crf=CRFStageConfig(backend="pydensecrf"),
    )
    return Profile(
        name="paper",
        data=DataConfig(kind="voc", train_split="train_aug"),
        imagenet_weights=IMAGENET_FILE,
        cam=cam,
        seam=CamConfig(method="seam", pooling="average", optimizer=_QUIRK, views=views),
        affinitynet=affinity,
        seam_affinitynet=affinity.model_copy(update={"alpha_amplified": 4.0, "alpha_weakened": 24.0}),
        deeplab=DeepLabConfig(
            iterations=20_000,
            views=views,
            crf=CRFStageConfig(backend="pydensecrf", iterations=1, bilateral_sxy=32),
        ),
    )


def _icam() -> Profile:
    """The extended release: average pooling, lambda 0.8, 100 draws, fixed mu and sigma, FSL in stage 3."""
    base = _paper()
    release = {
        "pooling": "average",
        "num_samples": 100,
        "sample_background": False,
        "learn_similarity": False,
    }
    return base.model_copy(
        update={
            "name": "icam",
            "lambdas": (0.0, 0.25, 0.5, 0.75, 0.8, 1.0),
            "refined_lambda": 0.8,
            "cam": base.cam.model_copy(update={**release, "weight": 0.8}),
            "deeplab": base.deeplab.model_copy(update={"similarity_weight": 0.5}),
        }
    )


def _seam() -> Profile:
    """The baseline SEAM alone, through all three stages."""
    points = {"lambdas": (), "fsl": (), "baselines": ("seam",), "refine": ("seam",)}
    return _paper().model_copy(update={"name": "seam", **points})


# Every point of the grid has its own: a value given here would be overwritten.
_SET_BY_GRID = {
    "cam": {"weight": "lambdas", "method": "lambdas and baselines"},
    "seam": {"method": "baselines"},
}
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")

PROFILES: dict[str, Callable[[], Profile]] = {
    "quick": _quick, "photos": _photos, "paper": _paper, "icam": _icam, "seam": _seam,
}  # fmt: skip


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        *path, last = str(key).split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise InputError(f"{key}: expected a field of its own, got a value for {part!r} as well")
        node[last] = value
    return tree


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _plain(value: Any) -> Any:
    """What YAML gave, in the profile's types: lists as tuples, 1e-3 (text for YAML 1.1) as the number it is."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


def _parsed(overrides: Mapping[str, Any] | Sequence[str] | str) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return _nested(overrides)
    items = overrides.split() if isinstance(overrides, str) else list(overrides)
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise InputError(f"overrides: expected field=value, got {item!r}")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{key}: expected a YAML value, got {text!r}") from error
    return _nested(values)


def _fields(tree: Mapping[str, Any], parents: str = "") -> list[str]:
    """All dotted names of a profile."""
    names = []
    for key, value in tree.items():
        names.append(parents + key)
        if isinstance(value, Mapping):
            names += _fields(value, f"{parents}{key}.")
    return names


def _similar(field: str, known: Sequence[str]) -> list[str]:
    """Its likely misspelt neighbour, else the fields of the same name elsewhere."""
    parents, _, last = field.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parents}
    near = difflib.get_close_matches(last, siblings, n=1)
    return [siblings[name] for name in near] or [
        name for name in known if name.rpartition(".")[2] == last and "seam" not in name
    ]


def load_profile(name: str, overrides: Mapping[str, Any] | Sequence[str] | str = ()) -> Profile:
    """The profile ``name`` with some fields set otherwise.

    Args:
        name: one of ``PROFILES``.
        overrides: dotted fields and values, as a mapping or as ``field=value`` strings (values read as YAML), or one
            string of them separated by spaces (no spaces inside a value then): ``"cam.epochs=3 seeds=[0,1,2]"``.

    Raises:
        InputError: unknown profile or field, value of another type or out of its range.

    Example:
        >>> load_profile("quick", "cam.epochs=3").cam.epochs
        3
    """
    if name not in PROFILES:
        raise InputError(f"profile: expected one of {', '.join(PROFILES)}, got {name!r}")
    base, changes = PROFILES[name]().model_dump(), _plain(_parsed(overrides))
    for group, fields in _SET_BY_GRID.items():
        for field, instead in fields.items():
            given = changes[group].get(field) if isinstance(changes.get(group), Mapping) else None
            if given is not None and given != base[group][field]:
                raise InputError(f"{group}.{field}: expected {instead} to say so, got {given!r}")
    values = _merged(base, changes)
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        if not field:  # about several fields, which the message names
            raise InputError(f"{name}: {what}") from error
        if first["type"] == "extra_forbidden":
            near = _similar(field, _fields(PROFILES[name]().model_dump()))
            what = "no such field" + (f" (did you mean {' or '.join(near)}?)" if near else "")
        raise InputError(f"{field}: {what}, got {first['input']!r}") from error
