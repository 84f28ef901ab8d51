"""Reading MXNet ``.params`` files without MXNet, and their names in ResNet-38."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from wsss_nb.system.errors import InputError

__all__ = ["is_mxnet_params", "read_mxnet_params", "resnet38_names"]

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?"}
_MAX_DIMS = 32
_MAX_SIZE = 2**31
_MAX_NAME = 4096

_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_ALONE = {"conv1a_weight": "conv1a.weight"} | {f"bn7_{kind}": f"bn7.{ours}" for kind, ours in _BATCH_NORM.items()}
_CONVOLUTION = re.compile(r"res([2-7])(?:a|b(\d+))_(branch\w+)_(weight)")
_BRANCH_NORM = re.compile(r"bn([2-7])(?:a|b(\d+))_(branch\w+?)_(gamma|beta|moving_mean|moving_var)")


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

    def count(self, smallest: int, what: str) -> int:
        """A number of items that each take at least ``smallest`` bytes."""
        (value,) = self.ints("Q", 1, what)
        self.check(value * smallest <= self.left, f"at most {self.left // smallest} for {what}", value)
        return value


def _read_array(reader: _Reader, what: str) -> Tensor:
    (magic,) = reader.ints("I", 1, what)
    ndim, dim_code = magic, "I"  # before version 1 the number of dimensions stood here, with 4 bytes per dimension
    if magic in (_V2, _V3):
        (storage,) = reader.ints("i", 1, what)
        reader.check(storage == 0, f"dense storage (0) for {what}", storage)
    if magic in (_V1, _V2, _V3):
        (ndim,), dim_code = reader.ints("i", 1, what), "q"
    smallest = 0 if magic == _V3 else 1
    reader.check(smallest <= ndim <= _MAX_DIMS, f"{smallest} to {_MAX_DIMS} dimensions for {what}", ndim)
    shape = reader.ints(dim_code, ndim, f"shape of {what}")
    reader.check(all(size >= 0 for size in shape), f"sizes of at least 0 for {what}", shape)
    # take() has nothing to check where a size is 0
    fits = 0 not in shape or math.prod(size or 1 for size in shape) <= _MAX_SIZE
    reader.check(fits, f"sizes up to {_MAX_SIZE} together for {what}", shape)
    _device_type, _device_id, flag = reader.ints("i", 3, what)
    reader.check(flag in _DTYPES, f"a dtype flag in {sorted(_DTYPES)} for {what}", flag)
    dtype = np.dtype(_DTYPES[flag])
    data = reader.take(math.prod(shape) * dtype.itemsize, f"{what} of shape {shape}")
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))


def is_mxnet_params(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins like an MXNet list of arrays."""
    with open(path, "rb") as file:
        return file.read(8) == struct.pack("<Q", _LIST_MAGIC)


def read_mxnet_params(path: str | os.PathLike[str], max_bytes: int = 4 << 30) -> dict[str, Tensor]:
    """Read the named arrays of an MXNet ``.params`` file (all versions of the format, dense arrays).

    The format is a header, a list of (version, shape, device, dtype, data) and a list of names,
    ``file = 0x112, 0, n, array_1, .., array_n, n, name_1, .., name_n`` with numbers of 8 bytes. Every size is
    checked against the bytes that are left before anything is allocated, and nothing in the file is executed.

    Args:
        path: the file.
        max_bytes: larger files are refused.

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
    path = Path(path)
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only opening may fail for the user's reasons
    except OSError as error:
        raise InputError(f"{path}: expected an MXNet .params file, got {error.strerror}") from error
    with file:
        reader = _Reader(file, path)
        reader.check(reader.left <= max_bytes, f"at most {max_bytes} bytes", reader.left)
        magic, _reserved = reader.ints("Q", 2, "header")
        reader.check(magic == _LIST_MAGIC, f"an MXNet .params file beginning with {_LIST_MAGIC:#x}", f"{magic:#x}")
        arrays = [_read_array(reader, f"array {index}") for index in range(reader.count(4, "number of arrays"))]
        names = reader.count(8, "number of names")
        reader.check(names == len(arrays), f"one name per array ({len(arrays)})", names)
        params: dict[str, Tensor] = {}
        for index, array in enumerate(arrays):
            length = reader.count(1, f"length of name {index}")
            reader.check(length <= _MAX_NAME, f"a name of at most {_MAX_NAME} bytes", length)
            raw = bytes(reader.take(length, f"name {index}"))
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
