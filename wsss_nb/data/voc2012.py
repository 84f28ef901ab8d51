"""PASCAL VOC 2012 with SBD's masks, as the field trains on it: fetched, unpacked, converted, counted; and submitted.

Runs do not depend on this module: what they read is the folder.
"""

import gzip
import http.client
import io
import os
import re
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat

from wsss_nb.data import layout
from wsss_nb.data.layout import VOC_CLASSES, require_file
from wsss_nb.data.voc import VOCFolder, check_size, save_label_map
from wsss_nb.system.errors import InputError, expecting, require
from wsss_nb.system.files import atomic_path, sha256_file
from wsss_nb.system.progress import progress

__all__ = ["VOC_ARCHIVES", "VOC_COUNTS", "build_voc2012", "mirrored", "pack_submission", "read_archive", "read_matlab"]

_BLOCK, _TIMEOUT = 1 << 20, 60.0  # bytes; seconds without one that count as a lost connection
_PASSING = {408, 429, 500, 502, 503, 504}  # answers that a later request may not get again


class Archive(NamedTuple):
    """A published file.

    Attributes:
        name: its file name.
        bases: addresses of the folders it is in, tried in this order.
        size: bytes, where known.
        sha256: hexadecimal digest, where known.
    """

    name: str
    bases: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None


_ORGANISERS = "robots.ox.ac.uk/pascal/VOC/voc2012"
_SBD = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
VOC_ARCHIVES: Mapping[str, Archive] = {
    "trainval": Archive("VOCtrainval_11-May-2012.tar", (f"https://thor.{_ORGANISERS}", f"http://host.{_ORGANISERS}"),
    1_999_639_040, "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"), "sbd": Archive("benchmark.tgz",
    (_SBD, ), sha256="6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53"),
    "test": Archive("VOC2012test.tar", (f"https://thor.{_ORGANISERS}", "http://pjreddie.com/media/files",
    "https://data.pjreddie.com/files"), 1_850_626_560,
    "f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3")
}  # fmt: skip
"""The three archives by role. SHA-256 are those that TensorFlow Datasets and torchvision check; SBD's size is not
checked apart."""

VOC_COUNTS: Mapping[str, int] = {"train": 1464, "val": 1449, "train_aug": 10582, "test": 1456}
"""Images of each split."""

_FOLDERS = {"Annotations": ".xml", "JPEGImages": ".jpg", "SegmentationClass": ".png"}
_MAX_FILE = 64 << 20  # bytes; the largest image of VOC has a hundredth


def mirrored(archives: Mapping[str, Archive], base: str) -> dict[str, Archive]:
    """The same archives to be had at ``base/NAME``, same sizes and SHA-256.

    Raises:
        InputError: ``base`` is no http or https address.

    Example:
        >>> mirrored(VOC_ARCHIVES, "https://example.org/voc")["sbd"].bases
        ('https://example.org/voc',)
    """
    require(bool(re.match(r"https?://[^/]", base)), f"mirror: expected an address http(s)://HOST/FOLDER, got {base!r}")
    return {role: archive._replace(bases=(base.rstrip("/"),)) for role, archive in archives.items()}


def build_voc2012(
    root: str | os.PathLike[str], given: Mapping[str, Path] | None = None, *, test: bool = False, archives: Mapping[str,
    Archive] = VOC_ARCHIVES, verify: bool = True
) -> Path:  # fmt: skip
    """Make ``root/VOCdevkit/VOC2012`` with the splits train, val, train_aug and, if wanted, test.

    train_aug = (VOC train + SBD train + SBD val) - VOC val (Hariharan et al., ICCV 2011). SBD's masks become palette
    PNGs in SegmentationClass for the images that have no mask of VOC; labels.csv holds the image-level labels of
    train_aug and val, from the XML annotations. Only what segmentation needs is unpacked.

    Files appear whole, and the list of a split appears after all of its files, so a folder that was killed half way
    has no half split: the same call carries on, and is over at once where all is there. Folders that
    others unpacked are completed; their files are not touched.

    Args:
        root: where ``VOCdevkit`` and, for downloads, ``archives`` go.
        given: archives that are here already, by role ("trainval", "sbd", "test"); the others are downloaded.
        test: also the test split's images.
        archives: what to download, with sizes and SHA-256.
        verify: whether given archives must be the published ones.

    Returns:
        The folder.

    Raises:
        InputError: no network, a wrong or damaged archive, a file missing in it, other numbers of images, no room.

    Example:
        >>> root = build_voc2012("data", {"trainval": Path("VOCtrainval_11-May-2012.tar")})  # doctest: +SKIP
        >>> VOCFolder(root, "train_aug")  # doctest: +SKIP
        VOCFolder('data/VOCdevkit/VOC2012', 'train_aug'): 10582 images, 21 classes
    """
    root = Path(root)
    voc = root / "VOCdevkit" / "VOC2012"
    given = given or {}
    for role, path in given.items():
        require_file(path, f"the archive {role}")

    def archive(role: str) -> Path:
        if role not in given:
            return fetch(archives[role], root / "archives")
        if verify:
            check_archive(given[role], archives[role])
        return given[role]

    if not all(layout.list_path(voc, split).is_file() for split in ("train", "val")):
        _unpack(archive("trainval"), voc, ("train", "val"), _FOLDERS)
    if not layout.list_path(voc, "train_aug").is_file():
        _add_sbd(archive("sbd"), voc)
    if test and not layout.list_path(voc, "test").is_file():
        # the archive has eleven times as many images as the segmentation test split
        _unpack(archive("test"), voc, ("test",), {"JPEGImages": ".jpg"})
    for split in ("train", "val", "train_aug", *(["test"] if test else [])):
        _check_count(voc, split, VOCFolder(voc, split).names)
    return voc


