"""Errors that the command line prints as one line: what a user handed in, and a disk without room."""

from __future__ import annotations

__all__ = ["DiskFullError", "InputError"]


class InputError(ValueError):
    """Something the user gave is wrong; the message names it, what was expected and what came.

    The command line prints it as one line and ends with exit code 2.
    """


class DiskFullError(RuntimeError):
    """There is no room for a file; what was written before is complete, and the same command carries on.

    The command line prints it as one line and ends with exit code 1.
    """
