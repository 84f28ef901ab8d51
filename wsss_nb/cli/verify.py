"""``wsss-nb verify``: are figures and tables still what the arrays beside them give?"""

from __future__ import annotations

import argparse

__all__ = ["add_verify"]


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``verify``."""
    parser.add_argument("folder", metavar="DIR", help="figures and tables with their arrays and manifests")
    parser.add_argument(
        "--against", metavar="DIR",
        help="another run's: compare CSV files by bytes and PNG files by pixels (times and memory excepted)",
    )  # fmt: skip
    parser.set_defaults(handler=_verify)


def _verify(options: argparse.Namespace) -> int:
    from wsss_nb.verify import compare_folders, verify_folder

    if options.against is None:
        verdicts, right, wrong = verify_folder(options.folder), "matches", "does not match"
    else:
        verdicts, right, wrong = compare_folders(options.folder, options.against), "same", "differs"
    words = {True: right, False: wrong, None: "not compared"}
    width = max(len(str(verdict.path)) for verdict in verdicts)
    for verdict in verdicts:
        reason = f": {verdict.reason}" if verdict.reason else ""
        print(f"{verdict.path!s:{width}}  {words[verdict.matches]}{reason}")
    compared = [verdict for verdict in verdicts if verdict.matches is not None]
    good = sum(bool(verdict.matches) for verdict in compared)
    rest = "" if len(compared) == len(verdicts) else f", {len(verdicts) - len(compared)} not compared"
    print(
        f"{options.folder}: {good} of {len(compared)} files {'match' if right == 'matches' else 'are the same'}{rest}"
    )
    return 0 if good == len(compared) else 1
