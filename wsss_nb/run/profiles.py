"""Profiles: everything a run depends on, typed and frozen, under a name; and the one parser of what departs from them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import CliSettingsSource
from pydantic_settings.exceptions import SettingsError

from wsss_nb.models.networks import BACKBONES
from wsss_nb.run.results import wrong_field
from wsss_nb.stages.config import AffinityNetConfig, CamConfig, DeepLabConfig, InferenceConfig, PretrainConfig
from wsss_nb.system.command_line import Parser
from wsss_nb.system.config import Config
from wsss_nb.system.errors import InputError, expecting, require
from wsss_nb.system.files import atomic_path
from wsss_nb.variants import OURS, SEAM, Variant, find_variant, lambda_variant

__all__ = [
    "PROFILES", "DataConfig", "FieldFlags", "Profile", "Settings", "load_profile", "parse_fields", "read_profile",
    "read_yaml", "save_profile", "validated"
]  # fmt: skip


class DataConfig(Config):
    """Which images: a VOC-layout folder, or the synthetic set with its size and seed."""

    kind: Literal["synthetic", "voc"] = "voc"
    root: str = Field("", description="folder; empty = runs' own synthetic set")
    train_split: str = "train"
    val_split: str = "val"
    num_train: Annotated[int, Field(ge=1)] = 600
    num_val: Annotated[int, Field(ge=1)] = 150
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    void: Literal["background", "masked"] = "background"
    skip_bad: bool = False


class Settings(Config):
    """One experiment: data, backbone, the grid of Figure 2 and variants beside it, and the three stages.

    ``cam`` is what every variant shares; lambda, FSL and what else makes a variant are set by its record. ``refine``
    lists the variants that go through stages 2 and 3. What begins with ``seam`` is for the variant "seam".
    """

    data: DataConfig = DataConfig()
    backbone: str = "resnet38"
    seeds: tuple[int, ...] = (0,)
    lambdas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    fsl: tuple[bool, ...] = (False, True)
    variants: tuple[str, ...] = Field(
        ("average", SEAM),
        description="beside lambdas x fsl: names of variants, or module:function of one's own pooling",
    )
    refine: tuple[str, ...] = Field((OURS, SEAM), description="variants that go through stages 2 and 3")
    workers: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = Field(
        1, description="Torch threads of a network that is trained alone; changes results by rounding only"
    )
    imagenet_weights: str = Field(
        "", description="file all networks start from, MXNet's .params or PyTorch; empty = what pip has, else random"
    )
    pretrain: PretrainConfig | None = None
    cam: CamConfig = CamConfig()
    seam: CamConfig = CamConfig(pooling="average")
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

    @field_validator("seeds", "lambdas", "fsl", "variants", "refine")
    @classmethod
    def _once_each(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(set(value)) != len(value) or (info.field_name == "seeds" and not value):
            raise ValueError("expected at least one value and no value twice")
        if info.field_name == "seeds" and not all(0 <= seed < 2**63 for seed in value):
            raise ValueError("expected seeds from 0 to 2^63 - 1")
        return value

    @model_validator(mode="after")
    def _some_point(self) -> Settings:
        if not self.variants and not (self.lambdas and self.fsl):
            raise ValueError("expected at least one point: lambdas and fsl, or variants")
        if self.imagenet_weights and self.pretrain is not None:
            raise ValueError("expected imagenet_weights or pretrain, got both")
        self.grid()
        return self

    def grid(self) -> dict[str, Variant]:
        """The points of Figure 2 and the variants beside them, by name, in the order in which they are trained."""
        points = [lambda_variant(lam, fsl, self.cam.pooling) for fsl in self.fsl for lam in self.lambdas]
        points += [find_variant(name, self.cam.pooling) for name in self.variants]
        if term := self.cam.extra_loss.partition(":")[2]:
            points = [
                replace(point, title=f"{point.title} + {term}") if point.name != SEAM else point for point in points
            ]
        return {point.name: point for point in points}

    def cam_config(self, variant: Variant) -> CamConfig:
        """Stage 1's settings with what the variant changes."""
        if variant.name == SEAM:
            return self.seam
        off = {} if variant.fsl else {"fsl_weight": 0.0}
        return self.cam.model_copy(update={**off, **variant.changes})

    def inference_config(self, variant: Variant) -> InferenceConfig:
        """How the variant's CAMs become label maps."""
        return self.seam_inference if variant.name == SEAM else self.inference

    def affinitynet_config(self, variant: Variant) -> AffinityNetConfig:
        """Stage 2's settings of the variant."""
        return self.seam_affinitynet if variant.name == SEAM else self.affinitynet


