"""A small pre-activation residual net for synthetic images, trained from scratch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Taps, conv_norm

__all__ = ["Tiny"]


class _Block(nn.Module):
    """y = shortcut(r) + conv2(relu(BN(conv1(r)))), r = relu(BN(x)); the shortcut is 1x1, or x itself.

    ``conv2`` is 3x3 or 1x1 (``kernel``), which decides how much the receptive field grows.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, kernel: int = 3
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(x))
        y = F.relu(conv_norm(x, self.conv1, self.norm2))
        return self.shortcut(x) + self.conv2(y)


class Tiny(Backbone):
    """Three residual stages at stride 4; each output pixel sees 79 x 79 pixels of the image.

    From one end of an object the other must be in sight (half the receptive field, about an object's length), or
    sampling cannot reach it; where the receptive field spans the image, nothing stops a present class
    from flooding the background. Nothing is frozen, so ``frozen`` returns its input.
    """

    channels = Taps(24, 48, 64)
    head_channels = Taps(16, 32, 48)
    stride = 4
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    receptive_field = 79

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.stage1 = _Block(16, 24, stride=2)
        self.stage2 = _Block(24, 48, dilation=3)
        self.stage3 = _Block(48, 64, dilation=4, kernel=1)
        self.norm = nn.BatchNorm2d(64)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def taps(self, features: Tensor) -> Taps[Tensor]:
        """Normalised images (B, 3, H, W) -> 24, 48 and 64 channels at stride 4."""
        conv4 = self.stage1(self.stem(features))
        conv5 = self.stage2(conv4)
        conv6 = F.relu(self.norm(self.stage3(conv5)))
        return Taps(conv4, conv5, conv6)
