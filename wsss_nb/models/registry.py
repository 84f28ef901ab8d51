"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wsss_nb.models.backbone import Backbone
from wsss_nb.models.efficientnet import EfficientNetLite0, imagenet_file
from wsss_nb.models.network import BatchNormMode
from wsss_nb.models.resnet38 import ResNet38
from wsss_nb.models.tiny import Tiny

__all__ = ["BACKBONES", "BackboneSpec", "create_backbone"]


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a backbone and the DeepLab head that suits it.

    Attributes:
        build: (output stride, freeze) -> backbone without pretrained weights.
        output_strides: the strides it can be built at; the first is the default.
        load_pretrained: loads the ImageNet weights that can be installed with pip; None where there are none.
        pretrained_file: where pip put these weights.
        deeplab_width: channels of DeepLab's head.
        deeplab_reach: dilation of DeepLab's 3x3 convolution in pixels of the image.
        deeplab_batch_norm: the backbone's BatchNorm in DeepLab.
        deeplab_momentum: momentum of DeepLab's BatchNorm statistics (backbone and head).
        deeplab_released_head: whether DeepLab's head starts and trains as in the release, see ``DeepLab``.
    """

    build: Callable[[int, bool], Backbone]
    output_strides: tuple[int, ...]
    load_pretrained: Callable[[Backbone], None] | None = None
    pretrained_file: Callable[[], Path] | None = None
    deeplab_width: int = 512
    deeplab_reach: int = 96
    deeplab_batch_norm: BatchNormMode = "frozen"
    deeplab_momentum: float = 0.1
    deeplab_released_head: bool = False


def _load_efficientnet(backbone: Backbone) -> None:
    assert isinstance(backbone, EfficientNetLite0)
    backbone.load_imagenet()


BACKBONES: dict[str, BackboneSpec] = {
    "tiny": BackboneSpec(
        build=lambda stride, freeze: Tiny(), output_strides=(4,), deeplab_width=96, deeplab_reach=12
    ),
    "efficientnet_lite0": BackboneSpec(
        build=EfficientNetLite0,
        output_strides=(16, 8, 32),
        load_pretrained=_load_efficientnet,
        pretrained_file=imagenet_file,
        deeplab_width=256,
    ),
    "efficientnet_lite0_stride8": BackboneSpec(
        build=EfficientNetLite0,
        output_strides=(8,),
        load_pretrained=_load_efficientnet,
        pretrained_file=imagenet_file,
        deeplab_width=256,
    ),
    "resnet38": BackboneSpec(
        build=lambda stride, freeze: ResNet38(freeze),
        output_strides=(8,),
        deeplab_batch_norm="statistics",
        deeplab_momentum=3e-4,
        deeplab_released_head=True,
    ),
}


def create_backbone(
    name: str, *, output_stride: int | None = None, pretrained: bool = True, freeze: bool = True
) -> Backbone:
    """Build a backbone by its name in :data:`BACKBONES`.

    Args:
        name: "tiny", "efficientnet_lite0" or "resnet38".
        output_stride: pixels of the image per pixel of the map; None for the backbone's default.
        pretrained: take ImageNet weights where a pip package carries them (EfficientNet-Lite0). The tiny net
            has none, and those of ResNet-38 come from a file, see ``load_checkpoint``; both start at random,
            and ``backbone.pretrained`` says so.
        freeze: whether the early part is never trained.

    Raises:
        ValueError: unknown name or stride.

    Example:
        >>> create_backbone("tiny").stride
        4

    Paper (Section 4.1) and release: ResNet-38 (Wu et al., 2019) at stride 8. The others are ours, for small machines.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {name!r}")
    spec = BACKBONES[name]
    stride = spec.output_strides[0] if output_stride is None else output_stride
    if stride not in spec.output_strides:
        allowed = ", ".join(str(value) for value in sorted(spec.output_strides))
        raise ValueError(f"output_stride: expected one of {allowed} for {name}, got {stride}")
    backbone = spec.build(stride, freeze)
    if pretrained and spec.load_pretrained is not None:
        spec.load_pretrained(backbone)
    return backbone
