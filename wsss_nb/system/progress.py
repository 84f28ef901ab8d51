"""The one reporter of progress: a bar where somebody watches, plain lines in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["HEADLESS", "duration", "progress"]

T = TypeVar("T")

HEADLESS = "WSSS_NB_HEADLESS"
"""Environment variable of workers and of notebooks that nobody watches: whoever started them reports."""


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


def progress(items: Iterable[T], description: str, total: int | None = None, interval: float = 60.0) -> Iterator[T]:
    """Yield ``items`` behind a bar at a terminal or in Jupyter; in a log behind a plain line every ``interval`` seconds.

    Args:
        items: what is worked through.
        description: of the work.
        total: number of items, where they do not tell it.
        interval: seconds between lines.
    """
    if os.environ.get(HEADLESS):
        yield from items
        return
    count = len(items) if total is None and isinstance(items, Sized) else total
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=description, total=count, leave=False)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > interval:
            last = time.monotonic()
            print(f"{description}: {done}{f' of {count}' if count else ''}", flush=True)
        yield item
