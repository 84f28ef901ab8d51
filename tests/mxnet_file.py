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


def write_resnet38_params(path: Path, state: dict[str, Tensor]) -> None:
    """The layers of a ResNet-38 as the ImageNet classifier's file names them, with its last layer."""
    norm = {"weight": "arg:{}_gamma", "bias": "arg:{}_beta", "running_mean": "aux:{}_moving_mean",
            "running_var": "aux:{}_moving_var"}  # fmt: skip
    arrays = {
        "arg:linear1000_weight": np.zeros((1000, 8), "<f4"),
        "arg:linear1000_bias": np.zeros(1000, "<f4"),
    }
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        block = re.fullmatch(r"b(\d)(?:_(\d))?\.(conv|bn)_(branch\w+)", layer)
        if block:
            stage, unit, what, branch = block.groups()
            name = f"{'res' if what == 'conv' else 'bn'}{stage}{f'b{unit}' if unit else 'a'}_{branch}"
        else:
            name, what = layer, "bn" if layer.startswith("bn") else "conv"
        arrays[norm[kind].format(name) if what == "bn" else f"arg:{name}_weight"] = value.numpy()
    path.write_bytes(file_bytes(arrays))
