"""The profiles of VOC 2012: every setting of the paper, of its extended release and of SEAM, written down a second time."""

from __future__ import annotations

from typing import Any

import pytest

from wsss_nb.experiment.grid import grid, refined_variant
from wsss_nb.experiment.pipeline import Run
from wsss_nb.experiment.profiles import Profile, load_profile
from wsss_nb.models.registry import BACKBONES
from wsss_nb.stages.loop import build_optimizer
from wsss_nb.stages.steps import step_key

PROFILES = ("paper", "icam", "seam")

# Each stage on its own, as its training script has it: what two of them share is written down twice.
CLASSIFICATION = {
    "epochs": 8, "batch_size": 8,
    "optimizer": {
        "learning_rate": 0.01, "weight_decay": 5e-4, "power": 0.9, "head_multiplier": 10, "warmup": 0,
        "decay_as_momentum": True,
    },
    "views": {
        "cached": False, "long_side": (448, 768), "flip": True, "jitter": (0.3, 0.3, 0.3, 0.1), "crop": 448,
    },
}  # fmt: skip
AFFINITY = {
    "epochs": 8, "batch_size": 8,
    "optimizer": {
        "learning_rate": 0.01, "weight_decay": 5e-4, "power": 0.9, "head_multiplier": 10, "warmup": 0,
        "decay_as_momentum": True,
    },
    "views": {"cached": False, "long_side": None, "crop": 448, "flip": True, "jitter": (0.3, 0.3, 0.3, 0.1)},
}  # fmt: skip
SEGMENTATION = {
    "iterations": 20_000, "batch_size": 10,
    "optimizer": {
        "learning_rate": 0.001, "weight_decay": 5e-4, "power": 0.9, "head_multiplier": 10, "warmup": 0,
        "decay_as_momentum": False, "momentum": 0.9,
    },
    "views": {"cached": False, "hsv": 10, "flip": True, "zoom": (0.5, 1.5), "crop": 448},
}  # fmt: skip
SIAMESE = {"siamese": True, "siamese_scale": 0.3, "dropout": 0.5, "freeze": True}
WALK = {"radius": 5, "beta": 8, "log_t": 6, "alpha_walk": 6}
CRF = {
    "backend": "pydensecrf",
    "gaussian_sxy": 3,
    "gaussian_compat": 3,
    "bilateral_srgb": 13,
    "bilateral_compat": 10,
}
CAM_CRF = {**CRF, "iterations": 10, "bilateral_sxy": 80}
INFERENCE = {"scales": (0.5, 1, 1.5, 2), "flip": True, "max_normalize": True}
COMMON: dict[str, Any] = {
    "backbone": "resnet38",
    "data": {"kind": "voc", "train_split": "train_aug", "val_split": "val", "void": "background"},
    "imagenet_weights": "data/ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
    "pretrain": None,
    "cam": {
        **CLASSIFICATION, **SIAMESE, "method": "paper", "similarity_weight": 0.5, "similarity_normalization": "pixels",
        "similarity_warmup": 0, "mu": 2.5, "sigma": 5, "eps": 1e-3,
    },
    "inference": {**INFERENCE, "background": "complement"},
    "seam": {**CLASSIFICATION, **SIAMESE, "method": "seam", "pooling": "average"},
    "seam_inference": INFERENCE,
    "affinitynet": {**AFFINITY, **WALK, "crf": CAM_CRF, "alpha_amplified": 2, "alpha_weakened": 4},
    "seam_affinitynet": {**AFFINITY, **WALK, "crf": CAM_CRF, "alpha_amplified": 4, "alpha_weakened": 24},
    "deeplab": {
        **SEGMENTATION, "scales": (0.5, 0.75, 1, 1.25, 1.5, 1.75), "flip": True, "interpolation": "bicubic",
        "crf": {**CRF, "iterations": 1, "bilateral_sxy": 32}, "mu": 2.5, "sigma": 5,
    },
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "paper": {
        "lambdas": (0, 0.25, 0.5, 0.75, 1), "refined_lambda": 1, "refine": ("ours", "seam"),
        "cam": {"pooling": "max", "num_samples": 1, "sample_background": True, "learn_similarity": True},
        "deeplab": {"similarity_weight": 0},
    },
    "icam": {
        "refined_lambda": 0.8, "refine": ("ours", "seam"),
        "cam": {"pooling": "average", "num_samples": 100, "sample_background": False, "learn_similarity": False,
                "weight": 0.8},
        "deeplab": {"similarity_weight": 0.5},
    },
    "seam": {"refine": ("seam",), "baselines": ("seam",), "deeplab": {"similarity_weight": 0}},
}  # fmt: skip


