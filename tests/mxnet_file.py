"""Writes MXNet's ``.params`` files, for tests of what reads them."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
from torch import Tensor

CODES = {"f4": 0, "f8": 1, "f2": 2, "u1": 3, "i4": 4, "i1": 5, "i8": 6, "b1": 7}


def array_bytes(array: np.ndarray, version: int = 2) -> bytes:
    """One array as MXNet writes it; version 0 is the format before there were version numbers."""
    shape = array.shape
    if version == 0:
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    else:
        head = struct.pack("<I", {1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}[version])
        head += struct.pack("<i", 0) if version > 1 else b""
        head += struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    code = CODES[array.dtype.str[1:]]
    return head + struct.pack("<iii", 1, 0, code) + np.ascontiguousarray(array).tobytes()


def file_bytes(arrays: dict[str, np.ndarray], version: int = 2) -> bytes:
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    out += b"".join(array_bytes(array, version) for array in arrays.values())
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name.encode())) + name.encode()
    return out


def mxnet_name(name: str) -> str:
    """The MXNet name of a tensor of ResNet-38."""
    layer, _, kind = name.rpartition(".")
    norm = {"weight": "arg:{}_gamma", "bias": "arg:{}_beta"}
    norm |= {"running_mean": "aux:{}_moving_mean", "running_var": "aux:{}_moving_var"}
    if block := re.fullmatch(r"b(\d)(?:_(\d))?\.(conv|bn)_(branch\w+)", layer):
        stage, unit, what, branch = block.groups()
        layer = f"{'res' if what == 'conv' else 'bn'}{stage}{f'b{unit}' if unit else 'a'}_{branch}"
    return norm[kind].format(layer) if layer.startswith("bn") else f"arg:{layer}_weight"


def resnet38_arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The layers of a ResNet-38 as the ImageNet classifier's file names them, with its last layer."""
    arrays = {"arg:linear1000_weight": np.zeros((1000, 8), "<f4"), "arg:linear1000_bias": np.zeros(1000, "<f4")}
    counted = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return arrays | {mxnet_name(key): value.numpy() for key, value in counted.items()}


def write_resnet38_params(path: Path, state: dict[str, Tensor]) -> None:
    """A file with the arrays of :func:`resnet38_arrays`."""
    path.write_bytes(file_bytes(resnet38_arrays(state)))
