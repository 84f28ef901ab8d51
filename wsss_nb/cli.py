"""The command line: ``wsss-nb run | sweep | train | evaluate | submit | verify | course | data``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from wsss_nb.system.command_line import Parser, minutes_by_notebook, words
from wsss_nb.system.errors import DiskFullError, InputError, WorkerDiedError, require
from wsss_nb.system.files import only_run, write_json
from wsss_nb.variants import OURS, find_variant

__all__ = ["main"]

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
TYPES: dict[Any, Any] = {"int": int, "float": float, "words": words, "minutes": minutes_by_notebook}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the console script ``wsss-nb``.

    Returns:
        0 when all went well, 1 when work failed, 2 when the input was wrong, 130 after Ctrl-C.
    """
    _speak_line_by_line()
    try:
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        options = _parser(arguments).parse_args(arguments)
        return COMMANDS[options.command](options)
    except InputError as error:
        return _refuse(error, 2)
    except KeyboardInterrupt:
        print("\nwsss-nb: interrupted; the same command carries on where this one stopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from torch.cuda import OutOfMemoryError

        from wsss_nb.stages.loop import TrainingError

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
    _fill(parser, yaml.safe_load(Path(__file__).with_name("commands.yaml").read_text(encoding="utf-8")), arguments)
    return parser


def _fill(parser: argparse.ArgumentParser, entry: dict[str, Any], arguments: Sequence[str]) -> None:
    """Give a parser what its entry in ``commands.yaml`` says; of the commands below it, those that are given."""
    if "profile" in entry:
        _add_profile(parser, entry["profile"])
    parser.usage = entry.get("usage", parser.usage)
    for title, flags in entry.get("groups", {}).items():
        _add_flags(parser.add_argument_group(title), flags)
    if "one of" in entry:
        _add_flags(parser.add_mutually_exclusive_group(required=True), entry["one of"])
    _add_flags(parser, entry.get("flags", {}))
    if "commands" in entry:
        dest = entry["dest"]
        below = parser.add_subparsers(dest=dest, required=True, metavar=dest.upper(), parser_class=Parser)
        for name, command in entry["commands"].items():
            text = command["help"]
            description = command.get("description", f"{text[0].upper()}{text[1:]}.")
            made = below.add_parser(name, help=text, description=description)
            if name in arguments:
                _fill(made, command, arguments)


def _add_flags(parser: Any, flags: dict[str, dict[str, Any]]) -> None:
    for flag, entry in flags.items():
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
        if "type" in options:
            options["type"] = TYPES[options["type"]]
        parser.add_argument(flag, **options)


def _add_profile(parser: argparse.ArgumentParser, default: str | None) -> None:
    """``--profile``, and a flag for every field."""
    from wsss_nb.run.profiles import PROFILES, FieldFlags

    parser.usage = "%(prog)s [-h] [--profile NAME] [--out DIR] [--data DIR] [options] [--FIELD VALUE ...]"
    parser.epilog = "Every field of a profile is a flag; lists are written 0,0.5,1. Defaults shown are the paper's."
    parser.set_defaults(flags=FieldFlags(parser))
    text = f"{', '.join(PROFILES)} or a run's config.yaml; default: {default}"
    parser.add_argument("--profile", default=default, metavar="NAME", help=text)


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
    if new := [name for name in dict.fromkeys(added) if find_variant(name).name not in profile.grid()]:
        profile = load_profile(options.profile, *changes, *more, {"variants": [*profile.variants, *new]})
    options.out = Path(options.out or f"runs/{profile.name}")
    return profile


def _lock(out: Path) -> AbstractContextManager[None]:
    """The run folder's lock; of several processes the main one holds it."""
    from wsss_nb.system.processes import processes

    return only_run(out) if processes().is_main else nullcontext()


def _alone(command: str) -> None:
    from wsss_nb.system.processes import launched

    require(launched() == 1, f"{command}: expected one process, got {launched()}; several do `train` together")


def _open(options: argparse.Namespace, profile: Any) -> Any:
    from wsss_nb.run.prepare import open_run

    address, gpus = options.ray_address, options.ray_gpus
    require(address is not None or gpus is None, "--ray-gpus: expected together with --ray-address, got it alone")
    if address is not None:
        from wsss_nb.system.cluster import use_cluster

        use_cluster(address, gpus)
    return open_run(profile, options.out)


def _run(options: argparse.Namespace) -> int:
    from wsss_nb.run.notebooks import find_notebooks, parameter_values, run_notebooks
    from wsss_nb.run.pipeline import check_refined
    from wsss_nb.run.provenance import told_command
    from wsss_nb.run.run import CONFIG

    _alone("run")
    profile = _profile(options)
    notebooks = find_notebooks(Path(options.notebooks or NOTEBOOKS))
    by_word = {word: notebook.name for notebook in notebooks for word in (notebook.number, notebook.name)}
    known = [notebook.name for notebook in notebooks]
    for option, names in (("only", options.only), ("timeout", options.timeout)):
        for name in names:
            require(not name or name in by_word, f"{option}: expected notebooks of {', '.join(known)}, got {name!r}")
    chosen = [by_word[word] for word in options.only] or known
    limits = {by_word.get(word, ""): 60 * minutes for word, minutes in options.timeout.items()}
    given = dict(options.parameters or [])
    set_by_run = {
        "profile": str(options.out / CONFIG), "out_dir": str(options.out), "run_dir": str(options.out),
        "seed": profile.seeds[0], "overrides": "", "data_root": "",
    }  # fmt: skip
    declared = {name for notebook in notebooks for name in notebook.parameters} - set(set_by_run)
    for name in given:
        what = "flags of the run (--seeds, --data, ...) for it" if name in set_by_run else "a notebook's parameter"
        require(name in declared, f"{name}: expected {what} ({', '.join(sorted(declared))}), got -p {name}")
    values = {}
    for notebook in notebooks:
        own = {**set_by_run, **given, "data_root": options.data_dir if notebook.draws and options.data_dir else ""}
        own = {name: value for name, value in own.items() if name in notebook.parameters}
        values[notebook.name] = parameter_values(notebook, own)
    trains = any(notebook.name in chosen and not notebook.draws for notebook in notebooks)
    later = [name for name in chosen if name[:2] in ("05", "06")]
    if trains:
        check_refined(profile)  # refused now rather than after hours of training
    advice = "got none; or --only 01,02,03,04"
    require(bool(profile.refine or not later), f"refine: expected a variant for {' and '.join(later)}, {advice}")
    if later and profile.deeplab.crf is not None:
        from wsss_nb.crf import resolved_crf

        resolved_crf(profile.deeplab.crf)  # refused now as well, where it cannot be had
    with _lock(options.out), told_command():
        if trains:
            _open(options, profile)
        timeouts = {notebook.name: limits.get(notebook.name, limits.get("")) for notebook in notebooks}
        outcomes = run_notebooks(notebooks, values, options.out, chosen=chosen, timeouts=timeouts)
        failed = [outcome for outcome in outcomes if outcome.bad]
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


def _sweep(options: argparse.Namespace) -> int:
    from wsss_nb.run.pipeline import train_cams

    _alone("sweep")
    profile = _profile(options)
    with _lock(options.out):
        rows = train_cams(_open(options, profile))
    _print_rows(rows, options.out)
    return 0


def _train(options: argparse.Namespace) -> int:
    from wsss_nb.run.pipeline import train_affinitynet, train_cam, train_deeplab

    profile = _profile(options)
    name = find_variant(options.variant or (profile.refine or (OURS,))[0]).name
    seed = profile.seeds[0] if options.seed is None else options.seed
    more: dict[str, Any] = {}  # a point outside the profile's grid is added to it
    if name not in profile.grid():
        more["variants"] = [*profile.variants, options.variant or name]
    if seed not in profile.seeds:
        more["seeds"] = [*profile.seeds, seed]
    profile = _profile(options, more) if more else profile
    first = profile.seeds[0]
    fits = options.stage == "cam" or seed == first
    require(fits, f"--seed: expected {first}, the first of seeds, for {options.stage}, got {seed}")
    later = {"affinitynet": train_affinitynet, "deeplab": train_deeplab}
    with _lock(options.out):
        run = _open(options, profile)
        row = train_cam(run, name, seed) if options.stage == "cam" else later[options.stage](run, name)
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


def _evaluate(options: argparse.Namespace) -> int:
    from wsss_nb.data.voc import VOCFolder

    folder = VOCFolder(options.data_dir, options.split)
    scores = _checkpoint_scores(options, folder) if options.checkpoint else _map_scores(options, folder)
    if scores is None:
        return 0
    width = max(len(name) for name in folder.classes)
    print(f"{'':{width}}{'IoU':>8}{'F':>8}")
    columns = [*scores["iou"], scores["miou"]], [None, *scores["f"], scores["contour_f"]]
    for name, *values in zip([*folder.classes, "mean"], *columns, strict=True):
        print(
            f"{name:{width}}", *(f"{'-':>8}" if value is None else f"{100 * value:>8.1f}" for value in values), sep=""
        )
    unknown = "; how the label maps were made is not known here" if options.predictions else ""
    print(f"protocol: {_protocol_line(scores['protocol'])}{unknown}")
    if options.json:
        write_json(options.json, scores)
    return 0


def _map_scores(options: argparse.Namespace, folder: Any) -> dict[str, Any]:
    """Of a folder of label maps; each is there, has its image's size and holds class ids only."""
    from wsss_nb.run.profiles import load_profile
    from wsss_nb.stages.scoring import score_label_maps

    fields = options.flags.given(options)
    given = [name for name in ("profile", "variant", "cams", "out", "config") if getattr(options, name)]
    given += [name for name in fields if name != "data" or set(fields["data"]) != {"void"}]
    require(not given, f"--{''.join(given[:1])}: expected with --checkpoint only, got it with --predictions")
    predictions = Path(options.predictions)
    require(predictions.is_dir(), f"{predictions}: expected a folder of label maps, got none")
    for name in folder.names:
        folder.mask(name)
        folder.prediction(predictions, name)
    protocol = {"predictions": predictions.name, "image_labels": None, "crf": None, "background": None}
    return score_label_maps(folder, predictions, protocol, load_profile("paper", fields).data.void)


def _checkpoint_scores(options: argparse.Namespace, folder: Any) -> dict[str, Any] | None:
    from wsss_nb.run.evaluation import evaluate_checkpoint, open_checkpoint, profile_for

    checkpoint = open_checkpoint(Path(options.checkpoint))
    identity = checkpoint.identity
    options.profile = options.profile or profile_for(identity.backbone)
    # a run's checkpoints all have one name
    name = f"{checkpoint.path.stem}-{checkpoint.digest[:8]}-{options.split}"
    options.out = options.out or Path("runs") / "evaluate" / name
    profile = _profile(options)
    network = f"network {identity.network} on {identity.backbone}"
    settings = f"settings of profile {profile.name}{f' for {options.variant}' if options.variant else ''}"
    print(f"{checkpoint.path}: {network}, {settings}", flush=True)
    cams = Path(options.cams) if options.cams else None
    maps, scores = evaluate_checkpoint(checkpoint, folder, profile, options.out, variant=options.variant, cams=cams)
    print(f"{maps}: {len(folder)} label maps" + ("" if scores else "; the split has no masks, no score"))
    return scores


def _submit(options: argparse.Namespace) -> int:
    from wsss_nb.data.voc import VOCFolder
    from wsss_nb.data.voc2012 import pack_submission

    count = pack_submission(VOCFolder(options.data, options.split), options.predictions, options.out)
    print(f"{options.out}: {count} label maps of split {options.split}, ready for the server")
    return 0


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


def _course(options: argparse.Namespace) -> int:
    from wsss_nb.teach.course import make_course

    written = make_course(Path(options.notebooks or NOTEBOOKS), Path(options.out), options.source)
    print(f"{options.out}: {len(written) // 2} lessons in student (solutions removed) and teacher (shown)")
    return 0


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
    from wsss_nb.data.layout import write_labels
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


def _data(options: argparse.Namespace) -> int:
    kinds = {"synthetic": _data_synthetic, "voc": _data_voc, "labels": _data_labels, "check": _data_check}
    return kinds[options.what](options)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run, "sweep": _sweep, "train": _train, "evaluate": _evaluate, "submit": _submit, "verify": _verify,
    "course": _course, "data": _data
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
