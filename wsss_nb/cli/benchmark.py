"""``wsss-nb benchmark``: the project's benchmarks, which live beside the package in a checkout."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from wsss_nb.cli.parser import words
from wsss_nb.errors import InputError

__all__ = ["add_benchmark"]

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``benchmark``."""
    parser.add_argument("--only", type=words, default=(), metavar="ROW,...", help="measure these rows only")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="median of so many; default: 5")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there")
    parser.set_defaults(handler=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    entry = FOLDER / "__init__.py"
    if not entry.is_file():
        raise InputError(f"{FOLDER}: expected the project's benchmarks, got none; run it from a checkout")
    spec = importlib.util.spec_from_file_location(
        "benchmarks", entry, submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None and spec.loader is not None
    benchmarks = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = benchmarks
    spec.loader.exec_module(benchmarks)
    return int(benchmarks.main(options.only, options.repeats, options.threads, options.json))
