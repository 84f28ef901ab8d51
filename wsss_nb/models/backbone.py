"""What every backbone offers, the layers they share, and the smallest of them, for synthetic images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.system.processes import draw_rows, is_slice

__all__ = ["Backbone", "Dropout", "Dropout2d", "Taps", "Tiny", "conv_norm", "folded_batch_norm"]

Pair = tuple[int, int]
Folded = dict[tuple[nn.Conv2d, torch.dtype], tuple[Tensor, Tensor]]
_folded: ContextVar[Folded | None] = ContextVar("folded", default=None)


class Taps(NamedTuple):
    """A map, or number of channels, per tapped level: ``conv4``, ``conv5`` for pixel affinities, ``conv6`` for classes."""

    conv4: Any
    conv5: Any
    conv6: Any


class Backbone(nn.Module, ABC):
    """A feature extractor in two parts, ``taps(frozen(x))``, for normalised images x of shape (B, 3, H, W).

    Attributes:
        channels: channels of the three taps.
        head_channels: widths of the 1x1 layers that the networks put on the taps.
        stride: pixels of the image per pixel of conv6; maps measure ceil(H / stride) x ceil(W / stride).
        mean, std: normalisation of images in [0, 1], per RGB channel.
        freeze: whether the early part is never trained; if not, :meth:`frozen` returns its input.
    """

    channels: Taps
    head_channels: Taps = Taps(64, 128, 256)
    stride: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __init__(self, freeze: bool = True) -> None:
        super().__init__()
        self.freeze = freeze

    def early_modules(self) -> Sequence[nn.Module]:
        """The modules that :meth:`early` runs."""
        return ()

    def early(self, images: Tensor) -> Tensor:
        """The part that ``freeze`` keeps from training: normalised images (B, 3, H, W) -> features."""
        return images

    @abstractmethod
    def late(self, features: Tensor) -> Taps:
        """The part that is always trained: features of :meth:`early` -> the three tapped maps."""

    def frozen_modules(self) -> Sequence[nn.Module]:
        """The modules that training must leave as they are."""
        return self.early_modules() if self.freeze else ()

    def frozen(self, images: Tensor) -> Tensor:
        """The part that is never trained, so that its output may be cached; (B, 3, H, W) -> features."""
        return self.early(images) if self.freeze else images

    def taps(self, features: Tensor) -> Taps:
        """The trained part: features of :meth:`frozen` -> the three tapped maps."""
        return self.late(features if self.freeze else self.early(features))

    def forward(self, images: Tensor) -> Taps:
        """``taps(frozen(images))``."""
        return self.taps(self.frozen(images))

    def load_imagenet(self) -> None:
        """Take the ImageNet weights that a pip package carries; without such a package nothing changes."""


@contextmanager
def folded_batch_norm() -> Iterator[None]:
    """Fold BatchNorm into the convolutions once for all forward passes inside; no weight may change meanwhile.

    For inference: folding and casting take a twentieth of the time of a forward pass in bfloat16 on a CPU.

    Example:
        >>> net = nn.Identity()
        >>> with folded_batch_norm(), torch.no_grad():
        ...     views = [net(torch.zeros(1, 3, 8, 8)) for _ in range(2)]

    In neither the paper nor the release; the numbers stay those of BatchNorm after the convolution, to rounding.
    """
    outer = _folded.get()
    token = _folded.set({} if outer is None else outer)
    try:
        yield
    finally:
        _folded.reset(token)


def conv_norm(
    x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, padding: Pair | None = None, skip: Pair = (0, 0)
) -> Tensor:
    """BatchNorm of a convolution, as one convolution where the statistics are fixed.

    In eval mode BN(Wx) = (s W) x + (beta - s m) with s = gamma / sqrt(v + eps): folding the scale into the
    weights saves a pass over the activations, forward and backward, and the memory to keep them. In
    train mode it is ``norm(conv(x))``. Forward hooks on ``conv`` and ``norm`` do not fire in eval mode.

    Args:
        x: (B, C, H, W).
        conv: convolution without bias.
        norm: the BatchNorm that follows it.
        padding: replaces ``conv.padding``.
        skip: rows and columns to leave out at the top and the left of what the convolution gives.
    """
    pad = conv.padding if padding is None else padding
    weight, shift = (conv.weight, None) if norm.training else _fold(conv, norm, x)
    y = F.conv2d(x, weight, shift, conv.stride, pad, conv.dilation, conv.groups)
    if any(skip):
        y = y[..., skip[0] :, skip[1] :]
    return norm(y) if norm.training else y


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """s W and beta - s m; inside :func:`folded_batch_norm` computed once, and kept as autocast wants them."""
    kept = _folded.get()
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else conv.weight.dtype
    if kept is not None and (conv, dtype) in kept:
        return kept[conv, dtype]
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight, shift = conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    if kept is not None:
        weight, shift = kept[conv, dtype] = weight.to(dtype), shift.to(dtype)
    return weight, shift


class _SlicedDropout(nn.Module):
    p: float

    def forward(self, x: Tensor) -> Tensor:
        """As torch's where the batch is whole."""
        if not (self.training and self.p and is_slice()):
            return super().forward(x)
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format

        def draw(shape: tuple[int, ...]) -> Tensor:
            empty = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
            return empty.bernoulli_(1 - self.p).div_(1 - self.p)

        return x * draw_rows(draw, (*x.shape[:2], 1, 1) if isinstance(self, nn.Dropout2d) else tuple(x.shape))


class Dropout(_SlicedDropout, nn.Dropout):
    """:class:`torch.nn.Dropout`; of a slice of a batch, the slice of what the whole batch would get on a CPU."""


class Dropout2d(_SlicedDropout, nn.Dropout2d):
    """:class:`torch.nn.Dropout2d`; of a slice of a batch, the slice of what the whole batch would get."""


class _TinyBlock(nn.Module):
    """y = shortcut(r) + conv2(relu(BN(conv1(r)))), r = relu(BN(x)); the shortcut is 1x1, or x itself.

    ``conv2`` is 3x3 or 1x1 (``kernel``), which decides how much the receptive field grows.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, kernel: int = 3) -> None:
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

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.stage1 = _TinyBlock(16, 24, stride=2)
        self.stage2 = _TinyBlock(24, 48, dilation=3)
        self.stage3 = _TinyBlock(48, 64, dilation=4, kernel=1)
        self.norm = nn.BatchNorm2d(64)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def late(self, features: Tensor) -> Taps:
        """Normalised images (B, 3, H, W) -> 24, 48 and 64 channels at stride 4."""
        conv4 = self.stage1(self.stem(features))
        conv5 = self.stage2(conv4)
        conv6 = F.relu(self.norm(self.stage3(conv5)))
        return Taps(conv4, conv5, conv6)
