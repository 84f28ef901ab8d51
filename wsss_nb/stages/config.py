"""What each stage can be told, as frozen typed objects; defaults are the paper's, where it is silent its release's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from wsss_nb.crf import CRFConfig
from wsss_nb.pseudo_labels import parse_background_rule
from wsss_nb.sampling import find_pooling
from wsss_nb.similarity import MU_RANGE, SIGMA_RANGE, Normalization
from wsss_nb.system.config import Config
from wsss_nb.system.plugins import is_plugin, load_function

__all__ = [
    "AffinityNetConfig", "CamConfig", "DeepLabConfig", "InferenceConfig", "OptimizerConfig", "PretrainConfig",
    "TrainingConfig", "ViewsConfig"
]  # fmt: skip

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Size = tuple[PositiveInt, PositiveInt]
Scales = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
Alpha = Annotated[float, Field(gt=0, le=1000)]
Mu = Annotated[float, Field(ge=MU_RANGE[0], le=MU_RANGE[1])]
Sigma = Annotated[float, Field(ge=SIGMA_RANGE[0], le=SIGMA_RANGE[1])]


class OptimizerConfig(Config):
    """SGD with polynomial decay, lr(t) = learning_rate * (1 - t / max)^power, after a linear warm-up over ``warmup``.

    Parameter groups are multiplied: pretrained weights x1, pretrained biases x2 (no decay), new weights
    x ``head_multiplier``, new biases x 2 ``head_multiplier`` (no decay). In the release the optimiser of stages 1 and 2
    hands its weight decay over in the place of SGD's momentum, which therefore is 0.0005 and not 0.9;
    ``decay_as_momentum`` does the same. The decay itself is not touched by this.
    """

    learning_rate: PositiveFloat = 0.01
    momentum: Share = 0.9
    decay_as_momentum: bool = Field(False, description="the release's quirk: weight_decay is also the momentum")
    weight_decay: Share = 5e-4
    power: PositiveFloat = 0.9
    head_multiplier: PositiveFloat = 10.0
    warmup: Share = Field(0.0, description="share of the steps of a linear warm-up; 0 in the paper")


class ViewsConfig(Config):
    """Which views of an image a network is trained on.

    With ``cached`` every image is resized to each of ``sizes`` (rows, columns), also mirrored with ``flip``, and the
    network's frozen part is computed once for all of training. Otherwise each epoch sees fresh augmentations. CAM network
    and AffinityNet: long side drawn from ``long_side`` (None keeps the size: AffinityNet in the releases), flip, colour
    ``jitter``, random crop of ``crop`` pixels. DeepLab: size times a factor drawn from ``zoom``, ``hsv`` shift, random
    crop, flip.
    """

    cached: bool = False
    sizes: Annotated[tuple[Size, ...], Field(min_length=1)] = ((448, 448),)
    flip: bool = True
    crop: PositiveInt = 448
    long_side: tuple[PositiveInt, PositiveInt] | None = (448, 768)
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None = (0.3, 0.3, 0.3, 0.1)
    zoom: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.5)
    hsv: Annotated[int, Field(ge=0, le=127)] = 10
    loader_workers: Annotated[int, Field(ge=0)] = 0


class TrainingConfig(Config):
    """What the training of every stage can be told; ``batch_size`` counts the images of a step over all processes."""

    epochs: PositiveInt = 8
    batch_size: PositiveInt = 8
    optimizer: OptimizerConfig = OptimizerConfig()
    views: ViewsConfig = ViewsConfig()
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of convolutions and matrix products, in training and inference; the losses are float32"
    )
    compile: bool = Field(False, description="torch.compile the trained part of the network, on GPUs")


class PretrainConfig(TrainingConfig):
    """An ordinary classifier on the run's own images, the start of every network without ImageNet weights."""

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 16


