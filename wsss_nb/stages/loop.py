"""The one training loop that all three stages share: SGD with polynomial decay, resumable at every epoch."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

from wsss_nb.stages.checkpoints import load_training, save_training
from wsss_nb.stages.config import OptimizerConfig
from wsss_nb.stages.engine import Counts, NotFiniteError, Objective, Step, parts_of

__all__ = ["History", "Loader", "TrainingError", "build_optimizer", "epoch_seed", "progress", "train"]

History = list[dict[str, float]]


class TrainingError(RuntimeError):
    """Training cannot go on (logits or loss not finite, GPU memory spent); the last good checkpoint is kept."""


class Loader(Protocol):
    """Batches of one epoch, a pure function of its seed; of several processes, each yields its own rows of them."""

    steps: int
    batch_size: int  # over all processes; asked for where there are several

    def epoch(self, seed: int) -> Iterator[Any]:
        """Yield ``steps`` batches; the same seed gives the same batches."""


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch's draws, so that an epoch can be repeated without its predecessors."""
    return (seed * 1_000_003 + epoch * 7_919 + 17) % (2**31)


def progress(items: Any, description: str, total: int | None = None, interval: float = 60.0) -> Any:
    """A progress bar at a terminal or in Jupyter; in a log, a plain line every ``interval`` seconds.

    Nothing in workers and where notebooks run without a reader (WSSS_NB_HEADLESS): those who started them speak.
    """
    if os.environ.get("WSSS_NB_HEADLESS"):
        return iter(items)
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(items, desc=description, total=total, leave=False)
    return _with_lines(items, description, len(items) if total is None else total, interval)


def _with_lines(items: Iterable[Any], description: str, total: int, interval: float) -> Iterator[Any]:
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > interval:
            last = time.monotonic()
            print(f"{description}: {done} of {total}", flush=True)
        yield item


def build_optimizer(
    groups: Mapping[str, list[nn.Parameter]], config: OptimizerConfig, extra: list[dict[str, Any]]
) -> torch.optim.SGD:
    """SGD with the rate and decay of each parameter group, see :class:`OptimizerConfig`; ``extra`` are further groups."""
    rate, head = config.learning_rate, config.learning_rate * config.head_multiplier
    settings = {
        "pretrained_weights": (rate, config.weight_decay),
        "pretrained_biases": (2 * rate, 0.0),
        "new_weights": (head, config.weight_decay),
        "new_biases": (2 * head, 0.0),
    }
    parameters = [
        {"params": groups[name], "lr": lr, "weight_decay": decay}
        for name, (lr, decay) in settings.items()
        if groups.get(name)
    ]
    return torch.optim.SGD(parameters + extra, lr=rate, momentum=config.effective_momentum)


def _rise(step: int, total: int, share: float) -> float:
    """From 0 to 1, linear over a share of the steps."""
    return min(1.0, (step + 1) / (share * total)) if share else 1.0


def _schedule(step: int, total: int, config: OptimizerConfig) -> float:
    return _rise(step, total, config.warmup) * (1 - step / total) ** config.power


