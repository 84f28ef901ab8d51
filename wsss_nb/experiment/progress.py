"""How a run shows where it is: a bar at a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["Progress", "duration"]


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> duration(4.24), duration(75), duration(7500)
        ('4.2 s', '1 min 15 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Reports notebooks as they start, run and end.

    At a terminal each notebook has a bar over its cells with the last line it printed beside it. Otherwise
    there is one line when a notebook starts, one when it ends and one per ``interval`` seconds between.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 60.0) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.interval = interval
        self.at_terminal = self.stream.isatty() and "WSSS_NB_HEADLESS" not in os.environ
        self._bar: Any = None
        self._title = ""
        self._cells = 0
        self._cell = 0
        self._said = ""
        self._begun = self._reported = 0.0

    def line(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def start(self, title: str, cells: int) -> None:
        """A notebook begins."""
        self._title, self._cells, self._cell, self._said = title, cells, 0, ""
        self._begun = self._reported = time.monotonic()
        if self.at_terminal:
            from tqdm import tqdm

            shape = "{desc}: {bar}| cell {n_fmt} of {total_fmt}, {elapsed}{postfix}"
            self._bar = tqdm(
                total=cells, desc=title, bar_format=shape, leave=False, file=self.stream, dynamic_ncols=True
            )
        else:
            self.line(f"{title}: started")

    def on_cell_start(self, cell: NotebookNode, cell_index: int) -> None:
        """A cell begins (the hook that nbclient calls); the one papermill puts in is not counted."""
        if "injected-parameters" in cell.get("metadata", {}).get("tags", []):
            return
        self._cell += 1
        if self._bar is not None:
            self._bar.update()

    def write(self, text: str) -> int:
        """What the notebook prints (a file's method, for papermill)."""
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        if lines:
            self._said = lines[-1][:100]
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def tick(self) -> None:
        """Called every now and then while a notebook runs, from another thread."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._said)
        elif time.monotonic() - self._reported >= self.interval:
            self._reported = time.monotonic()
            where = f"cell {self._cell} of {self._cells}, {duration(self._reported - self._begun)}"
            self.line(f"{self._title}: {where}{': ' if self._said else ''}{self._said}")

    def end(self, text: str) -> None:
        """The notebook has ended; ``text`` says how."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self.line(f"{self._title}: {text}")