class CamConfig(TrainingConfig):
    """Stage 1, the CAM network (Eq. 1-8 and the siamese terms of the release)."""

    dropout: Share = 0.5
    freeze: bool = Field(True, description="keep the backbone's early layers as they are; BatchNorm is fixed anyway")
    posterior: str = Field("softmax", description="Eq. 1: softmax, or module:function, logits -> maps (B, K, H, W)")
    pooling: str = Field("max", description="(1 - lambda) term of Eq. 5: max, average or module:function")
    lam: Fraction = Field(1.0, description="lambda of Eq. 5: weight of the sampling term")
    num_samples: PositiveInt | None = Field(1, description="draws per class; None = exact expectation")
    sample_background: bool = True
    eps: float = Field(1e-3, gt=0, lt=0.5, description="how far Eq. 3 keeps probabilities from 0 and 1; the release's")
    fsl_weight: NonNegativeFloat = Field(0.5, description="weight of the feature-similarity loss (Eq. 6)")
    fsl_normalization: Normalization = Field("release", description="divisor of Eq. 6: HW/2, HW or the paper's (HW)^2")
    fsl_warmup: Share = Field(0.0, description="share of the steps over which Eq. 6 gains its weight; 0 in the paper")
    mu: Mu = 2.5
    sigma: Sigma = 5.0
    learn_fsl: bool = Field(False, description="learn mu and sigma, as in the paper")
    fsl_learning_rate: PositiveFloat = Field(0.1, description="rate of mu and sigma as a multiple of learning_rate")
    siamese: bool = True
    siamese_scale: Annotated[float, Field(gt=0, lt=1)] = 0.3
    extra_loss: str = Field("", description="module:function, (maps, images, labels) -> a further loss, added as it is")

    @model_validator(mode="after")
    def _consistent(self) -> CamConfig:
        find_pooling(self.pooling)
        for name, builtin in (("posterior", "softmax"), ("extra_loss", "")):
            value = getattr(self, name)
            if is_plugin(value):
                load_function(value, name)
            elif value != builtin:
                allowed = f"{builtin} or module:function" if builtin else "module:function"
                raise ValueError(f"expected {name} {allowed}, got {value!r}")
        for name, (low, high) in (("mu", MU_RANGE), ("sigma", SIGMA_RANGE)):
            value = getattr(self, name)
            if self.learn_fsl and not low < value < high:
                raise ValueError(f"expected {low:g} < {name} < {high:g} where it is learned, got {value:g}")
        return self


class InferenceConfig(Config):
    """Multi-scale inference with flips, and the rule that makes label maps of the CAMs."""

    scales: Scales = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    max_normalize: bool = True
    background: str = "complement"

    @field_validator("background")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        parse_background_rule(value)
        return value


class AffinityNetConfig(TrainingConfig):
    """Stage 2: CRF maps of the CAMs, AffinityNet on their confident pairs, random walk."""

    views: ViewsConfig = ViewsConfig(long_side=None)
    crf: CRFConfig = CRFConfig()
    alpha_amplified: Alpha = 2.0
    alpha_weakened: Alpha = 4.0
    alpha_walk: Alpha = 6.0
    radius: Annotated[int, Field(ge=2, le=10)] = 5
    beta: PositiveFloat = 8.0
    log_t: Annotated[int, Field(ge=0, le=12)] = 6


class DeepLabConfig(TrainingConfig):
    """Stage 3: DeepLab-v1 on the pseudo-labels, dense CRF at test.

    With ``iterations`` training takes that many steps, whatever ``epochs`` says; the last epoch may be cut short.
    """

    epochs: PositiveInt = 20
    iterations: PositiveInt | None = None
    batch_size: PositiveInt = 10
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.001)
    fsl_weight: NonNegativeFloat = Field(0.0, description="0.5 in the extended release, mu and sigma fixed")
    mu: Mu = 2.5
    sigma: Sigma = 5.0
    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="of images at the scales of the test")
    crf: CRFConfig | None = CRFConfig(iterations=1, bilateral_sxy=32)
