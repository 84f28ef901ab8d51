"""What each stage can be told, as frozen typed objects; defaults are the paper's, where it is silent its release's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wsss_nb.config import Config
from wsss_nb.crf import Backend
from wsss_nb.pseudo_labels import parse_background_rule
from wsss_nb.similarity import MU_RANGE, SIGMA_RANGE, Normalization

__all__ = [
    "AffinityNetConfig",
    "CRFStageConfig",
    "CamConfig",
    "DeepLabConfig",
    "InferenceConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "TrainingConfig",
    "ViewsConfig",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Size = tuple[Count, Count]
Width = Annotated[float, Field(ge=0.1, le=1e5)]  # as wsss_nb.crf.CRFConfig, here before hours of training
Compatibility = Annotated[float, Field(ge=0, le=1e6)]


class OptimizerConfig(Config):
    """SGD with polynomial decay: lr(t) = learning_rate * (1 - t / max)^power, risen to linearly over ``warmup``.

    Parameter groups are multiplied: pretrained weights x1, pretrained biases x2 (no decay), new weights
    x ``head_multiplier``, new biases x 2 ``head_multiplier`` (no decay). In the release the optimiser of stages 1 and 2
    hands its weight decay over in the place of SGD's momentum, which therefore is 0.0005 and not 0.9;
    ``decay_as_momentum`` does the same. The decay itself is not touched by this.
    """

    learning_rate: Positive = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay_as_momentum: bool = Field(
        False, description="the release's quirk: weight_decay is also the momentum"
    )
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 5e-4
    power: Positive = 0.9
    head_multiplier: Positive = 10.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of the steps; 0 in the paper")

    @property
    def effective_momentum(self) -> float:
        """What SGD gets: ``momentum``, or ``weight_decay`` with the quirk of the release."""
        return self.weight_decay if self.decay_as_momentum else self.momentum


class ViewsConfig(Config):
    """Which views of an image a network is trained on.

    With ``cached`` every image is resized to each of ``sizes`` (rows, columns), also mirrored with ``flip``, and the
    network's frozen part is computed once for all of training. Otherwise each epoch sees fresh augmentations. CAM network
    and AffinityNet: long side drawn from ``long_side`` (None keeps the size: AffinityNet in the releases), flip, colour
    ``jitter``, random crop of ``crop`` pixels. DeepLab: size times a factor drawn from ``zoom``, ``hsv`` shift, random
    crop, flip.
    """

    cached: bool = False
    sizes: tuple[Size, ...] = ((448, 448),)
    flip: bool = True
    crop: Count = 448
    long_side: tuple[Count, Count] | None = (448, 768)
    jitter: tuple[NonNegative, NonNegative, NonNegative, NonNegative] | None = (0.3, 0.3, 0.3, 0.1)
    zoom: tuple[Positive, Positive] = (0.5, 1.5)
    hsv: Annotated[int, Field(ge=0, le=127)] = 10
    loader_workers: Annotated[int, Field(ge=0)] = 0


class TrainingConfig(Config):
    """What the training of every stage can be told.

    ``batch_size`` counts the images of a step over all processes and parts.
    """

    epochs: Count = 8
    batch_size: Count = 8
    optimizer: OptimizerConfig = OptimizerConfig()
    views: ViewsConfig = ViewsConfig()
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="of convolutions and matrix products, in training and inference; the losses are float32",
    )
    accumulate: Count = Field(
        1,
        description="parts a process computes its rows of a batch in, to save memory; BatchNorm that is trained "
        "(stage 3) normalises by each part",
    )
    channels_last: bool = Field(True, description="memory layout of the convolutions in training")
    compile: bool = Field(False, description="torch.compile of the trained part of the network")


class PretrainConfig(TrainingConfig):
    """An ordinary classifier on the run's own images, the start of every network without ImageNet weights."""

    epochs: Count = 12
    batch_size: Count = 16


