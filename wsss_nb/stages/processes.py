"""One process or several: who computes which rows, what is added up, who writes.

``accelerate launch`` and ``torchrun`` start the same command several times; Hugging Face Accelerate (extra ``cluster``)
connects the processes. A single process needs and loads nothing of it. All processes see the same folders.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wsss_nb.errors import InputError

__all__ = ["Processes", "launched", "processes"]

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
            InputError: fewer images than processes.
        """
        if total < self.count:
            raise InputError(
                f"batch_size: expected at least one image for each of {self.count} processes, got {total}"
            )
        return self.index * total // self.count, (self.index + 1) * total // self.count

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th item, beginning with this process's own."""
        return items[self.index :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values

    def same(self, value: T) -> T:
        """The main process's value, for all."""
        return value

    def wait(self) -> None:
        """Go on when all processes are here."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients averaged over the processes."""
        return module

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Gradients of this block stay here until the next ones."""
        return nullcontext()


class _Launched(Processes):
    """Several processes, connected by Accelerate: NCCL on GPUs, gloo on CPUs."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
            from accelerate.utils import broadcast_object_list
        except ImportError as error:
            raise InputError(
                "processes: expected Hugging Face Accelerate for several of them (pip install -e '.[cluster]'), "
                "got no such package"
            ) from error
        # one process may check data or score for long while the others wait; layers may be left out of a step
        handlers = [
            InitProcessGroupKwargs(timeout=timedelta(days=1)),
            DistributedDataParallelKwargs(find_unused_parameters=True),
        ]
        # precision and compiling are settings of the profile, not of a user's configuration of Accelerate
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",
            dynamo_backend="no",
            kwargs_handlers=handlers,
        )
        if self._accelerator.num_processes != launched():
            raise InputError(
                f"processes: expected {launched()} connected ones (WORLD_SIZE), got {self._accelerator.num_processes}"
            )
        self._broadcast = broadcast_object_list
        self.index, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.device = self._accelerator.device

    def sum(self, values: Tensor) -> Tensor:
        total: Tensor = self._accelerator.reduce(values.to(self.device), "sum")
        return total

    def same(self, value: T) -> T:
        sent: list[T] = self._broadcast([value])
        return sent[0]

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def wrap(self, module: nn.Module) -> nn.Module:
        self._accelerator.free_memory()  # it would keep the network of the stage before
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return context


def launched() -> int:
    """How many processes this command was started as, and 1 where nobody says so."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdecimal() else 1


@functools.cache
def processes() -> Processes:
    """The processes of this command; the first call connects them.

    Raises:
        InputError: several processes without Accelerate.
    """
    return _Launched() if launched() > 1 else Processes()
