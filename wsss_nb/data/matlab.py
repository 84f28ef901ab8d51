"""Variables of MATLAB 5 files, which two of the data sets keep their masks in."""

from __future__ import annotations

import io
import zlib
from collections.abc import Collection
from typing import Any

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from wsss_nb.errors import InputError

__all__ = ["read_matlab"]

# what scipy raises for damaged and for newer files; its NotImplementedError is a RuntimeError
_ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, KeyError, IndexError, TypeError, MemoryError, MatReadError, zlib.error,
)  # fmt: skip


def read_matlab(content: bytes, names: Collection[str], source: str) -> dict[str, Any]:
    """The variables ``names`` of a file.

    Args:
        content: the file.
        names: what is wanted, all of it.
        source: the file's name, for messages.

    Raises:
        InputError: not a MATLAB 5 file, or one without a wanted variable.
    """
    try:
        found = loadmat(io.BytesIO(content), variable_names=list(names))
    except _ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{source}: expected a MATLAB 5 file, got {reason}") from error
    for name in names:
        if name not in found:
            raise InputError(f"{source}: expected {' and '.join(names)}, got no {name}")
    return {name: found[name] for name in names}
