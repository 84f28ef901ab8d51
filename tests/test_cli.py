"""The command line: flags become the profile, wrong input is one line and exit code 2."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import nbformat
import numpy as np
import pytest
from fake_run import make_fake_run
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from pydantic import Field

from wsss_nb import cli
from wsss_nb.config import Config
from wsss_nb.errors import InputError
from wsss_nb.experiment.options import (
    add_profile_flags,
    override,
    overrides_in,
    parameters_in,
    profile_options,
)
from wsss_nb.experiment.provenance import command_line, git_state, manifest, write_manifest

SCORES = {"miou": 0.5, "contour_f": 0.25, "protocol": {"split": "val", "crf": False, "seed": 0}}
COST = {"seconds": 3.0, "peak_memory_mb": 1.0, "device": "cpu", "threads": 1}


class FakeRun:
    """Stands in for a run: remembers what it was asked for."""

    def __init__(self, profile: Any, out_dir: Path, calls: list[Any]) -> None:
        self.profile, self.out_dir, self.calls = profile, out_dir, calls

    def _row(self, **fields: Any) -> dict[str, Any]:
        return {"seed": 0, "scores": SCORES, "cost": COST, **fields}

    def train_cams(self) -> list[dict[str, Any]]:
        self.calls.append("train_cams")
        return [self._row(variant="lambda1_fsl"), self._row(variant="seam")]

    def train_cam(self, variant: str, seed: int) -> dict[str, Any]:
        self.calls.append((variant, seed))
        return self._row(variant=variant, seed=seed)

    def train_affinitynet(self, method: str) -> dict[str, Any]:
        self.calls.append(("affinitynet", method))
        return self._row(stage="affinitynet", method=method)

    def train_deeplab(self, method: str) -> dict[str, Any]:
        self.calls.append(("deeplab", method))
        return self._row(stage="deeplab", method=method)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FakeRun]:
    """Runs that commands open, none of which trains anything; the working directory is empty."""
    runs: list[FakeRun] = []

    def open_run(profile: Any, out_dir: Any) -> FakeRun:
        runs.append(FakeRun(profile, Path(out_dir), []))
        return runs[-1]

    fake = ModuleType("wsss_nb.experiment.pipeline")
    fake.__dict__["open_run"] = open_run
    monkeypatch.setitem(sys.modules, "wsss_nb.experiment.pipeline", fake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WSSS_NB_COMMAND", raising=False)
    return runs


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a wrong command line gives."""
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("wsss-nb: error: ")
    return lines[0].removeprefix("wsss-nb: error: ")


# Flags


class Inner(Config):
    rate: float = 0.1
    sizes: tuple[tuple[int, int], ...] = ()
    rule: str = "complement"
    kind: Literal["max", "average"] = "max"
    draws: int | None = Field(1, description="None means 100 % exact")


class Outer(Config):
    name: str = "x"
    seeds: tuple[int, ...] = (0,)
    inner: Inner = Inner()
    other: Inner | None = None
    flag: bool = True


def test_every_field_is_a_flag() -> None:
    inner = {
        "rate": "FLOAT", "sizes": "INT,...,...", "rule": "TEXT", "kind": "max|average", "draws": "INT|null",
    }  # fmt: skip
    expected = {"seeds": "INT,..."} | {f"inner.{name}": kind for name, kind in inner.items()}
    expected |= {"other": "null"} | {f"other.{name}": kind for name, kind in inner.items()}
    assert {option.name: option.kind for option in profile_options(Outer)} == expected | {
        "flag": "true|false"
    }
    parser = argparse.ArgumentParser()
    add_profile_flags(parser, Outer)
    arguments = ["--seeds", "0,1, 2", "--inner.rate", "0.5", "--inner.rule", "2012", "--flag", "False"]
    arguments += ["--set", "inner.rate=0.25", "--inner.draws", "null", "--inner.sizes", "[[96, 96]]"]
    assert parser.parse_args(arguments).overrides == [
        "seeds=[0,1,2]", 'inner.rule="2012"', "flag=false", "inner.rate=0.25", "inner.draws=null",
        "inner.sizes=[[96,96]]",
    ]  # fmt: skip
    assert parser.parse_args([]).overrides == []
    assert "100 % exact" in parser.format_help()


