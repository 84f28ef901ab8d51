"""Profiles: frozen, typed, and errors that name the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wsss_nb.cli import main
from wsss_nb.errors import InputError
from wsss_nb.experiment.grid import OURS, grid, refined_variant
from wsss_nb.experiment.profiles import PROFILES, Profile, load_profile
from wsss_nb.stages.affinitynet import crf_config, resolved_crf
from wsss_nb.stages.config import CamConfig


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_profile_is_valid_frozen_and_json(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert Profile.model_validate_json(json.dumps(profile.model_dump(mode="json"))) == profile
    with pytest.raises(ValidationError, match="frozen"):
        profile.backbone = "tiny"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        profile.cam.epochs = 3  # type: ignore[misc]
    for method in profile.refine:
        assert refined_variant(profile, method) in grid(profile)
    if name != "seam":
        assert {0.0, 1.0} <= set(profile.lambdas) and set(profile.fsl) == {False, True}
        assert OURS in {point.name for point in grid(profile)}


def test_grid_by_hand() -> None:
    profile = load_profile("quick", {"lambdas": [0.0, 0.25], "fsl": [False, True], "baselines": ["seam"]})
    assert [(p.name, p.method, p.weight, p.fsl) for p in grid(profile)] == [
        ("lambda0", "sampling", 0.0, False),
        ("lambda0.25", "sampling", 0.25, False),
        ("lambda0_fsl", "sampling", 0.0, True),
        ("lambda0.25_fsl", "sampling", 0.25, True),
        ("seam", "seam", None, False),
    ]


def test_what_is_refined_has_to_be_in_the_grid() -> None:
    assert refined_variant(load_profile("quick"), "ours").name == "lambda1_fsl"
    assert refined_variant(load_profile("quick"), "seam").method == "seam"
    for changes, method, missing in (
        ("lambdas=[0,0.5]", "ours", "lambdas with 1"),
        ("fsl=[false]", "ours", "fsl with true"),
        ("baselines=[average]", "seam", "baselines with seam"),
    ):
        with pytest.raises(InputError, match=f"refine: {method} goes .* needs .*{missing}.* got lambda0"):
            refined_variant(load_profile("quick", changes), method)
    with pytest.raises(InputError, match="method: expected ours or seam, got 'average'"):
        refined_variant(load_profile("quick"), "average")


def test_quick_has_the_points_of_figure_2() -> None:
    points = grid(load_profile("quick"))
    for fsl in (False, True):
        assert len({point.weight for point in points if point.method == "sampling" and point.fsl == fsl}) >= 5


# Overrides


@pytest.mark.parametrize(
    "overrides",
    [
        "cam.epochs=3 cam.optimizer.learning_rate=0.5 seeds=[0,1,2] data.root=/some/where cam.siamese=true",
        ["cam.epochs=3", "cam.optimizer.learning_rate=0.5", "seeds=[0, 1, 2]", "data.root=/some/where", "cam.siamese=True"],
        {"cam.epochs": 3, "cam.optimizer.learning_rate": 0.5, "seeds": (0, 1, 2), "data.root": "/some/where",
         "cam.siamese": True},
        {"cam": {"epochs": 3, "optimizer": {"learning_rate": 0.5}, "siamese": True}, "seeds": [0, 1, 2],
         "data": {"root": "/some/where"}},
    ],
)  # fmt: skip
def test_overrides_nested_dotted_and_as_text(overrides: Any) -> None:
    base, profile = load_profile("quick"), load_profile("quick", overrides)
    expected = base.model_copy(
        update={
            "seeds": (0, 1, 2),
            "data": base.data.model_copy(update={"root": "/some/where"}),
            "cam": base.cam.model_copy(
                update={
                    "epochs": 3,
                    "siamese": True,
                    "optimizer": base.cam.optimizer.model_copy(update={"learning_rate": 0.5}),
                }
            ),
        }
    )
    assert profile == expected != base
    assert load_profile("quick") == base, "overrides leave the profile itself alone"


def test_values_of_every_kind() -> None:
    changes = "cam.num_samples=null lambdas=[0,1] cam.optimizer.learning_rate=1e-3 cam.views.sizes=[[48,64]]"
    changes += " deeplab.crf=null inference.background=power:6 cam.optimizer.weight_decay=0"
    profile = load_profile("quick", changes)
    assert profile.cam.num_samples is None and profile.deeplab.crf is None
    assert profile.lambdas == (0.0, 1.0) and profile.cam.views.sizes == ((48, 64),)
    assert profile.cam.optimizer.learning_rate == 0.001 and profile.cam.optimizer.weight_decay == 0
    assert profile.inference.background == "power:6"
    again = load_profile("paper", ["pretrain.epochs=2", "imagenet_weights=''"])
    assert again.pretrain is not None and again.pretrain.epochs == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # unknown
        ("batch_size=3", "batch_size: no such field (did you mean pretrain.batch_size or cam.batch_size or "),
        ("cam.epoch=3", "cam.epoch: no such field (did you mean cam.epochs?), got 3"),
        ("lambda=[1]", "lambda: no such field (did you mean lambdas?), got (1,)"),
        ("cam.optimizer.lr=0.1", "cam.optimizer.lr: no such field, got 0.1"),
        ("cam.epochs.most=3", "cam.epochs: "),
        # of another type
        ("cam.epochs=true", "cam.epochs: Input should be a valid integer, got True"),
        ("cam.epochs=3.5", "cam.epochs: "),
        ("cam.epochs=three", "cam.epochs: Input should be a valid integer, got 'three'"),
        ('cam.epochs="3"', "cam.epochs: Input should be a valid integer, got '3'"),
        ('cam.mu="2.5"', "cam.mu: Input should be a valid number, got '2.5'"),
        ("cam.mu=true", "cam.mu: Input should be a valid number, got True"),
        ("cam.siamese=1", "cam.siamese: Input should be a valid boolean, got 1"),
        ('cam.siamese="False"', "cam.siamese: Input should be a valid boolean, got 'False'"),
        ("data.train_split=2012", "data.train_split: Input should be a valid string, got 2012"),
        ("seeds=0", "seeds: "),
        ("seeds=[0,true]", "seeds.1: Input should be a valid integer, got True"),
        ("cam=3", "cam: "),
        ("cam=null", "cam: "),
        # out of range
        ("cam.weight=0.3", "cam.weight: expected lambdas to say so, got 0.3"),
        ("seam.method=paper", "seam.method: expected baselines to say so, got 'paper'"),
        ("lambdas=[0,1.2]", "lambdas.1: Input should be less than or equal to 1, got 1.2"),
        ("cam.epochs=0", "cam.epochs: Input should be greater than or equal to 1, got 0"),
        ("cam.optimizer.learning_rate=-1", "cam.optimizer.learning_rate: Input should be greater than 0, got -1"),
        ("cam.optimizer.momentum=1", "cam.optimizer.momentum: Input should be less than 1, got 1"),
        ("cam.similarity_weight=.inf", "cam.similarity_weight: Input should be a finite number, got inf"),
        ("cam.mu=.nan", "cam.mu: "),
        ("affinitynet.crf.bilateral_sxy=0.01", "affinitynet.crf.bilateral_sxy: "),
        ("deeplab.crf.gaussian_compat=1e7", "deeplab.crf.gaussian_compat: "),
        ("cam.views.sizes=[[48,0]]", "cam.views.sizes.0.1: "),
        ("cam.pooling=mean", "cam.pooling: Input should be 'max' or 'average', got 'mean'"),
        ("backbone=vgg", "backbone: "),
        ("inference.background=otsu", "inference.background: "),
        ("seeds=[]", "seeds: "),
        ("seeds=[1,1]", "seeds: "),
        ("baselines=[seam,seam]", "baselines: "),
        ("workers=0", "workers: Input should be greater than or equal to 1, got 0"),
        # not an override
        ("cam.epochs", "overrides: expected field=value, got 'cam.epochs'"),
        ("=3", "overrides: expected field=value, got '=3'"),
        ("seeds=[0", "seeds: expected a YAML value, got '[0'"),
    ],
)  # fmt: skip
def test_wrong_values_name_their_field(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_profile("quick", [override])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_contradicting_fields() -> None:
    with pytest.raises(InputError, match="quick: expected at least one point: lambdas and fsl, or baselines"):
        load_profile("quick", "lambdas=[] baselines=[]")
    with pytest.raises(InputError, match="quick: expected imagenet_weights or pretrain, got both"):
        load_profile("quick", "imagenet_weights=a.params")


def test_learned_mu_and_sigma_start_inside_their_range() -> None:
    assert load_profile("quick", "cam.mu=6").cam.mu == 6
    for name, value, bounds in (("mu", 6, "-4 < mu < 6"), ("sigma", 0.5, "0.5 < sigma < 20")):
        with pytest.raises(InputError, match=f"cam: .*expected {bounds} where it is learned, got {value}"):
            load_profile("quick", f"cam.learn_similarity=true cam.{name}={value}")


def test_what_crf_settings_a_profile_takes_the_crf_takes() -> None:
    for name in ("bilateral_sxy", "bilateral_srgb", "gaussian_sxy", "bilateral_compat", "gaussian_compat"):
        lowest, highest = (0, 1e6) if name.endswith("compat") else (0.1, 1e5)
        for value in (lowest, highest):
            crf = load_profile("quick", f"affinitynet.crf.{name}={value}").affinitynet.crf
            assert getattr(crf_config(crf), name) == value
    assert {load_profile(name).deeplab.crf.backend for name in ("quick", "photos")} == {"auto"}


def test_a_crf_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    named = load_profile("paper").affinitynet.crf
    assert resolved_crf(named) == named
    with pytest.raises(InputError, match=r"^crf\.backend: expected a GPU on which Triton's kernels run"):
        resolved_crf(named.model_copy(update={"backend": "cuda"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolved_crf(load_profile("quick").affinitynet.crf).backend == "torch"
    with pytest.raises(InputError, match=r"^crf\.backend: expected the package pydensecrf2 to be installed"):
        resolved_crf(named)


def test_contradicting_overrides() -> None:
    with pytest.raises(InputError, match=r"cam\.epochs: expected a field of its own"):
        load_profile("quick", {"cam": 3, "cam.epochs": 4})


def test_unknown_profile() -> None:
    with pytest.raises(
        InputError, match=r"profile: expected one of quick, photos, paper, icam, seam, got 'slow'"
    ):
        load_profile("slow")


def test_objects_made_in_code_are_checked_too() -> None:
    for values in ({"epoch": 3}, {"weight": 1.2}, {"epochs": True}, {"mu": "2"}):
        with pytest.raises(ValidationError, match=next(iter(values))):
            CamConfig(**values)


def test_small_numbers_written_with_an_exponent_pass_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YAML 1.1 takes 1e-3 for text; the next flag is wrong on purpose, so that nothing runs."""
    arguments = ["sweep", "--profile", "photos", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--cam.optimizer.learning_rate", "1e-3"]) == 2
    assert "data.root: expected a folder in VOC layout" in capsys.readouterr().err
    assert main([*arguments, "--cam.optimizer.learning_rate", "much"]) == 2
    assert (
        "cam.optimizer.learning_rate: Input should be a valid number, got 'much'" in capsys.readouterr().err
    )
