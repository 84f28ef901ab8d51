"""ResNet-38 (Wu, Shen and van den Hengel, "Wider or deeper", 2019) at output stride 8.

Layer names are those of the published state dicts: ``conv1a``, ``b2`` ... ``b7``, ``bn7``.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Dropout2d, Taps, conv_norm

__all__ = ["ResNet38"]

_EARLY = "b2 b2_1 b2_2"


class _Block(nn.Module):
    """y = shortcut + conv3x3(relu(BN(conv3x3(r)))), r = relu(BN(x)); shortcut = 1x1 of r, or x itself."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, first: int, dilation: int) -> None:
        super().__init__()
        self.projects = inputs != outputs or stride != 1
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, middle, 3, stride, first, first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, outputs, 3, 1, dilation, dilation, bias=False)
        if self.projects:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output and r, the first BN-ReLU."""
        r = F.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(r) if self.projects else x
        y = F.relu(conv_norm(r, self.conv_branch2a, self.bn_branch2b1))
        return self.conv_branch2b1(y) + shortcut, r


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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output and the first BN-ReLU."""
        r = F.relu(self.bn_branch2a(x))
        y = self.dropout_2b1(F.relu(conv_norm(r, self.conv_branch2a, self.bn_branch2b1)))
        y = self.dropout_2b2(F.relu(conv_norm(y, self.conv_branch2b1, self.bn_branch2b2)))
        return self.conv_branch2b2(y) + self.conv_branch1(r), r


class ResNet38(Backbone):
    """ResNet-38, stride 8; ``conv1a``, ``b2``, ``b2_1`` and ``b2_2`` are the frozen part.

    Taps: conv4 = first BN-ReLU of b5 (512 channels), conv5 = first BN-ReLU of b6 (1024), conv6 = relu(bn7)
    (4096). With ``freeze=False`` everything is trained (DeepLab). A subclass may set other ``widths``; published weights
    fit these only.
    """

    stride = 8
    widths = (64, 128, 256, 512, 1024, 2048, 4096)
    b5: _Block

    def __init__(self, freeze: bool = True) -> None:
        super().__init__(freeze)
        c64, c128, c256, c512, c1024, c2048, c4096 = self.widths
        self.channels = Taps(c512, c1024, c4096)
        self.conv1a = nn.Conv2d(3, c64, 3, padding=1, bias=False)
        inputs = c64
        for stage, blocks, middle, outputs, stride, dilation in (
            ("b2", 3, c128, c128, 2, 1), ("b3", 3, c256, c256, 2, 1), ("b4", 6, c512, c512, 2, 1), ("b5", 3, c512,
            c1024, 1, 2)
        ):  # fmt: skip
            self.add_module(stage, _Block(inputs, middle, outputs, stride, 1, dilation))
            for block in range(1, blocks):
                self.add_module(f"{stage}_{block}", _Block(outputs, middle, outputs, 1, dilation, dilation))
            inputs = outputs
        self.b6 = _Bottleneck(c1024, c2048, dropout=0.3)
        self.b7 = _Bottleneck(c2048, c4096, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(c4096)

    def _run(self, names: str, x: Tensor) -> Tensor:
        for name in names.split():
            x = self.get_submodule(name)(x)[0]
        return x

    def early_modules(self) -> Sequence[nn.Module]:
        """conv1a, b2, b2_1, b2_2."""
        return [self.conv1a, *(self.get_submodule(name) for name in _EARLY.split())]

    def early(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, 128, H/2, W/2), the output of b2_2."""
        return self._run(_EARLY, self.conv1a(images))

    def late(self, features: Tensor) -> Taps:
        """Features of :meth:`early` -> 512, 1024 and 4096 channels at stride 8."""
        x = self._run("b3 b3_1 b3_2 b4 b4_1 b4_2 b4_3 b4_4 b4_5", features)
        x, conv4 = self.b5(x)
        x, conv5 = self.b6(self._run("b5_1 b5_2", x))
        return Taps(conv4, conv5, F.relu(self.bn7(self._run("b7", x))))
