"""Loading weights from files (our checkpoints, published state dicts, MXNet ``.params``), and telling whose they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wsss_nb.models.mxnet_params import is_mxnet_params, read_mxnet_params, resnet38_names
from wsss_nb.models.network import Network
from wsss_nb.models.registry import BACKBONES, create_backbone
from wsss_nb.system.errors import InputError

__all__ = ["Identity", "LoadReport", "identify_checkpoint", "identify_network", "load_checkpoint", "read_state_dict"]

NetworkName = Literal["cam", "affinitynet", "deeplab"]

_NESTED = ("model", "state_dict", "model_state_dict", "net", "network", "weights")
_LISTED = 8
_BEGINNING = 1 << 20  # bytes of a file that are looked at to say what else it is
# A name that one head has and the others have not.
_HEADS: dict[str, NetworkName] = {"cls_conv.weight": "deeplab", "f8_5.weight": "affinitynet", "fc8.weight": "cam"}


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
        return any(vars(self).values())

    def __str__(self) -> str:
        """One line that counts and lists what differs."""
        parts = []
        for kind, names in vars(self).items():
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            parts += [f"{len(names)} {kind} ({'; '.join(names[:_LISTED])}{more})"] if names else []
        return ", ".join(parts) or "everything fits"


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
    path = _existing(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: expected a file of PyTorch weights, got {_what_else(path, error)}") from error
    for _ in range(2):
        if isinstance(content, Mapping) and not _is_state_dict(content):
            content = next((content[key] for key in _NESTED if key in content), content)
    if isinstance(content, Mapping) and _is_state_dict(content.get("modules")):
        # the training loop keeps what it trains side by side; the network is called "net"
        modules = content["modules"]
        content = {key.removeprefix("net."): value for key, value in modules.items() if key.startswith("net.")}
    if not _is_state_dict(content):
        kind = type(content).__name__
        if isinstance(content, Mapping):
            kind = f"a dict with {', '.join(map(str, list(content)[:_LISTED])) or 'nothing'}"
        raise InputError(f"{path}: expected a state dict (name -> tensor), got {kind}")
    for key, value in content.items():
        kinds = {"sparse": value.layout != torch.strided, "quantised": value.is_quantized, "meta": value.is_meta}
        if kind := next((kind for kind, found in kinds.items() if found), ""):
            raise InputError(f"{path}: {key}: expected a plain dense tensor, got a {kind} one")
    return {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in content.items()}


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a checkpoint file, got {'a folder' if path.is_dir() else 'none'}")
    return path


def _is_state_dict(content: Any) -> bool:
    pairs = content.items() if isinstance(content, Mapping) else ()
    return len(pairs) > 0 and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs)


def _what_else(path: Path, error: Exception) -> str:
    """What a file is that does not load as weights only, and what to do; torch's own text advises to run what it holds."""
    with open(path, "rb") as file:
        beginning = file.read(_BEGINNING)
    if re.match(rb"\s*<(!doctype|html)", beginning.removeprefix(b"\xef\xbb\xbf"), re.IGNORECASE):
        return "a web page (HTML): download the file itself, not the page that shows it"
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        is_module = b"_backward_hooks" in beginning  # an attribute of every nn.Module
        kind = "a whole pickled network" if is_module else "a pickled object besides tensors"
        return f"{kind} ({refused[1]}): save model.state_dict() alone, where that class is installed"
    return "another kind of file, or a damaged one"


def load_checkpoint(
    model: Network, path: str | os.PathLike[str], strict: bool = True, part: Literal["all", "backbone"] = "all"
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
    path = _existing(path)
    from_mxnet = is_mxnet_params(path)
    given = resnet38_names(read_mxnet_params(path)) if from_mxnet else read_state_dict(path)

    own = model.state_dict()
    prefix = "backbone." if model.prefixed else ""
    backbone = {prefix + name for name in model.backbone.state_dict()}
    wanted = backbone if part == "backbone" else set(own)
    fits: dict[str, Tensor] = {}
    unexpected, misshaped = [], {}
    for key, value in given.items():
        name = next((n for n in (key, f"backbone.{key}", key.removeprefix("backbone.")) if n in own), None)
        if name is None:
            unexpected.append(key)
        elif name in wanted and own[name].shape != value.shape:
            misshaped[name] = f"{name}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
        elif name in wanted:
            fits[name] = value
    absent = wanted - {*fits, *misshaped}
    missing = [name for name in own if name in absent and not name.endswith(".num_batches_tracked")]
    if part == "backbone":
        unexpected = []
    report = LoadReport(tuple(missing), tuple(unexpected), tuple(misshaped.values()))
    errors = report
    if from_mxnet:  # the head is the network's own, the file's last layer ImageNet's
        foreign = [key for key in unexpected if not key.startswith("arg:linear1000_")]
        errors = LoadReport(tuple(n for n in missing if n in backbone), tuple(foreign), report.misshaped)
    if strict and errors:
        raise InputError(f"{path}: expected the weights of {type(model).__name__}, got {errors}")
    model.load_state_dict(fits, strict=False)
    return report


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
def _backbone_names() -> dict[str, set[str]]:
    with torch.device("meta"):
        nets = {name: create_backbone(name, pretrained=False) for name in BACKBONES}
    return {name: {key for key, _ in net.named_parameters()} for name, net in nets.items()}


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
    head = next((name for name in _HEADS if name in state), None)
    if head is None:
        known = ", ".join(f"{name} ({network})" for name, network in _HEADS.items())
        raise InputError(f"{source}: expected a network with one of {known}, got none of them")
    given = {key.removeprefix("backbone.") for key in state}
    shares = {name: len(names & given) / len(names) for name, names in _backbone_names().items()}
    backbone = max(shares, key=lambda name: shares[name])
    if shares[backbone] < 0.5:
        found = f"at most {100 * shares[backbone]:.0f} % of those of {backbone}"
        raise InputError(f"{source}: expected the layers of {', '.join(shares)}, got {found}")
    network = _HEADS[head]
    return Identity(network, backbone, None if network == "affinitynet" else state[head].shape[0])


def identify_checkpoint(path: str | os.PathLike[str]) -> Identity:
    """:func:`identify_network` of a file.

    Raises:
        InputError: as ``read_state_dict`` and :func:`identify_network`; or an MXNet file, which holds the
            ImageNet classifier that training starts from.
    """
    path = _existing(path)
    if is_mxnet_params(path):
        raise InputError(f"{path}: expected a trained network, got MXNet's ImageNet weights, where training starts")
    return identify_network(read_state_dict(path), str(path))
