"""Files that are whole or not there, locks between processes, and errors that name what is wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wsss_nb.system.errors import DiskFullError, InputError
from wsss_nb.system.files import (
    atomic_path,
    json_hash,
    only_run,
    project_root,
    read_json,
    sha256_file,
    waiting_lock,
    write_json,
)


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
    with pytest.raises(InputError, match=r"a\.json: expected JSON, got no file"):
        read_json(tmp_path / "a.json")
    for content in (b"{", b"", b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.json: expected JSON, got"):
            read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"expected JSON, got a folder"):
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


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOSPC, DiskFullError, "room on the disk, got No space left"),
        (errno.EDQUOT, DiskFullError, "room on the disk, got Disk quota exceeded"),
        (errno.EROFS, InputError, "a writable place, got Read-only file system"),
        (errno.EIO, OSError, "Input/output error"),
    ],
)
def test_a_full_disk_and_one_that_cannot_be_written_are_named(
    tmp_path: Path, number: int, error: type[Exception], words: str
) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(error, match=words) as caught, atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is error and "\n" not in str(caught.value)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_hashes(tmp_path: Path) -> None:
    content = json.dumps(list(range(300_000))).encode()
    assert len(content) > 1 << 20
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert json_hash({"a": 1, "b": [1, 2]}) == json_hash({"b": (1, 2), "a": 1}) != json_hash({"a": 1, "b": [2, 1]})
    assert len({json_hash(value) for value in (1, 2, "1", None, [1], 1.5)}) == 6


def test_relative_paths_are_meant_from_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    for folder in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(folder)
        assert project_root() == tmp_path


# Locks


@contextmanager
def another_process(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock until it is told to end, and says when it has it."""
    source = "import sys; from pathlib import Path; from wsss_nb.system.files import only_run, waiting_lock\n"
    source += f"with {code}:\n    print('held', flush=True)\n    input()\n"
    words = [sys.executable, "-c", source, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_in_a_folder_is_told_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another_process("only_run(Path(sys.argv[1]))", folder) as process:
        message = rf"run: expected no other run here, got process {process.pid} on .* since \d{{4}}-.* \(-c "
        with pytest.raises(InputError, match=message), only_run(folder):
            pass
        (folder / ".lock.json").write_text("{")
        with (
            pytest.raises(InputError, match=r"expected no other run here, got one that has just begun$"),
            only_run(folder),
        ):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with only_run(folder):
            assert read_json(folder / ".lock.json")["pid"] == os.getpid(), "the lock went with the killed process"
    assert not (folder / ".lock.json").exists()
    with pytest.raises(KeyError), only_run(folder):
        raise KeyError
    with only_run(folder):
        pass
    with pytest.raises(InputError, match=r"^/proc/run: expected a writable folder, got "), only_run(Path("/proc/run")):
        pass


def test_a_second_process_waits_for_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new/.lock"
    with waiting_lock(path, "step: another process is at work"):
        pass
    assert capsys.readouterr().out == "", "nobody to wait for"
    with another_process("waiting_lock(Path(sys.argv[1]), 'words')", path) as process:
        # the lock is held until its holder ends, which a third process sees to while this one waits
        ender = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({process.pid}, 9)"])
        with waiting_lock(path, "step: another process is at work"):
            process.wait(timeout=10)
        ender.wait()
    assert capsys.readouterr().out == "step: another process is at work; waiting for it\n"
