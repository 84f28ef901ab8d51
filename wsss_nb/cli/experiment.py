"""``wsss-nb run | sweep | train``: the commands that work on a profile in a run folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_nb.cli.parser import Parser, fraction, fractions, limits, words
from wsss_nb.errors import InputError

if TYPE_CHECKING:
    from wsss_nb.experiment.pipeline import Run
    from wsss_nb.experiment.profiles import Profile

__all__ = ["add_run", "add_sweep", "add_train", "protocol_line"]

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


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


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on a Ray cluster (extra: cluster)")
    group.add_argument(
        "--ray-address", metavar="ADDRESS",
        help="where sweep, CRF and scores run: auto, local, HOST:PORT or ray://HOST:PORT; all machines must see "
        "the run's folder and the data under the same paths; default: this machine's processes",
    )  # fmt: skip
    group.add_argument(
        "--ray-gpus", type=float, metavar="FLOAT",
        help="GPUs of each training of the sweep, where the cluster has any: a share or a whole number; default: 1",
    )  # fmt: skip


def _add_lambdas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lambda", dest="weights", type=fractions, metavar="FLOAT,...", help="same as --lambdas"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``run``."""
    _add_profile(parser)
    _add_cluster(parser)
    _add_lambdas(parser)
    parser.add_argument("--figures", metavar="DIR", help="copy the figures and tables there when all is done")
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the numbered notebooks")
    parser.add_argument("--only", type=words, default=(), metavar="04,07", help="run these notebooks only")
    parser.add_argument(
        "--keep-outputs", action="store_true", help="put the outputs into the notebooks themselves"
    )
    parser.add_argument(
        "--timeout", type=limits, default={}, metavar="MINUTES|04=MINUTES,...",
        help="limit for each notebook, or for some of them",
    )  # fmt: skip
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set a parameter of the notebooks that have it",
    )  # fmt: skip
    parser.add_argument(
        "-f", dest="parameter_files", action="append", default=[], metavar="FILE.yaml",
        help="set such parameters from a file; -p goes before it",
    )  # fmt: skip
    parser.set_defaults(handler=_run)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of ``sweep``."""
    _add_profile(parser)
    _add_cluster(parser)
    _add_lambdas(parser)
    parser.set_defaults(handler=_sweep)


def add_train(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a command for each stage."""
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE", parser_class=Parser)
    cam = stages.add_parser(
        "cam", help="one CAM network", description="Train one CAM network and score its CAMs."
    )
    _add_profile(cam)
    cam.add_argument(
        "--lambda",
        dest="weight",
        type=fraction,
        metavar="FLOAT",
        help="Eq. 5; default: the profile's refined_lambda",
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
        _add_cluster(stage)
        stage.add_argument(
            "--method", choices=("ours", "seam"), help="default: the profile's first of refine"
        )
        stage.set_defaults(handler=_train_stage)


def _profile(options: argparse.Namespace) -> Profile:
    """The resolved profile; ``options.overrides`` then holds all overrides but the data folder."""
    from wsss_nb.experiment.profiles import load_profile

    more = ["data.skip_bad=true"] if options.skip_bad else []
    if getattr(options, "weights", None):
        more.append(f"lambdas={json.dumps(options.weights, separators=(',', ':'))}")
    options.overrides = [*options.overrides, *more]
    profile = load_profile(options.profile, options.overrides)
    if options.data:
        profile = profile.model_copy(
            update={"data": profile.data.model_copy(update={"root": str(Path.cwd() / options.data)})}
        )
    options.out = Path(options.out or f"runs/{profile.name}")
    return profile


def _lock(out: Path) -> AbstractContextManager[None]:
    """The run folder's lock; of several processes the main one holds it."""
    from wsss_nb.experiment.state import run_lock
    from wsss_nb.stages.processes import processes

    return run_lock(out) if processes().is_main else nullcontext()


def _alone(command: str) -> None:
    from wsss_nb.errors import InputError
    from wsss_nb.stages.processes import launched

    if launched() > 1:
        raise InputError(f"{command}: expected one process, got {launched()}; several do `train` together")


def _open(options: argparse.Namespace, profile: Profile) -> Run:
    from wsss_nb.experiment.pipeline import open_run

    address, gpus = getattr(options, "ray_address", None), getattr(options, "ray_gpus", None)
    if address is not None:
        from wsss_nb.cluster import use_cluster

        use_cluster(address, gpus)
    elif gpus is not None:
        raise InputError("--ray-gpus: expected together with --ray-address, got it alone")
    return open_run(profile, options.out)


def _run(options: argparse.Namespace) -> int:
    from wsss_nb.experiment.grid import refined_variant
    from wsss_nb.experiment.notebooks import keep_outputs
    from wsss_nb.experiment.options import parameters_in
    from wsss_nb.experiment.provenance import told_command
    from wsss_nb.experiment.runner import RunRequest, plan_run, run_notebooks
    from wsss_nb.experiment.state import run_lock
    from wsss_nb.stages.affinitynet import resolved_crf

    _alone("run")
    profile = _profile(options)
    from_files = {
        name: value for path in options.parameter_files for name, value in parameters_in(path).items()
    }
    request = RunRequest(
        profile,
        options.out,
        " ".join(options.overrides),
        options.data,
        {**from_files, **dict(options.parameters)},
        options.only,
        {name: 60 * minutes for name, minutes in options.timeout.items()},
    )
    plan = plan_run(Path(options.notebooks) if options.notebooks else NOTEBOOKS, request)
    if plan.needs_data:
        for method in profile.refine:
            refined_variant(profile, method)  # refused now rather than after hours of training
        later = sorted(name for name in plan.chosen if name[:2] in ("05", "06"))
        if later and "ours" not in profile.refine:
            raise InputError(
                f"refine: expected ours among them for {' and '.join(later)}, got {list(profile.refine)}; "
                "or leave these out (--only 01,02,03,04)"
            )
        if later and profile.deeplab.crf is not None:
            resolved_crf(profile.deeplab.crf)  # refused now as well, where it cannot be had
    with run_lock(options.out), told_command():
        if plan.needs_data:
            _open(options, profile)
        outcomes = run_notebooks(plan)
        failed = [outcome for outcome in outcomes if outcome.status in {"failed", "waits"}]
        if not failed:
            if options.keep_outputs:
                for notebook in plan.notebooks:
                    if notebook.name in plan.chosen:
                        keep_outputs(notebook.path, options.out / "notebooks" / notebook.path.name)
            if options.figures:
                from wsss_nb.publishing import publish_figures

                copies = publish_figures(options.out, options.figures)
                print(f"{options.figures}: {len(copies)} files of figures and tables")
                drawn = {path.stem for path in (options.out / "figures").glob("*.json")}
                if stay := sorted(drawn - {path.stem for path in copies}):
                    why = "(pictures of photographs, or of earlier results)"
                    print(f"{', '.join(stay)} stay in {options.out / 'figures'} {why}")
    for outcome in failed:
        print(f"wsss-nb: error: {outcome.name}: {outcome.message}", file=sys.stderr)
    done = sum(outcome.status == "done" for outcome in outcomes)
    current = len(outcomes) - done - len(failed)
    print(f"{options.out}: {done} notebooks run, {current} up to date, {len(failed)} not done")
    return 1 if failed else 0


def _sweep(options: argparse.Namespace) -> int:
    from wsss_nb.experiment.state import run_lock

    _alone("sweep")
    profile = _profile(options)
    with run_lock(options.out):
        rows = _open(options, profile).train_cams()
    _print_rows(rows, options.out)
    return 0


def _train_cam(options: argparse.Namespace) -> int:
    profile = _profile(options)
    fsl = not options.no_fsl
    weight = profile.refined_lambda if options.weight is None else options.weight
    if profile.refine == ("seam",) and options.weight is None and fsl:
        options.baseline = options.baseline or "seam"
    name = options.baseline or f"lambda{weight:g}{'_fsl' if fsl else ''}"
    seed = profile.seeds[0] if options.seed is None else options.seed
    # A point outside the profile's grid is added to it; one inside must leave the profile as it is.
    wanted = {"baselines": options.baseline} if options.baseline else {"lambdas": weight, "fsl": fsl}
    for field, value in wanted.items():
        if value not in getattr(profile, field):
            profile = profile.model_copy(update={field: (*getattr(profile, field), value)})
    with _lock(options.out):
        row = _open(options, profile).train_cam(name, seed)
    _print_rows([row], options.out)
    return 0


def _train_stage(options: argparse.Namespace) -> int:
    profile = _profile(options)
    with _lock(options.out):
        run = _open(options, profile)
        train = run.train_affinitynet if options.stage == "affinitynet" else run.train_deeplab
        row = train(options.method or (profile.refine or ("ours",))[0])
    _print_rows([row], options.out)
    return 0


def _print_rows(rows: Sequence[dict[str, Any]], out: Path) -> None:
    print(f"{'':24}{'seed':>6}{'mIoU':>8}{'F':>8}{'seconds':>10}")
    for row in rows:
        scores = row["scores"]
        name = f"{row['stage']} {row['method']}" if "stage" in row else row["variant"]
        area, contour = 100 * scores["miou"], 100 * scores["contour_f"]
        print(f"{name:24}{row['seed']:>6}{area:>8.1f}{contour:>8.1f}{row['cost']['seconds']:>10.0f}")
    print(f"protocol: {protocol_line(rows[0]['scores']['protocol'])}")
    print(f"written to {out}")


def protocol_line(protocol: dict[str, Any]) -> str:
    """A protocol in one line; the seed is shown with each score already."""
    return ", ".join(f"{name} {value}" for name, value in protocol.items() if name != "seed")
