"""The one training loop of all three stages: SGD with polynomial decay, resumable at every epoch.

Which generator draws what: ``torch.manual_seed(seed)`` the new layers of a network; :func:`epoch_seed` of seed and epoch the
order of the images, flips and sizes, dropout (the default generator) and the draws of Eq. 4 (the generator that a loss is
given); ``seeded_generator(epoch_seed, index)`` the augmentation of one image. So an epoch can be repeated without its
predecessors.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsss_nb.models.checkpoint import load_checkpoint, read_state_dict
from wsss_nb.stages.config import OptimizerConfig, TrainingConfig
from wsss_nb.stages.views import Views
from wsss_nb.system.errors import DiskFullError, InputError
from wsss_nb.system.files import atomic_path
from wsss_nb.system.processes import processes, slice_of_batch
from wsss_nb.system.progress import progress

__all__ = [
    "CHECKPOINT", "History", "Loss", "NotFiniteError", "TrainingError", "build_optimizer", "epoch_seed", "load_trained",
    "new_network", "train"
]  # fmt: skip

CHECKPOINT = "checkpoint.pt"

History = list[dict[str, float]]
Loss = Callable[[Any, torch.Generator], dict[str, Tensor]]
"""Batch and generator -> named losses (scalars), already weighted."""


class TrainingError(RuntimeError):
    """Training cannot go on (logits or loss not finite, memory spent); the last good checkpoint is kept."""


class NotFiniteError(ArithmeticError):
    """What a network gave, or a loss, is not finite; the loop adds where and ends the training."""


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch's draws, so that an epoch can be repeated without its predecessors."""
    return (seed * 1_000_003 + epoch * 7_919 + 17) % (2**31)


def new_network(create: Callable[[], nn.Module], seed: int, init_checkpoint: Path | None = None) -> Any:
    """A network whose new layers are drawn from ``seed``; its backbone's weights are those of ``init_checkpoint``."""
    torch.manual_seed(seed)
    net: Any = create()
    if init_checkpoint is not None:
        load_checkpoint(net, init_checkpoint, part="backbone")
    return net.to(processes().device)


def build_optimizer(
    groups: Mapping[str, list[nn.Parameter]], config: OptimizerConfig, extra: list[dict[str, Any]]
) -> torch.optim.SGD:
    """SGD with the rate and decay of each parameter group, see :class:`OptimizerConfig`; ``extra`` are further groups."""
    rates = {"pretrained": config.learning_rate, "new": config.learning_rate * config.head_multiplier}
    kinds = (("weights", 1, config.weight_decay), ("biases", 2, 0.0))
    parameters = [
        {"params": groups[f"{part}_{kind}"], "lr": factor * rate, "weight_decay": decay} for part,
        rate in rates.items() for kind, factor, decay in kinds if groups.get(f"{part}_{kind}")
    ]  # fmt: skip
    momentum = config.weight_decay if config.decay_as_momentum else config.momentum
    return torch.optim.SGD(parameters + extra, lr=config.learning_rate, momentum=momentum)


def _warmed_up(step: int, total: int, share: float) -> float:
    """From 0 to 1, linear over a share of the steps."""
    return min(1.0, (step + 1) / (share * total)) if share else 1.0


def _schedule(step: int, total: int, config: OptimizerConfig) -> float:
    return _warmed_up(step, total, config.warmup) * (1 - step / total) ** config.power


