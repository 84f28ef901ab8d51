"""Dropout whose zeros depend on an image's place in the batch, see ``wsss_nb.placement``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_nb.placement import draw_rows, is_placed

__all__ = ["Dropout", "Dropout2d"]


def _kept(x: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last and shape == tuple(x.shape) else torch.contiguous_format

    def draw(shape: tuple[int, ...]) -> Tensor:
        empty = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        return empty.bernoulli_(1 - p).div_(1 - p)

    return draw_rows(draw, shape)


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout`; of a part of a batch, the part of what the whole batch would get on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """As torch's where the batch is whole."""
        if not (self.training and self.p and is_placed()):
            return super().forward(x)
        return x * _kept(x, tuple(x.shape), self.p)


class Dropout2d(nn.Dropout2d):
    """:class:`torch.nn.Dropout2d`; of a part of a batch, the part of what the whole batch would get."""

    def forward(self, x: Tensor) -> Tensor:
        """As torch's where the batch is whole."""
        if not (self.training and self.p and is_placed()):
            return super().forward(x)
        return x * _kept(x, (x.shape[0], x.shape[1], 1, 1), self.p)
