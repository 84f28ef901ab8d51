"""What a training keeps on disk, so that it goes on after a kill as if nothing had been."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wsss_nb.errors import DiskFullError, InputError
from wsss_nb.files import atomic_path

__all__ = ["load_training", "random_states", "restore_random_states", "save_training"]


def random_states() -> dict[str, Any]:
    """The states of all generators in tensors and plain values: Python, NumPy, torch and every GPU."""
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    numpy = legacy | {"state": {"key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
                                "pos": legacy["state"]["pos"]}}  # fmt: skip
    return {
        "python": random.getstate(),
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put :func:`random_states` back; GPUs that are not there any more are left out."""
    version, internal, following = states["python"]
    random.setstate((version, tuple(internal), following))
    key = states["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(states["numpy"] | {"state": {"key": key, "pos": states["numpy"]["state"]["pos"]}})
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def save_training(
    path: Path,
    modules: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    place: dict[str, Any],
) -> None:
    """Write a checkpoint in one move: the old one stays until the new one is complete.

    Args:
        place: where training is: epoch, step of the schedule, history.

    Raises:
        DiskFullError: it does not fit; the old one is kept.
    """
    state = {
        "modules": modules.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "random": random_states(),
        **place,
    }
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's own writer gives no OSError
            if not any(
                words in str(error) for words in ("PytorchStreamWriter", "write failed", "iostream error")
            ):
                raise
            raise DiskFullError(f"{path}: expected room for a checkpoint, got a failed write") from error


def load_training(
    path: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict[str, Any]:
    """Put a checkpoint back, random states included.

    Returns:
        The ``place`` it was written at.

    Raises:
        InputError: it is damaged or of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        if scaler.is_enabled() and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        restore_random_states(state["random"])
        return {"epoch": int(state["epoch"]), "step": int(state["step"]), "history": list(state["history"])}
    except Exception as error:  # torch.load raises many types on a damaged file
        first = next(iter(str(error).splitlines()), "an incomplete file")
        raise InputError(
            f"{path}: expected a checkpoint of this model, got {type(error).__name__}: {first}; "
            "remove it to train from the start"
        ) from error