@pytest.mark.parametrize(
    ("field", "value"),
    [("seeds", "0,1, 2"), ("seeds", "3"), ("inner.rule", "2012"), ("flag", "False"), ("other", "null"),
     ("inner.sizes", "[[96, 96]]")],
)  # fmt: skip
def test_set_reads_a_value_as_the_fields_own_flag_does(field: str, value: str) -> None:
    parser = argparse.ArgumentParser()
    add_profile_flags(parser, Outer)
    by_flag = parser.parse_args([f"--{field}", value]).overrides
    assert parser.parse_args(["--set", f"{field}={value}"]).overrides == by_flag
    with pytest.raises(InputError, match=rf"--set: expected FIELD=VALUE, got '{field}'"):
        parser.parse_args(["--set", field])
    assert parser.parse_args(["--set", "no.field=a"]).overrides == ['no.field="a"'], "refused by the profile"


def test_overrides_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seeds: [0, 1]\ninner:\n  rate: 0.5\n  rule: power:6\nother.kind: average\n")
    assert overrides_in(str(path)) == [
        "seeds=[0,1]",
        "inner.rate=0.5",
        'inner.rule="power:6"',
        'other.kind="average"',
    ]
    path.write_text("- 1\n")
    with pytest.raises(InputError, match=r"mine.yaml: expected fields and values, got list"):
        overrides_in(str(path))
    with pytest.raises(InputError, match=r"none.yaml: expected a YAML file, got .*No such file"):
        overrides_in(str(tmp_path / "none.yaml"))


def test_notebook_parameters_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("draws: 3\nrate: 0.5\nname: power:6\nquick: true\nnone: null\n")
    assert parameters_in(str(path)) == {
        "draws": 3, "rate": 0.5, "name": "power:6", "quick": True, "none": None,
    }  # fmt: skip
    path.write_text("draws: [1, 2]\n")
    with pytest.raises(InputError, match=r"mine.yaml: draws: expected text, a number, .*, got \[1, 2\]"):
        parameters_in(str(path))
    path.write_text("a: {b: 1}\n")
    with pytest.raises(InputError, match=r"a: expected text"):
        parameters_in(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("seeds", r"--set: expected FIELD=VALUE, got 'seeds'"), ("a=[0", r"a: expected a value such as"),
     ("a=two words", r"a: expected a value without spaces, got 'two words'")],
)  # fmt: skip
def test_wrong_overrides(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(text)


def test_every_field_of_the_real_profiles_survives_the_command_line() -> None:
    from wsss_nb.experiment.profiles import PROFILES, Profile, load_profile

    options = {option.name: option for option in profile_options(Profile)}
    for name in PROFILES:
        profile = load_profile(name)
        given = []
        for field, option in options.items():
            value: Any = profile
            for part in field.split("."):
                value = None if value is None else getattr(value, part)
            if isinstance(value, Config) or (value is None and "." in field):
                continue
            given.append(override(value if isinstance(value, str) else json.dumps(value), option))
        assert load_profile(name, " ".join(given)) == profile
        assert len(given) > 50


# Commands


def test_train_cam_takes_lambda(opened: list[FakeRun], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "cam", "--lambda", "0.5", "--cam.epochs", "3", "--seed", "4"]) == 0
    (run,) = opened
    assert run.calls == [("lambda0.5_fsl", 4)]
    assert run.profile.cam.epochs == 3 and run.out_dir == Path("runs/quick")
    shown = capsys.readouterr().out
    assert "lambda0.5_fsl" in shown and "50.0" in shown and "protocol: split val, crf False" in shown

    assert cli.main(["train", "cam", "--lambda", "0.6", "--no-fsl", "--out", "elsewhere"]) == 0
    assert opened[-1].calls == [("lambda0.6", 0)] and opened[-1].out_dir == Path("elsewhere")
    assert opened[-1].profile.lambdas == (*run.profile.lambdas, 0.6)
    assert cli.main(["train", "cam", "--baseline", "seam"]) == 0
    assert opened[-1].calls == [("seam", 0)]


def test_other_stages_and_sweep(opened: list[FakeRun], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "deeplab", "--method", "seam"]) == 0
    assert cli.main(["train", "affinitynet"]) == 0
    assert cli.main(["sweep", "--lambda", "0,1", "--seeds", "0,1", "--workers", "1", "--skip-bad"]) == 0
    assert [run.calls for run in opened] == [[("deeplab", "seam")], [("affinitynet", "ours")], ["train_cams"]]
    profile = opened[-1].profile
    assert profile.lambdas == (0.0, 1.0) and profile.seeds == (0, 1) and profile.workers == 1
    assert profile.data.skip_bad
    assert "deeplab seam" in capsys.readouterr().out


