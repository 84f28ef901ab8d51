"""The ground floor: functions of the user's own, fingerprints of code, the parser of arguments, progress."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import wsss_nb
from wsss_nb.system import code_version as code
from wsss_nb.system import progress as reporter
from wsss_nb.system.code_version import code_version, imported_modules, modules_behind
from wsss_nb.system.command_line import Parser, minutes_by_notebook, similar_names, words
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import sha256_file
from wsss_nb.system.plugins import is_plugin, load_function, plugin_hash
from wsss_nb.system.progress import duration, progress

PACKAGE = Path(wsss_nb.__file__).parent

# Functions of the user's own


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the folder that one works in, which is not on the search path."""
    path = tmp_path / "my_pooling_of_this_test.py"
    text = "import functools\n\nTHREE = 3\n\ndef pool(maps):\n    return maps\n\nother = functools.partial(pool)\n"
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    yield path
    sys.modules.pop(path.stem, None)


def test_a_function_of_ones_own_is_found_beside_the_notebooks(own_module: Path, monkeypatch: Any) -> None:
    path = list(sys.path)
    assert load_function("my_pooling_of_this_test:pool")(7) == 7
    assert sys.path == path, "the search path is as it was"
    sys.modules.pop(own_module.stem)
    (own_module.parent / "notebooks").mkdir()
    monkeypatch.chdir(own_module.parent / "notebooks")
    assert load_function("my_pooling_of_this_test:pool")(8) == 8
    assert is_plugin("a:b") and not is_plugin("max")


