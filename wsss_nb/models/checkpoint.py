"""Loading weights from files: our checkpoints, published state dicts, MXNet ``.params``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wsss_nb.errors import InputError
from wsss_nb.models.mxnet_params import is_mxnet_params, read_mxnet_params, resnet38_names
from wsss_nb.models.network import Network

__all__ = ["LoadReport", "load_checkpoint", "read_state_dict"]

_NESTED = ("model", "state_dict", "model_state_dict", "net", "network", "weights")
_LISTED = 8


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint and a network did not have in common.

    Attributes:
        missing: names of the network that the file does not hold.
        unexpected: names of the file that the network does not have.
        misshaped: names of both with another shape; "name: expected (21, 512), got (20, 512)".
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True if anything differs."""
        return bool(self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        """One line that counts and lists what differs."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "misshaped": self.misshaped}
        parts = [f"{len(names)} {kind} ({_listed(names)})" for kind, names in kinds.items() if names]
        return ", ".join(parts) or "everything fits"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return "; ".join(names[:_LISTED]) + more


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a PyTorch file that is a state dict or holds one (under "model", "state_dict", ...).

    Of the checkpoints of the training loop, those of the network.

    Only tensors and plain containers are unpickled. The prefixes that DataParallel ("module.") and
    torch.compile ("_orig_mod.") leave are removed.

    Args:
        path: the file.

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        InputError: the file is missing, damaged, holds other objects, or no state dict.

    Example:
        >>> sorted(read_state_dict("cam.pth"))[:2]  # doctest: +SKIP
        ['b2.bn_branch2a.bias', 'b2.bn_branch2a.num_batches_tracked']

    In neither the paper nor the release, whose files it reads.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a checkpoint file, got {'a folder' if path.is_dir() else 'none'}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # the first sentence; torch's next ones advise to load objects that may run anything
        raise InputError(
            f"{path}: expected a file of PyTorch weights, got: {lines[0].partition('. ')[0]}"
        ) from error
    for _ in range(2):
        if isinstance(content, Mapping) and not _is_state_dict(content):
            content = next((content[key] for key in _NESTED if key in content), content)
    if isinstance(content, Mapping) and _is_state_dict(content.get("modules")):
        # the training loop keeps what it trains side by side; the network is called "net"
        modules = content["modules"]
        content = {
            key.removeprefix("net."): value for key, value in modules.items() if key.startswith("net.")
        }
    if not _is_state_dict(content):
        raise InputError(f"{path}: expected a state dict (name -> tensor), got {_describe(content)}")
    state = {}
    for key, value in content.items():
        while key.startswith(("module.", "_orig_mod.")):
            key = key.partition(".")[2]
        state[key] = value
    return state


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {', '.join(map(str, list(content)[:_LISTED])) or 'nothing'}"
    return type(content).__name__


def load_checkpoint(
    model: Network,
    path: str | os.PathLike[str],
    strict: bool = True,
    part: Literal["all", "backbone"] = "all",
) -> LoadReport:
    """Load weights into a network: our checkpoints, published ``.pth`` state dicts, MXNet ``.params``.

    Names are matched with and without "backbone.", so the CAM net's weights also start DeepLab. BatchNorm's
    step counters may be missing (old files have none). An MXNet file is the ImageNet classifier: its last
    layer and the network's head are reported, but are no error.

    Args:
        model: the network; unchanged if an error is raised.
        path: the file; nothing in it is executed.
        strict: raise if anything is missing, unexpected or misshaped; else load what fits.
        part: "backbone" loads only the backbone's weights and asks for no others.

    Returns:
        What was missing, unexpected and misshaped.

    Raises:
        InputError: the file cannot be read, or ``strict`` and it does not fit; the message lists the names.

    Example:
        >>> net = create_cam_net("resnet38", 21)  # doctest: +SKIP
        >>> load_checkpoint(net, "cam.pth")  # doctest: +SKIP
        LoadReport(missing=(), unexpected=(), misshaped=())

    In neither the paper nor the release; the names that fit ResNet-38's networks are the release's.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a checkpoint file, got {'a folder' if path.is_dir() else 'none'}")
    from_mxnet = is_mxnet_params(path)
    given = resnet38_names(read_mxnet_params(path)) if from_mxnet else read_state_dict(path)

    own = model.state_dict()
    backbone = _backbone_names(model)
    wanted = backbone if part == "backbone" else set(own)
    fits: dict[str, Tensor] = {}
    unexpected, misshaped = [], {}
    for key, value in given.items():
        name = next((n for n in (key, f"backbone.{key}", key.removeprefix("backbone.")) if n in own), None)
        if name is None:
            unexpected.append(key)
        elif name not in wanted:
            continue
        elif own[name].shape != value.shape:
            misshaped[name] = f"{name}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
        else:
            fits[name] = value
    missing = [
        name
        for name in own
        if name in wanted
        and name not in fits
        and name not in misshaped
        and not name.endswith(".num_batches_tracked")
    ]
    if part == "backbone":
        unexpected = []
    report = LoadReport(tuple(missing), tuple(unexpected), tuple(misshaped.values()))
    errors = report
    if from_mxnet:
        errors = LoadReport(
            tuple(_only(missing, backbone)),
            tuple(key for key in unexpected if not key.startswith("arg:linear1000_")),
            report.misshaped,
        )
    if strict and errors:
        raise InputError(f"{path}: expected the weights of {type(model).__name__}, got {errors}")
    model.load_state_dict(fits, strict=False)
    if not _only([*missing, *misshaped], backbone):
        model.backbone.pretrained = True
    return report


def _only(names: Iterable[str], allowed: set[str]) -> list[str]:
    return [name for name in names if name in allowed]


def _backbone_names(model: Network) -> set[str]:
    prefix = "backbone." if model.prefixed else ""
    return {prefix + name for name in model.backbone.state_dict()}