def notebook(path: Path, source: str) -> None:
    parameters = 'profile = "quick"\ndata_root = ""\nout_dir = "runs/quick"\nseed = 0\noverrides = ""'
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(source)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def test_run(opened: list[FakeRun], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write = "import json, os, pathlib\ncommand = os.environ['WSSS_NB_COMMAND']\n"
    write += "values = [profile, data_root, seed, overrides, command]\n"
    notebook(
        tmp_path / "books/04_a.ipynb",
        write + "pathlib.Path(out_dir, 'a.json').write_text(json.dumps(values))",
    )
    notebook(tmp_path / "books/07_b.ipynb", "1")
    command = ["run", "--profile", "quick", "--out", "mine", "--notebooks", "books", "--seeds", "3,4"]
    command += ["--data", "images", "--set", "cam.epochs=2"]
    assert cli.main(command) == 0
    assert opened[-1].profile.data.root == str(tmp_path / "images") and opened[-1].out_dir == Path("mine")
    values = json.loads(Path("mine/a.json").read_text())
    assert values[:4] == ["quick", "images", 3, "seeds=[3,4] cam.epochs=2"]
    assert "mine: 2 notebooks run, 0 up to date, 0 not done" in capsys.readouterr().out
    assert values[4] == command_line() and "WSSS_NB_COMMAND" not in os.environ
    assert not Path("mine/run.json").exists(), "nothing was trained"

    assert cli.main(command) == 0
    assert "0 notebooks run, 2 up to date" in capsys.readouterr().out

    notebook(tmp_path / "books/04_a.ipynb", "raise ValueError('no')")
    assert cli.main(command) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "wsss-nb: error: 04_a: 04_a.ipynb: cell 2 (In [3]), line 1: ValueError: no",
        "wsss-nb: error: 07_b: not run: it needs 04_a, which has not run to its end",
    ]


def test_drawing_a_finished_run_needs_its_results_only(
    opened: list[FakeRun], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Today's settings, data and code are not those that made it, and are not asked for."""
    make_fake_run(
        tmp_path / "mine", num_val=2, weights=(1.0,), fsl=(True,), methods=("sampling",), seeds=(0,)
    )
    (tmp_path / "mine/run.json").write_text(json.dumps({"command": "wsss-nb run --profile photos"}))
    before = (tmp_path / "mine/run.json").read_bytes()
    notebook(tmp_path / "books/04_a.ipynb", "raise ValueError('trained')")
    shutil.copy(Path(__file__).parents[1] / "notebooks/08_tables.ipynb", tmp_path / "books")
    command = ["run", "--out", "mine", "--notebooks", "books", "--only", "08", "--figures", "published"]
    assert cli.main(command) == 0
    assert "mine: 1 notebooks run, 0 up to date, 0 not done" in capsys.readouterr().out
    assert not opened and (tmp_path / "mine/run.json").read_bytes() == before
    made = json.loads((tmp_path / "published/table_1.json").read_text())
    assert made["command"] == command_line() and made["made_by"]["command"] == "wsss-nb run --profile photos"

    (tmp_path / "mine/results.json").write_text('{"cam": [{}]}')
    assert "mine/results.json: schema: expected this field, got none" in error_of(capsys, *command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train cam --lambda 1.2", "argument --lambda: expected a number from 0 to 1, got 1.2"),
        ("train cam --lambda much", "argument --lambda: expected a number from 0 to 1, got much"),
        ("run --lambda 0,1.2", "argument --lambda: expected a number from 0 to 1, got 1.2"),
        ("run --lambdas 0,1.2", "lambdas.1"),
        (
            "run --refine seam",
            "refine: expected ours among them for 05_train_affinitynet and 06_train_deeplab",
        ),
        ("run --lambdas 0,0.5", "refine: ours goes through stages 2 and 3 and needs lambdas with 1"),
        ("run --deeplab.crf.backend cuda", "crf.backend: expected a GPU on which Triton's kernels run"),
        ("run --cam.epoch 3", "unknown flag --cam.epoch, did you mean --cam.epochs"),
        ("run --set cam.epoch=3", "cam.epoch: no such field"),
        ("run --cam.epochs many", "cam.epochs"),
        ("run --cam.siamese maybe", "cam.siamese"),
        ("run --profile slow", "argument --profile: invalid choice: 'slow'"),
        ("run -p drws 3 --notebooks books", "drws: expected a parameter of a notebook (), got another name"),
        ("run -p seed 3 --notebooks books", "seed: expected to be set by the run's own flags (--seeds,"),
        ("run --notebooks nowhere", "nowhere: expected numbered notebooks such as 01_name.ipynb, got none"),
        ("run --timeout 0", "argument --timeout: expected a number of minutes above 0, got 0"),
        ("run --timeout 04=0", "argument --timeout: expected a number of minutes above 0, got 0"),
        ("run --timeout 4,04=5,9", "argument --timeout: expected MINUTES or NOTEBOOK=MINUTES, each once"),
        ("run --timeout 05=2 --notebooks books", "timeout: expected notebooks of 04_a, got '05'"),
        (
            "run -f typo.yaml --notebooks books",
            "drws: expected a parameter of a notebook (), got another name",
        ),
        ("run -f none.yaml --notebooks books", "none.yaml: expected a YAML file, got No such file"),
        ("verify nowhere", "nowhere: expected a folder of figures and tables, got none"),
        ("verify books", "books: expected figures or tables with their manifests, got none"),
        (
            "run --out taken/run --notebooks books",
            "taken/run: expected a writable folder, got Not a directory",
        ),
        ("train", "the following arguments are required: STAGE"),
        ("fly", "argument COMMAND: invalid choice: 'fly'"),
    ],
)
def test_wrong_input_is_one_line(
    opened: list[FakeRun], capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: str, message: str
) -> None:
    notebook(tmp_path / "books/04_a.ipynb", "1")
    (tmp_path / "typo.yaml").write_text("drws: 3\n")
    (tmp_path / "taken").write_text("")
    assert error_of(capsys, *arguments.split()).startswith(message)
    assert not opened


