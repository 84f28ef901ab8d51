"""One thread for small work: on maps of a few thousand pixels several threads only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["single_thread"]


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch use one thread inside the block (or the decorated function), then as many as before.

    On a busy machine two threads have been seen to take forty times as long as one for a 56 x 56 map.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
