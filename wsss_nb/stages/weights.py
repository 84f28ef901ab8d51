"""Loading what the loop saved: a trained network, or the start that a trained network gives another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsss_nb.errors import InputError

__all__ = ["load_trained", "start_from"]


def _saved_network(checkpoint: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["modules"]
    except Exception as error:  # torch.load raises many types on a damaged file
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{checkpoint}: expected a checkpoint of the training loop, got {first}") from error
    return {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}


def load_trained(net: nn.Module, checkpoint: Path) -> Any:
    """Put the trained weights of the loop's ``checkpoint`` into ``net`` and return it in eval mode.

    Raises:
        InputError: the file is missing, damaged or of another network.
    """
    try:
        net.load_state_dict(_saved_network(checkpoint))
    except RuntimeError as error:
        raise InputError(f"{checkpoint}: expected weights of {type(net).__name__}, got other ones") from error
    return net.eval()


def start_from(net: Any, checkpoint: Path) -> None:
    """Copy the backbone of a trained network into ``net``; its new layers keep their initial values.

    Names match with and without the prefix "backbone." that the released DeepLab has.

    Raises:
        InputError: the file is missing or damaged, or not all of the backbone is in it.
    """
    own = net.state_dict()
    given = {key.removeprefix("backbone."): value for key, value in _saved_network(checkpoint).items()}
    prefix = "backbone." if net.prefixed else ""
    wanted = [f"{prefix}{key}" for key in net.backbone.state_dict()]
    shared = {key: given.get(key.removeprefix("backbone.")) for key in wanted}
    for key, value in shared.items():
        if value is None or value.shape != own[key].shape:
            raise InputError(
                f"{checkpoint}: expected the backbone of {type(net).__name__}, got none or another {key}"
            )
    net.load_state_dict(own | shared)