def differences(found: Any, wanted: dict[str, Any], place: str = "") -> list[str]:
    wrong = []
    for name, value in wanted.items():
        actual = getattr(found, name)
        if isinstance(value, dict):
            wrong += differences(actual, value, f"{place}{name}.")
        elif actual != value:
            wrong.append(f"{place}{name}: expected {value}, got {actual}")
    return wrong


@pytest.mark.parametrize("name", PROFILES)
def test_every_number(name: str) -> None:
    profile = load_profile(name)
    assert differences(profile, COMMON) == []
    assert differences(profile, OWN[name]) == []


@pytest.mark.parametrize("name", PROFILES)
def test_the_optimiser_that_comes_of_it(name: str) -> None:
    """Rates x1, x2, x10, x20; decay on weights only; momentum 0.0005 in stages 1 and 2 by the quirk, 0.9 in stage 3."""
    import torch

    profile = load_profile(name)
    kinds = ("pretrained_weights", "pretrained_biases", "new_weights", "new_biases")
    groups = {kind: [torch.nn.Parameter(torch.zeros(1))] for kind in kinds}
    for config, rate, momentum in (
        (profile.cam, 0.01, 0.0005), (profile.seam, 0.01, 0.0005), (profile.affinitynet, 0.01, 0.0005),
        (profile.seam_affinitynet, 0.01, 0.0005), (profile.deeplab, 0.001, 0.9),
    ):  # fmt: skip
        found = [
            (group["lr"], group["weight_decay"], group["momentum"])
            for group in build_optimizer(groups, config.optimizer, []).param_groups
        ]
        decays = (5e-4, 0, 5e-4, 0)
        assert found == [
            pytest.approx((rate * times, decay, momentum))
            for times, decay in zip((1, 2, 10, 20), decays, strict=True)
        ]
    plain = profile.cam.optimizer.model_copy(update={"decay_as_momentum": False})
    assert plain.effective_momentum == 0.9


def test_the_points_that_are_trained() -> None:
    paper, icam, seam = (load_profile(name) for name in PROFILES)
    assert len(grid(paper)) == 5 * 2 + 2 and refined_variant(paper, "ours").name == "lambda1_fsl"
    assert refined_variant(icam, "ours").name == "lambda0.8_fsl"
    assert [point.name for point in grid(seam)] == ["seam"]
    assert refined_variant(seam, "seam").name == "seam"

    def config(profile: Profile, method: str) -> Any:
        run = Run.__new__(Run)
        run.profile = profile
        return run.cam_config(refined_variant(profile, method))

    assert config(icam, "ours") == icam.cam, (
        "the extended release's own point changes nothing of its settings"
    )
    assert config(paper, "ours") == paper.cam.model_copy(update={"weight": 1.0})
    assert config(paper, "seam") == config(seam, "seam") == seam.seam
    assert step_key(paper.seam.model_dump(mode="json")) == step_key(icam.seam.model_dump(mode="json"))


def test_deeplab_trains_its_batch_norm_as_published() -> None:
    spec = BACKBONES["resnet38"]
    assert (spec.deeplab_batch_norm, spec.deeplab_momentum) == ("statistics", 3e-4)
    assert spec.deeplab_released_head
    assert (spec.deeplab_width, spec.deeplab_reach // 8, spec.output_strides) == (512, 12, (8,))