class Profile(Settings):
    """Settings with a name."""

    name: str


_FILES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "profiles").glob("*.yaml"))}
PROFILES = tuple(_FILES)
"""The profiles' names; what they set is in ``wsss_nb/profiles/NAME.yaml``, all else is the paper's."""


class FieldFlags:
    """A flag for every field of :class:`Settings`, ``--cam.optimizer.learning_rate 0.02``, made by pydantic-settings.

    Args:
        parser: gets the flags.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        settings: Any = Settings
        options: Any = {"cli_parse_args": None, "cli_hide_none_type": True}
        self._source: Any = CliSettingsSource(settings, root_parser=parser, **options)

    def given(self, options: argparse.Namespace) -> dict[str, Any]:
        """The fields that a parsed command line sets, as a nested dict."""
        own = {
            name: "null" if value == ["null"] else value  # the source takes a list for its items
            for name, value in vars(options).items()
            if name.partition(".")[0] in Settings.model_fields
        }
        try:
            return dict(self._source(parsed_args=argparse.Namespace(**own))())
        except (SettingsError, ValueError) as error:
            raise InputError(" ".join(str(error).split())) from error


def parse_fields(text: str) -> dict[str, Any]:
    """The fields set by a text such as ``"cam.epochs=3 seeds=[0,1,2]"``: words ``field=value`` with spaces between.

    Raises:
        InputError: a word that is no ``field=value``, or no field.

    Example:
        >>> parse_fields("cam.epochs=3")
        {'cam': {'epochs': 3}}
    """
    words = text.split()
    for word in words:
        require("=" in word.strip("="), f"overrides: expected field=value, got {word!r}")
    parser = Parser(prog="overrides", add_help=False)
    flags = FieldFlags(parser)
    return flags.given(parser.parse_args([f"--{word}" for word in words]))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = {key for key in changes if isinstance(changes[key], Mapping) and isinstance(base.get(key), Mapping)}
    return {**base, **changes, **{key: _merged(base[key], changes[key]) for key in both}}


def _plain(value: Any) -> Any:
    """What YAML or a command line gave, in the profile's types: lists as tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple)) else value


def _names(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        yield from _names(value, f"{prefix}{key}.") if isinstance(value, Mapping) else ()


def load_profile(name: str, *changes: Mapping[str, Any] | str) -> Profile:
    """The profile ``name`` with some fields set otherwise.

    Args:
        name: one of :data:`PROFILES`, or a YAML file that :func:`save_profile` wrote.
        changes: fields as nested dicts, or as text, see :func:`parse_fields`; later ones win.

    Raises:
        InputError: unknown profile or field, value of another type or out of its range.

    Example:
        >>> load_profile("quick", "cam.epochs=3").cam.epochs
        3
    """
    values = _values_of(name)
    for change in changes:
        fields = parse_fields(change) if isinstance(change, str) else change
        cam = fields.get("cam")
        if isinstance(cam, Mapping) and "lam" in cam:  # a variant's record would overwrite it
            raise InputError(f"cam.lam: expected lambdas or variants to say so, got {cam['lam']!r}")
        values = _merged(values, fields)
    return validated(values)


def _values_of(name: str) -> dict[str, Any]:
    """What a profile or a YAML file sets, over the profile that it names as its base; all else is the paper's."""
    is_file = name.endswith((".yaml", ".yml"))
    require(is_file or name in PROFILES, f"profile: expected one of {', '.join(PROFILES)} or a YAML file, got {name!r}")
    given = read_yaml(Path(name) if is_file else _FILES[name])
    base = given.pop("base", None)
    require(base in (None, *PROFILES), f"{name}: base: expected one of {', '.join(PROFILES)}, got {base!r}")
    return _merged(_values_of(base) if base else Settings().model_dump(), {"name": Path(name).stem, **given})


def validated(values: Mapping[str, Any]) -> Profile:
    """A profile of plain values.

    Raises:
        InputError: unknown field, value of another type or out of its range.
    """
    try:
        return Profile.model_validate(_plain(values))
    except ValidationError as error:
        known = list(_names(Settings().model_dump()))
        raise InputError(wrong_field(error, values.get("name", "profile"), known)) from error


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile as YAML, the form in which a run keeps its settings."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def read_profile(path: Path) -> Profile:
    """A profile that :func:`save_profile` wrote.

    Raises:
        InputError: the file is missing, is not YAML, or holds other fields.
    """
    return validated(read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: the file is missing or is not a YAML mapping.
    """
    with expecting("a YAML file", path):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    require(fields, f"{path}: expected fields and values, got {type(content).__name__}")
    return dict(content)
