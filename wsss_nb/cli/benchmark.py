"""``wsss-nb benchmark``: the method's core against straightforward versions of it."""

from __future__ import annotations

import argparse

from wsss_nb.cli.parser import words

__all__ = ["add_benchmark"]


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``benchmark``."""
    parser.add_argument("--only", type=words, default=(), metavar="ROW,...", help="measure these rows only")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="median of so many; default: 5")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there")
    parser.add_argument(
        "--readme", metavar="FILE", help="put the table there in place of the one that it holds"
    )
    parser.set_defaults(handler=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    from wsss_nb.benchmarks import run

    return run(options.only, options.repeats, options.threads, options.json, options.readme)
