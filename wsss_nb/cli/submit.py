"""``wsss-nb submit``: pack label maps for PASCAL VOC's evaluation server."""

from __future__ import annotations

import argparse

__all__ = ["add_submit"]


def add_submit(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``submit``."""
    parser.add_argument("--predictions", required=True, metavar="DIR", help="label maps NAME.png")
    parser.add_argument("--data", required=True, metavar="DIR", help="VOC 2012 with the test split's images")
    parser.add_argument("--split", default="test", metavar="NAME", help="default: test")
    parser.add_argument("--out", required=True, metavar="FILE.tar.gz")
    parser.set_defaults(handler=_submit)


def _submit(options: argparse.Namespace) -> int:
    from wsss_nb.data import VOCFolder
    from wsss_nb.data.submission import pack_submission

    count = pack_submission(VOCFolder(options.data, options.split), options.predictions, options.out)
    print(f"{options.out}: {count} label maps of split {options.split}, ready for the server")
    return 0