def train(
    modules: nn.ModuleDict, loader: Views, loss: Loss, *, config: TrainingConfig, seed: int, out: Path,
    description: str, iterations: int | None = None, extra_groups: list[dict[str, Any]] | None = None,
    warmups: Mapping[str, float] | None = None, record: Callable[[], dict[str, float]] = dict,
    on_epoch: Callable[[History], None] | None = None, interval: float = 30.0
) -> History:  # fmt: skip
    """Minimise the sum of the losses; lr(t) = lr_0 (1 - t / max)^power with t in steps.

    Every epoch draws its randomness from ``epoch_seed(seed, epoch)`` alone (Python's and NumPy's default generators are
    seeded too, for losses from outside) and ends in a checkpoint (modules, optimiser, place in the schedule, history),
    written atomically. So a killed run, started again, ends with the same weights on a CPU as an undisturbed one. Several
    processes share each batch: draws belong to an image's place in the whole batch, so that this changes no more than the
    order of sums, but for BatchNorm that is trained on CPUs.

    Args:
        modules: everything trained, under stable names; "net" is the network.
        loader: batches of an epoch from a seed.
        loss: what is minimised; may raise :class:`NotFiniteError`.
        config: epochs, optimiser, precision ("float16" scales the loss), compiling.
        seed: of the draws.
        out: folder of the checkpoint.
        description: of the training, for messages.
        iterations: steps in all, in place of ``config.epochs``; the last epoch ends early.
        extra_groups: further parameter groups in torch.optim's form, decayed by the same schedule.
        warmups: named losses whose weight rises linearly from 0 over this share of the steps.
        record: values to log once an epoch beside the losses (mu and sigma, say).
        on_epoch: called with the history after each epoch (live plots).
        interval: seconds between plain lines when there is no terminal.

    Returns:
        One row an epoch: mean of each loss, ``epoch``, ``step``, ``seconds`` and what ``record`` gives.

    Raises:
        TrainingError: a loss, or what it is computed of, is not finite, the memory does not suffice, or not all
            processes find the same checkpoint.
        DiskFullError: no room for a checkpoint; the one before is kept.
        InputError: the checkpoint found does not fit.
    """
    net: Any = modules["net"]
    world = processes()
    if world.count > 1 and world.device.type == "cuda":
        net.synchronise_batch_norm()
    optimizer = build_optimizer(net.parameter_groups(), config.optimizer, extra_groups or [])
    initial = [group["lr"] for group in optimizer.param_groups]
    # small float16 gradients would round to zero
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "float16")
    total = iterations or config.epochs * loader.steps
    epochs = math.ceil(total / loader.steps)
    start, history = 0, History()
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        start, history = _load(checkpoint, modules, optimizer, scaler)
        if start < epochs:
            print(f"{description}: resumes from epoch {start} of {epochs} ({checkpoint.name})", flush=True)
    _check_same_start(start, description)
    if config.compile and world.device.type == "cuda":
        net.compile()
    elif config.compile:
        print(f"{description}: compile is for GPUs, goes on without", flush=True)
    compute = loss if world.count == 1 else world.wrap(_Losses(modules, loss))
    last_line = time.monotonic()
    for epoch in range(start, epochs):
        begun = time.monotonic()
        drawn_from = epoch_seed(seed, epoch)
        for seeded in (random.seed, np.random.seed, torch.manual_seed):
            seeded(drawn_from)
        generator = torch.Generator(world.device).manual_seed(drawn_from)
        modules.train()
        sums: dict[str, float] = {}
        first = step = epoch * loader.steps
        steps = min(loader.steps, total - first)
        batches = islice(loader.epoch(drawn_from), steps)
        try:
            for step, batch in enumerate(progress(batches, f"{description} {epoch + 1}/{epochs}", steps), first):
                for group, rate in zip(optimizer.param_groups, initial, strict=True):
                    group["lr"] = rate * _schedule(step, total, config.optimizer)
                optimizer.zero_grad(set_to_none=True)
                part = slice_of_batch(world.rows(loader.batch_size)[0], loader.batch_size)
                with part if world.count > 1 else nullcontext():
                    losses: dict[str, Tensor] = compute(batch, generator)
                for name, share in (warmups or {}).items():
                    losses[name] = losses[name] * _warmed_up(step, total, share)
                whole = torch.stack(list(losses.values())).sum()
                if not math.isfinite(whole.item()):
                    values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
                    raise NotFiniteError(f"the loss is not finite ({values})")
                scaler.scale(whole).backward()
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.item()
                scaler.step(optimizer)
                scaler.update()
        except (NotFiniteError, RuntimeError) as error:
            on_gpu = isinstance(error, torch.cuda.OutOfMemoryError)
            if isinstance(error, NotFiniteError):
                what, advice = str(error), "a smaller learning_rate"
            elif on_gpu or "DefaultCPUAllocator" in str(error):
                what = ("the GPU's memory" if on_gpu else "the memory") + " does not suffice"
                advice = "precision bfloat16, a smaller batch or more processes"
            else:
                raise
            kept = f"the checkpoint of epoch {epoch} is kept" if epoch else "there is no checkpoint yet"
            where = f"{description}: {what} at epoch {epoch + 1}, step {step}"
            raise TrainingError(f"{where}; {kept}, try {advice}") from error
        summed = world.sum(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        means = {name: value / (steps * world.count) for name, value in zip(sums, summed, strict=True)}
        seconds = time.monotonic() - begun
        history.append({"epoch": epoch + 1, "step": first + steps, **means, **record(), "seconds": seconds})
        if world.is_main:
            _save(checkpoint, modules, optimizer, scaler, history)
        world.barrier()
        if on_epoch is not None:
            on_epoch(history)
        if time.monotonic() - last_line > interval:
            last_line = time.monotonic()
            shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            print(f"{description}: epoch {epoch + 1}/{epochs}: {shown}", flush=True)
    modules.eval()
    return history


class _Losses(nn.Module):
    """What is trained and its loss as one module, because gradients are averaged by its wrapper."""

    def __init__(self, trained: nn.ModuleDict, loss: Loss) -> None:
        super().__init__()
        self.trained, self.loss = trained, loss

    def forward(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return self.loss(batch, generator)


def _check_same_start(start: int, description: str) -> None:
    """All processes read the same checkpoint; and nobody writes before all have read."""
    world = processes()
    starts = world.sum(torch.eye(world.count)[world.index] * start)
    if starts.unique().numel() > 1:
        raise TrainingError(
            f"{description}: expected all processes to find the same {CHECKPOINT}, got those of epochs "
            f"{starts.int().tolist()}; the same command carries on once all machines see the file"
        )


def load_trained(net: nn.Module, checkpoint: Path) -> Any:
    """Put the trained weights of a :func:`train` checkpoint into ``net`` and return it in eval mode.

    Raises:
        InputError: the file is missing, damaged or of another network.
    """
    try:
        net.load_state_dict(read_state_dict(checkpoint))
    except RuntimeError as error:
        raise InputError(f"{checkpoint}: expected weights of {type(net).__name__}, got other ones") from error
    return net.eval()


def _save(path: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, scaler: Any, history: History) -> None:
    """Write a checkpoint in one move: the old one stays until the new one is complete."""
    state = {
        "modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
        "epoch": history[-1]["epoch"], "history": history
    }  # fmt: skip
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's own writer gives no OSError
            known = ("PytorchStreamWriter", "write failed", "iostream error", "inline_container")
            if not any(words in str(error) for words in known):
                raise
            raise DiskFullError(f"{path}: expected room for a checkpoint, got a failed write") from error


def _load(path: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, scaler: Any) -> tuple[int, History]:
    """Put a checkpoint back: its epoch and history."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        if scaler.is_enabled() and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        return int(state["epoch"]), list(state["history"])
    except Exception as error:  # torch.load raises many types on a damaged file
        first = next(iter(str(error).splitlines()), "an incomplete file")
        found = f"{type(error).__name__}: {first}; remove it to train from the start"
        raise InputError(f"{path}: expected a checkpoint of this model, got {found}") from error
