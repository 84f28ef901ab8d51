"""The archive that PASCAL VOC's evaluation server takes."""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
from pathlib import Path

from wsss_nb.data.labels import VOC_CLASSES
from wsss_nb.data.palette import save_label_map
from wsss_nb.data.voc import VOCFolder
from wsss_nb.errors import InputError
from wsss_nb.files import atomic_path

__all__ = ["pack_submission"]


def pack_submission(
    folder: VOCFolder, predictions: str | os.PathLike[str], out: str | os.PathLike[str]
) -> int:
    """Pack label maps as ``results/VOC2012/Segmentation/comp6_SPLIT_cls/NAME.png`` in a tar.gz.

    comp6 is the competition in which other data (ImageNet) may be used. The archive appears only if every label map is
    right: one for each image of the split and no other, of the image's size, values 0..20 (the server refuses
    255). They are written anew as palette PNGs in VOC's colours, whatever palette they came with. The
    same label maps give the same bytes.

    Args:
        folder: the split, usually "test"; needs its images, no masks.
        predictions: folder of label maps ``NAME.png``; files of other kinds are left out.
        out: the archive, ``.tar.gz`` or ``.tgz``.

    Returns:
        How many label maps were packed.

    Raises:
        InputError: one of the checks failed; the file is named.

    Example:
        >>> test = VOCFolder("VOCdevkit/VOC2012", "test")  # doctest: +SKIP
        >>> pack_submission(test, "runs/evaluate/final-test/maps", "results.tar.gz")  # doctest: +SKIP
        1456
    """
    predictions, out = Path(predictions), Path(out)
    if not out.name.endswith((".tar.gz", ".tgz")):
        raise InputError(f"{out}: expected a name that ends in .tar.gz or .tgz, got {out.name!r}")
    if folder.classes != VOC_CLASSES:
        raise InputError(f"{folder.root}: expected VOC's 21 classes, got {', '.join(folder.classes)}")
    if not predictions.is_dir():
        raise InputError(f"{predictions}: expected a folder of label maps, got none")
    found = {path.stem for path in predictions.glob("*.png") if not path.name.startswith(".")}
    for kind, names in (
        ("a label map for every image", set(folder.names) - found),
        (f"label maps of split {folder.split} only", found - set(folder.names)),
    ):
        if names:
            verb = "none for" if kind.startswith("a ") else "also"
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{predictions}: expected {kind}, got {verb} {min(names)!r}{more}")
    place = f"results/VOC2012/Segmentation/comp6_{folder.split}_cls"
    with (
        atomic_path(out) as temporary,
        tempfile.TemporaryDirectory() as scratch,
        open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        picture = Path(scratch) / "map.png"
        for name in sorted(folder.names):
            save_label_map(picture, folder.prediction(predictions, name))
            entry = tarfile.TarInfo(f"{place}/{name}.png")
            entry.size = picture.stat().st_size
            with open(picture, "rb") as file:
                archive.addfile(entry, file)
    return len(folder.names)
