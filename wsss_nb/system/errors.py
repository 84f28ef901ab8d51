"""Errors that the command line prints as one line: what a user handed in, dead workers, and a disk without room."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["DiskFullError", "InputError", "WorkerDiedError", "expecting", "require"]


class InputError(ValueError):
    """Something the user gave is wrong; the message names it, what was expected and what came.

    The command line prints it as one line and ends with exit code 2.
    """


class DiskFullError(RuntimeError):
    """There is no room for a file; what was written before is complete, and the same command carries on.

    The command line prints it as one line and ends with exit code 1.
    """


class WorkerDiedError(RuntimeError):
    """A worker process ended without an answer (killed, out of memory, crash in native code)."""


def require(condition: bool, message: str) -> None:
    """Check what a user handed in.

    Raises:
        InputError: with the message, where the condition does not hold.

    Example:
        >>> require(2 > 1, "size: expected at least 1, got 2")
    """
    if not condition:
        raise InputError(message)


@contextmanager
def expecting(what: str, source: object, errors: type[Exception] = Exception) -> Iterator[None]:
    """Turn what goes wrong inside into the one line ``source: expected what, got reason``.

    Readers of damaged images, archives, XML or MATLAB files raise nearly everything, so they are caught as a whole.

    Raises:
        InputError: in place of ``errors``.

    Example:
        >>> with expecting("a number", "a.txt"):
        ...     int("7")
    """
    try:
        yield
    except (InputError, DiskFullError):
        raise
    except errors as error:
        kinds: dict[type, str] = {FileNotFoundError: "no file", IsADirectoryError: "a folder"}
        # Pillow names the file object, which nobody knows
        text = kinds.get(type(error)) or getattr(error, "strerror", None) or re.sub(r" <_io\..*", "", str(error))
        raise InputError(f"{source}: expected {what}, got {' '.join(text.split()) or type(error).__name__}") from error
