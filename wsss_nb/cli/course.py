"""``wsss-nb course``: the lessons as copies for students and for the teacher."""

from __future__ import annotations

import argparse
from pathlib import Path

from wsss_nb.cli.experiment import NOTEBOOKS

__all__ = ["add_course"]


def add_course(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``course``."""
    parser.add_argument("--out", required=True, metavar="DIR", help="gets the folders student and teacher")
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the numbered notebooks")
    parser.add_argument(
        "--source",
        default="",
        metavar="ADDRESS",
        help="repository that Colab installs from (git+https://...)",
    )
    parser.set_defaults(handler=_course)


def _course(options: argparse.Namespace) -> int:
    from wsss_nb.experiment.course import make_course

    notebooks = Path(options.notebooks) if options.notebooks else NOTEBOOKS
    written = make_course(notebooks, Path(options.out), options.source)
    print(f"{options.out}: {len(written) // 2} lessons in student (solutions removed) and teacher (shown)")
    return 0
