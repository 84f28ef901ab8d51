"""How a training step is computed: precision, layout, compiling, parts of a batch, several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from wsss_nb.placement import placed
from wsss_nb.stages.config import TrainingConfig
from wsss_nb.stages.processes import Processes, processes

__all__ = ["Counts", "NotFiniteError", "Objective", "Part", "Step", "parts_of", "prepare_network"]

Objective = Callable[[Any, torch.Generator], dict[str, Tensor]]
Counts = Callable[[Any], Tensor]


class NotFiniteError(ArithmeticError):
    """What a network gave, or a loss, is not finite; the loop adds where and ends the training."""


def prepare_network(net: Any, config: TrainingConfig) -> None:
    """Lay a network out and compile its trained part, as the stage's settings say; its state dict stays as it is.

    With several processes on GPUs, BatchNorm that is trained sees the whole batch. On CPUs torch has no such layer and
    each process normalises by its own rows.
    """
    if not config.channels_last:
        net.use_memory_format(torch.contiguous_format)
    if processes().count > 1 and processes().device.type == "cuda":
        net.synchronise_batch_norm()
    if config.compile:
        object.__setattr__(net, "from_frozen", torch.compile(net.from_frozen))


@dataclass(frozen=True)
class Part:
    """Rows of a batch that are computed at once.

    Attributes:
        batch: the rows.
        start: their place in the whole batch.
        total: images of the whole batch, over all processes.
        is_last: whether gradients are complete after this part.
    """

    batch: Any
    start: int = 0
    rows: int = 1
    total: int = 1
    is_last: bool = True

    @property
    def share(self) -> float:
        """Fraction of the whole batch."""
        return self.rows / self.total


def parts_of(batch: Any, count: int, total: int | None, crew: Processes, counts: Counts | None) -> list[Part]:
    """Split a process's rows into ``count`` parts, or as many as the process with the fewest rows has of them.

    All processes have the same number of parts: BatchNorm over processes waits for all in every part.

    A loss that is a mean over something else than images (pixels with a label, pairs of a kind) is not the mean of its
    parts. For those ``counts`` says how many items the means of a batch are over; each part gets the factors that make the
    weighted sum of the parts' means the whole batch's mean, as ``correction``.

    Args:
        batch: a tensor, or a named tuple of tensors and None, all with the same number of rows.
        count: number of parts.
        total: images of the whole batch over all processes; None = those of ``batch``.
        crew: the processes that share the batch.
        counts: batch -> (n,) numbers of items; its batches have a field ``correction``.
    """
    if count == 1 and crew.count == 1:
        return [Part(batch)]
    rows = _rows(batch)
    total = rows if total is None else total
    first = crew.rows(total)[0]
    count = min(count, total // crew.count)
    spans = list(pairwise(rows * number // count for number in range(count + 1)))
    pieces = [_cut(batch, low, high) for low, high in spans]
    shares = [(high - low) / total for low, high in spans]
    if counts is not None:
        found = torch.stack([counts(piece) for piece in pieces])
        whole = crew.sum(found.sum(0)).clamp(min=1)
        pieces = [
            piece._replace(correction=number / whole / share)
            for piece, number, share in zip(pieces, found, shares, strict=True)
        ]
    return [
        Part(piece, first + low, high - low, total, high == rows)
        for piece, (low, high) in zip(pieces, spans, strict=True)
    ]


def _rows(batch: Any) -> int:
    return len(batch) if isinstance(batch, Tensor) else len(batch[0])


def _cut(batch: Any, low: int, high: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[low:high]
    return type(batch)(*(None if field is None else field[low:high] for field in batch))


class _Losses(nn.Module):
    """What is trained and the objective as one module, because gradients are averaged by its wrapper."""

    def __init__(self, trained: nn.ModuleDict, objective: Objective) -> None:
        super().__init__()
        self.trained = trained
        self.objective = objective

    def forward(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return self.objective(batch, generator)


class Step:
    """Losses and gradients of a batch, in parts where it is split."""

    def __init__(self, modules: nn.ModuleDict, objective: Objective, precision: str) -> None:
        self.crew = processes()
        self.device = next(modules.parameters()).device
        self.module = self.crew.wrap(_Losses(modules, objective)) if self.crew.count > 1 else None
        self.objective = objective
        # small float16 gradients would round to zero
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")

    def losses(self, part: Part, generator: torch.Generator) -> dict[str, Tensor]:
        """The objective of a part, its random numbers those of its place in the whole batch."""
        with ExitStack() as stack:
            if part.rows < part.total:
                stack.enter_context(placed(part.start, part.total))
            if self.module is None:
                return self.objective(part.batch, generator)
            found: dict[str, Tensor] = self.module(part.batch, generator)
            return found

    @contextmanager
    def gradients_of(self, part: Part) -> Iterator[None]:
        """Around forward and backward of a part: gradients are exchanged once, after the last."""
        if self.module is None or part.is_last:
            yield
        else:
            with self.crew.unsynchronised(self.module):
                yield

    def backward(self, loss: Tensor, part: Part) -> None:
        """Add the part's gradients; the wrapper averages over processes what has to be added."""
        weight = part.share * self.crew.count
        scaled: Tensor = self.scaler.scale(loss if weight == 1 else loss * weight)
        scaled.backward()

    def rewinder(self, generator: torch.Generator, parts: int) -> Callable[[], None]:
        """Call it before every part: all parts of a batch draw from the same state."""
        if parts == 1:
            return lambda: None
        states = generator.get_state(), torch.get_rng_state()
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

        def rewind() -> None:
            generator.set_state(states[0])
            torch.set_rng_state(states[1])
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self.device)

        return rewind