def read_archive(
    path: Path, top: str, wanted: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The wanted files below the folder ``top`` of a tar archive (plain, gz, bz2, xz) as path and bytes.

    Nothing is written here. All entries are looked at before the first file is read: an archive in which any name is
    absolute or climbs out by ``..``, or a wanted entry is a link, a device or too large, is refused whole.

    Args:
        path: the archive.
        top: a folder in it, at any depth; paths are meant from there.
        wanted: which paths are read; others are skipped unread, and so are hidden files.

    Raises:
        InputError: the archive is missing, damaged, or not to be trusted.

    Example:
        >>> for place, content in read_archive(Path("a.tar"), "lists", lambda place: place.suffix == ".txt"):
        ...     print(place, len(content))
        train.txt 12
    """
    with expecting("a whole tar archive", path), tarfile.open(path, "r:*") as archive:
        chosen = []
        for member in archive:
            parts = PurePosixPath(member.name).parts
            inside = ".." not in parts and not re.search(r"[\\\0]|^/|^[A-Za-z]:", member.name)
            require(inside, f"{path}: expected names inside the archive's own folder, got {member.name!r}")
            place = PurePosixPath(*parts[parts.index(top) + 1 :]) if top in parts else PurePosixPath()
            if member.isdir() or place.name[:1] in ("", ".") or not wanted(place):
                continue
            require(member.isreg(), f"{path}: expected plain files, got a link or device {member.name!r}")
            small = member.size <= _MAX_FILE
            require(small, f"{path}: expected files up to {_MAX_FILE} bytes, got {member.size} of {member.name!r}")
            chosen.append((place, member))
        for place, member in chosen:
            file = archive.extractfile(member)
            assert file is not None  # a regular file
            yield place, file.read()


def read_matlab(content: bytes, names: Collection[str], source: str) -> dict[str, Any]:
    """The variables ``names`` of a MATLAB 5 file.

    Args:
        content: the file.
        names: what is wanted, all of it.
        source: the file's name, for messages.

    Raises:
        InputError: not a MATLAB 5 file, or one without a wanted variable.
    """
    with expecting("a MATLAB 5 file", source):
        found = loadmat(io.BytesIO(content), variable_names=list(names))
    for name in names:
        require(name in found, f"{source}: expected {' and '.join(names)}, got no {name}")
    return found


def sbd_mask(content: bytes, source: str) -> npt.NDArray[np.uint8]:
    """Class mask (H, W) uint8 of an SBD ``cls/NAME.mat``: ``GTcls.Segmentation``, ids 0..20 as in VOC.

    SBD's masks have no void ring; its class numbers are VOC's.

    Args:
        content: the file.
        source: its name, for messages.

    Raises:
        InputError: not a MATLAB 5 file, no such field, or other ids.
    """
    with expecting("GTcls.Segmentation", source):
        mask = read_matlab(content, ["GTcls"], source)["GTcls"][0, 0]["Segmentation"]
    is_mask = mask.ndim == 2 and mask.size > 0 and mask.dtype.kind in "ui"
    require(is_mask, f"{source}: expected a mask (H, W) of integers, got {mask.dtype} {mask.shape}")
    low, high, top = int(mask.min()), int(mask.max()), len(VOC_CLASSES) - 1
    require(low >= 0 and high <= top, f"{source}: expected class ids 0..{top}, got {low}..{high}")
    return np.asarray(mask, dtype=np.uint8)


def _unpack(path: Path, voc: Path, splits: tuple[str, ...], folders: Mapping[str, str]) -> None:
    """The files in ``folders`` of all images, for the test split of those listed, then the lists of ``splits``."""
    texts = {f"ImageSets/Segmentation/{split}.txt" for split in splits}
    found = read_archive(path, "VOC2012", lambda place: str(place) in texts)
    lists = {place.stem: layout.parse_names(content, f"{path}: {place}") for place, content in found}
    for split in splits:
        _check_count(path, split, lists.get(split, ()))
    listed = {name for names in lists.values() for name in names}

    def wanted(place: PurePosixPath) -> bool:
        in_folder = len(place.parts) == 2 and folders.get(place.parts[0]) == place.suffix
        return in_folder and (place.stem in listed or "test" not in splits)

    for place, content in read_archive(path, "VOC2012", wanted):
        if not (voc / place).exists():  # what is there was written whole, or is somebody's own
            with atomic_path(voc / place) as temporary:
                temporary.write_bytes(content)
    for split in splits:
        _check_files(path, voc, lists[split], folders)
        layout.write_list(voc, split, lists[split])


def _add_sbd(path: Path, voc: Path) -> None:
    """SBD's masks where VOC has none, the image-level labels, and last the list train_aug."""
    wanted = re.compile(r"cls/[^/]+\.mat|(train|val)\.txt")
    lists: dict[str, tuple[str, ...]] = {}
    for place, content in read_archive(path, "dataset", lambda place: bool(wanted.fullmatch(str(place)))):
        source = f"{path}: {place}"
        mask = voc / "SegmentationClass" / f"{place.stem}.png"
        if place.suffix == ".txt":
            lists[place.stem] = layout.parse_names(content, source)
        elif not mask.exists():
            label_map = sbd_mask(content, source)
            image = require_file(voc / "JPEGImages" / f"{place.stem}.jpg", f"the image of {source}")
            check_size(label_map, source, image, image.read_bytes())
            save_label_map(mask, label_map)
    for split in ("train", "val"):
        require(split in lists, f"{path}: expected the list {split}.txt, got none")
    val = VOCFolder(voc, "val").names
    names = sorted({*VOCFolder(voc, "train").names, *lists["train"], *lists["val"]} - set(val))
    _check_count(path, "train_aug", names)
    _check_files(path, voc, names, _FOLDERS)
    if not (voc / "labels.csv").exists():
        labels = {
            name: layout.labels_from_xml(voc / "Annotations" / f"{name}.xml", VOC_CLASSES) for name in (*names, *val)
        }
        layout.write_labels(labels, VOC_CLASSES, voc / "labels.csv")
    layout.write_list(voc, "train_aug", names)


def _check_count(source: Path, split: str, names: Sequence[str]) -> None:
    count = VOC_COUNTS[split]
    require(len(names) == count, f"{source}: expected {count} names in {split}.txt, got {len(names)}")


def _check_files(source: Path, voc: Path, names: Sequence[str], folders: Mapping[str, str]) -> None:
    for name in names:
        for folder, suffix in folders.items():
            require_file(voc / folder / f"{name}{suffix}", f"a file of {source}")


# --- the evaluation server


def pack_submission(folder: VOCFolder, predictions: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
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
    suffix = out.name.endswith((".tar.gz", ".tgz"))
    require(suffix, f"{out}: expected a name that ends in .tar.gz or .tgz, got {out.name!r}")
    require(folder.classes == VOC_CLASSES, f"{folder.root}: expected VOC's 21 classes, got {', '.join(folder.classes)}")
    found = {path.stem for path in predictions.glob("*.png") if not path.name.startswith(".")}
    missing, others = sorted({*folder.names} - found), sorted(found - {*folder.names})
    got = f"none for {', '.join(map(repr, missing[:3]))} ({len(missing)} of {len(folder)})"
    require(not missing, f"{predictions}: expected a label map for every image, got {got}")
    got = f"also {', '.join(map(repr, others[:3]))} ({len(others)} in all)"
    require(not others, f"{predictions}: expected label maps of split {folder.split} only, got {got}")
    place = f"results/VOC2012/Segmentation/comp6_{folder.split}_cls"
    with (
        atomic_path(out) as temporary, tempfile.TemporaryDirectory() as scratch, open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive
    ):  # fmt: skip
        picture = Path(scratch) / "map.png"
        for name in sorted(folder.names):
            save_label_map(picture, folder.prediction(predictions, name))
            entry = tarfile.TarInfo(f"{place}/{name}.png")
            entry.size = picture.stat().st_size
            archive.addfile(entry, io.BytesIO(picture.read_bytes()))
    return len(folder.names)


# --- large files over HTTP: broken downloads carry on where they stopped, nothing unchecked gets its name


class _UnreachableError(Exception):
    """One address gave no file; another may."""


def check_archive(path: Path, archive: Archive) -> None:
    """Compare a file with the published size and SHA-256.

    Raises:
        InputError: it is missing or another file.

    Example:
        >>> _ = Path("a.tar").write_bytes(b"abc")
        >>> check_archive(Path("a.tar"), Archive("a.tar", (), size=3))
    """
    size = require_file(path, archive.name).stat().st_size
    require(size == (archive.size or size), f"{path}: expected the {archive.size} bytes of {archive.name}, got {size}")
    digest = sha256_file(path) if archive.sha256 else None
    require(digest == archive.sha256, f"{path}: expected SHA-256 {archive.sha256} of {archive.name}, got {digest}")


def fetch(archive: Archive, folder: Path, *, attempts: int = 5, pause: float = 1.0) -> Path:
    """Download ``folder/NAME``, or take it where it is there already; checked in both cases.

    What arrives is kept in ``NAME.part``; a lost connection is taken up again with an HTTP Range request, in
    this call and in the next one. The file gets its name after its size and SHA-256 were right.

    Args:
        archive: what and where.
        folder: created if need be.
        attempts: connections in a row that bring nothing before an address is given up.
        pause: seconds before the second of these; doubled each time.

    Returns:
        The file.

    Raises:
        InputError: no address could be reached, the place is not writable, or the file is not the published
            one (a wrong download is removed).
    """
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    if target.exists():
        check_archive(target, archive)
        return target
    with expecting("a writable folder", folder, OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if archive.size and _length(part) > archive.size:
        part.unlink()
    reasons = []
    for url in (f"{base}/{archive.name}" for base in archive.bases):
        try:
            _download(url, part, archive, attempts, pause)
            break
        except _UnreachableError as error:
            reasons.append(f"{url}: {error}")
    else:
        kept = f"; {_length(part)} bytes are kept and carried on from" if part.exists() else ""
        raise InputError(
            f"{archive.name}: expected a download, got none ({'; '.join(reasons)}); without a network put the "
            f"file into {folder} or name it on the command line{kept}"
        )
    try:
        check_archive(part, archive)
    except InputError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{error}; the download is removed, the same command starts it again") from error
    os.replace(part, target)
    return target


def _download(url: str, part: Path, archive: Archive, attempts: int, pause: float) -> None:
    """Bring ``part`` to its full length from one address, over as many connections as it takes."""
    failures, best = 0, _length(part)
    while True:
        start = _length(part)
        headers = {"User-Agent": "wsss-nb", "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
                total = _receive(response, part, start, archive)
            if total in (None, _length(part)):
                return
            reason = f"the connection ended after {_length(part)} of {total} bytes"
        except (OSError, http.client.HTTPException) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            if code == 416 and start and archive.size in (None, start):  # nothing is missing
                return
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, urllib.error.URLError) and code not in _PASSING:
                # no network, no such server or file: waiting seldom helps, another address may
                raise _UnreachableError(reason) from error
        # a server without ranges starts again each time: only more than ever before is progress
        failures = 0 if _length(part) > best else failures + 1
        best = max(best, _length(part))
        if failures >= attempts:
            raise _UnreachableError(reason)
        time.sleep(pause * 2 ** (failures - 1) if failures else 0.0)


def _receive(response: http.client.HTTPResponse, part: Path, start: int, archive: Archive) -> int | None:
    """Append what comes to ``part``; the length of the whole file, where the server tells it."""
    if response.status != 206:  # a server without ranges sends all of it again
        start = 0
    elif not (told := response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
        raise _UnreachableError(f"asked for the bytes from {start}, got {told or 'others'}")
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else None
    if total is not None and total != (archive.size or total):
        raise _UnreachableError(f"expected a file of {archive.size} bytes, got one of {total}")
    if not start:
        part.unlink(missing_ok=True)
    print(f"{archive.name}: {f'carries on from byte {start}, ' if start else ''}from {response.url}", flush=True)
    blocks = iter(lambda: response.read(_BLOCK), b"")
    for block in progress(blocks, f"{archive.name}, MiB", total and -(-(total - start) // _BLOCK)):
        with expecting("a writable place with room", part, OSError), open(part, "ab") as file:
            file.write(block)
    return total


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
