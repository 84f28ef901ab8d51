"""The command line: ``wsss-nb run | sweep | train | evaluate | data | benchmark``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wsss_nb.errors import InputError

if TYPE_CHECKING:
    from wsss_nb.data import VOCFolder
    from wsss_nb.experiment.pipeline import Run
    from wsss_nb.experiment.profiles import Profile

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
Handler = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is an InputError: one line, as for any other wrong input."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the console script ``wsss-nb``.

    Returns:
        0 when all went well, 1 when work failed, 2 when the input was wrong, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _line_by_line()
    try:
        options = _parser(arguments).parse_args(arguments)
        handler: Handler = options.handler
        return handler(options)
    except InputError as error:
        print(f"wsss-nb: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nwsss-nb: interrupted; the same command carries on where this one stopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from wsss_nb.stages.loop import TrainingError
        from wsss_nb.workers import WorkerDiedError

        if not isinstance(error, (TrainingError, WorkerDiedError)):
            raise
        print(f"wsss-nb: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _line_by_line() -> None:
    """A log that is read while it grows must not wait for a full buffer."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# Parsers


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; flags for the profile's fields are only made for the command that is given."""
    parser = _Parser(
        prog="wsss-nb", description="Importance sampling CAMs for weakly-supervised segmentation."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    given = next((word for word in arguments if not word.startswith("-")), "")
    described: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
        "run": ("execute the notebooks of a profile, only what changed", _add_run),
        "sweep": ("train the CAM networks of Figure 2: lambda x FSL x seed", _add_sweep),
        "train": ("train one stage: cam, affinitynet or deeplab", _add_train),
        "evaluate": ("score a folder of label maps", _add_evaluate),
        "data": ("make, convert and check data sets", _add_data),
        "benchmark": ("measure the method's core against straightforward versions", _add_benchmark),
    }
    for name, (text, add) in described.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == given:
            add(command)
    return parser


def _add_profile(parser: argparse.ArgumentParser) -> None:
    from wsss_nb.experiment.options import add_profile_flags
    from wsss_nb.experiment.profiles import PROFILES, Profile

    parser.usage = (
        f"{parser.prog} [-h] [--profile NAME] [--out DIR] [--data DIR] [options] [--FIELD VALUE ...]"
    )
    parser.add_argument("--profile", default="quick", choices=sorted(PROFILES), help="default: quick")
    parser.add_argument("--out", metavar="DIR", help="run folder; default: runs/PROFILE")
    parser.add_argument("--data", default="", metavar="DIR", help="data set in VOC layout")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out and count them")
    add_profile_flags(parser, Profile)


def _add_lambdas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lambda", dest="weights", type=_fraction_list, metavar="FLOAT,...", help="same as --lambdas"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_profile(parser)
    _add_lambdas(parser)
    parser.add_argument("--figures", metavar="DIR", help="copy the figures and tables there when all is done")
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the numbered notebooks")
    parser.add_argument("--only", type=_words, default=(), metavar="04,07", help="run these notebooks only")
    parser.add_argument("--timeout", type=_positive, metavar="MINUTES", help="limit for each notebook")
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set a parameter of the notebooks that have it",
    )  # fmt: skip
    parser.set_defaults(handler=_run)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_profile(parser)
    _add_lambdas(parser)
    parser.set_defaults(handler=_sweep)


