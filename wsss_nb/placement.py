"""Random numbers that depend on an image's place in the batch, not on which process computes it or in how many parts.

Where a batch is split over processes, or into parts whose gradients are added up, every part draws for the whole batch from
the same state of the generator and keeps its own rows. Where nothing is split this module does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

__all__ = ["draw_rows", "is_placed", "placed"]

_place: tuple[int, int] | None = None


@contextmanager
def placed(start: int, total: int) -> Iterator[None]:
    """In this block, batches are the rows from ``start`` on of a batch of ``total`` rows.

    Example:
        >>> import torch
        >>> with placed(2, 4):
        ...     draw_rows(lambda shape: torch.arange(shape[0]), (2,))
        tensor([2, 3])
    """
    global _place
    before, _place = _place, (start, total)
    try:
        yield
    finally:
        _place = before


def is_placed() -> bool:
    """Whether a batch is part of a larger one."""
    return _place is not None


def draw_rows(draw: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
    """``draw(shape)``; of a part, its rows of what is drawn for the whole batch.

    Args:
        draw: shape -> random numbers of that shape.
        shape: (rows here, ...).
    """
    if _place is None:
        return draw(shape)
    start, total = _place
    return draw((total, *shape[1:]))[start : start + shape[0]]
