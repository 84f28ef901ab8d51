"""Which network a state dict belongs to, told by its names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wsss_nb.errors import InputError
from wsss_nb.models.checkpoint import read_state_dict
from wsss_nb.models.mxnet_params import is_mxnet_params
from wsss_nb.models.registry import BACKBONES, create_backbone

__all__ = ["Identity", "identify_checkpoint", "identify_network"]

NetworkName = Literal["cam", "affinitynet", "deeplab"]

# A name that one head has and the others have not.
_HEADS: tuple[tuple[str, NetworkName], ...] = (
    ("cls_conv.weight", "deeplab"),
    ("f8_5.weight", "affinitynet"),
    ("fc8.weight", "cam"),
)


@dataclass(frozen=True)
class Identity:
    """What a state dict says about its network.

    Attributes:
        network: "cam", "affinitynet" or "deeplab". SEAM's network has the CAM network's names and is "cam".
        backbone: name in ``BACKBONES``.
        num_classes: K, background included; None for AffinityNet, which has no classes.
    """

    network: NetworkName
    backbone: str
    num_classes: int | None


@lru_cache(maxsize=1)
def _backbone_names() -> dict[str, frozenset[str]]:
    with torch.device("meta"):
        nets = {name: create_backbone(name, pretrained=False, freeze=False) for name in BACKBONES}
    return {
        name: frozenset(key for key in net.state_dict() if not key.endswith(".num_batches_tracked"))
        for name, net in nets.items()
    }


def identify_network(state: Mapping[str, Tensor], source: str = "checkpoint") -> Identity:
    """The network whose names these are: its head by a name of its own, its backbone by the most names in common.

    Names may be missing or left over (``load_checkpoint`` reports them), but half of a backbone's must be there.

    Args:
        state: names and tensors; only the shape of the classifier is looked at.
        source: where it is from, for the message.

    Raises:
        InputError: no head or no backbone that is known.

    Example:
        >>> identify_network(create_cam_net("tiny", 6).state_dict())
        Identity(network='cam', backbone='tiny', num_classes=6)
    """
    head = next(((key, network) for key, network in _HEADS if key in state), None)
    if head is None:
        known = ", ".join(f"{key} ({network})" for key, network in _HEADS)
        raise InputError(f"{source}: expected a network with one of {known}, got none of them")
    given = {key.removeprefix("backbone.") for key in state}
    shares = {name: len(names & given) / len(names) for name, names in _backbone_names().items()}
    backbone = max(shares, key=lambda name: shares[name])
    if shares[backbone] < 0.5:
        raise InputError(
            f"{source}: expected the layers of {', '.join(shares)}, got at most "
            f"{100 * shares[backbone]:.0f} % of those of {backbone}"
        )
    key, network = head
    return Identity(network, backbone, None if network == "affinitynet" else state[key].shape[0])


def identify_checkpoint(path: str | os.PathLike[str]) -> Identity:
    """:func:`identify_network` of a file.

    Raises:
        InputError: as ``read_state_dict`` and :func:`identify_network`; or an MXNet file, which holds the
            ImageNet classifier that training starts from.
    """
    path = Path(path)
    if path.is_file() and is_mxnet_params(path):
        raise InputError(
            f"{path}: expected a trained network, got MXNet's ImageNet weights, which only training starts from"
        )
    return identify_network(read_state_dict(path), str(path))