def train(
    modules: nn.ModuleDict,
    loader: Loader,
    objective: Objective,
    *,
    groups: Mapping[str, list[nn.Parameter]],
    config: OptimizerConfig,
    epochs: int,
    seed: int,
    checkpoint: Path,
    iterations: int | None = None,
    precision: str = "float32",
    accumulate: int = 1,
    counts: Counts | None = None,
    extra_groups: list[dict[str, Any]] | None = None,
    warmups: Mapping[str, float] = MappingProxyType({}),
    record: Callable[[], dict[str, float]] = dict,
    on_epoch: Callable[[History], None] | None = None,
    description: str = "training",
    interval: float = 30.0,
) -> History:
    """Minimise the sum of ``objective``'s losses; lr(t) = lr_0 (1 - t / max)^power with t in steps.

    Every epoch draws its randomness from ``epoch_seed(seed, epoch)`` alone and ends in a checkpoint
    (modules, optimiser, place in the schedule, history, random states), written atomically. So a killed run, started
    again, ends with the same weights on a CPU as an undisturbed one.

    A batch may be computed in parts and by several processes. Draws belong to an image's place in the whole batch, so
    that neither changes more than the order of sums, but for BatchNorm that is trained: it sees a part of the batch.

    Args:
        modules: everything trained, under stable names.
        loader: batches of an epoch from a seed.
        objective: batch, generator -> named losses (scalars), already weighted; may raise :class:`NotFiniteError`.
        groups: parameters by ``pretrained_weights``, ``pretrained_biases``, ``new_weights``, ``new_biases``.
        epochs: passes over the loader.
        iterations: steps in all, in place of ``epochs``; the last epoch ends early.
        precision: "float16" scales the loss; the objective itself chooses its precision.
        accumulate: parts that a process computes its rows in, one after the other.
        counts: see :func:`~wsss_nb.stages.engine.parts_of`; asked only where a batch is split.
        extra_groups: further groups in torch.optim's form, decayed by the same schedule.
        warmups: named losses whose weight rises linearly from 0 over this share of the steps.
        record: values to log once an epoch beside the losses (mu and sigma, say).
        on_epoch: called with the history after each epoch (live plots).
        interval: seconds between plain lines when there is no terminal.

    Returns:
        One row an epoch: mean of each loss, ``epoch``, ``step``, ``seconds`` and what ``record`` gives.

    Raises:
        TrainingError: a loss, or what it is computed of, is not finite, the GPU's memory does not suffice, or not all
            processes find the same checkpoint.
        DiskFullError: no room for a checkpoint; the one before is kept.
        InputError: the checkpoint found does not fit.
    """
    optimizer = build_optimizer(groups, config, extra_groups or [])
    initial = [group["lr"] for group in optimizer.param_groups]
    total = iterations or epochs * loader.steps
    epochs = math.ceil(total / loader.steps)
    start = 0
    history: History = []
    work = Step(modules, objective, precision)
    crew, scaler = work.crew, work.scaler
    if checkpoint.exists():
        found = load_training(checkpoint, modules, optimizer, scaler)
        start, history = found["epoch"], found["history"]
        if start < epochs:
            print(f"{description}: resumes from epoch {start} of {epochs} ({checkpoint.name})", flush=True)
    starts = torch.zeros(crew.count)
    starts[crew.index] = start
    starts = crew.sum(starts)  # and nobody writes before all have read
    if starts.unique().numel() > 1:
        raise TrainingError(
            f"{description}: expected all processes to find the same {checkpoint.name}, got those of epochs "
            f"{starts.int().tolist()}; the same command carries on once all machines see the file"
        )
    last_line = time.monotonic()
    for epoch in range(start, epochs):
        begun = time.monotonic()
        torch.manual_seed(epoch_seed(seed, epoch))
        generator = torch.Generator(work.device).manual_seed(epoch_seed(seed, epoch))
        modules.train()
        sums: dict[str, float] = {}
        steps = min(loader.steps, total - epoch * loader.steps)
        batches = progress(
            islice(loader.epoch(epoch_seed(seed, epoch)), steps), f"{description} {epoch + 1}/{epochs}", steps
        )
        step = epoch * loader.steps
        try:
            for step, batch in enumerate(batches, start=epoch * loader.steps):
                factor = _schedule(step, total, config)
                for group, rate in zip(optimizer.param_groups, initial, strict=True):
                    group["lr"] = rate * factor
                optimizer.zero_grad(set_to_none=True)
                parts = parts_of(
                    batch, accumulate, loader.batch_size if crew.count > 1 else None, crew, counts
                )
                rewind = work.rewinder(generator, len(parts))
                for part in parts:
                    rewind()
                    with work.gradients_of(part):
                        losses = work.losses(part, generator)
                        for name, share in warmups.items():
                            losses[name] = losses[name] * _rise(step, total, share)
                        loss = torch.stack(list(losses.values())).sum()
                        if not math.isfinite(loss.item()):
                            values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
                            raise NotFiniteError(f"the loss is not finite ({values})")
                        work.backward(loss, part)
                    for name, value in losses.items():
                        sums[name] = sums.get(name, 0.0) + value.item() * part.share
                scaler.step(optimizer)
                scaler.update()
        except NotFiniteError as error:
            raise TrainingError(
                f"{description}: {error} at epoch {epoch + 1}, step {step}; {_kept(epoch)}, try a smaller learning_rate"
            ) from error
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                f"{description}: the GPU's memory does not suffice at epoch {epoch + 1}, step {step}; {_kept(epoch)}, "
                "try a larger accumulate, precision bfloat16, or more processes"
            ) from error
        summed = crew.sum(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        means = {name: value / steps for name, value in zip(sums, summed, strict=True)}
        seconds = time.monotonic() - begun
        done = epoch * loader.steps + steps
        history.append({"epoch": epoch + 1, "step": done, **means, **record(), "seconds": seconds})
        if crew.is_main:
            place = {"epoch": epoch + 1, "step": done, "history": history}
            save_training(checkpoint, modules, optimizer, scaler, place)
        crew.wait()
        if on_epoch is not None:
            on_epoch(history)
        if time.monotonic() - last_line > interval:
            last_line = time.monotonic()
            shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            print(f"{description}: epoch {epoch + 1}/{epochs}: {shown}", flush=True)
    modules.eval()
    return history


def _kept(epoch: int) -> str:
    return f"the checkpoint of epoch {epoch} is kept" if epoch else "there is no checkpoint yet"
