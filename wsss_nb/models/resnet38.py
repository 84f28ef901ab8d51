"""ResNet-38 (Wu, Shen and van den Hengel, "Wider or deeper", 2019) at output stride 8.

Layer names are those of the published state dicts: ``conv1a``, ``b2`` ... ``b7``, ``bn7``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Taps, conv_norm
from wsss_nb.models.dropout import Dropout2d

__all__ = ["ResNet38"]


class _Block(nn.Module):
    """y = shortcut + conv3x3(relu(BN(conv3x3(r)))), r = relu(BN(x)); shortcut = 1x1 of r, or x itself."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, stride: int = 1, first: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.projects = inputs != outputs or stride != 1
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, middle, 3, stride, first, first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, outputs, 3, 1, dilation, dilation, bias=False)
        if self.projects:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def tapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output and r, the first BN-ReLU."""
        r = F.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(r) if self.projects else x
        y = F.relu(conv_norm(r, self.conv_branch2a, self.bn_branch2b1))
        return self.conv_branch2b1(y) + shortcut, r

    def forward(self, x: Tensor) -> Tensor:
        return self.tapped(x)[0]


class _Bottleneck(nn.Module):
    """1x1 to a quarter, 3x3 with dilation 4 to a half, 1x1; projected shortcut.

    Spatial dropout stands before the 3x3 and before the last 1x1, with the same probability, as in both releases.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, outputs // 4, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(outputs // 4)
        self.dropout_2b1 = Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(outputs // 4, outputs // 2, 3, 1, 4, 4, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(outputs // 2)
        self.dropout_2b2 = Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(outputs // 2, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def tapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output and the first BN-ReLU."""
        r = F.relu(self.bn_branch2a(x))
        y = self.dropout_2b1(F.relu(conv_norm(r, self.conv_branch2a, self.bn_branch2b1)))
        y = self.dropout_2b2(F.relu(conv_norm(y, self.conv_branch2b1, self.bn_branch2b2)))
        return self.conv_branch2b2(y) + self.conv_branch1(r), r

    def forward(self, x: Tensor) -> Tensor:
        return self.tapped(x)[0]


class ResNet38(Backbone):
    """ResNet-38, stride 8; ``conv1a``, ``b2``, ``b2_1`` and ``b2_2`` are the frozen part.

    Taps: conv4 = first BN-ReLU of b5 (512 channels), conv5 = first BN-ReLU of b6 (1024), conv6 = relu(bn7)
    (4096). With ``freeze=False`` everything is trained (DeepLab). ``slimmer`` divides all widths, for trials on small
    machines; published weights fit 1 only.
    """

    stride = 8

    def __init__(self, freeze: bool = True, slimmer: int = 1) -> None:
        super().__init__()
        self.freeze = freeze
        c64, c128, c256, c512, c1024, c2048, c4096 = (64 * 2**power // slimmer for power in range(7))
        self.channels = Taps(c512, c1024, c4096)
        self.conv1a = nn.Conv2d(3, c64, 3, padding=1, bias=False)
        self.b2 = _Block(c64, c128, c128, stride=2)
        self.b2_1 = _Block(c128, c128, c128)
        self.b2_2 = _Block(c128, c128, c128)
        self.b3 = _Block(c128, c256, c256, stride=2)
        self.b3_1 = _Block(c256, c256, c256)
        self.b3_2 = _Block(c256, c256, c256)
        self.b4 = _Block(c256, c512, c512, stride=2)
        self.b4_1 = _Block(c512, c512, c512)
        self.b4_2 = _Block(c512, c512, c512)
        self.b4_3 = _Block(c512, c512, c512)
        self.b4_4 = _Block(c512, c512, c512)
        self.b4_5 = _Block(c512, c512, c512)
        self.b5 = _Block(c512, c512, c1024, first=1, dilation=2)
        self.b5_1 = _Block(c1024, c512, c1024, first=2, dilation=2)
        self.b5_2 = _Block(c1024, c512, c1024, first=2, dilation=2)
        self.b6 = _Bottleneck(c1024, c2048, dropout=0.3)
        self.b7 = _Bottleneck(c2048, c4096, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(c4096)

    def frozen_modules(self) -> Sequence[nn.Module]:
        """conv1a, b2, b2_1, b2_2."""
        return (self.conv1a, self.b2, self.b2_1, self.b2_2) if self.freeze else ()

    def _early(self, images: Tensor) -> Tensor:
        return self.b2_2(self.b2_1(self.b2(self.conv1a(images))))

    def frozen(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, 128, H/2, W/2), the output of b2_2."""
        return self._early(images) if self.freeze else images

    def taps(self, features: Tensor) -> Taps[Tensor]:
        """Features of :meth:`frozen` -> 512, 1024 and 4096 channels at stride 8."""
        x = features if self.freeze else self._early(features)
        for block in (self.b3, self.b3_1, self.b3_2, self.b4, self.b4_1, self.b4_2, self.b4_3, self.b4_4):
            x = block(x)
        x, conv4 = self.b5.tapped(self.b4_5(x))
        x, conv5 = self.b6.tapped(self.b5_2(self.b5_1(x)))
        return Taps(conv4, conv5, F.relu(self.bn7(self.b7(x))))
