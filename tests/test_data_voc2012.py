"""VOC 2012 + SBD from small archives of the same structure, served on this machine; and the server's archive."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from archive_server import Server, serve
from PIL import Image
from scipy.io import savemat

from wsss_nb import cli
from wsss_nb.data import voc2012 as module
from wsss_nb.data.layout import VOC_CLASSES
from wsss_nb.data.voc import VOCFolder, check_folder, read_label_map, save_label_map, voc_colormap
from wsss_nb.data.voc2012 import VOC_ARCHIVES, VOC_COUNTS, Archive, build_voc2012, mirrored, pack_submission, sbd_mask
from wsss_nb.system.errors import InputError

TRAIN, VAL, TEST = ("2007_a", "2007_b"), ("2007_v", "2008_v"), ("2008_t", "2010_t")
SBD_TRAIN, SBD_VAL = ("2007_a", "2007_v", "2008_s", "2010_s"), ("2008_v", "2009_s")
TRAIN_AUG = ("2007_a", "2007_b", "2008_s", "2009_s", "2010_s")
COUNTS = {"train": 2, "val": 2, "train_aug": 5, "test": 2}
IMAGES = sorted({*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL, "2011_unlisted"})
SIZE = (6, 9)  # rows, columns


def mask_of(name: str, dataset: str) -> np.ndarray:
    """A mask that tells the image and the data set it is from."""
    mask = np.zeros(SIZE, np.uint8)
    mask[1:4, 2:7] = 1 + IMAGES.index(name) + (10 if dataset == "sbd" else 0)
    if dataset == "voc":
        mask[0] = 255
    return mask


def picture(value: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, format="JPEG")
    return file.getvalue()


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(mask)
    image.putpalette(voc_colormap().tobytes())
    image.save(file, format="PNG")
    return file.getvalue()


def mat(mask: np.ndarray, field: str = "GTcls") -> bytes:
    """As SBD's: a struct of sparse boundaries, the segmentation and the classes in it."""
    boundaries = np.empty((20, 1), object)
    for k in range(20):
        boundaries[k, 0] = scipy.sparse.csc_matrix((mask == k + 1).astype(float))
    present = np.unique(mask[mask > 0])[:, None]
    file = io.BytesIO()
    savemat(
        file,
        {field: {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}},
        do_compression=True,
    )
    return file.getvalue()


def xml(*names: str) -> bytes:
    objects = "".join(f"<object><name>{name}</name><part><name>head</name></part></object>" for name in names)
    return f"<annotation>{objects}</annotation>".encode()