def test_errors_and_interruptions_have_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: list[FakeRun]
) -> None:
    from wsss_nb.workers import WorkerDiedError

    def ending_with(error: BaseException) -> int:
        def sweep(run: FakeRun) -> None:
            raise error

        monkeypatch.setattr(FakeRun, "train_cams", sweep)
        return cli.main(["sweep"])

    assert ending_with(KeyboardInterrupt()) == 130
    assert "interrupted; the same command carries on" in capsys.readouterr().err
    assert ending_with(InputError("a.jpg: expected an image,\n got none")) == 2
    assert capsys.readouterr().err == "wsss-nb: error: a.jpg: expected an image, got none\n"
    assert ending_with(WorkerDiedError("a worker died")) == 1
    assert capsys.readouterr().err == "wsss-nb: error: a worker died\n"
    with pytest.raises(RuntimeError, match=r"a bug"):
        ending_with(RuntimeError("a bug"))


def test_console_script_ends_with_the_exit_code() -> None:
    script = [str(Path(sys.executable).with_name("wsss-nb")), "train", "cam", "--lambda", "1.2"]
    answer = subprocess.run(script, capture_output=True, text=True)
    assert answer.returncode == 2 and answer.stdout == "" and answer.stderr.count("\n") == 1


# Data and scores


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images of 40x60 with one object each; predictions in `predictions/`: one right, one shifted."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (tmp_path / "predictions").mkdir()
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    for name, label, shift in (("a", 1, 0), ("b", 2, 10)):
        Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        mask, guess = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
        mask[10:30, 10:30] = label
        guess[10:30, 10 + shift : 30 + shift] = label
        for path, values in ((root / "SegmentationClass", mask), (tmp_path / "predictions", guess)):
            picture = Image.fromarray(values)
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            picture.save(path / f"{name}.png")
    return root


