"""Profiles: frozen, typed, overridden by text, YAML and flags, with errors that name the field; and their variants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from wsss_nb.crf import resolved_crf
from wsss_nb.run.profiles import (
    PROFILES,
    FieldFlags,
    Profile,
    Settings,
    load_profile,
    parse_fields,
    read_profile,
    read_yaml,
    save_profile,
)
from wsss_nb.stages.cam import find_posterior
from wsss_nb.stages.config import CamConfig
from wsss_nb.system.command_line import Parser
from wsss_nb.system.config import Config
from wsss_nb.system.errors import InputError
from wsss_nb.variants import OURS, SEAM, VARIANTS, find_variant, lambda_variant


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_valid_frozen_and_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    assert profile.name == name
    save_profile(profile, tmp_path / "config.yaml")
    assert read_profile(tmp_path / "config.yaml") == profile == load_profile(str(tmp_path / "config.yaml"))
    assert Profile.model_validate_json(json.dumps(profile.model_dump(mode="json"))) == profile
    for owner, field, value in ((profile, "backbone", "tiny"), (profile.cam, "epochs", 3)):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, field, value)
    assert set(profile.refine) <= set(profile.grid())
    if name != "seam":
        assert {0.0, 1.0} <= set(profile.lambdas) and set(profile.fsl) == {False, True} and OURS in profile.grid()


# What departs from a profile


def leaves(config: Config, prefix: str = "") -> dict[str, Any]:
    """Every field that is no group of fields."""
    found: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Config) else {prefix + name: value}
    return found


@pytest.mark.parametrize("name", PROFILES)
def test_every_field_is_a_flag_and_a_word_of_the_overrides(name: str) -> None:
    profile = load_profile(name)
    given = {field: value for field, value in leaves(profile).items() if field not in {"name", "cam.lam"}}
    assert len(given) > 90
    words = {
        field: value if isinstance(value, str) else json.dumps(value).replace(" ", "") for field, value in given.items()
    }
    parser = Parser()
    flags = FieldFlags(parser)
    arguments = [word for field, text in words.items() if text for word in (f"--{field}", text)]
    assert load_profile(name, flags.given(parser.parse_args(arguments))) == profile
    assert load_profile(name, " ".join(f"{field}={text}" for field, text in words.items() if text)) == profile
    assert flags.given(parser.parse_args([])) == {}, "what is not given is not set"


YAML = """
cam: {epochs: 3, optimizer: {learning_rate: 0.5}, siamese: true}
seeds: [0, 1, 2]
data: {root: /some/where}
"""


@pytest.mark.parametrize(
    "changes",
    [
        ["cam.epochs=3 cam.optimizer.learning_rate=0.5 seeds=[0,1,2] data.root=/some/where cam.siamese=true"],
        ["cam.epochs=9 cam.optimizer.learning_rate=5e-1 seeds=0,1,2", "cam.siamese=True cam.epochs=3", "data.root=/some/where"],  # noqa: E501
        [{"cam": {"epochs": 3, "optimizer": {"learning_rate": 0.5}, "siamese": True}}, "data.root=/some/where seeds=[0,1,2]"],  # noqa: E501
        [YAML],
    ],
    ids=["text", "later ones win", "dicts", "YAML"],
)  # fmt: skip
def test_overrides_as_text_dicts_and_yaml(changes: list[Any], tmp_path: Path) -> None:
    if changes == [YAML]:
        (tmp_path / "mine.yaml").write_text(YAML)
        changes = [read_yaml(tmp_path / "mine.yaml")]
    base, profile = load_profile("quick"), load_profile("quick", *changes)
    optimizer = base.cam.optimizer.model_copy(update={"learning_rate": 0.5})
    cam = base.cam.model_copy(update={"epochs": 3, "siamese": True, "optimizer": optimizer})
    data = base.data.model_copy(update={"root": "/some/where"})
    assert profile == base.model_copy(update={"seeds": (0, 1, 2), "data": data, "cam": cam}) != base
    assert load_profile("quick") == base, "the profile itself is left alone"


def test_values_of_every_kind() -> None:
    changes = "cam.num_samples=null lambdas=[0,1] cam.optimizer.learning_rate=1e-3 cam.views.sizes=[[48,64]] seeds=3"
    profile = load_profile("quick", f"{changes} deeplab.crf=null inference.background=power:6 data.train_split=2012")
    assert profile.cam.num_samples is None and profile.deeplab.crf is None and profile.seeds == (3,)
    assert profile.lambdas == (0.0, 1.0) and profile.cam.views.sizes == ((48, 64),)
    assert profile.cam.optimizer.learning_rate == 0.001 and profile.inference.background == "power:6"
    assert profile.data.train_split == "2012" and parse_fields("data.root=/a=b") == {"data": {"root": "/a=b"}}
    again = load_profile("photos", "pretrain.epochs=2 deeplab.crf.iterations=3")
    assert again.pretrain is not None and again.pretrain.epochs == 2
    assert again.deeplab.crf == load_profile("photos").deeplab.crf.model_copy(update={"iterations": 3})  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # unknown, in text and in dicts
        ("batch_size=3", "unknown flag --batch_size, did you mean --pretrain.batch_size or --cam.batch_size or "),
        ("cam.epoch=3", "unknown flag --cam.epoch, did you mean --cam.epochs?"),
        ("cam.optimizer.lr=0.1", "unknown flag --cam.optimizer.lr (see "),
        ("name=mine", "unknown flag --name"),
        ({"cam": {"epoch": 3}}, "cam.epoch: no such field (did you mean cam.epochs?), got 3"),
        ({"lambda": [1]}, "lambda: no such field (did you mean lambdas?), got (1,)"),
        ({"cam": {"epochs": {"most": 3}}}, "cam.epochs: Input should be a valid integer"),
        # of another type
        ("cam.epochs=3.5", "cam.epochs: Input should be a valid integer, got '3.5'"),
        ("cam.mu=many", "cam.mu: Input should be a valid number, got 'many'"),
        ("cam.siamese=maybe", "cam.siamese: Input should be a valid boolean, got 'maybe'"),
        ("seeds=[0,true]", "seeds.1: Input should be a valid integer, got True"),
        ("cam=3", "cam: Input should be a valid dictionary"),
        ({"cam": None}, "cam: Input should be a valid dictionary"),
        ({"cam": {"epochs": "3"}}, "cam.epochs: Input should be a valid integer, got '3'"),
        ({"cam": {"mu": True}}, "cam.mu: Input should be a valid number, got True"),
        ({"cam": {"siamese": 1}}, "cam.siamese: Input should be a valid boolean, got 1"),
        ({"data": {"train_split": 2012}}, "data.train_split: Input should be a valid string, got 2012"),
        ({"seeds": 0}, "seeds: Input should be a valid tuple, got 0"),
        # out of range
        ("cam.lam=0.3", "cam.lam: expected lambdas or variants to say so, got 0.3"),
        ("lambdas=[0,1.2]", "lambdas.1: Input should be less than or equal to 1, got 1.2"),
        ("cam.epochs=0", "cam.epochs: Input should be greater than 0, got 0"),
        ("cam.optimizer.momentum=1", "cam.optimizer.momentum: Input should be less than 1, got 1.0"),
        ("cam.fsl_weight=inf", "cam.fsl_weight: Input should be a finite number, got inf"),
        ("cam.mu=7", "cam.mu: Input should be less than or equal to 6, got 7.0"),
        ("affinitynet.crf.bilateral_sxy=0.01", "affinitynet.crf.bilateral_sxy: Input should be greater than"),
        ("cam.views.sizes=[[48,0]]", "cam.views.sizes.0.1: Input should be greater than 0, got 0"),
        ("data.void=none", "data.void: Input should be 'background' or 'masked', got 'none'"),
        ("cam.pooling=mean", "cam: pooling: expected one of max, average or module:function, got 'mean'"),
        ("cam.pooling=no_module:x", "cam: pooling: expected module no_module to import"),
        ("cam.extra_loss=abc", "cam: expected extra_loss module:function, got 'abc'"),
        ("cam.posterior=abc", "cam: expected posterior softmax or module:function, got 'abc'"),
        ("backbone=vgg", "backbone: expected one of tiny, "),
        ("inference.background=otsu", "inference.background: "),
        ("seeds=[]", "seeds: expected at least one value and no value twice, got ()"),
        ("seeds=[1,1]", "seeds: expected at least one value and no value twice, got (1, 1)"),
        ("seeds=[-1]", "seeds: expected seeds from 0 to 2^63 - 1, got (-1,)"),
        ("variants=[seam,seam]", "variants: expected at least one value and no value twice"),
        ("variants=nonsense", "quick: variant: expected one of average, seam, log_sum_exp, binomial, lambda0 to"),
        # of several fields
        ("cam.learn_fsl=true cam.mu=6", "cam: expected -4 < mu < 6 where it is learned, got 6"),
        ("cam.learn_fsl=true cam.sigma=0.5", "cam: expected 0.5 < sigma < 20 where it is learned, got 0.5"),
        ("lambdas=[] variants=[]", "quick: expected at least one point: lambdas and fsl, or variants"),
        ("imagenet_weights=a.params", "quick: expected imagenet_weights or pretrain, got both"),
        # no override
        ("cam.epochs", "overrides: expected field=value, got 'cam.epochs'"),
        ("=3", "overrides: expected field=value, got '=3'"),
        ("seeds=[0", "Parsing error encountered for seeds"),
    ],
)
def test_wrong_values_name_their_field_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_profile("quick", change)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a YAML file, got no file"),
        ("- 1\n", "expected fields and values, got list"),
        ("1: 2\n", "expected fields and values"),
        ("a: [\n", "expected a YAML file, got while parsing"),
        ("cam: {epoch: 3}\nname: x\n", "cam.epoch: no such field"),
    ],
)
def test_wrong_files(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_profile(str(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_profile() -> None:
    with pytest.raises(InputError, match=r"profile: expected one of icam, paper, .* or a YAML file, got 'slow'"):
        load_profile("slow")


def test_objects_made_in_code_are_checked_too() -> None:
    for values in ({"epoch": 3}, {"lam": 1.2}, {"epochs": True}, {"mu": "2"}):
        with pytest.raises(ValidationError, match=next(iter(values))):
            CamConfig(**values)  # type: ignore[arg-type]
    assert Settings(lambdas=(0.5,), fsl=(True,), variants=()).grid().keys() == {"lambda0.5_fsl"}


def test_a_crf_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    named = load_profile("paper").affinitynet.crf
    assert resolved_crf(named) == named
    with pytest.raises(InputError, match=r"^crf\.backend: expected a GPU on which Triton's kernels run"):
        resolved_crf(named.model_copy(update={"backend": "cuda"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolved_crf(load_profile("quick").affinitynet.crf).backend == "torch"
    with pytest.raises(InputError, match=r"^crf\.backend: expected the package pydensecrf2 to be installed"):
        resolved_crf(named)


# Variants


def test_the_grid_by_hand() -> None:
    profile = load_profile("quick", "lambdas=[0,0.25] fsl=[false,true] variants=[seam,average+fsl]")
    assert [(name, v.title, v.lam, v.fsl) for name, v in profile.grid().items()] == [
        ("lambda0", "max pooling (λ = 0)", 0.0, False),
        ("lambda0.25", "λ = 0.25", 0.25, False),
        ("lambda0_fsl", "max pooling (λ = 0) + FSL", 0.0, True),
        ("lambda0.25_fsl", "λ = 0.25 + FSL", 0.25, True),
        ("seam", "SEAM", None, False),
        ("average+fsl", "average pooling + FSL", None, True),
    ]
    assert lambda_variant(0.0, False, "average").title == "average pooling (λ = 0)"
    orders = [variant.order for variant in load_profile("quick").grid().values()]
    assert len(set(orders)) == len(orders) and sorted(orders)[:2] == [(0,), (1,)], "every line has a place of its own"


def test_a_variant_changes_its_own_settings_and_no_others() -> None:
    profile = load_profile("quick", "variants=[average,seam,log_sum_exp,binomial,average+fsl] seam.epochs=5")
    found = {name: profile.cam_config(variant) for name, variant in profile.grid().items()}
    base = profile.cam
    assert found["lambda0.5"] == base.model_copy(update={"lam": 0.5, "fsl_weight": 0.0})
    assert found["lambda1_fsl"] == base.model_copy(update={"lam": 1.0}) and base.fsl_weight == 2
    average = {"pooling": "average", "lam": 0.0, "sample_background": False}
    assert found["average"] == base.model_copy(update={**average, "fsl_weight": 0.0})
    assert found["average+fsl"] == base.model_copy(update=average)
    assert found["seam"] == profile.seam and profile.seam.epochs == 5
    pooling = "wsss_nb.log_sum_exp:log_sum_exp_pool"
    assert found["log_sum_exp"] == base.model_copy(update={"pooling": pooling, "lam": 0.0, "fsl_weight": 0.0})
    binomial = found["binomial"]
    assert (binomial.lam, binomial.num_samples, binomial.fsl_weight) == (0.2, 10, base.fsl_weight)
    for config in found.values():
        CamConfig.model_validate(config.model_dump())
    logits = torch.tensor([[0.0, 2.0]])
    assert find_posterior(binomial.posterior)(logits[..., None, None]).shape == (1, 2, 1, 1)
    seam = VARIANTS[SEAM]
    assert profile.inference_config(seam) == profile.seam_inference != profile.inference_config(VARIANTS["average"])
    assert profile.affinitynet_config(seam) == profile.seam_affinitynet != profile.affinitynet


@pytest.mark.parametrize("name", ["lambda0", "lambda0.5", "lambda1_fsl", "lambda1e-05", *VARIANTS, "average+fsl"])
def test_names_find_their_variant(name: str) -> None:
    assert find_variant(name).name == name


@pytest.mark.parametrize("name", ["", "lambda", "lambda1.5", "lambda-1", "lambda0.5.5_fsl", "max", "seam_fsl", "+fsl"])
def test_no_such_variant(name: str) -> None:
    with pytest.raises(InputError, match=r"variant: expected one of average, seam, .* or module:function, got "):
        find_variant(name)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a pooling function in the folder one works in."""
    path = tmp_path / "pooling_of_mine.py"
    path.write_text("middle = lambda cam: cam.flatten(2).mean(2)\nNUMBER = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "pooling_of_mine", raising=False)
    return path


def test_a_function_of_ones_own_is_a_variant(own: Path) -> None:
    variant = find_variant("pooling_of_mine:middle+fsl")
    assert (variant.name, variant.title) == ("pooling_of_mine.middle+fsl", "middle + FSL")
    assert variant.fsl and variant.lam is None
    profile = load_profile("quick", "variants=pooling_of_mine:middle")
    assert profile.cam_config(profile.grid()["pooling_of_mine.middle"]).pooling == "pooling_of_mine:middle"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pooling_of_mine:max", "variant: expected a function max in pooling_of_mine, got none"),
        ("pooling_of_mine:NUMBER", "variant: expected a function, got pooling_of_mine:NUMBER of type int"),
        ("no_such_module:max", "variant: expected module no_such_module to import, got ModuleNotFoundError"),
        ("broken:max", "variant: expected module broken to import, got ValueError: oh"),
    ],
)
def test_wrong_functions(own: Path, name: str, message: str) -> None:
    own.with_name("broken.py").write_text("raise ValueError('oh')\n")
    with pytest.raises(InputError, match=message):
        find_variant(name)


# Files of one's own


def test_a_file_starts_from_the_profile_that_it_names(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: quick\ncam: {epochs: 3}\nlambdas: [0.5]\n")
    profile, quick = load_profile(str(mine)), load_profile("quick")
    assert (profile.name, profile.cam.epochs, profile.lambdas) == ("mine", 3, (0.5,))
    expected = quick.model_dump() | {"name": "mine", "lambdas": (0.5,), "cam": {**quick.cam.model_dump(), "epochs": 3}}
    assert profile.model_dump() == expected
    mine.write_text("epohcs: 3\n")
    with pytest.raises(InputError, match="epohcs: "):
        load_profile(str(mine))
    mine.write_text("base: mine\n")
    with pytest.raises(InputError, match="base: expected one of icam, paper, photos, quick, seam, got 'mine'"):
        load_profile(str(mine))
