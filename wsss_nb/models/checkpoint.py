"""Loading weights from files (our checkpoints, published state dicts, MXNet ``.params``), and telling whose they are."""

import math
import os
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsss_nb.models.networks import BACKBONES, Network, create_backbone
from wsss_nb.system.errors import InputError

__all__ = [
    "Identity", "LoadReport", "identify_network", "load_checkpoint", "read_mxnet_params", "read_state_dict",
    "resnet38_names"
]  # fmt: skip

NetworkName = Literal["cam", "affinitynet", "deeplab"]

_NESTED = ("model", "state_dict", "model_state_dict", "net", "network", "weights")
_LISTED = 8
_BEGINNING = 1 << 20  # bytes of a file that are looked at to say what else it is
# A name that one head has and the others have not.
_HEADS: dict[str, NetworkName] = {"cls_conv.weight": "deeplab", "f8_5.weight": "affinitynet", "fc8.weight": "cam"}

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?"}
_MAX_DIMS = 32
_MAX_BYTES = 4 << 30  # of a file

_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_ALONE = {"conv1a_weight": "conv1a.weight"} | {f"bn7_{kind}": f"bn7.{ours}" for kind, ours in _BATCH_NORM.items()}
_CONVOLUTION = re.compile(r"res([2-7])(?:a|b(\d+))_(branch\w+)_(weight)")
_BRANCH_NORM = re.compile(r"bn([2-7])(?:a|b(\d+))_(branch\w+?)_(gamma|beta|moving_mean|moving_var)")


class LoadReport(NamedTuple):
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
        return any(self)

    def __str__(self) -> str:
        """One line that counts and lists what differs."""
        parts = []
        for kind, names in self._asdict().items():
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
    if _is_mxnet_params(path):
        return "MXNet's ImageNet weights, where training starts"
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        is_module = b"_backward_hooks" in beginning  # an attribute of every nn.Module
        kind = "a whole pickled network" if is_module else "a pickled object besides tensors"
        return f"{kind} ({refused[1]}): save model.state_dict() alone, where that class is installed"
    return "another kind of file, or a damaged one"


class _Reader:
    """Little-endian reads from a file, each checked against the bytes that are left."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.left = file, path, os.fstat(file.fileno()).st_size

    def check(self, holds: bool, expected: str, got: object) -> None:
        if not holds:
            raise InputError(f"{self.path}: expected {expected}, got {got}")

    def take(self, size: int, what: str) -> bytearray:
        data = bytearray(self.file.read(size) if size <= self.left else b"")
        self.check(len(data) == size, f"{size} bytes for {what}", f"{self.left} (file truncated or damaged)")
        self.left -= size
        return data

    def ints(self, code: str, count: int, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"), what))

    def count(self, what: str) -> int:
        """A number of items that each take at least a byte."""
        (value,) = self.ints("Q", 1, what)
        self.check(value <= self.left, f"at most {self.left} for {what}", value)
        return value


def _read_array(reader: _Reader, what: str) -> Tensor:
    (magic,) = reader.ints("I", 1, what)
    ndim, dim_code = magic, "I"  # before version 1 the number of dimensions stood here, with 4 bytes per dimension
    if magic in (_V2, _V3):
        (storage,) = reader.ints("i", 1, what)
        reader.check(storage == 0, f"dense storage (0) for {what}", storage)
    if magic in (_V1, _V2, _V3):
        (ndim,), dim_code = reader.ints("i", 1, what), "q"
    reader.check(1 <= ndim <= _MAX_DIMS, f"1 to {_MAX_DIMS} dimensions for {what}", ndim)
    shape = reader.ints(dim_code, ndim, f"shape of {what}")
    reader.check(all(size > 0 for size in shape), f"sizes of at least 1 for {what}", shape)
    _device_type, _device_id, flag = reader.ints("i", 3, what)
    reader.check(flag in _DTYPES, f"a dtype flag in {sorted(_DTYPES)} for {what}", flag)
    dtype = np.dtype(_DTYPES[flag])
    data = reader.take(math.prod(shape) * dtype.itemsize, f"{what} of shape {shape}")
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))


def _is_mxnet_params(path: Path) -> bool:
    """Whether the file begins like an MXNet list of arrays."""
    with open(path, "rb") as file:
        return file.read(8) == struct.pack("<Q", _LIST_MAGIC)


def read_mxnet_params(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the named arrays of an MXNet ``.params`` file (all versions of the format, dense arrays).

    The format is a header, a list of (version, shape, device, dtype, data) and a list of names,
    ``file = 0x112, 0, n, array_1, .., array_n, n, name_1, .., name_n`` with numbers of 8 bytes. Every size is
    checked against the bytes that are left before anything is allocated, and nothing in the file is executed.

    Args:
        path: the file.

    Returns:
        Name -> tensor, names as they stand in the file ("arg:conv1a_weight").

    Raises:
        InputError: the file is missing, too large, truncated, of another kind, or holds what the format
            does not allow.

    Example:
        >>> params = read_mxnet_params("ilsvrc-cls_rna-a1_cls1000_ep-0001.params")  # doctest: +SKIP
        >>> params["arg:conv1a_weight"].shape  # doctest: +SKIP
        torch.Size([64, 3, 3, 3])

    Release: ResNet-38 (Wu et al., 2019) starts from such a file, read by MXNet. The paper (Section 4.1) names the
    backbone only.
    """
    path = _existing(path)
    with open(path, "rb") as file:
        reader = _Reader(file, path)
        reader.check(reader.left <= _MAX_BYTES, f"at most {_MAX_BYTES} bytes", reader.left)
        magic, _reserved = reader.ints("Q", 2, "header")
        reader.check(magic == _LIST_MAGIC, f"an MXNet .params file beginning with {_LIST_MAGIC:#x}", f"{magic:#x}")
        arrays = [_read_array(reader, f"array {index}") for index in range(reader.count("number of arrays"))]
        names = reader.count("number of names")
        reader.check(names == len(arrays), f"one name per array ({len(arrays)})", names)
        params: dict[str, Tensor] = {}
        for index, array in enumerate(arrays):
            raw = bytes(reader.take(reader.count(f"length of name {index}"), f"name {index}"))
            name = raw.decode("utf-8", "replace")
            reader.check(name.encode() == raw, f"UTF-8 in name {index}", repr(raw[:40]))
            reader.check(name not in params, "every name once", f"{name!r} twice")
            params[name] = array
        reader.check(reader.left == 0, "the end of the file", f"{reader.left} more bytes")
    return params