def test_evaluate(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        "--predictions",
        str(tmp_path / "predictions"),
        "--data",
        str(voc),
        "--void",
        "masked",
    ]
    assert cli.main([*command, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    # Background: 4800 - 800 - 200 right of 4800 - 800 + 200; dog: 200 right of 600.
    assert scores["iou"] == pytest.approx([3800 / 4200, 1.0, 200 / 600])
    assert scores["miou"] == pytest.approx(np.mean([3800 / 4200, 1.0, 1 / 3]))
    assert scores["f"][0] == 1.0 and 0 < scores["f"][1] < 1
    protocol = scores["protocol"]
    assert protocol["split"] == "val" and protocol["void"] == "masked" and protocol["images"] == 2
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].split() == ["cat", "100.0", "100.0"] and shown[4].split()[:2] == ["mean", "74.6"]
    assert "void masked" in shown[5] and "split val" in shown[5]


def test_evaluate_refuses_bad_input(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--predictions", str(tmp_path / "predictions"), "--data", str(voc)]
    assert "expected a folder of label maps, got none" in error_of(
        capsys, *command[:2], str(tmp_path / "nowhere"), *command[3:]
    )
    assert "nowhere" in error_of(capsys, *command[:3], "--data", str(tmp_path / "nowhere"))
    (tmp_path / "predictions/b.png").unlink()
    assert "b.png" in error_of(capsys, *command)
    Image.fromarray(np.zeros((40, 61), np.uint8)).save(tmp_path / "predictions/b.png")
    assert "b.png: expected the image's size 60x40, got 61x40" in error_of(capsys, *command)
    Image.fromarray(np.full((40, 60), 3, np.uint8)).save(tmp_path / "predictions/b.png")
    assert "b.png: expected class ids 0..2, got 3" in error_of(capsys, *command)


def test_data_commands(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", "--data", str(voc)]) == 0
    assert "val: 2 images of 3 classes, 0 bad" in capsys.readouterr().out
    assert (
        cli.main(["data", "labels", "--data", str(voc), "--split", "val", "--out", str(tmp_path / "l.csv")])
        == 0
    )
    lines = (tmp_path / "l.csv").read_text().splitlines()
    assert [line[0] for line in lines if "dog" in line] == ["b"]
    (voc / "JPEGImages/b.jpg").write_bytes((voc / "JPEGImages/b.jpg").read_bytes()[:200])
    assert "b.jpg" in error_of(capsys, "data", "check", "--data", str(voc))
    assert cli.main(["data", "check", "--data", str(voc), "--skip-bad"]) == 0
    assert "val: 2 images of 3 classes, 1 bad" in capsys.readouterr().out

    fish = ["data", "synthetic", "--out", str(tmp_path / "fish"), "--num-train", "3", "--num-val", "2"]
    assert cli.main([*fish, "--size", "64"]) == 0
    assert len(list((tmp_path / "fish/JPEGImages").iterdir())) == 5
    assert "num_classes" in error_of(capsys, *fish[:3], str(tmp_path / "other"), "--num-classes", "1")


# Provenance


def test_manifest_says_everything_and_nothing_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WSSS_NB_COMMAND", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"weights")
    monkeypatch.setattr(
        sys, "argv", ["/opt/env/bin/wsss-nb", "run", f"--data={tmp_path}/photos", "--out", "../x/y"]
    )
    profile = {"seeds": [0, 1], "data": {"root": "/far/away/photos"}, "cache": str(tmp_path / "c")}
    made = write_manifest(
        tmp_path / "m.json", profile, data_hash="d", weights={"net": tmp_path / "w.pt", "other": "abc"},
        protocol={"split": "val"}, extra={"arrays": "e"},
    )  # fmt: skip
    assert json.loads((tmp_path / "m.json").read_text()) == made
    assert made["profile"] == {"seeds": [0, 1], "data": {"root": "photos"}, "cache": "c"}
    assert made["seeds"] == [0, 1] and made["protocol"] == {"split": "val"} and made["arrays"] == "e"
    assert made["command"] == "wsss-nb run --data=photos --out y" == command_line()
    sha256 = "9cb4f1d6b2ad2a1b9e3f7cb25bd2e4b3c4cf5b2e"  # of another text
    assert len(made["weights"]["net"]) == 64 != len(sha256) and made["weights"]["other"] == "abc"
    assert {"torch", "numpy", "wsss-nb"} <= set(made["packages"])
    assert made["hardware"]["cores"] >= 1 and made["hardware"]["memory_gib"] > 0
    assert str(tmp_path) not in json.dumps(made)
    with pytest.raises(ValueError, match=r"extra: expected names other than .*, got 'git'"):
        manifest(extra={"git": "mine"})


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "wsss_nb").mkdir()
    (tmp_path / "wsss_nb/a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    git_state.cache_clear()
    clean = git_state(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    git_state.cache_clear()
    (tmp_path / "figures.pdf").write_text("made by a run")
    assert git_state(tmp_path) == clean
    git_state.cache_clear()
    (tmp_path / "wsss_nb/b.py").write_text("2")
    assert git_state(tmp_path) == {**clean, "dirty": True}
    git_state.cache_clear()
