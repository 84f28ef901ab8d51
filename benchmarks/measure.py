"""Interleaved medians and peak memory of functions that compute the same thing."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Row", "extra_memory", "interleaved", "measure", "table"]

Work = Callable[[], Any]
SECONDS_EACH = 40.0


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is computed, with sizes.
        setup: makes our function, the straightforward one (or None), and a check that they agree.
        against: what the straightforward one is.
        speed_up: what is claimed.
        memory_share: claimed share of the straightforward version's extra memory, or None.
    """

    work: str
    setup: Callable[[], tuple[Work, Work | None, Callable[[Any, Any], None]]]
    against: str = ""
    speed_up: float | None = None
    memory_share: float | None = None


def interleaved(contestants: Sequence[Work], repeats: int) -> list[float]:
    """Median seconds of each, run in turns so that all see the same state of the machine.

    A contestant that has used up its time is not repeated further.
    """
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(repeats):
        for work, measured in zip(contestants, times, strict=True):
            if sum(measured) > SECONDS_EACH:
                continue
            begun = time.perf_counter()
            work()
            measured.append(time.perf_counter() - begun)
    return [statistics.median(measured) for measured in times]


def extra_memory(work: Work) -> float | None:
    """Peak resident memory of a call above what was resident before, in MB; None where Linux cannot tell."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"no {name} in /proc/self/status")


def measure(row: Row, repeats: int) -> dict[str, Any]:
    """Check, warm up, time and weigh one row."""
    import torch

    ours, theirs, check = row.setup()
    contestants = [ours] if theirs is None else [ours, theirs]
    first = [work() for work in contestants]
    if theirs is not None:
        check(*first)
    del first
    seconds = interleaved(contestants, repeats)
    memory = [extra_memory(work) for work in contestants]
    result: dict[str, Any] = {
        "work": row.work,
        "threads": torch.get_num_threads(),
        "seconds": seconds[0],
        "memory_mb": memory[0],
    }
    if theirs is not None:
        share = None if memory[0] is None or not memory[1] else max(memory[0], 0.0) / memory[1]
        result |= {
            "against": row.against,
            "against_seconds": seconds[1],
            "against_memory_mb": memory[1],
            "speed_up": seconds[1] / seconds[0],
            "memory_share": share,
            "claimed_speed_up": row.speed_up,
            "claimed_memory_share": row.memory_share,
        }
    return result


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| work | ms | extra MB | against | ms | extra MB | faster | claimed | memory | claimed |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        cells = [result["work"], _number(1e3 * result["seconds"]), _number(result["memory_mb"])]
        if "against" in result:
            claimed = result["claimed_speed_up"]
            share, claimed_share = result["memory_share"], result["claimed_memory_share"]
            cells += [
                result["against"],
                _number(1e3 * result["against_seconds"]),
                _number(result["against_memory_mb"]),
                f"{result['speed_up']:.1f}x",
                "" if claimed is None else f"{claimed:g}x",
                "" if not share else f"1/{1 / share:.0f}",
                "" if claimed_share is None else f"1/{1 / claimed_share:.0f}",
            ]
        else:
            cells += [""] * 7
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