def lines(names: tuple[str, ...]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def pack(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def voc_files() -> dict[str, bytes]:
    top = "VOCdevkit/VOC2012"
    files = {f"{top}/ImageSets/Segmentation/{n}.txt": lines(v) for n, v in (("train", TRAIN), ("val", VAL))}
    files[f"{top}/ImageSets/Segmentation/trainval.txt"] = lines(TRAIN + VAL)
    files[f"{top}/ImageSets/Main/train.txt"] = lines(tuple(IMAGES))
    for number, name in enumerate(IMAGES):
        files[f"{top}/JPEGImages/{name}.jpg"] = picture(number)
        files[f"{top}/Annotations/{name}.xml"] = xml(VOC_CLASSES[1 + number], "person")
    for name in TRAIN + VAL:
        files[f"{top}/SegmentationClass/{name}.png"] = png(mask_of(name, "voc"))
        files[f"{top}/SegmentationObject/{name}.png"] = png(mask_of(name, "voc"))
    files[f"{top}/JPEGImages/._2007_a.jpg"] = b"resource fork"
    return files


def sbd_files() -> dict[str, bytes]:
    top = "benchmark_RELEASE/dataset"
    files = {f"{top}/cls/{n}.mat": mat(mask_of(n, "sbd")) for n in (*SBD_TRAIN, *SBD_VAL)}
    files |= {f"{top}/inst/2008_s.mat": b"skipped", f"{top}/img/2008_s.jpg": picture()}
    files |= {f"{top}/train.txt": lines(SBD_TRAIN), f"{top}/val.txt": lines(SBD_VAL)}
    files["benchmark_RELEASE/benchmark_code_RELEASE/demo/datadir/cls/x.mat"] = b"skipped"
    return files


def test_files() -> dict[str, bytes]:
    top = "VOCdevkit/VOC2012"
    files = {f"{top}/JPEGImages/{name}.jpg": picture() for name in (*TEST, "2011_detection")}
    files[f"{top}/Annotations/2008_t.xml"] = xml()
    return files | {f"{top}/ImageSets/Segmentation/test.txt": lines(TEST)}


test_files.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOC_COUNTS", COUNTS)


@pytest.fixture
def packed() -> dict[str, bytes]:
    return {"trainval": pack(voc_files()), "sbd": pack(sbd_files(), "w:gz"), "test": pack(test_files())}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, packed: dict[str, bytes]) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serve() as running:
        running.files = {f"/{VOC_ARCHIVES[role].name}": content for role, content in packed.items()}
        yield running


@pytest.fixture
def archives(server: Server, packed: dict[str, bytes]) -> dict[str, Archive]:
    """The small archives, published with their sizes and SHA-256."""
    return {
        role: archive._replace(size=len(packed[role]), sha256=hashlib.sha256(packed[role]).hexdigest())
        for role, archive in mirrored(VOC_ARCHIVES, server.url).items()
    }


@pytest.fixture
def given(tmp_path: Path, packed: dict[str, bytes]) -> dict[str, Path]:
    for role, content in packed.items():
        (tmp_path / f"{role}.archive").write_bytes(content)
    return {role: tmp_path / f"{role}.archive" for role in packed}


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check(voc: Path) -> None:
    """The folder holds what it should, and nothing else."""
    folder = VOCFolder(voc, "train_aug")
    assert folder.names == TRAIN_AUG and folder.classes == VOC_CLASSES
    assert (VOCFolder(voc, "train").names, VOCFolder(voc, "val").names) == (TRAIN, VAL)
    check_folder(voc, ("train", "val", "train_aug"))
    for name in (*TRAIN_AUG, *VAL):
        dataset = "voc" if name in TRAIN + VAL else "sbd"
        path = voc / f"SegmentationClass/{name}.png"
        np.testing.assert_array_equal(read_label_map(path), mask_of(name, dataset))
        with Image.open(path) as image:
            assert image.mode == "P" and image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        vector = VOCFolder(voc, "val" if name in VAL else "train_aug").label(name)
        assert set(np.flatnonzero(vector)) == {0, 1 + IMAGES.index(name), 15}
    assert folder.label_source == "csv"
    assert sorted(path.stem for path in (voc / "SegmentationClass").iterdir()) == sorted({*TRAIN_AUG, *VAL})
    assert sorted(path.stem for path in (voc / "JPEGImages").iterdir()) == IMAGES
    assert {path.name for path in voc.iterdir()} == {
        "Annotations",
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
        "labels.csv",
    }


def test_downloaded(server: Server, archives: dict[str, Archive], tmp_path: Path) -> None:
    server.cuts = [len(server.files["/VOCtrainval_11-May-2012.tar"]) // 2]
    voc = build_voc2012(tmp_path / "d", archives=archives)
    assert voc == tmp_path / "d/VOCdevkit/VOC2012"
    check(voc)
    assert [asked is None for _, asked in server.requests] == [True, False, True]  # resumed once; no test split
    before = tree(tmp_path / "d")
    server.requests.clear()
    assert build_voc2012(tmp_path / "d", archives=archives) == voc
    assert server.requests == [] and tree(tmp_path / "d") == before


def test_given_archives_and_test_split_later(
    given: dict[str, Path], archives: dict[str, Archive], tmp_path: Path, server: Server
) -> None:
    training = {role: given[role] for role in ("trainval", "sbd")}
    check(voc := build_voc2012(tmp_path / "d", training, archives=archives))
    assert not (tmp_path / "d/archives").exists() and server.requests == []
    before = tree(voc)
    build_voc2012(tmp_path / "d", test=True, archives=archives)
    assert [path for path, _ in server.requests] == ["/VOC2012test.tar"]
    added = {name for name in tree(voc) if name not in before}
    assert added == {f"JPEGImages/{n}.jpg" for n in TEST} | {"ImageSets/Segmentation/test.txt"}
    assert VOCFolder(voc, "test").names == TEST


def test_given_archives_are_checked(given: dict[str, Path], archives: dict[str, Archive], tmp_path: Path) -> None:
    other = archives | {"sbd": archives["sbd"]._replace(sha256="0" * 64)}
    with pytest.raises(InputError, match=r"sbd.archive: expected SHA-256 0+ of benchmark.tgz"):
        build_voc2012(tmp_path / "d", given, archives=other)
    check(build_voc2012(tmp_path / "d", given, archives=other, verify=False))
    with pytest.raises(InputError, match=r"none\.tgz: expected the archive sbd, got no file"):
        build_voc2012(tmp_path / "e", {"sbd": tmp_path / "none.tgz"}, archives=archives)


@pytest.mark.parametrize("stop", [0, 16, 20, 21, 22, 24, 25, 28])
def test_killed_and_called_again(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Whatever file it dies before, no split is there before its files, and the next call ends the same."""
    whole = tree(build_voc2012(tmp_path / "whole", given, test=True, verify=False))
    real, left = os.replace, [stop]

    def dying(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        build_voc2012(tmp_path / "d", given, test=True, verify=False)
    monkeypatch.setattr(os, "replace", real)
    voc = tmp_path / "d/VOCdevkit/VOC2012"
    half = tree(voc) if voc.exists() else {}
    for path in (voc / "ImageSets/Segmentation").glob("*.txt"):
        for name in VOCFolder(voc, path.stem).names:
            assert f"JPEGImages/{name}.jpg" in half
            if path.stem != "test":
                assert f"SegmentationClass/{name}.png" in half
    assert half.items() <= whole.items() and len(half) < len(whole)
    build_voc2012(tmp_path / "d", given, test=True, verify=False)
    assert tree(voc) == whole


def test_folder_of_others_is_completed(given: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(given["trainval"]) as archive:
        archive.extractall(tmp_path / "d", filter="data")
    own = tmp_path / "d/VOCdevkit/VOC2012"
    (own / "JPEGImages/2007_a.jpg").write_bytes(picture(200))  # another file than the archive's
    (own / "ImageSets/Segmentation/val.txt").unlink()  # so that the archive is unpacked again
    build_voc2012(tmp_path / "d", given, verify=False)
    assert (own / "JPEGImages/2007_a.jpg").read_bytes() == picture(200)
    for path in ("labels.csv", "ImageSets/Segmentation/train_aug.txt"):
        (own / path).unlink()
    for name in ("2008_s", "2009_s", "2010_s"):
        (own / f"SegmentationClass/{name}.png").unlink()
    before = tree(own)
    build_voc2012(tmp_path / "d", {"sbd": given["sbd"]}, verify=False)
    after = tree(own)
    assert before.items() <= after.items()
    assert set(after) - set(before) == {
        "labels.csv",
        "ImageSets/Segmentation/train_aug.txt",
        *(f"SegmentationClass/{name}.png" for name in ("2008_s", "2009_s", "2010_s")),
    }


@pytest.mark.parametrize(
    ("role", "change", "message"),
    [
        ("trainval", {"ImageSets/Segmentation/val.txt": None}, "expected 2 names in val.txt, got 0"),
        (
            "trainval",
            {"JPEGImages/2008_v.jpg": None},
            "JPEGImages/2008_v.jpg: expected a file of .*trainval.archive, got no file",
        ),
        (
            "trainval",
            {"JPEGImages/2009_s.jpg": None},
            "JPEGImages/2009_s.jpg: expected the image of .*cls/2009_s.mat, got no file",
        ),
        (
            "trainval",
            {"Annotations/2009_s.xml": None},
            "Annotations/2009_s.xml: expected a file of .*sbd.archive, got no file",
        ),
        ("trainval", {"ImageSets/Segmentation/train.txt": b"2007_a\n"}, "expected 2 names in train.txt, got 1"),
        ("trainval", {"ImageSets/Segmentation/train.txt": b"../a\n"}, r"expected names of files, got '../a'"),
        ("trainval", {"JPEGImages/2009_s.jpg": picture(0, (9, 6))}, "expected the image's size 6x9, got 9x6"),
        ("trainval", {"Annotations/2009_s.xml": b"<annot"}, "expected a VOC annotation"),
        ("sbd", {"val.txt": b"2008_v\n"}, "expected 5 names in train_aug.txt, got 4"),
        ("sbd", {"val.txt": None}, "expected the list val.txt, got none"),
        (
            "sbd",
            {"cls/2009_s.mat": None},
            "SegmentationClass/2009_s.png: expected a file of .*sbd.archive, got no file",
        ),
        ("sbd", {"cls/2009_s.mat": b"no"}, "cls/2009_s.mat: expected a MATLAB 5 file"),
        (
            "test",
            {"JPEGImages/2010_t.jpg": None},
            "JPEGImages/2010_t.jpg: expected a file of .*test.archive, got no file",
        ),
        ("test", {"ImageSets/Segmentation/test.txt": b"2010_t\n"}, "expected 2 names in test.txt, got 1"),
    ],
)
def test_incomplete_archives(
    given: dict[str, Path], tmp_path: Path, role: str, change: dict[str, bytes | None], message: str
) -> None:
    files = {"trainval": voc_files, "sbd": sbd_files, "test": test_files}[role]()
    for ending, content in change.items():
        (name,) = (name for name in files if name.endswith(f"/{ending}") and "Main" not in name)
        if content is None:
            del files[name]
        else:
            files[name] = content
    given[role].write_bytes(pack(files))
    with pytest.raises(InputError, match=message):
        build_voc2012(tmp_path / "d", given, test=True, verify=False)
    lists = tmp_path / "d/VOCdevkit/VOC2012/ImageSets/Segmentation"
    assert not (lists / ("test.txt" if role == "test" else "train_aug.txt")).exists()


def test_the_published_archives() -> None:
    assert VOC_COUNTS["train_aug"] == 10_582
    for archive in VOC_ARCHIVES.values():
        assert archive.sha256 is not None and len(archive.sha256) == 64
        assert archive.bases and all(base.startswith("http") and base[-1] != "/" for base in archive.bases)
    with pytest.raises(InputError, match="mirror: expected an address"):
        mirrored(VOC_ARCHIVES, "file:///etc")


def test_sbd_mask() -> None:
    mask = mask_of("2008_s", "sbd")
    read = sbd_mask(mat(mask), "m")
    assert read.dtype == np.uint8 and np.array_equal(read, mask)
    for content, message in (
        (mat(mask, "GTinst"), "m: expected GTcls"),
        (mat(np.full(SIZE, 21, np.uint8)), r"expected class ids 0\.\.20, got 21\.\.21"),
        (mat(mask.astype(float)), "expected a mask .* of integers, got float64"),
        (mat(mask)[:200], "expected a MATLAB 5 file"),
        (b"", "expected a MATLAB 5 file"),
    ):
        with pytest.raises(InputError, match=message):
            sbd_mask(content, "m")


# The command line


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    answer = capsys.readouterr()
    assert answer.err.count("\n") == 1
    return answer.err


def test_command(
    given: dict[str, Path],
    server: Server,
    archives: dict[str, Archive],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["data", "voc", "--root", str(tmp_path / "d")]
    files = [f"--{role}={given[role]}" for role in ("trainval", "sbd")]
    assert "expected the 1999639040 bytes of VOCtrainval" in error_of(capsys, *command, *files)
    monkeypatch.setattr(module, "VOC_COUNTS", VOC_COUNTS)
    # the real numbers of images are asked for, whatever the archives are
    assert "expected 1464 names in train.txt, got 2" in error_of(capsys, *command, *files, "--no-verify")
    monkeypatch.setattr(module, "VOC_COUNTS", COUNTS)
    assert cli.main([*command, *files, "--no-verify"]) == 0
    assert "VOC2012: 2 train, 2 val, 5 train_aug\n" in capsys.readouterr().out
    # a download is verified even with --no-verify, which is about given files
    message = error_of(capsys, *command, "--mirror", server.url, "--test", "--no-verify")
    assert "VOC2012test.tar" in message and "expected a file of 1850626560 bytes" in message
    assert cli.main([*command, "--test", str(given["test"]), "--no-verify"]) == 0
    assert "2 train, 2 val, 5 train_aug, 2 test\n" in capsys.readouterr().out


def test_command_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = "http://nowhere.invalid/voc"
    message = error_of(capsys, "data", "voc", "--root", str(tmp_path), "--mirror", mirror)
    assert "VOCtrainval_11-May-2012.tar: expected a download, got none" in message
    assert "without a network put the file into" in message
    assert "expected an address" in error_of(capsys, "data", "voc", "--root", str(tmp_path), "--mirror", "x")


# What goes to the server


@pytest.fixture
def maps(tmp_path: Path) -> tuple[Path, Path]:
    """A test split of two images, and a label map for each."""
    root, predictions = tmp_path / "VOC2012", tmp_path / "maps"
    for name, content in test_files().items():
        path = root / name.removeprefix("VOCdevkit/VOC2012/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    predictions.mkdir()
    save_label_map(predictions / "2008_t.png", mask_of("2007_a", "sbd"))
    Image.fromarray(np.full(SIZE, 20, np.uint8)).save(predictions / "2010_t.png")  # grey, no palette
    (predictions / "manifest.json").write_text("{}")
    return root, predictions


def test_submission(maps: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, predictions = maps
    out = tmp_path / "results.tar.gz"
    command = ["submit", "--predictions", str(predictions), "--data", str(root), "--out", str(out)]
    assert cli.main(command) == 0
    assert "2 label maps of split test" in capsys.readouterr().out
    with tarfile.open(out, "r:gz") as archive:
        names = archive.getnames()
        images = [Image.open(io.BytesIO(archive.extractfile(name).read())) for name in names]  # type: ignore[union-attr]
    place = "results/VOC2012/Segmentation/comp6_test_cls"
    assert names == [f"{place}/2008_t.png", f"{place}/2010_t.png"]
    for image, expected in zip(images, (mask_of("2007_a", "sbd"), np.full(SIZE, 20)), strict=True):
        assert image.format == "PNG" and image.mode == "P"
        np.testing.assert_array_equal(np.array(image), expected)
        assert image.getpalette()[:63] == voc_colormap()[:21].reshape(-1).tolist()
    first = out.read_bytes()
    assert pack_submission(VOCFolder(root, "test"), predictions, out) == 2 and out.read_bytes() == first


def test_submission_is_checked(maps: tuple[Path, Path], tmp_path: Path) -> None:
    root, predictions = maps
    folder, out = VOCFolder(root, "test"), tmp_path / "results.tgz"

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            pack_submission(folder, predictions, out)
        assert not out.exists()

    second = predictions / "2010_t.png"
    for label_map, message in (
        (np.zeros((9, 6), np.uint8), r"2010_t.png: expected the image's size 9x6, got 6x9"),
        (np.full(SIZE, 21, np.uint8), r"2010_t.png: expected class ids 0\.\.20, got 21"),
        (np.full(SIZE, 255, np.uint8), r"2010_t.png: expected class ids 0\.\.20, got 255"),
    ):
        save_label_map(second, label_map)
        refused(message)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(second)
    refused("expected a palette or 8-bit grey PNG")
    second.unlink()
    refused("expected a label map for every image, got none for '2010_t'")
    save_label_map(second, np.zeros(SIZE, np.uint8))
    save_label_map(predictions / "2007_v.png", np.zeros(SIZE, np.uint8))
    refused("expected label maps of split test only, got also '2007_v'")
    with pytest.raises(InputError, match=r"expected a name that ends in \.tar\.gz"):
        pack_submission(folder, predictions, tmp_path / "results.zip")
    (root / "classes.txt").write_text("background\ncat\n")
    with pytest.raises(InputError, match="expected VOC's 21 classes"):
        pack_submission(VOCFolder(root, "test"), predictions, out)
