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

from wsss_nb.errors import InputError

__all__ = ["is_mxnet_params", "read_mxnet_params", "resnet38_names"]

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?"}
_MAX_DIMS = 32
_MAX_SIZE = 2**31
_MAX_NAME = 4096

_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_CONVOLUTION = re.compile(r"res([2-7])(a|b\d+)_(branch\w+)_weight")
_BRANCH_NORM = re.compile(r"bn([2-7])(a|b\d+)_(branch\w+?)_(gamma|beta|moving_mean|moving_var)")
_LAST_NORM = re.compile(r"bn7_(gamma|beta|moving_mean|moving_var)")


class _Reader:
    """Little-endian reads from a file, each checked against the bytes that are left."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.left = file, path, size

    def error(self, message: str) -> InputError:
        return InputError(f"{self.path}: {message}")

    def take(self, size: int, what: str) -> bytearray:
        if size > self.left:
            raise self.error(f"expected {size} bytes for {what}, got {self.left} (file truncated or damaged)")
        data = bytearray(self.file.read(size))
        if len(data) != size:
            raise self.error(f"expected {size} bytes for {what}, got {len(data)} (file truncated)")
        self.left -= size
        return data

    def ints(self, code: str, count: int, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"), what))

    def count(self, code: str, smallest: int, what: str) -> int:
        """A number of items that each take at least ``smallest`` bytes."""
        (value,) = self.ints(code, 1, what)
        if not 0 <= value * smallest <= self.left:
            raise self.error(f"expected at most {self.left // smallest} for {what}, got {value}")
        return value


def _read_array(reader: _Reader, index: int) -> Tensor:
    what = f"array {index}"
    (magic,) = reader.ints("I", 1, what)
    if magic in (_V2, _V3):
        (storage,) = reader.ints("i", 1, what)
        if storage != 0:
            raise reader.error(f"expected dense storage (0) for {what}, got {storage}")
    if magic in (_V1, _V2, _V3):
        (ndim,) = reader.ints("i", 1, what)
        dim_code = "q"
    else:  # before version 1 the number of dimensions stood here, with 4 bytes per dimension
        ndim, dim_code = magic, "I"
    smallest = 0 if magic == _V3 else 1
    if not smallest <= ndim <= _MAX_DIMS:
        raise reader.error(f"expected {smallest} to {_MAX_DIMS} dimensions for {what}, got {ndim}")
    shape = reader.ints(dim_code, ndim, f"shape of {what}")
    if any(size < 0 for size in shape):
        raise reader.error(f"expected sizes of at least 0 for {what}, got {shape}")
    if 0 in shape and math.prod(size or 1 for size in shape) > _MAX_SIZE:  # take() has nothing to check then
        raise reader.error(f"expected sizes up to {_MAX_SIZE} together for {what}, got {shape}")
    _device_type, _device_id, type_flag = reader.ints("i", 3, what)
    if type_flag not in _DTYPES:
        raise reader.error(f"expected a dtype flag in {sorted(_DTYPES)} for {what}, got {type_flag}")
    dtype = np.dtype(_DTYPES[type_flag])
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
        size = os.fstat(file.fileno()).st_size
        reader = _Reader(file, path, size)
        if size > max_bytes:
            raise reader.error(f"expected at most {max_bytes} bytes, got {size}")
        if size < 24:
            raise reader.error(f"expected an MXNet .params file, got {size} bytes")
        magic, _reserved = reader.ints("Q", 2, "header")
        if magic != _LIST_MAGIC:
            raise reader.error(
                f"expected an MXNet .params file beginning with {_LIST_MAGIC:#x}, got {magic:#x}"
            )
        arrays = [_read_array(reader, i) for i in range(reader.count("Q", 4, "number of arrays"))]
        names = reader.count("Q", 8, "number of names")
        if names != len(arrays):
            raise reader.error(f"expected one name per array ({len(arrays)}), got {names}")
        params: dict[str, Tensor] = {}
        for index, array in enumerate(arrays):
            length = reader.count("Q", 1, f"length of name {index}")
            if length > _MAX_NAME:
                raise reader.error(f"expected a name of at most {_MAX_NAME} bytes, got {length}")
            raw = bytes(reader.take(length, f"name {index}"))
            try:
                name = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise reader.error(f"expected UTF-8 in name {index}, got {raw[:40]!r}") from error
            if name in params:
                raise reader.error(f"expected every name once, got {name!r} twice")
            params[name] = array
        if reader.left:
            raise reader.error(f"expected the end of the file, got {reader.left} more bytes")
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
        if name == "conv1a_weight":
            key = "conv1a.weight"
        elif match := _CONVOLUTION.fullmatch(name):
            key = f"{_block(match[1], match[2])}.conv_{match[3]}.weight"
        elif match := _BRANCH_NORM.fullmatch(name):
            key = f"{_block(match[1], match[2])}.bn_{match[3]}.{_BATCH_NORM[match[4]]}"
        elif match := _LAST_NORM.fullmatch(name):
            key = f"bn7.{_BATCH_NORM[match[1]]}"
        else:
            key = full
        renamed[key] = array
    return renamed


def _block(stage: str, unit: str) -> str:
    return f"b{stage}" if unit == "a" else f"b{stage}_{unit[1:]}"
