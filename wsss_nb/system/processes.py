"""One process or several: who computes which rows, what is added up, who writes.

``accelerate launch`` and ``torchrun`` start the same command several times; Hugging Face Accelerate (extra ``cluster``)
connects the processes. A single process needs and loads nothing of it. All processes see the same folders.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn

from wsss_nb.system.errors import expecting, require

__all__ = ["Processes", "draw_rows", "is_slice", "launched", "processes", "slice_of_batch"]

T = TypeVar("T")


class Processes:
    """A single process; what several do differently is in the class below.

    Attributes:
        index: number of this process.
        count: number of processes.
        device: where this process computes.
    """

    index = 0
    count = 1

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is one of."""
        return self.index == 0

    def rows(self, total: int) -> tuple[int, int]:
        """First and last + 1 of this process's rows in a batch of ``total`` images.

        Raises:
            InputError: not the same number of images for each process.
        """
        divides = total >= self.count and total % self.count == 0
        require(divides, f"batch_size: expected a multiple of the {self.count} processes, got {total}")
        return self.index * total // self.count, (self.index + 1) * total // self.count

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th item, beginning with this process's own."""
        return items[self.index :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values

    def broadcast(self, value: T) -> T:
        """The main process's value, for all."""
        return value

    def barrier(self) -> None:
        """Wait for all processes."""

    def per_process(self, count: Tensor) -> Tensor | None:
        """What a sum over this process's items has to be divided by, so that the processes' mean is that of all items.

        None for a single process, whose items are all.
        """
        return None if self.count == 1 else self.sum(count).to(count.device) / self.count

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients averaged over the processes."""
        return module


class _Launched(Processes):
    """Several processes, connected by Accelerate: NCCL on GPUs, gloo on CPUs."""

    def __init__(self) -> None:
        needed = "Hugging Face Accelerate for several of them (pip install -e '.[cluster]')"
        with expecting(needed, "processes", ImportError):
            from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
            from accelerate.utils import broadcast_object_list
        # one process may check data or score for long while the others wait; layers may be left out of a step
        handlers = [
            InitProcessGroupKwargs(timeout=timedelta(days=1)),
            DistributedDataParallelKwargs(find_unused_parameters=True),
        ]
        # precision and compiling are settings of the profile, not of a user's configuration of Accelerate
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision="no", dynamo_backend="no", kwargs_handlers=handlers
        )
        self._broadcast = broadcast_object_list
        self.index, self.count = self._accelerator.process_index, self._accelerator.num_processes
        connected = f"{launched()} connected ones (WORLD_SIZE), got {self.count}"
        require(self.count == launched(), f"processes: expected {connected}")
        self.device = self._accelerator.device

    def sum(self, values: Tensor) -> Tensor:
        total: Tensor = self._accelerator.reduce(values.to(self.device), "sum")
        return total

    def broadcast(self, value: T) -> T:
        sent: list[T] = self._broadcast([value])
        return sent[0]

    def barrier(self) -> None:
        self._accelerator.wait_for_everyone()

    def wrap(self, module: nn.Module) -> nn.Module:
        self._accelerator.free_memory()  # it would keep the network of the stage before
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped


def launched() -> int:
    """World size (default 1)."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdecimal() else 1


@functools.cache
def processes() -> Processes:
    """The processes of this command; the first call connects them.

    Raises:
        InputError: several processes without Accelerate.
    """
    return _Launched() if launched() > 1 else Processes()


# Random numbers depend on an image's place in the batch, not on which process computes it: where several processes share a
# batch, each draws for the whole batch from the same state of the generator and keeps its slice.
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
