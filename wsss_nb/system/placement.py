"""Random numbers that depend on an image's place in the batch, not on which process computes it.

Where several processes share a batch, each draws for the whole batch from the same state of the generator and keeps its
slice. In a single process this module does nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

__all__ = ["draw_rows", "is_slice", "slice_of_batch"]

_slice: tuple[int, int] | None = None


@contextmanager
def slice_of_batch(start: int, total: int) -> Iterator[None]:
    """In this block, batches are the rows from ``start`` on of a global batch of ``total`` rows.

    Example:
        >>> import torch
        >>> with slice_of_batch(2, 4):
        ...     draw_rows(lambda shape: torch.arange(shape[0]), (2,))
        tensor([2, 3])
    """
    global _slice
    before, _slice = _slice, (start, total)
    try:
        yield
    finally:
        _slice = before


def is_slice() -> bool:
    """Whether a batch is a slice of a larger one."""
    return _slice is not None


def draw_rows(draw: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
    """``draw(shape)``, of a slice the rows of what is drawn for the global batch.

    Args:
        draw: shape -> random numbers of that shape.
        shape: (rows here, ...).
    """
    if _slice is None:
        return draw(shape)
    start, total = _slice
    return draw((total, *shape[1:]))[start : start + shape[0]]
