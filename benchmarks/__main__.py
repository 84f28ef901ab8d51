"""``python -m benchmarks``: the method's core against straightforward versions of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import run
from wsss_nb.system.command_line import Parser, words
from wsss_nb.system.errors import InputError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns 2, after one line, where a flag is wrong."""
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=words, default=(), metavar="ROW,...", help="measure these rows only")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="median of so many; default: 5")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there")
    parser.add_argument("--readme", metavar="FILE", help="put the table there in place of the one that it holds")
    try:
        options = parser.parse_args(arguments)
        return run(options.only, options.repeats, options.threads, options.json, options.readme)
    except InputError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
