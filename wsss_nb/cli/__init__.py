"""The command line: ``wsss-nb run | sweep | train | evaluate | submit | verify | course | data | benchmark``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from wsss_nb.cli.parser import Parser
from wsss_nb.errors import InputError

__all__ = ["main"]

# Command -> module of this package, its function that adds the flags, and what the command does.
COMMANDS = {
    "run": ("experiment", "add_run", "execute the notebooks of a profile, only what changed"),
    "sweep": ("experiment", "add_sweep", "train the CAM networks of Figure 2: lambda x FSL x seed"),
    "train": ("experiment", "add_train", "train one stage: cam, affinitynet or deeplab"),
    "evaluate": ("evaluate", "add_evaluate", "score a checkpoint or a folder of label maps"),
    "submit": ("submit", "add_submit", "pack label maps for VOC's evaluation server"),
    "verify": ("verify", "add_verify", "check figures and tables against the arrays beside them"),
    "course": ("course", "add_course", "lessons for students, without the solutions, and for the teacher"),
    "data": ("data", "add_data", "make, convert and check data sets"),
    "benchmark": ("benchmark", "add_benchmark", "measure the method's core against straightforward versions"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the console script ``wsss-nb``.

    Returns:
        0 when all went well, 1 when work failed, 2 when the input was wrong, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _line_by_line()
    try:
        options = _parser(arguments).parse_args(arguments)
        handler: Callable[[argparse.Namespace], int] = options.handler
        return handler(options)
    except InputError as error:
        print(f"wsss-nb: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nwsss-nb: interrupted; the same command carries on where this one stopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from torch.cuda import OutOfMemoryError

        from wsss_nb.errors import DiskFullError
        from wsss_nb.stages.loop import TrainingError
        from wsss_nb.workers import WorkerDiedError

        if isinstance(error, OutOfMemoryError):
            error = RuntimeError(
                f"the GPU's memory does not suffice ({str(error).partition('. ')[0]}); what is finished is kept, the "
                "same command carries on"
            )
        elif not isinstance(error, (DiskFullError, TrainingError, WorkerDiedError)):
            raise
        print(f"wsss-nb: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _line_by_line() -> None:
    """A log that is read while it grows must not wait for a full buffer; of several processes the first one speaks."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        os.environ["WSSS_NB_HEADLESS"] = "1"
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; flags are only made for the command that is given, so that help does not load torch."""
    parser = Parser(
        prog="wsss-nb", description="Importance sampling CAMs for weakly-supervised segmentation."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    given = next((word for word in arguments if not word.startswith("-")), "")
    for name, (module, function, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == given:
            getattr(importlib.import_module(f"{__name__}.{module}"), function)(command)
    return parser
