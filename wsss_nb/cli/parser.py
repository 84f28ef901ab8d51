"""A parser whose errors are those of all wrong input, and the types of its flags."""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn

from wsss_nb.errors import InputError

__all__ = ["Parser", "fraction", "fractions", "limits", "positive", "words"]


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is an InputError: one line, as for any other wrong input."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown flags here, where those that look like them are known."""
        known, rest = super().parse_known_args(args, namespace)
        flag = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
        if flag is not None:
            near = difflib.get_close_matches(flag, self._option_string_actions)
            self.error(f"unknown flag {flag}" + (f", did you mean {' or '.join(near)}?" if near else ""))
        return known, rest


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def fractions(text: str) -> list[float]:
    """Numbers from 0 to 1, separated by commas."""
    return [fraction(word) for word in text.split(",")]


def positive(text: str) -> float:
    """A number of minutes above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text}")
    return value


def limits(text: str) -> dict[str, float]:
    """Minutes for every notebook, for some, or both: "30", "04=60", "30,04=60"; the key "" stands for the others."""
    found: dict[str, float] = {}
    for word in text.split(","):
        name, equals, minutes = word.rpartition("=")
        if name in found or (equals and not name):
            raise argparse.ArgumentTypeError(f"expected MINUTES or NOTEBOOK=MINUTES, each once, got {text}")
        found[name] = positive(minutes)
    return found


def words(text: str) -> tuple[str, ...]:
    """Words separated by commas."""
    return tuple(word for word in text.split(",") if word)
