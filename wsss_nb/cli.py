"""The command line: ``wsss-nb run | sweep | train | evaluate | submit | verify | course | data``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from wsss_nb.system.arguments import Parser, minutes_by_notebook, words
from wsss_nb.system.errors import DiskFullError, InputError

__all__ = ["main"]

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the console script ``wsss-nb``.

    Returns:
        0 when all went well, 1 when work failed, 2 when the input was wrong, 130 after Ctrl-C.
    """
    _speak_line_by_line()
    try:
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        options = _parser(arguments).parse_args(arguments)
        handler: Callable[[argparse.Namespace], int] = options.handler
        return handler(options)
    except InputError as error:
        return _refuse(error, 2)
    except KeyboardInterrupt:
        print("\nwsss-nb: interrupted; the same command carries on where this one stopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from torch.cuda import OutOfMemoryError

        from wsss_nb.stages.loop import TrainingError
        from wsss_nb.system.errors import WorkerDiedError

        if isinstance(error, OutOfMemoryError):
            first = str(error).partition(". ")[0]
            return _refuse(f"the GPU's memory does not suffice ({first}); what is finished is kept, the same command "
                           "carries on", 1)  # fmt: skip
        if isinstance(error, (DiskFullError, TrainingError, WorkerDiedError)):
            return _refuse(error, 1)
        raise


def _refuse(error: object, code: int) -> int:
    print(f"wsss-nb: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _speak_line_by_line() -> None:
    """A log that is read while it grows must not wait for a full buffer; of several processes the first one speaks."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        os.environ["WSSS_NB_HEADLESS"] = "1"
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(prog="wsss-nb", description="Importance sampling CAMs for weakly-supervised segmentation.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    given = next((word for word in arguments if not word.startswith("-")), "")
    for name, (add, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == given:
            add(command)
    return parser


def _add_profile(parser: argparse.ArgumentParser, default: str | None = "quick") -> None:
    from wsss_nb.run.profiles import PROFILES, FieldFlags

    parser.usage = f"{parser.prog} [-h] [--profile NAME] [--out DIR] [--data DIR] [options] [--FIELD VALUE ...]"
    parser.epilog = "Every field of a profile is a flag; lists are written 0,0.5,1. Defaults shown are the paper's."
    parser.set_defaults(flags=FieldFlags(parser))
    parser.add_argument(
        "--profile",
        default=default,
        metavar="NAME",
        help=f"{', '.join(PROFILES)} or a run's config.yaml; default: {default}",
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="set the fields in this file")
    parser.add_argument("--out", metavar="DIR", help="run folder; default: runs/PROFILE")
    parser.add_argument("--data", dest="data_dir", metavar="DIR", help="data set in VOC layout")
    parser.add_argument("--extra-loss", metavar="MODULE:FUNCTION", help="same as --cam.extra_loss")


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


def _add_variants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME",
        help="train this variant as well: log_sum_exp, binomial, ..., or module:function of your own; may be repeated",
    )  # fmt: skip


def _profile(options: argparse.Namespace, *more: dict[str, Any]) -> Any:
    """The profile that a command line describes; ``options.out`` becomes the run's folder."""
    from wsss_nb.run.profiles import load_profile, read_yaml

    changes = [read_yaml(Path(options.config))] if options.config else []
    changes.append(options.flags.given(options))
    if options.data_dir:
        changes.append({"data": {"root": str(Path.cwd() / options.data_dir)}})
    if options.extra_loss:
        changes.append({"cam": {"extra_loss": options.extra_loss}})
    profile = load_profile(options.profile, *changes, *more)
    added = options.variant if isinstance(getattr(options, "variant", None), list) else []
    if new := [name for name in dict.fromkeys(added) if name not in profile.grid()]:
        profile = load_profile(options.profile, *changes, *more, {"variants": [*profile.variants, *new]})
    options.out = Path(options.out or f"runs/{profile.name}")
    return profile


def _lock(out: Path) -> AbstractContextManager[None]:
    """The run folder's lock; of several processes the main one holds it."""
    from wsss_nb.system.files import only_run
    from wsss_nb.system.processes import processes

    return only_run(out) if processes().is_main else nullcontext()


def _alone(command: str) -> None:
    from wsss_nb.system.processes import launched

    if launched() > 1:
        raise InputError(f"{command}: expected one process, got {launched()}; several do `train` together")


def _open(options: argparse.Namespace, profile: Any) -> Any:
    from wsss_nb.run.prepare import open_run

    address, gpus = getattr(options, "ray_address", None), getattr(options, "ray_gpus", None)
    if address is not None:
        from wsss_nb.system.cluster import use_cluster

        use_cluster(address, gpus)
    elif gpus is not None:
        raise InputError("--ray-gpus: expected together with --ray-address, got it alone")
    return open_run(profile, options.out)


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_profile(parser)
    _add_cluster(parser)
    _add_variants(parser)
    parser.add_argument("--figures", metavar="DIR", help="copy the figures and tables there when all is done")
    parser.add_argument(
        "--notebooks", default=NOTEBOOKS, type=Path, metavar="DIR", help="folder of the numbered notebooks"
    )
    parser.add_argument("--only", type=words, default=(), metavar="04,07", help="run these notebooks only")
    parser.add_argument(
        "--timeout", type=minutes_by_notebook, default={}, metavar="MINUTES|04=MINUTES,...",
        help="limit for each notebook, or for some of them",
    )  # fmt: skip
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set a parameter of the notebooks that have it",
    )  # fmt: skip
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from wsss_nb.run.notebooks import find_notebooks, parameter_values, run_notebooks
    from wsss_nb.run.pipeline import check_refined
    from wsss_nb.run.provenance import told_command
    from wsss_nb.run.run import CONFIG

    _alone("run")
    profile = _profile(options)
    notebooks = find_notebooks(options.notebooks)
    by_word = {word: notebook.name for notebook in notebooks for word in (notebook.number, notebook.name)}
    known = [notebook.name for notebook in notebooks]
    for option, names in (("only", options.only), ("timeout", [name for name in options.timeout if name])):
        if unknown := [name for name in names if name not in by_word]:
            raise InputError(f"{option}: expected notebooks of {', '.join(known)}, got {unknown[0]!r}")
    chosen = [by_word[word] for word in options.only] or known
    limits = {by_word.get(word, ""): 60 * minutes for word, minutes in options.timeout.items()}
    given = dict(options.parameters)
    set_by_run = {
        "profile": str(options.out / CONFIG), "out_dir": str(options.out), "run_dir": str(options.out),
        "seed": profile.seeds[0], "overrides": "", "data_root": "",
    }  # fmt: skip
    declared = {name for notebook in notebooks for name in notebook.parameters} - set(set_by_run)
    for name in given:
        if name not in declared:
            what = "flags of the run (--seeds, --data, ...) for it" if name in set_by_run else "a notebook's parameter"
            raise InputError(f"{name}: expected {what} ({', '.join(sorted(declared))}), got -p {name}")
    values = {}
    for notebook in notebooks:
        own = {**set_by_run, **given, "data_root": options.data_dir if notebook.draws and options.data_dir else ""}
        own = {name: value for name, value in own.items() if name in notebook.parameters}
        values[notebook.name] = parameter_values(notebook, own)
    trains = any(notebook.name in chosen and not notebook.draws for notebook in notebooks)
    later = [name for name in chosen if name[:2] in ("05", "06")]
    if trains:
        check_refined(profile)  # refused now rather than after hours of training
    if later and not profile.refine:
        raise InputError(f"refine: expected a variant for {' and '.join(later)}, got none; or --only 01,02,03,04")
    if later and profile.deeplab.crf is not None:
        from wsss_nb.crf import resolved_crf

        resolved_crf(profile.deeplab.crf)  # refused now as well, where it cannot be had
    with _lock(options.out), told_command():
        if trains:
            _open(options, profile)
        timeouts = {notebook.name: limits.get(notebook.name, limits.get("")) for notebook in notebooks}
        outcomes = run_notebooks(notebooks, values, options.out, chosen=chosen, timeouts=timeouts)
        failed = [outcome for outcome in outcomes if outcome.status in {"failed", "blocked"}]
        if options.figures and not failed:
            _publish(options.out, options.figures)
    for outcome in failed:
        print(f"wsss-nb: error: {outcome.name}: {outcome.message}", file=sys.stderr)
    done = sum(outcome.status == "done" for outcome in outcomes)
    current = len(outcomes) - done - len(failed)
    print(f"{options.out}: {done} notebooks run, {current} up to date, {len(failed)} not done")
    return 1 if failed else 0


def _publish(out: Path, figures: str) -> None:
    from wsss_nb.show.verify import publish_figures

    copies = publish_figures(out, figures)
    print(f"{figures}: {len(copies)} files of figures and tables")
    drawn = {path.stem for path in (out / "figures").glob("*.json")}
    if stay := sorted(drawn - {path.stem for path in copies}):
        print(f"{', '.join(stay)} stay in {out / 'figures'} (pictures of photographs, or of earlier results)")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_profile(parser)
    _add_cluster(parser)
    _add_variants(parser)
    parser.set_defaults(handler=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from wsss_nb.run.pipeline import train_cams

    _alone("sweep")
    profile = _profile(options)
    with _lock(options.out):
        rows = train_cams(_open(options, profile))
    _print_rows(rows, options.out)
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE", parser_class=Parser)
    texts = {"cam": "one CAM network, and score its CAMs", "affinitynet": "AffinityNet and what it needs",
             "deeplab": "DeepLab and what it needs"}  # fmt: skip
    for name, text in texts.items():
        stage = stages.add_parser(name, help=text, description=f"Train {text}.")
        _add_profile(stage)
        _add_cluster(stage)
        stage.add_argument(
            "--variant", default="", metavar="NAME",
            help="lambda0.5, lambda1_fsl, average, seam, ..., or module:function; default: the profile's first of refine",
        )  # fmt: skip
        stage.add_argument("--seed", type=int, metavar="INT", help="default: the profile's first")
    parser.set_defaults(handler=_train)


def _train(options: argparse.Namespace) -> int:
    from wsss_nb.run.pipeline import train_affinitynet, train_cam, train_deeplab
    from wsss_nb.variants import OURS, find_variant

    profile = _profile(options)
    name = find_variant(options.variant or (profile.refine or (OURS,))[0]).name
    if name not in profile.grid():  # a point outside the profile's grid is added to it
        profile = _profile(options, {"variants": [*profile.variants, options.variant or name]})
    seed = profile.seeds[0] if options.seed is None else options.seed
    if seed not in profile.seeds:
        profile = profile.model_copy(update={"seeds": (*profile.seeds, seed)})
    if options.stage != "cam" and seed != profile.seeds[0]:
        raise InputError(f"--seed: expected {profile.seeds[0]}, the first of seeds, for {options.stage}, got {seed}")
    with _lock(options.out):
        run = _open(options, profile)
        if options.stage == "cam":
            row: Any = train_cam(run, name, seed)
        else:
            row = (train_affinitynet if options.stage == "affinitynet" else train_deeplab)(run, name)
    _print_rows([row], options.out)
    return 0


def _print_rows(rows: Sequence[Any], out: Path) -> None:
    print(f"{'':24}{'seed':>6}{'mIoU':>8}{'F':>8}{'seconds':>10}")
    for row in rows:
        name = f"{row.stage} {row.variant}" if hasattr(row, "stage") else row.variant
        area, contour = 100 * row.scores.miou, 100 * row.scores.contour_f
        print(f"{name:24}{row.seed:>6}{area:>8.1f}{contour:>8.1f}{row.cost.seconds:>10.0f}  {row.folder}")
    print(f"protocol: {_protocol_line(rows[0].scores.protocol)}")
    print(f"written to {out}")


def _protocol_line(protocol: dict[str, Any]) -> str:
    """A protocol in one line; the seed is shown with each score already."""
    return ", ".join(f"{name} {value}" for name, value in protocol.items() if name != "seed" and value is not None)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_profile(parser, default=None)
    parser.usage = (
        f"{parser.prog} [-h] (--checkpoint FILE | --predictions DIR) --data DIR [options] [--FIELD VALUE ...]"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--checkpoint", metavar="FILE",
        help="CAM network, AffinityNet or DeepLab, of this package or published; its names tell which",
    )  # fmt: skip
    what.add_argument("--predictions", metavar="DIR", help="label maps NAME.png")
    parser.add_argument("--data", dest="data_dir", required=True, metavar="DIR", help="data set in VOC layout")
    parser.add_argument("--split", default="val", metavar="NAME", help="default: val")
    parser.add_argument("--json", metavar="FILE", help="write scores and protocol there")
    parser.add_argument(
        "--variant", default="", metavar="NAME", help="seam: its network's names do not tell; default: ours"
    )
    parser.add_argument(
        "--cams", metavar="DIR|FILE", help="for AffinityNet: CAMs NAME.npz, or the network that makes them"
    )
    parser.add_argument("--out", metavar="DIR", help="default: runs/evaluate/CHECKPOINT-DIGEST-SPLIT")
    parser.set_defaults(handler=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from wsss_nb.data.voc import VOCFolder
    from wsss_nb.system.files import write_json

    folder = VOCFolder(options.data_dir, options.split)
    scores = _checkpoint_scores(options, folder) if options.checkpoint else _map_scores(options, folder)
    if scores is None:
        return 0
    width = max(len(name) for name in folder.classes)
    print(f"{'':{width}}{'IoU':>8}{'F':>8}")
    for name, area, contour in zip(folder.classes, scores["iou"], [None, *scores["f"]], strict=True):
        print(f"{name:{width}}{_percent(area)}{_percent(contour)}")
    print(f"{'mean':{width}}{_percent(scores['miou'])}{_percent(scores['contour_f'])}")
    unknown = "; how the label maps were made is not known here" if options.predictions else ""
    print(f"protocol: {_protocol_line(scores['protocol'])}{unknown}")
    if options.json:
        write_json(options.json, scores)
    return 0


def _map_scores(options: argparse.Namespace, folder: Any) -> dict[str, Any]:
    """Of a folder of label maps; each is there, has its image's size and holds class ids only."""
    from wsss_nb.run.profiles import load_profile
    from wsss_nb.stages.scoring import score_label_maps

    given = [f"--{name}" for name in ("profile", "variant", "cams", "out", "config") if getattr(options, name)]
    fields = options.flags.given(options)
    given += [f"--{name}" for name in fields if name != "data" or set(fields["data"]) != {"void"}]
    if given:
        raise InputError(f"{given[0]}: expected with --checkpoint only, got it with --predictions")
    predictions = Path(options.predictions)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: expected a folder of label maps, got none")
    for name in folder.names:
        folder.mask(name)
        folder.prediction(predictions, name)
    protocol = {"predictions": predictions.name, "image_labels": None, "crf": None, "background": None}
    return score_label_maps(folder, predictions, protocol, load_profile("paper", fields).data.void)


def _checkpoint_scores(options: argparse.Namespace, folder: Any) -> dict[str, Any] | None:
    from wsss_nb.run.evaluation import evaluate_checkpoint, open_checkpoint, profile_for
    from wsss_nb.variants import OURS

    checkpoint = open_checkpoint(Path(options.checkpoint))
    identity = checkpoint.identity
    options.profile = options.profile or profile_for(identity.backbone)
    # a run's checkpoints all have one name
    name = f"{checkpoint.path.stem}-{checkpoint.digest[:8]}-{options.split}"
    options.out = options.out or Path("runs") / "evaluate" / name
    profile = _profile(options)
    variant = options.variant or OURS
    network = f"network {identity.network} ({variant}) on {identity.backbone}"
    print(f"{checkpoint.path}: {network}, settings of profile {profile.name}", flush=True)
    cams = Path(options.cams) if options.cams else None
    maps, scores = evaluate_checkpoint(checkpoint, folder, profile, options.out, variant=variant, cams=cams)
    print(f"{maps}: {len(folder)} label maps" + ("" if scores else "; the split has no masks, no score"))
    return scores


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{100 * value:>8.1f}"


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", required=True, metavar="DIR", help="label maps NAME.png")
    parser.add_argument("--data", required=True, metavar="DIR", help="VOC 2012 with the test split's images")
    parser.add_argument("--split", default="test", metavar="NAME", help="default: test")
    parser.add_argument("--out", required=True, metavar="FILE.tar.gz")
    parser.set_defaults(handler=_submit)


def _submit(options: argparse.Namespace) -> int:
    from wsss_nb.data.voc import VOCFolder
    from wsss_nb.data.voc2012 import pack_submission

    count = pack_submission(VOCFolder(options.data, options.split), options.predictions, options.out)
    print(f"{options.out}: {count} label maps of split {options.split}, ready for the server")
    return 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="figures and tables with their arrays and manifests")
    parser.add_argument(
        "--against", metavar="DIR",
        help="another run's: compare CSV files by bytes and PNG files by pixels (times and memory excepted)",
    )  # fmt: skip
    parser.set_defaults(handler=_verify)


def _verify(options: argparse.Namespace) -> int:
    from wsss_nb.show.verify import compare_folders, verify_folder

    if options.against is None:
        verdicts, right, wrong = verify_folder(options.folder), "matches", "does not match"
    else:
        verdicts, right, wrong = compare_folders(options.folder, options.against), "same", "differs"
    said = {True: right, False: wrong, None: "not compared"}
    width = max(len(str(verdict.path)) for verdict in verdicts)
    for verdict in verdicts:
        print(f"{verdict.path!s:{width}}  {said[verdict.matches]}{f': {verdict.reason}' if verdict.reason else ''}")
    compared = [verdict for verdict in verdicts if verdict.matches is not None]
    good = sum(bool(verdict.matches) for verdict in compared)
    rest = "" if len(compared) == len(verdicts) else f", {len(verdicts) - len(compared)} not compared"
    print(
        f"{options.folder}: {good} of {len(compared)} files {'match' if right == 'matches' else 'are the same'}{rest}"
    )
    return 0 if good == len(compared) else 1


def _add_course(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="gets the folders student and teacher")
    parser.add_argument(
        "--notebooks", default=NOTEBOOKS, type=Path, metavar="DIR", help="folder of the numbered notebooks"
    )
    parser.add_argument(
        "--source", default="", metavar="ADDRESS", help="repository that Colab installs from (git+https://...)"
    )
    parser.set_defaults(handler=_course)


def _course(options: argparse.Namespace) -> int:
    from wsss_nb.teach.course import make_course

    written = make_course(options.notebooks, Path(options.out), options.source)
    print(f"{options.out}: {len(written) // 2} lessons in student (solutions removed) and teacher (shown)")
    return 0


def _add_data(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT", parser_class=Parser)

    def kind(
        name: str, text: str, handler: Callable[[argparse.Namespace], int], *required: str
    ) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        made.set_defaults(handler=handler)
        for flag in required:
            made.add_argument(flag, required=True, metavar="FILE.csv" if (name, flag) == ("labels", "--out") else "DIR")
        return made

    synthetic = kind("synthetic", "write the synthetic data set in VOC layout", _data_synthetic, "--out")
    counts = {"num-train": 600, "num-val": 150, "size": 96, "num-classes": 6, "seed": 0}
    for flag, default in counts.items():
        synthetic.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=f"default: {default}")
    voc = kind("voc", "fetch VOC 2012 and SBD, make train_aug", _data_voc, "--root")
    voc.description = (
        "Download VOC 2012 and SBD (3.4 GB, test split 1.9 GB) or take the archives that are given, unpack, convert SBD's "
        "masks, write train_aug and the image-level labels into DIR/VOCdevkit/VOC2012. The same command carries on where it "
        "was interrupted."
    )
    voc.add_argument("--trainval", metavar="FILE", help="VOCtrainval_11-May-2012.tar; default: download")
    voc.add_argument("--sbd", metavar="FILE", help="benchmark.tgz; default: download")
    voc.add_argument(
        "--test", nargs="?", const="", metavar="FILE", help="also the test split, from its archive or downloaded"
    )
    voc.add_argument("--mirror", metavar="URL", help="download from URL/NAME instead")
    voc.add_argument("--no-verify", action="store_true", help="take given archives of another size or SHA-256")
    labels = kind("labels", "write image-level labels as CSV", _data_labels, "--data", "--out")
    labels.add_argument("--split", default="train", metavar="NAME", help="default: train")
    check = kind("check", "open every file of a data set; the first bad one is named", _data_check, "--data")
    check.add_argument("--split", nargs="+", default=["train", "val"], metavar="NAME", help="default: train val")
    check.add_argument("--skip-bad", action="store_true", help="go on and list all bad images")


def _data_synthetic(options: argparse.Namespace) -> int:
    from wsss_nb.data.synthetic import make_synthetic

    names = ("num_train", "num_val", "size", "num_classes", "seed")
    try:
        root = make_synthetic(options.out, **{name: getattr(options, name) for name in names})
    except ValueError as error:
        raise InputError(str(error)) from error
    print(f"{root}: {options.num_train} train and {options.num_val} val images")
    return 0


def _data_voc(options: argparse.Namespace) -> int:
    from wsss_nb.data.voc import VOCFolder
    from wsss_nb.data.voc2012 import VOC_ARCHIVES, build_voc2012, mirrored

    given = {role: Path(path) for role in VOC_ARCHIVES if (path := getattr(options, role))}
    test = options.test is not None
    archives = mirrored(VOC_ARCHIVES, options.mirror) if options.mirror else VOC_ARCHIVES
    voc = build_voc2012(options.root, given, test=test, archives=archives, verify=not options.no_verify)
    splits = ("train", "val", "train_aug", *(["test"] if test else []))
    print(f"{voc}: {', '.join(f'{len(VOCFolder(voc, split))} {split}' for split in splits)}")
    return 0


def _data_labels(options: argparse.Namespace) -> int:
    from wsss_nb.data.labels import write_labels
    from wsss_nb.data.voc import VOCFolder

    folder = VOCFolder(options.data, options.split)
    write_labels(folder.labels(), folder.classes, options.out)
    print(f"{options.out}: labels of {len(folder.names)} images")
    return 0


def _data_check(options: argparse.Namespace) -> int:
    from wsss_nb.data.voc import VOCFolder, check_folder

    report = check_folder(Path(options.data), tuple(options.split), skip_bad=options.skip_bad)
    for name, reason in sorted(report.bad.items()):
        print(f"{name}: {reason}")
    for split in options.split:
        folder = VOCFolder(options.data, split)
        bad = sum(name in report.bad for name in folder.names)
        print(f"{split}: {len(folder.names)} images of {folder.num_classes} classes, {bad} bad")
    return 0


# command -> what adds its flags, and what it does
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "run": (_add_run, "execute the notebooks of a profile, only what changed"),
    "sweep": (_add_sweep, "train the CAM networks of Figure 2: lambda x FSL x seed, and other variants"),
    "train": (_add_train, "train one stage: cam, affinitynet or deeplab"),
    "evaluate": (_add_evaluate, "score a checkpoint or a folder of label maps"),
    "submit": (_add_submit, "pack label maps for VOC's evaluation server"),
    "verify": (_add_verify, "check figures and tables against the arrays beside them"),
    "course": (_add_course, "lessons for students, without the solutions, and for the teacher"),
    "data": (_add_data, "make and check data sets"),
}

if __name__ == "__main__":
    sys.exit(main())
