"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wsss_nb.models.backbone import Backbone, Tiny
from wsss_nb.models.efficientnet import EfficientNetLite0, imagenet_file
from wsss_nb.models.resnet38 import ResNet38

__all__ = ["BACKBONES", "BackboneSpec", "create_backbone"]


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a backbone and the DeepLab head that suits it.

    Attributes:
        build: freeze -> backbone without pretrained weights.
        pretrained_file: where pip put the ImageNet weights that ``load_imagenet`` takes; None where there are none.
        deeplab_width: channels of DeepLab's head.
        deeplab_reach: dilation of DeepLab's 3x3 convolution in pixels of the image.
        deeplab_released: whether DeepLab starts and trains as in the release, see ``DeepLab``.
    """

    build: Callable[[bool], Backbone]
    pretrained_file: Callable[[], Path] | None = None
    deeplab_width: int = 512
    deeplab_reach: int = 96
    deeplab_released: bool = False


BACKBONES = {
    "tiny": BackboneSpec(lambda freeze: Tiny(), deeplab_width=96, deeplab_reach=12),
    "efficientnet_lite0": BackboneSpec(partial(EfficientNetLite0, 16), imagenet_file, deeplab_width=256),
    "efficientnet_lite0_stride8": BackboneSpec(partial(EfficientNetLite0, 8), imagenet_file, deeplab_width=256),
    "resnet38": BackboneSpec(ResNet38, deeplab_released=True),
}


def create_backbone(name: str, *, pretrained: bool = True, freeze: bool = True) -> Backbone:
    """Build a backbone by its name in :data:`BACKBONES`.

    Args:
        name: "tiny", "efficientnet_lite0" or "resnet38".
        pretrained: take ImageNet weights where a pip package carries them (EfficientNet-Lite0). The tiny net
            has none, and those of ResNet-38 come from a file, see ``load_checkpoint``; both start at random.
        freeze: whether the early part is never trained.

    Raises:
        ValueError: unknown name.

    Example:
        >>> create_backbone("tiny").stride
        4

    Paper (Section 4.1) and release: ResNet-38 (Wu et al., 2019) at stride 8. The others are ours, for small machines.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {name!r}")
    backbone = BACKBONES[name].build(freeze)
    if pretrained:
        backbone.load_imagenet()
    return backbone
