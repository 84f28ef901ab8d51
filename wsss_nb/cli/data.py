"""``wsss-nb data``: make, convert and check data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from wsss_nb.cli.parser import Parser
from wsss_nb.errors import InputError

__all__ = ["add_data"]


def add_data(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the commands ``synthetic``, ``voc``, ``msrc``, ``labels`` and ``check``."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT", parser_class=Parser)

    synthetic = kinds.add_parser(
        "synthetic", help="write the synthetic data set", description="Write it in VOC layout."
    )
    synthetic.add_argument("--out", required=True, metavar="DIR")
    for flag, default in (("train", 600), ("val", 150)):
        synthetic.add_argument(
            f"--num-{flag}", type=int, default=default, metavar="N", help=f"default: {default}"
        )
    synthetic.add_argument("--size", type=int, default=96, metavar="PIXELS", help="default: 96")
    synthetic.add_argument(
        "--num-classes", type=int, default=6, metavar="K", help="with background; default: 6"
    )
    synthetic.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    synthetic.set_defaults(handler=_synthetic)

    voc = kinds.add_parser(
        "voc",
        help="fetch VOC 2012 and SBD, make train_aug",
        description=(
            "Download VOC 2012 and SBD (3.4 GB, test split 1.9 GB) or take the archives that are given, unpack, "
            "convert SBD's masks, write train_aug and the image-level labels into DIR/VOCdevkit/VOC2012. "
            "The same command carries on where it was interrupted."
        ),
    )
    voc.add_argument("--root", required=True, metavar="DIR")
    voc.add_argument("--trainval", metavar="FILE", help="VOCtrainval_11-May-2012.tar; default: download")
    voc.add_argument("--sbd", metavar="FILE", help="benchmark.tgz; default: download")
    voc.add_argument(
        "--test",
        nargs="?",
        const="",
        metavar="FILE",
        help="also the test split, from VOC2012test.tar or downloaded",
    )
    voc.add_argument("--mirror", metavar="URL", help="download from URL/NAME instead")
    voc.add_argument(
        "--no-verify",
        action="store_true",
        help="take given archives of another size or SHA-256 than the published",
    )
    voc.set_defaults(handler=_voc)

    msrc = kinds.add_parser(
        "msrc",
        help="build the photographs' folder from MSRC v2 and its cleaned-up masks",
        description="Folders or zip archives with Images/*.bmp and *_GT.mat become a folder in VOC layout.",
    )
    msrc.add_argument("--images", required=True, metavar="DIR|ZIP", help="*_s.bmp of MSRC v2")
    msrc.add_argument("--annotations", required=True, metavar="DIR|ZIP", help="*_s_GT.mat of the clean masks")
    msrc.add_argument("--out", required=True, metavar="DIR")
    msrc.set_defaults(handler=_msrc)

    labels = kinds.add_parser(
        "labels",
        help="write image-level labels as CSV",
        description="Write the class names of each image, from labels.csv, XML annotations or masks.",
    )
    labels.add_argument("--data", required=True, metavar="DIR")
    labels.add_argument("--split", default="train", metavar="NAME", help="default: train")
    labels.add_argument("--out", required=True, metavar="FILE.csv")
    labels.set_defaults(handler=_labels)

    check = kinds.add_parser(
        "check",
        help="open every file of a data set",
        description="Open every image and mask; the first bad one is named.",
    )
    check.add_argument("--data", required=True, metavar="DIR")
    check.add_argument(
        "--split", nargs="+", default=["train", "val"], metavar="NAME", help="default: train val"
    )
    check.add_argument("--skip-bad", action="store_true", help="go on and list all bad images")
    check.set_defaults(handler=_check)


def _synthetic(options: argparse.Namespace) -> int:
    from wsss_nb.data import make_synthetic

    try:
        root = make_synthetic(
            options.out,
            num_train=options.num_train,
            num_val=options.num_val,
            size=options.size,
            num_classes=options.num_classes,
            seed=options.seed,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    print(f"{root or options.out}: {options.num_train} train and {options.num_val} val images")
    return 0


def _voc(options: argparse.Namespace) -> int:
    from wsss_nb.data import VOCFolder
    from wsss_nb.data.voc2012 import VOC_ARCHIVES, build_voc2012, mirrored

    given = {role: Path(path) for role in VOC_ARCHIVES if (path := getattr(options, role))}
    test = options.test is not None
    archives = mirrored(VOC_ARCHIVES, options.mirror) if options.mirror else VOC_ARCHIVES
    voc = build_voc2012(options.root, given, test=test, archives=archives, verify=not options.no_verify)
    splits = ("train", "val", "train_aug", *(["test"] if test else []))
    print(f"{voc}: {', '.join(f'{len(VOCFolder(voc, split))} {split}' for split in splits)}")
    return 0


def _msrc(options: argparse.Namespace) -> int:
    from wsss_nb.data import VOCFolder, build_msrc

    build_msrc(Path(options.images), Path(options.annotations), Path(options.out))
    sizes = {split: len(VOCFolder(options.out, split).names) for split in ("train", "val")}
    print(f"{options.out}: {sizes['train']} train and {sizes['val']} val images")
    return 0


def _labels(options: argparse.Namespace) -> int:
    from wsss_nb.data import VOCFolder, write_labels

    folder = VOCFolder(options.data, options.split)
    write_labels(folder, Path(options.out))
    print(f"{options.out}: labels of {len(folder.names)} images")
    return 0


def _check(options: argparse.Namespace) -> int:
    from wsss_nb.data import VOCFolder, check_folder

    report = check_folder(Path(options.data), tuple(options.split), skip_bad=options.skip_bad)
    for name, reason in sorted(report.bad.items()):
        print(f"{name}: {reason}")
    for split in options.split:
        folder = VOCFolder(options.data, split)
        bad = sum(name in report.bad for name in folder.names)
        print(f"{split}: {len(folder.names)} images of {folder.num_classes} classes, {bad} bad")
    return 0