class CamConfig(TrainingConfig):
    """Stage 1, the CAM network (Eq. 1-8 and the siamese terms of the release)."""

    method: Literal["paper", "seam"] = "paper"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    freeze: bool = Field(
        True, description="keep the backbone's early layers as they are; BatchNorm is fixed anyway"
    )
    pooling: Literal["max", "average"] = "max"
    weight: Fraction = Field(1.0, description="lambda of Eq. 5: weight of the sampling term")
    num_samples: Count | None = Field(1, description="draws per class; None = exact expectation")
    sample_background: bool = True
    eps: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        1e-3, description="how far Eq. 3 keeps probabilities from 0 and 1; the release's, none in the paper"
    )
    similarity_weight: NonNegative = 0.5
    similarity_normalization: Normalization = Field(
        "pixels", description="pixels: weight x 2 L_fs / HW as released; pairs: weight x Eq. 6 to the letter"
    )
    similarity_warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the steps over which the similarity loss gains its weight; 0 in the paper"
    )
    mu: Annotated[float, Field(ge=-2, le=6)] = 2.5
    sigma: Annotated[float, Field(ge=0.5, le=20)] = 5.0
    learn_similarity: bool = False
    similarity_learning_rate: Positive = Field(
        0.1, description="rate of mu and sigma as a multiple of learning_rate"
    )
    siamese: bool = True
    siamese_scale: Annotated[float, Field(gt=0, lt=1)] = 0.3

    @model_validator(mode="after")
    def _learned_values_start_inside(self) -> CamConfig:
        if self.learn_similarity:
            for name, (low, high) in (("mu", MU_RANGE), ("sigma", SIGMA_RANGE)):
                value = getattr(self, name)
                if not low < value < high:
                    raise ValueError(
                        f"expected {low:g} < {name} < {high:g} where it is learned, got {value:g}"
                    )
        return self


class InferenceConfig(Config):
    """Multi-scale inference with flips, and the rule that makes label maps of the CAMs."""

    scales: tuple[Positive, ...] = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    max_normalize: bool = True
    background: str = "complement"

    @field_validator("background")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        parse_background_rule(value)
        return value


class CRFStageConfig(Config):
    """Dense CRF parameters, widths in pixels (sxy) and grey levels (srgb)."""

    backend: Backend = Field(
        "auto",
        description="what computes it: pydensecrf as in the paper, torch, cuda; auto = cuda, pydensecrf or torch, the "
        "first that can be had",
    )
    iterations: Annotated[int, Field(ge=0, le=100)] = 10
    bilateral_sxy: Width = 80
    bilateral_srgb: Width = 13
    bilateral_compat: Compatibility = 10
    gaussian_sxy: Width = 3
    gaussian_compat: Compatibility = 3


class AffinityNetConfig(TrainingConfig):
    """Stage 2: CRF maps of the CAMs, AffinityNet on their confident pairs, random walk."""

    views: ViewsConfig = ViewsConfig(long_side=None)
    crf: CRFStageConfig = CRFStageConfig()
    alpha_amplified: Positive = 2.0
    alpha_weakened: Positive = 4.0
    alpha_walk: Positive = 6.0
    radius: Annotated[int, Field(ge=2, le=10)] = 5
    beta: Positive = 8.0
    log_t: Annotated[int, Field(ge=0, le=12)] = 6


class DeepLabConfig(TrainingConfig):
    """Stage 3: DeepLab-v1 on the pseudo-labels, dense CRF at test.

    With ``iterations`` training takes that many steps, whatever ``epochs`` says; the last epoch may be cut short.
    """

    epochs: Count = 20
    iterations: Count | None = None
    batch_size: Count = 10
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.001)
    similarity_weight: NonNegative = Field(0.0, description="0.5 in the extended release, mu and sigma fixed")
    mu: Annotated[float, Field(ge=-2, le=6)] = 2.5
    sigma: Annotated[float, Field(ge=0.5, le=20)] = 5.0
    scales: tuple[Positive, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True
    interpolation: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="of the image at the scales of the test; bicubic as released"
    )
    crf: CRFStageConfig | None = CRFStageConfig(iterations=1, bilateral_sxy=32)
