"""Files that are whole or not there, and errors that name them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from wsss_nb.errors import DiskFullError, InputError
from wsss_nb.files import atomic_path, read_json, sha256_file, write_json


def test_a_file_appears_whole_and_under_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/a.png"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png" and temporary.name[0] == "."
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as one, atomic_path(tmp_path / "a") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "a").read_text() == "1", "the one that ends last"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_on_an_error_the_old_file_stays(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_writer_is_not_blamed_on_the_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "another").read_text()


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"name": "Fülle", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", bad)
    assert read_json(tmp_path / "a.json") == value


def test_bad_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json: expected a JSON file, got none"):
        read_json(tmp_path / "a.json")
    for content in (b"{", b"", b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.json: expected JSON, got"):
            read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"expected a readable JSON file, got Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("folder", ["/proc/nothing", "/dev/null"])
def test_places_nobody_can_write_to_are_named(folder: str) -> None:
    with pytest.raises(InputError, match=rf"^{folder}/a\.json: expected a writable place, got "):
        write_json(f"{folder}/a.json", {})


def test_a_file_or_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"file/a\.json: expected a writable place"):
        write_json(tmp_path / "file/a.json", {})
    with pytest.raises(InputError, match=r"folder: expected a writable place, got Is a directory"):
        write_json(tmp_path / "folder", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_is_named() -> None:
    with (
        pytest.raises(DiskFullError, match=r"a: expected room on the disk, got No space left"),
        atomic_path("a"),
    ):
        raise OSError(28, "No space left on device")


def test_sha256(tmp_path: Path) -> None:
    content = json.dumps(list(range(300_000))).encode()
    assert len(content) > 1 << 20
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
