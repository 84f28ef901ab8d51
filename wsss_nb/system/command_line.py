"""A command line whose errors are those of all wrong input: one line that says what looks like it."""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from wsss_nb.system.errors import InputError

__all__ = ["Parser", "minutes_by_notebook", "similar_names", "words"]


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is an InputError, and a later flag of the same name replaces an earlier one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "conflict_handler": "resolve", **options})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown flags here, where those that look like them are known."""
        known, rest = super().parse_known_args(args, namespace)
        flag = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
        if flag is not None:
            near = similar_names(flag[2:], [name[2:] for name in self._option_string_actions if name.startswith("--")])
            also = f", did you mean {' or '.join(f'--{name}' for name in near)}?" if near else ""
            self.error(f"unknown flag {flag}{also}")
        return known, rest


def similar_names(field: str, known: Sequence[str]) -> list[str]:
    """The likely misspelt neighbour of a dotted name, else the names with the same last part elsewhere.

    Example:
        >>> similar_names("cam.epoch", ["cam.epochs", "seeds"])
        ['cam.epochs']
    """
    parents, _, last = field.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parents}
    near = difflib.get_close_matches(last, siblings, n=1)
    elsewhere = [name for name in known if name.rpartition(".")[2] == last and "seam" not in name]
    return [siblings[name] for name in near] or elsewhere


def minutes_by_notebook(text: str) -> dict[str, float]:
    """Minutes for every notebook, for some, or both: "30", "04=60", "30,04=60"; the key "" stands for the others."""
    found: dict[str, float] = {}
    for word in text.split(","):
        name, equals, minutes = word.rpartition("=")
        positive = re.fullmatch(r"\d*\.?\d+", minutes) and float(minutes) > 0
        if name in found or (equals and not name) or not positive:
            expected = "MINUTES or NOTEBOOK=MINUTES above 0, each notebook once"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        found[name] = float(minutes)
    return found


def words(text: str) -> tuple[str, ...]:
    """Words separated by commas, at least one."""
    found = tuple(word for word in text.split(",") if word)
    if not found:
        raise argparse.ArgumentTypeError(f"expected words separated by commas, got {text!r}")
    return found
