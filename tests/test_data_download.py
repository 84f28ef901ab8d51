"""Downloads that break off, and archives that are not to be trusted; a server on this machine, no network."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archive_server import Server, serve

from wsss_nb.data.voc2012 import Archive, check_archive, fetch, read_archive
from wsss_nb.system.errors import InputError

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serve() as running:
        running.files["/a.tar"] = CONTENT
        yield running


def published(server: Server, *more: str, size: int | None = len(CONTENT), digest: str | None = DIGEST) -> Archive:
    return Archive("a.tar", (*more, server.url), size, digest)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_download_and_no_second_one(server: Server, tmp_path: Path) -> None:
    path = fetch(published(server), tmp_path / "new")
    assert path == tmp_path / "new/a.tar" and path.read_bytes() == CONTENT
    assert fetch(published(server), tmp_path / "new") == path
    assert server.requests == [("/a.tar", None)]
    assert [file.name for file in path.parent.iterdir()] == ["a.tar"]


def test_lost_connections_are_taken_up_where_they_broke(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 1, 150_000]
    path = fetch(published(server), tmp_path, pause=0)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=100001-", "bytes=250001-"]


def test_next_call_carries_on(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.cuts = [70_000, 0]
    with pytest.raises(InputError, match=r"ended after 70000 of 300000 bytes.*; 70000 bytes are kept"):
        fetch(published(server), tmp_path, attempts=1)
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:70_000] and not (tmp_path / "a.tar").exists()
    server.requests.clear()
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/a.tar", "bytes=70000-")]
    assert f"a.tar: carries on from byte 70000, from {server.url}/a.tar\n" in capsys.readouterr().out


def test_connections_that_bring_nothing_are_counted_in_a_row(server: Server, tmp_path: Path) -> None:
    server.cuts = [10, 0, 0, 10, 0, 0, 10, 0, 0, 0]
    with pytest.raises(InputError, match="ended after 30 of"):
        fetch(published(server), tmp_path, attempts=3, pause=0)
    assert len(server.requests) == 10


def test_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [200_000, 150_000]
    assert fetch(published(server), tmp_path, pause=0).read_bytes() == CONTENT
    server.cuts = [50, 40] * 10
    with pytest.raises(InputError, match="ended after"):  # more and less in turn is no progress
        fetch(published(server), tmp_path / "b", attempts=2, pause=0)
    assert len(server.cuts) == 17


def test_whole_part_and_too_long_part(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "a.tar.part"
    part.write_bytes(CONTENT)  # killed after the last byte: the server answers 416
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    (tmp_path / "a.tar").unlink()
    part.write_bytes(CONTENT + b"more")
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    part.write_bytes((tmp_path / "a.tar").read_bytes() + b"more")
    (tmp_path / "a.tar").unlink()
    with pytest.raises(InputError, match="the download is removed, the same command starts it again"):
        fetch(published(server, size=None), tmp_path)
    assert fetch(published(server, size=None), tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=300000-", None, "bytes=300004-", None]


def test_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 503]
    assert fetch(published(server), tmp_path, pause=0).read_bytes() == CONTENT
    server.requests.clear()
    with pytest.raises(InputError, match=r"b\.tar: HTTP Error 404: Not Found"):
        fetch(Archive("b.tar", (server.url,)), tmp_path, pause=0)
    assert len(server.requests) == 1


def test_another_address_is_tried(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = f"http://127.0.0.1:{closed_port()}"
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:5])
    archive = published(server, f"{server.url}/moved", away)
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/moved/a.tar", "bytes=5-"), ("/a.tar", "bytes=5-")]
    assert f"from {server.url}/a.tar\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ranges", "message"), [(True, "416"), (False, "expected a file of 300000 bytes, got one of 9")]
)
def test_a_wrong_address_costs_nothing(server: Server, tmp_path: Path, ranges: bool, message: str) -> None:
    server.ranges, server.files["/wrong/a.tar"] = ranges, b"not found"
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:70_000])
    archive = Archive("a.tar", (f"{server.url}/wrong",), len(CONTENT), DIGEST)
    with pytest.raises(InputError, match=rf"{message}.*; 70000 bytes are kept"):
        fetch(archive, tmp_path)
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:70_000]


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_no_network_is_one_clear_line(tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    archive = Archive("a.tar", (f"http://{host}:{closed_port()}",))
    with pytest.raises(InputError) as caught:
        fetch(archive, tmp_path)
    assert re.match(
        rf"a.tar: expected a download, got none \(http://{host}\S+: .+\); without a network put the "
        rf"file into {tmp_path} or name it on the command line$",
        str(caught.value),
    )
    assert "\n" not in str(caught.value)


def test_wrong_file_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected SHA-256 0+ of a.tar, got .*the download is removed"):
        fetch(published(server, digest="0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="expected a file of 299999 bytes, got one of 300000"):
        fetch(published(server, size=299_999), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.tar").write_bytes(b"other")
    with pytest.raises(InputError, match=r"expected the 300000 bytes of a\.tar, got 5"):
        fetch(published(server), tmp_path)
    assert (tmp_path / "a.tar").read_bytes() == b"other"  # a file we did not just make is left alone


def test_check_archive(tmp_path: Path) -> None:
    path = tmp_path / "renamed.tar"
    path.write_bytes(CONTENT)
    check_archive(path, Archive("a.tar", (), len(CONTENT), DIGEST))
    check_archive(path, Archive("a.tar", ()))
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(InputError, match="expected SHA-256"):
        check_archive(path, Archive("a.tar", (), len(CONTENT), DIGEST))
    with pytest.raises(InputError, match=r"expected a\.tar, got a folder"):
        check_archive(tmp_path, Archive("a.tar", ()))


# Archives


def tar(path: Path, *entries: tuple[str, bytes | str], mode: str = "w") -> Path:
    """Entries are name and content, or name and ``kind:target``."""
    kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE, "dir": tarfile.DIRTYPE}
    with tarfile.open(path, mode) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                kind, _, info.linkname = content.partition(":")
                info.type = kinds[kind]
                archive.addfile(info)
    return path


def contents(path: Path, read: list[str] | None = None) -> dict[str, bytes]:
    """The files, whose names also go into ``read`` as they come."""
    found = {}
    for place, data in read_archive(path, "top", lambda place: place.suffix == ".x"):
        found[str(place)] = data
        if read is not None:
            read.append(str(place))
    return found


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_wanted_files_are_read(tmp_path: Path, mode: str) -> None:
    path = tar(
        tmp_path / "a.tar",
        ("top/d.x", "dir:"),
        ("top/d.x/a.x", b"1"),
        ("./over/top/b.x", b""),
        ("top/c.y", b"3"),
        ("top/.hidden.x", b"4"),
        ("top/l.y", "link:/etc"),
        ("elsewhere.x", b"5"),
        mode=mode,
    )
    assert contents(path) == {"d.x/a.x": b"1", "b.x": b""}


@pytest.mark.parametrize("name", ["../a.x", "d/../../a.x", "/tmp/a.x", "..", "C:/a.x", "d\\..\\a.x", "/top/a.x"])
def test_names_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    read: list[str] = []
    with pytest.raises(InputError, match="expected names inside the archive's own folder") as caught:
        contents(tar(tmp_path / "a.tar", ("top/fine.x", b"1"), (name, b"2")), read)
    assert repr(name) in str(caught.value) and not read, "refused before anything is used"


@pytest.mark.parametrize("kind", ["link:/etc/passwd", "link:b.x", "hard:b.x", "fifo:"])
def test_wanted_links_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"expected plain files, got a link or device 'top/a\.x'"):
        contents(tar(tmp_path / "a.tar", ("top/b.x", b"1"), ("top/a.x", kind)))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_damaged_archives(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "a.tar", ("top/a.x", CONTENT), mode=mode)
    path.write_bytes(path.read_bytes()[:150_000])
    with pytest.raises(InputError, match="expected a whole tar archive, got"):
        contents(path)
    path.write_bytes(b"<html>" * 1000)
    with pytest.raises(InputError, match="expected a whole tar archive, got"):
        contents(path)
    with pytest.raises(InputError, match="got no file"):
        contents(tmp_path / "none.tar")
