"""The one error type for what a user handed in: files, folders, options, profile fields."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Something the user gave is wrong; the message names it, what was expected and what came.

    The command line prints it as one line and ends with exit code 2.
    """
