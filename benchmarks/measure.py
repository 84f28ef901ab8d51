"""Interleaved medians and peak memory of functions that compute the same thing, held against targets."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Row", "Setup", "Work", "extra_memory", "interleaved", "measure", "table"]

Work = Callable[[], Any]
SECONDS_EACH = 40.0


@dataclass(frozen=True)
class Setup:
    """What a row measures.

    Attributes:
        ours: our function.
        theirs: what it is measured against, or None.
        check: raises ``AssertionError`` where the two results differ; None if they are no two ways to the same.
    """

    ours: Work
    theirs: Work | None = None
    check: Callable[[Any, Any], None] | None = None


@dataclass(frozen=True)
class _Quantity:
    """How a measured number is written, and on which side of its target it has to be."""

    text: Callable[[float], str]
    at_least: bool

    def met(self, measured: float, target: float) -> bool:
        return measured >= target if self.at_least else measured <= target


QUANTITIES = {
    "speed_up": _Quantity(lambda value: f"{value:.3g}x faster", at_least=True),
    "memory_share": _Quantity(lambda value: f"1/{1 / max(value, 1e-3):.0f} memory", at_least=False),
    "memory_mb": _Quantity(lambda value: f"{value:.0f} MB", at_least=False),
    "time_per_growth": _Quantity(lambda value: f"{value:.2g}x the time per pixel x window", at_least=False),
    "milliseconds": _Quantity(lambda value: f"{value:.0f} ms", at_least=False),
}
"""What a target may be about; ``time_per_growth`` is (time ratio to ``theirs``) / (growth of the work)."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is computed, with sizes.
        setup: makes the contestants.
        against: what ours is measured against; empty where a bound on the time itself is the question.
        targets: name of :data:`QUANTITIES` -> bound.
        growth: how many times the work of ``theirs`` ours is, where that is the question.
        facts: further numbers for the JSON.
    """

    work: str
    setup: Callable[[], Setup]
    against: str = ""
    targets: Mapping[str, float] = field(default_factory=dict)
    growth: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


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
        return max(_status("VmHWM") - before, 0) / 1024
    except OSError:
        return None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"no {name} in /proc/self/status")


def measure(row: Row, repeats: int) -> dict[str, Any]:
    """Check, warm up, time and weigh one row.

    Returns:
        Times (medians, seconds), extra memory (MB) and ``targets``: name -> target, measured, met; ``met`` is
        None where memory could not be measured.

    Raises:
        AssertionError: the two contestants do not compute the same.
    """
    import torch

    setup = row.setup()
    contestants = [setup.ours] if setup.theirs is None else [setup.ours, setup.theirs]
    first = [work() for work in contestants]
    if setup.check is not None:
        setup.check(*first)
    del first
    seconds = interleaved(contestants, repeats)
    memory = [extra_memory(work) for work in contestants]
    result: dict[str, Any] = {
        "work": row.work,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "seconds": seconds[0],
        "memory_mb": memory[0],
        **row.facts,
    }
    measured: dict[str, float | None] = {"memory_mb": memory[0], "milliseconds": 1e3 * seconds[0]}
    if setup.theirs is not None:
        measured["speed_up"] = seconds[1] / seconds[0]
        measured["memory_share"] = None if memory[0] is None or not memory[1] else memory[0] / memory[1]
        result |= {
            "against": row.against,
            "against_seconds": seconds[1],
            "against_memory_mb": memory[1],
            "speed_up": measured["speed_up"],
            "memory_share": measured["memory_share"],
        }
        if row.growth is not None:
            result["growth"] = row.growth
            measured["time_per_growth"] = seconds[0] / seconds[1] / row.growth
    result["targets"] = {name: _judged(name, measured[name], target) for name, target in row.targets.items()}
    return result


def _judged(name: str, measured: float | None, target: float) -> dict[str, Any]:
    met = None if measured is None else QUANTITIES[name].met(measured, target)
    return {"target": target, "measured": measured, "met": met}


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table; every row says its targets and whether they were met."""
    lines = [
        "| work | ms | extra MB | against | ms | extra MB | result | target | met |",
        "|---|---:|---:|---|---:|---:|---|---|---|",
    ]
    for result in results:
        cells = [result["work"], _number(1e3 * result["seconds"]), _number(result["memory_mb"])]
        cells += [result.get("against", "")]
        for name, factor in (("against_seconds", 1e3), ("against_memory_mb", 1.0)):
            value = result.get(name, "")
            cells.append(_number(value if value is None else factor * value) if value != "" else "")
        words, bounds, verdicts = [], [], []
        if "growth" in result:
            ratio = result["seconds"] / result["against_seconds"]
            words.append(f"{ratio:.3g}x as long for {result['growth']:.3g}x the work")
        for name, entry in result["targets"].items():
            quantity = QUANTITIES[name]
            words.append("?" if entry["measured"] is None else quantity.text(entry["measured"]))
            bounds.append(("at least " if quantity.at_least else "at most ") + quantity.text(entry["target"]))
            verdicts.append({True: "yes", False: "NO", None: "?"}[entry["met"]])
        cells += [", ".join(words), ", ".join(bounds), ", ".join(verdicts)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
