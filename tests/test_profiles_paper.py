"""The profiles of VOC 2012: every setting of the paper, of its extended release and of SEAM, written down a second time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from wsss_nb.models.deeplab import create_deeplab
from wsss_nb.models.networks import BACKBONES
from wsss_nb.run.profiles import load_profile
from wsss_nb.stages.loop import build_optimizer
from wsss_nb.variants import OURS, SEAM

PROFILES = ("paper", "icam", "seam")

SGD = {"weight_decay": 5e-4, "power": 0.9, "head_multiplier": 10, "warmup": 0}
JITTER = (0.3, 0.3, 0.3, 0.1)
PLAIN = {"precision": "float32", "compile": False}
CLASSIFICATION = {
    **PLAIN,
    "epochs": 8,
    "batch_size": 8,
    "optimizer": {**SGD, "learning_rate": 0.01, "decay_as_momentum": True},
    "views": {"cached": False, "long_side": (448, 768), "flip": True, "jitter": JITTER, "crop": 448},
}
AFFINITY = {
    **PLAIN,
    "epochs": 8,
    "batch_size": 8,
    "optimizer": {**SGD, "learning_rate": 0.01, "decay_as_momentum": True},
    "views": {"cached": False, "long_side": None, "flip": True, "jitter": JITTER, "crop": 448},
}
SEGMENTATION = {
    **PLAIN,
    "iterations": 20_000,
    "batch_size": 10,
    "optimizer": {**SGD, "learning_rate": 0.001, "decay_as_momentum": False, "momentum": 0.9},
    "views": {"cached": False, "hsv": 10, "flip": True, "zoom": (0.5, 1.5), "crop": 448},
}
SIAMESE = {"siamese": True, "siamese_scale": 0.3, "dropout": 0.5, "freeze": True}
WALK = {"radius": 5, "beta": 8, "log_t": 6, "alpha_walk": 6}
CRF = {"backend": "pydensecrf", "gaussian_sxy": 3, "gaussian_compat": 3, "bilateral_srgb": 13, "bilateral_compat": 10}
CAM_CRF = {**CRF, "iterations": 10, "bilateral_sxy": 80}
INFERENCE = {"scales": (0.5, 1, 1.5, 2), "flip": True, "max_normalize": True}
COMMON: dict[str, Any] = {
    "backbone": "resnet38",
    "data": {"kind": "voc", "train_split": "train_aug", "val_split": "val", "void": "background", "skip_bad": False},
    "imagenet_weights": "data/ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
    "pretrain": None,
    "seeds": (0,),
    "cam": {
        **CLASSIFICATION,
        **SIAMESE,
        "posterior": "softmax",
        "extra_loss": "",
        "lam": 1,
        "fsl_weight": 0.5,
        "fsl_normalization": "release",
        "fsl_warmup": 0,
        "fsl_learning_rate": 0.1,
        "mu": 2.5,
        "sigma": 5,
        "eps": 1e-3,
    },
    "inference": {**INFERENCE, "background": "complement"},
    "seam": {**CLASSIFICATION, **SIAMESE, "pooling": "average", "learn_fsl": False},
    "seam_inference": {**INFERENCE, "background": "threshold:0.3"},
    "affinitynet": {**AFFINITY, **WALK, "crf": CAM_CRF, "alpha_amplified": 2, "alpha_weakened": 4},
    "seam_affinitynet": {**AFFINITY, **WALK, "crf": CAM_CRF, "alpha_amplified": 4, "alpha_weakened": 24},
    "deeplab": {
        **SEGMENTATION,
        "scales": (0.5, 0.75, 1, 1.25, 1.5, 1.75),
        "flip": True,
        "interpolation": "bicubic",
        "crf": {**CRF, "iterations": 1, "bilateral_sxy": 32},
        "mu": 2.5,
        "sigma": 5,
    },
}
OWN: dict[str, dict[str, Any]] = {
    "paper": {
        "lambdas": (0, 0.25, 0.5, 0.75, 1),
        "fsl": (False, True),
        "variants": ("average", "seam"),
        "refine": ("lambda1_fsl", "seam"),
        "cam": {"pooling": "max", "num_samples": 1, "sample_background": True, "learn_fsl": True},
        "deeplab": {"fsl_weight": 0},
    },
    "icam": {
        "lambdas": (0, 0.25, 0.5, 0.75, 0.8, 1),
        "fsl": (False, True),
        "variants": ("average", "seam"),
        "refine": ("lambda0.8_fsl", "seam"),
        "cam": {"pooling": "average", "num_samples": 100, "sample_background": False, "learn_fsl": False},
        "deeplab": {"fsl_weight": 0.5},
    },
    "seam": {"lambdas": (), "fsl": (), "variants": ("seam",), "refine": ("seam",), "deeplab": {"fsl_weight": 0}},
}


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
    profile = load_profile(name)
    kinds = ("pretrained_weights", "pretrained_biases", "new_weights", "new_biases")
    groups = {kind: [nn.Parameter(torch.zeros(1))] for kind in kinds}
    classification = (profile.cam, profile.seam, profile.affinitynet, profile.seam_affinitynet)
    for config, rate, momentum in (*((stage, 0.01, 0.0005) for stage in classification), (profile.deeplab, 0.001, 0.9)):
        optimizer = build_optimizer(groups, config.optimizer, [])
        found = [(group["lr"], group["weight_decay"], group["momentum"]) for group in optimizer.param_groups]
        expected = zip((1, 2, 10, 20), (5e-4, 0, 5e-4, 0), strict=True)
        assert found == [pytest.approx((rate * times, decay, momentum)) for times, decay in expected]
    plain = profile.cam.optimizer.model_copy(update={"decay_as_momentum": False})
    assert build_optimizer(groups, plain, []).defaults["momentum"] == 0.9


def test_the_points_that_are_trained() -> None:
    paper, icam, seam = (load_profile(name) for name in PROFILES)
    assert len(paper.grid()) == 5 * 2 + 2 and list(seam.grid()) == [SEAM]
    ours = paper.grid()[OURS]
    assert paper.cam_config(ours) == paper.cam, "the paper's own point changes nothing of the settings"
    released = icam.grid()["lambda0.8_fsl"]
    assert icam.cam_config(released) == icam.cam.model_copy(update={"lam": 0.8})
    for profile in (paper, icam, seam):
        assert profile.cam_config(profile.grid()[SEAM]) == profile.seam == seam.seam


def test_deeplab_trains_its_batch_norm_as_published() -> None:
    with torch.device("meta"):
        net = create_deeplab("resnet38", 21, pretrained=False)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {3e-4} and not any(p.requires_grad for p in net.bn_fov.parameters())
    assert net.conv_fov.out_channels == 512 and net.conv_fov.dilation == (12, 12) and net.stride == 8
    assert BACKBONES["resnet38"].deeplab_released and net.train().bn_fov.training, "batch statistics"
