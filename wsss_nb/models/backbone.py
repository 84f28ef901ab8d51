"""What every backbone offers: a frozen part, three tapped feature maps, and how it wants its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Backbone", "Taps", "conv_norm", "fixed_weights"]

T = TypeVar("T")
Folded = dict[tuple[nn.Conv2d, torch.dtype], tuple[Tensor, Tensor]]
_folded: ContextVar[Folded | None] = ContextVar("folded", default=None)


class Taps(NamedTuple, Generic[T]):
    """One value per tapped level: ``conv4`` and ``conv5`` for pixel affinities, ``conv6`` for classes."""

    conv4: T
    conv5: T
    conv6: T


class Backbone(nn.Module, ABC):
    """A feature extractor in two parts, ``taps(frozen(x))``, for normalised images x of shape (B, 3, H, W).

    Attributes:
        channels: channels of the three taps.
        head_channels: widths of the 1x1 layers that the networks put on the taps.
        stride: pixels of the image per pixel of conv6; maps measure ceil(H / stride) x ceil(W / stride).
        mean, std: normalisation of images in [0, 1], per RGB channel.
        pretrained: whether the weights come from ImageNet.
        freeze: whether :meth:`frozen` holds the part that is never trained; if not it returns its input.
    """

    channels: Taps[int]
    head_channels: Taps[int] = Taps(64, 128, 256)
    stride: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pretrained: bool = False
    freeze: bool = True

    def frozen_modules(self) -> Sequence[nn.Module]:
        """The modules that :meth:`frozen` runs and that training must leave as they are."""
        return ()

    def frozen(self, images: Tensor) -> Tensor:
        """The part that is never trained, so that its output may be cached; (B, 3, H, W) -> features."""
        return images

    @abstractmethod
    def taps(self, features: Tensor) -> Taps[Tensor]:
        """The trained part: features of :meth:`frozen` -> the three tapped maps."""

    def forward(self, images: Tensor) -> Taps[Tensor]:
        """``taps(frozen(images))``."""
        return self.taps(self.frozen(images))


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Forward passes inside share the folded weights of :func:`conv_norm`; no weight may change meanwhile.

    For inference: folding and casting take a twentieth of the time of a forward pass in bfloat16 on a CPU.

    Example:
        >>> net = nn.Identity()
        >>> with fixed_weights(), torch.no_grad():
        ...     views = [net(torch.zeros(1, 3, 8, 8)) for _ in range(2)]

    In neither the paper nor the release; the numbers stay those of BatchNorm after the convolution, to rounding.
    """
    if _folded.get() is not None:
        yield
        return
    token = _folded.set({})
    try:
        yield
    finally:
        _folded.reset(token)


def conv_norm(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    padding: tuple[int, int] | None = None,
    skip: tuple[int, int] = (0, 0),
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
    """s W and beta - s m; inside :func:`fixed_weights` computed once, and kept as autocast wants them."""
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