def test_the_hash_is_that_of_the_source(own_module: Path) -> None:
    first = plugin_hash("my_pooling_of_this_test:pool")
    assert first == plugin_hash("my_pooling_of_this_test:other") == sha256_file(own_module), "of the whole module"
    own_module.write_text(own_module.read_text() + "\n# changed\n")
    assert plugin_hash("my_pooling_of_this_test:pool") != first
    assert plugin_hash("wsss_nb.log_sum_exp:log_sum_exp_pool") == code_version("wsss_nb.log_sum_exp")
    assert plugin_hash("torch:sigmoid") == sha256_file(torch.__file__), "of compiled code its module's"
    assert plugin_hash("sys:exit") == "sys:exit", "there is no file"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my module:pool", r"^pooling: expected module:function, got 'my module:pool'$"),
        ("my_module:", r"^pooling: expected module:function, got 'my_module:'$"),
        ("../a:pool", r"^pooling: expected module:function, got '\.\./a:pool'$"),
        (
            "no_such_module_at_all:pool",
            r"^pooling: expected module no_such_module_at_all to import, got ModuleNotFound",
        ),
        ("my_pooling_of_this_test:none", r"^pooling: expected a function none in my_pooling_of_this_test, got none$"),
        (
            "my_pooling_of_this_test:THREE",
            r"^pooling: expected a function, got my_pooling_of_this_test:THREE of type i",
        ),
    ],
)
def test_what_is_no_function_is_named(own_module: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_function(name, "pooling")


def test_a_module_that_does_not_import_is_named(own_module: Path) -> None:
    own_module.write_text("1 / 0\n")
    message = "^pooling: expected module my_pooling_of_this_test to import, got ZeroDivisionError: division by zero$"
    with pytest.raises(InputError, match=message):
        load_function("my_pooling_of_this_test:pool", "pooling")


# Fingerprints of code


def test_code_versions_ignore_words_and_follow_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wsss_nb"
    files = {
        "__init__.py": '"""Package."""\nfrom wsss_nb import other\n',
        "leaf.py": '"""Leaf."""\ndef f(x):\n    """Twice."""\n    return 2 * x  # words\n',
        "middle.py": "from __future__ import annotations\nfrom .leaf import f\nVALUE = 3\n",
        "other.py": "VALUE = 1\n",
        "variants.py": "VALUE = 1\n",
        "system/__init__.py": "",
        "system/files.py": "VALUE = 1\n",
        "stages/__init__.py": "from wsss_nb import other\n",
        "stages/top.py": (
            "from typing import TYPE_CHECKING\nfrom wsss_nb import variants\nfrom wsss_nb.system.files import VALUE\n"
            "if TYPE_CHECKING:\n    from wsss_nb import other\n"
            "def g():\n    from wsss_nb.middle import f\n    return f\n"
        ),
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(code, "_ROOT", package)
    assert modules_behind("wsss_nb.stages.top") == ("wsss_nb.leaf", "wsss_nb.middle", "wsss_nb.stages.top")
    first = code_version("wsss_nb.stages.top")
    neutral = {
        "leaf.py": "# new words\ndef f(x):\n\n    return (2 *\n        x)\n",
        "other.py": "VALUE = 222\n",  # imported for type checking only, and by packages that hand names on
        "variants.py": "VALUE = 222\n",
        "system/files.py": "VALUE = 222\n",
        "stages/__init__.py": "FLAG = 111\n",
    }
    for name, text in neutral.items():
        (package / name).write_text(text)
        assert code_version("wsss_nb.stages.top") == first, name
    for name, text in {
        "leaf.py": "def f(x):\n    return 3 * x\n",
        "middle.py": "from .leaf import f\nVALUE = 4\n",
    }.items():
        (package / name).write_text(text)
        assert code_version("wsss_nb.stages.top") != first, name
        first = code_version("wsss_nb.stages.top")
    with pytest.raises(ValueError, match=r"module: expected a module of wsss_nb, got 'wsss_nb.nothing'"):
        code_version("wsss_nb.nothing")


def test_imports_in_all_their_forms() -> None:
    source = (
        "import wsss_nb.cam as c\nfrom wsss_nb.system import files\nfrom . import loop\nfrom ..crf import dense_crf\n"
    )
    found = imported_modules(source, "wsss_nb.stages")
    assert {"wsss_nb.cam", "wsss_nb.system.files", "wsss_nb.stages.loop", "wsss_nb.crf"} <= found
    assert imported_modules("import numpy\nfrom wsss_nb.cam import nothing\n") == {"wsss_nb.cam"}


STAGES = ("cam", "affinitynet", "deeplab", "scoring")

CHANGES: dict[str, set[str]] = {
    "sampling.py": {"cam"},
    "stages/cam.py": {"cam"},
    "similarity.py": {"cam", "deeplab"},
    "models/networks.py": {"cam", "affinitynet", "deeplab"},
    "stages/loop.py": {"cam", "affinitynet", "deeplab"},
    "stages/views.py": {"cam", "affinitynet", "deeplab"},
    "data/transforms.py": {"cam", "affinitynet", "deeplab"},
    "metrics.py": {"scoring"},
    "stages/scoring.py": {"scoring"},
    **{f"{name}.py": set() for name in ("show/figures", "teach/checks", "cli", "run/pipeline", "data/__init__")},
    **{
        f"{name}.py": set()
        for name in ("data/synthetic", "data/voc2012", "variants", "stages/config", "system/workers")
    },
}


def test_a_change_repeats_the_stages_that_it_can_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a copy of the package: hours of training are not repeated for a word, a figure or the command line."""
    package = shutil.copytree(PACKAGE, tmp_path / "wsss_nb")
    monkeypatch.setattr(code, "_ROOT", package)
    before = {stage: code_version(f"wsss_nb.stages.{stage}") for stage in STAGES}
    for file, changed in CHANGES.items():
        text = (package / file).read_text()
        (package / file).write_text(text.replace('"""', '"""Words before others. ', 1) + "\n# and a comment\n")
        assert {stage: code_version(f"wsss_nb.stages.{stage}") for stage in STAGES} == before, file
        (package / file).write_text(text + "\n_CHANGED = 1\n")
        assert {s for s in STAGES if code_version(f"wsss_nb.stages.{s}") != before[s]} == changed, file
        (package / file).write_text(text)


# Arguments


def test_wrong_arguments_are_input_errors_that_name_what_looks_like_them() -> None:
    parser = Parser(prog="tool")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", required=True)
    assert parser.parse_args(["--out", "a", "--epochs", "3"]).epochs == 3
    with pytest.raises(InputError, match=r"^unknown flag --epoch, did you mean --epochs\? \(see tool --help\)$"):
        parser.parse_args(["--out", "a", "--epoch=3"])
    with pytest.raises(InputError, match=r"^unknown flag --zzz \(see tool --help\)$"):
        parser.parse_args(["--out", "a", "--zzz"])
    with pytest.raises(InputError, match=r"^argument --epochs: invalid int value: 'x' \(see tool --help\)$"):
        parser.parse_args(["--out", "a", "--epochs", "x"])
    with pytest.raises(InputError, match=r"^the following arguments are required: --out \(see tool --help\)$"):
        parser.parse_args([])
    with pytest.raises(InputError, match=r"^unrecognized arguments: more \(see tool --help\)$"):
        parser.parse_args(["--out", "a", "more"])


def test_names_that_are_meant() -> None:
    known = ["cam.epochs", "cam.batch_size", "seam.epochs", "deeplab.epochs", "seeds"]
    assert similar_names("cam.epoch", known) == ["cam.epochs"]
    assert similar_names("sead", known) == ["seeds"]
    assert similar_names("epochs", known) == ["cam.epochs", "deeplab.epochs"], "elsewhere; SEAM's is not what is meant"
    assert similar_names("zzz", known) == []


def test_minutes_and_words() -> None:
    assert minutes_by_notebook("30") == {"": 30} and minutes_by_notebook("30,04=1.5") == {"": 30, "04": 1.5}
    for text in ("0", "-1", "x", "nan", "inf", "=3", "04=1,04=2", "1,2", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected MINUTES or NOTEBOOK=MINUTES above 0"):
            minutes_by_notebook(text)
    assert words("04,07,") == ("04", "07")
    with pytest.raises(argparse.ArgumentTypeError, match="expected words separated by commas, got ','"):
        words(",")


# Progress


def test_progress_is_lines_in_a_log_and_nothing_for_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = iter(range(0, 1000, 25))
    monkeypatch.setattr(reporter.time, "monotonic", lambda: next(ticks))
    monkeypatch.delenv("WSSS_NB_HEADLESS", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert list(progress("abcdefg", "CAMs")) == list("abcdefg")
    assert capsys.readouterr().out == "CAMs: 2 of 7\nCAMs: 5 of 7\n"
    assert list(progress(iter("abcd"), "CAMs", 4, interval=70)) == list("abcd")
    assert capsys.readouterr().out == "CAMs: 2 of 4\n"
    assert list(progress(iter("abc"), "blocks", interval=30)) == list("abc")
    assert capsys.readouterr().out == "blocks: 1\n"
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    assert list(progress("abcdefg", "CAMs")) == list("abcdefg")
    assert capsys.readouterr().out == ""


def test_progress_is_a_bar_in_jupyter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("WSSS_NB_HEADLESS", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", object())  # type: ignore[arg-type]
    assert list(progress("abc", "CAMs")) == list("abc")
    assert "CAMs" in capsys.readouterr().err


def test_durations_as_people_say_them() -> None:
    found = [duration(seconds) for seconds in (0, 59.94, 60, 3599.6, 7500, 90_000)]
    assert found == ["0.0 s", "59.9 s", "1 min 00 s", "1 h 00 min", "2 h 05 min", "25 h 00 min"]