def _add_train(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE", parser_class=_Parser)
    cam = stages.add_parser(
        "cam", help="one CAM network", description="Train one CAM network and score its CAMs."
    )
    _add_profile(cam)
    cam.add_argument(
        "--lambda", dest="weight", type=_fraction, default=1.0, metavar="FLOAT", help="Eq. 5; default: 1"
    )
    cam.add_argument("--no-fsl", action="store_true", help="without the feature-similarity loss")
    cam.add_argument("--baseline", choices=("average", "seam"), help="train a baseline instead")
    cam.add_argument("--seed", type=int, metavar="INT", help="default: the profile's first")
    cam.set_defaults(handler=_train_cam)
    for name in ("affinitynet", "deeplab"):
        stage = stages.add_parser(
            name, help=f"stage {name}", description=f"Train {name} and the stages it needs."
        )
        _add_profile(stage)
        stage.add_argument("--method", choices=("ours", "seam"), default="ours", help="default: ours")
        stage.set_defaults(handler=_train_stage)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", required=True, metavar="DIR", help="label maps NAME.png")
    parser.add_argument("--data", required=True, metavar="DIR", help="data set in VOC layout")
    parser.add_argument("--split", default="val", metavar="NAME", help="default: val")
    parser.add_argument(
        "--void", choices=("background", "masked"), default="background",
        help="what the contour score does with void (255); default: background, as the paper",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write scores and protocol there")
    parser.set_defaults(handler=_evaluate)


def _add_data(parser: argparse.ArgumentParser) -> None:
    from wsss_nb.cli_data import add_data_commands

    add_data_commands(parser, _Parser)


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", type=_words, default=(), metavar="ROW,...", help="measure these rows only")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="median of so many; default: 5")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there")
    parser.set_defaults(handler=_benchmark)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def _fraction_list(text: str) -> list[float]:
    return [_fraction(word) for word in text.split(",")]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text}")
    return value


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


# What the commands do


def _profile(options: argparse.Namespace) -> Profile:
    """The resolved profile; ``options.overrides`` then holds all overrides but the data folder."""
    from wsss_nb.experiment.profiles import load_profile

    more = ["data.skip_bad=true"] if options.skip_bad else []
    if getattr(options, "weights", None):
        more.append(f"lambdas={json.dumps(options.weights, separators=(',', ':'))}")
    options.overrides = [*options.overrides, *more]
    profile = load_profile(options.profile, options.overrides)
    if options.data:
        profile = profile.model_copy(update={"data": profile.data.model_copy(update={"root": options.data})})
    options.out = Path(options.out or f"runs/{profile.name}")
    return profile


def _open(options: argparse.Namespace, profile: Profile) -> Run:
    from wsss_nb.experiment.pipeline import open_run

    return open_run(profile, options.out)


def _run(options: argparse.Namespace) -> int:
    from wsss_nb.experiment.provenance import COMMAND, command_line, write_manifest
    from wsss_nb.experiment.runner import RunRequest, plan_run, run_notebooks
    from wsss_nb.experiment.state import run_lock

    profile = _profile(options)
    request = RunRequest(
        profile,
        options.out,
        " ".join(options.overrides),
        options.data,
        dict(options.parameters),
        options.only,
    )
    plan = plan_run(Path(options.notebooks) if options.notebooks else ROOT / "notebooks", request)
    os.environ[COMMAND] = command_line()
    with run_lock(options.out):
        data_hash = _open(options, profile).prepared["hash"] if plan.needs_data else None
        timeout = None if options.timeout is None else 60 * options.timeout
        outcomes = run_notebooks(plan, timeout=timeout)
        failed = [outcome for outcome in outcomes if outcome.status in {"failed", "waits"}]
        if not failed:
            if plan.needs_data:
                write_manifest(options.out / "run.json", profile, data_hash=data_hash)
            if options.figures:
                from wsss_nb.figures import publish_figures

                copies = publish_figures(options.out, options.figures)
                print(f"{options.figures}: {len(copies)} files of figures and tables")
    for outcome in failed:
        print(f"wsss-nb: error: {outcome.name}: {outcome.message}", file=sys.stderr)
    done = sum(outcome.status == "done" for outcome in outcomes)
    current = len(outcomes) - done - len(failed)
    print(f"{options.out}: {done} notebooks run, {current} up to date, {len(failed)} not done")
    return 1 if failed else 0


def _sweep(options: argparse.Namespace) -> int:
    from wsss_nb.experiment.state import run_lock

    profile = _profile(options)
    with run_lock(options.out):
        rows = _open(options, profile).train_cams()
    _print_rows(rows, options.out)
    return 0


