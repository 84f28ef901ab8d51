"""Loading what the loop saved: a trained network, or the start that a trained network gives another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsss_nb.errors import InputError
from wsss_nb.models import load_checkpoint
from wsss_nb.models.network import Network

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


def start_from(net: Network, checkpoint: Path) -> None:
    """Copy a backbone into ``net``; its new layers keep their initial values.

    The file is a checkpoint of the training loop, a published state dict or MXNet's ImageNet classifier, as
    :func:`~wsss_nb.models.load_checkpoint` reads them.

    Raises:
        InputError: the file is missing or damaged, or not all of the backbone is in it.
    """
    load_checkpoint(net, checkpoint, part="backbone")