def resnet38_names(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays under the names that ResNet-38 has here; names of no layer of it stay as they are.

    ``arg:res{s}b{u}_{branch}_weight = b{s}_{u}.conv_{branch}.weight``,
    ``aux:bn{s}a_{branch}_moving_var = b{s}.bn_{branch}.running_var``, ``arg:bn7_gamma = bn7.weight``, and so on.

    Args:
        params: name -> array of any shape (...), as :func:`read_mxnet_params` gives them.

    Returns:
        Name -> the same array.

    Example:
        >>> list(resnet38_names({"arg:res3b1_branch2a_weight": torch.zeros(1), "arg:other": torch.zeros(1)}))
        ['b3_1.conv_branch2a.weight', 'arg:other']

    In neither the paper nor the publication of ResNet-38 (Wu et al., 2019): the names are those of the release.
    """
    renamed = {}
    for full, array in params.items():
        name = full.removeprefix("arg:").removeprefix("aux:")
        if match := _CONVOLUTION.fullmatch(name) or _BRANCH_NORM.fullmatch(name):
            stage, unit, layer, kind = match.groups()
            block = f"b{stage}_{unit}" if unit else f"b{stage}"
            full = f"{block}.{'conv' if kind == 'weight' else 'bn'}_{layer}.{_BATCH_NORM.get(kind, kind)}"
        renamed[_ALONE.get(name, full)] = array
    return renamed


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
    from_mxnet = _is_mxnet_params(path)
    given = resnet38_names(read_mxnet_params(path)) if from_mxnet else read_state_dict(path)

    own = model.state_dict()
    prefix = "backbone." if model.prefixed else ""
    backbone = {prefix + name for name in model.backbone.state_dict()}
    wanted = backbone if part == "backbone" else set(own)
    names = {
        key: next((n for n in (key, f"backbone.{key}", key.removeprefix("backbone.")) if n in own), "") for key in given
    }
    found = {names[key]: value for key, value in given.items() if names[key] in wanted}
    unexpected = [key for key in given if not names[key] and part == "all"]
    misshaped = {
        name: f"{name}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
        for name, value in found.items()
        if own[name].shape != value.shape
    }
    missing = [name for name in own if name in wanted - found.keys() and not name.endswith(".num_batches_tracked")]
    report = LoadReport(tuple(missing), tuple(unexpected), tuple(misshaped.values()))
    errors = report
    if from_mxnet:  # the head is the network's own, the file's last layer ImageNet's
        foreign = [key for key in unexpected if not key.startswith("arg:linear1000_")]
        errors = LoadReport(tuple(n for n in missing if n in backbone), tuple(foreign), report.misshaped)
    if strict and errors:
        raise InputError(f"{path}: expected the weights of {type(model).__name__}, got {errors}")
    model.load_state_dict({name: value for name, value in found.items() if name not in misshaped}, strict=False)
    return report


class Identity(NamedTuple):
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