def _train_cam(options: argparse.Namespace) -> int:
    from wsss_nb.experiment.state import run_lock

    fsl = not options.no_fsl
    name = options.baseline or f"lambda{options.weight:g}{'_fsl' if fsl else ''}"
    profile = _profile(options)
    seed = profile.seeds[0] if options.seed is None else options.seed
    if options.baseline is None:
        profile = profile.model_copy(
            update={
                "lambdas": tuple(sorted({*profile.lambdas, options.weight})),
                "fsl": tuple(sorted({*profile.fsl, fsl})),
            }
        )
    elif options.baseline not in profile.baselines:
        profile = profile.model_copy(update={"baselines": (*profile.baselines, options.baseline)})
    with run_lock(options.out):
        row = _open(options, profile).train_cam(name, seed)
    _print_rows([row], options.out)
    return 0


def _train_stage(options: argparse.Namespace) -> int:
    from wsss_nb.experiment.state import run_lock

    profile = _profile(options)
    with run_lock(options.out):
        run = _open(options, profile)
        train = run.train_affinitynet if options.stage == "affinitynet" else run.train_deeplab
        row = train(options.method)
    _print_rows([row], options.out)
    return 0


def _print_rows(rows: Sequence[dict[str, Any]], out: Path) -> None:
    print(f"{'':24}{'seed':>6}{'mIoU':>8}{'F':>8}{'seconds':>10}")
    for row in rows:
        scores = row["scores"]
        name = f"{row['stage']} {row['method']}" if "stage" in row else row["variant"]
        area, contour = 100 * scores["miou"], 100 * scores["contour_f"]
        print(f"{name:24}{row['seed']:>6}{area:>8.1f}{contour:>8.1f}{row['cost']['seconds']:>10.0f}")
    print(f"protocol: {_protocol(rows[0]['scores']['protocol'])}")
    print(f"written to {out}")


def _protocol(protocol: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in protocol.items() if name != "seed")


def _evaluate(options: argparse.Namespace) -> int:
    from wsss_nb.data import VOCFolder
    from wsss_nb.files import write_json
    from wsss_nb.stages.scoring import score_label_maps

    folder = VOCFolder(options.data, options.split)
    predictions = Path(options.predictions)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: expected a folder of label maps, got none")
    _check_predictions(folder, predictions)
    protocol = {"predictions": predictions.name, "image_labels": None, "crf": None, "background": None}
    scores = score_label_maps(folder, predictions, protocol, options.void)
    width = max(len(name) for name in folder.classes)
    print(f"{'':{width}}{'IoU':>8}{'F':>8}")
    for name, area, contour in zip(folder.classes, scores["iou"], [None, *scores["f"]], strict=True):
        print(f"{name:{width}}{_percent(area)}{_percent(contour)}")
    print(f"{'mean':{width}}{_percent(scores['miou'])}{_percent(scores['contour_f'])}")
    stated = {name: value for name, value in scores["protocol"].items() if value is not None}
    print(f"protocol: {_protocol(stated)}; how the label maps were made is not known here")
    if options.json:
        write_json(options.json, scores)
    return 0


def _check_predictions(folder: VOCFolder, predictions: Path) -> None:
    """Every label map is there, of its image's size, and holds class ids only; the first that is not is named."""
    from wsss_nb.data import read_label_map

    for name in folder.names:
        path = predictions / f"{name}.png"
        label_map, mask = read_label_map(path), folder.mask(name)
        if label_map.shape != mask.shape:
            raise InputError(f"{path}: expected the mask's size {mask.shape}, got {label_map.shape}")
        if label_map.max() >= folder.num_classes:
            raise InputError(f"{path}: expected class ids 0..{folder.num_classes - 1}, got {label_map.max()}")


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{100 * value:>8.1f}"


def _benchmark(options: argparse.Namespace) -> int:
    import importlib.util

    entry = ROOT / "benchmarks" / "__init__.py"
    if not entry.is_file():
        raise InputError(
            f"{entry.parent}: expected the project's benchmarks, got none; run it from a checkout"
        )
    spec = importlib.util.spec_from_file_location(
        "benchmarks", entry, submodule_search_locations=[str(entry.parent)]
    )
    assert spec is not None and spec.loader is not None
    benchmarks = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = benchmarks
    spec.loader.exec_module(benchmarks)
    return int(benchmarks.main(options.only, options.repeats, options.threads, options.json))


if __name__ == "__main__":
    sys.exit(main())
