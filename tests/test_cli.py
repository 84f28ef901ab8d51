"""The command line: flags become the profile, wrong input is one line and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from fake_run import make_fake_run
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from wsss_nb import cli
from wsss_nb.run import pipeline, prepare
from wsss_nb.run.profiles import Profile
from wsss_nb.run.provenance import COMMAND, command_line
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import read_json


class Opened(list[Profile]):
    """The profiles of the runs that commands open, none of which trains anything, and what they were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.folders: list[Path] = []
        self.calls: list[tuple[Any, ...]] = []


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opened:
    """The working directory is empty."""
    found = Opened()

    def open_run(profile: Profile, out_dir: Path) -> Profile:
        found.append(profile)
        found.folders.append(out_dir)
        return profile

    def row(name: str) -> Callable[..., Any]:
        def call(run: Profile, variant: str, *seed: int) -> Any:
            found.calls.append((name, variant, *seed))
            protocol = {"split": "val", "crf": False, "seed": 0, "void": None}
            scores = SimpleNamespace(miou=0.5, contour_f=0.25, protocol=protocol)
            stage = {} if name == "cam" else {"stage": name}
            cost = SimpleNamespace(seconds=3.0)
            return SimpleNamespace(variant=variant, seed=0, scores=scores, cost=cost, folder="maps", **stage)

        return call

    monkeypatch.setattr(prepare, "open_run", open_run)
    for name in ("cam", "affinitynet", "deeplab"):
        monkeypatch.setattr(pipeline, f"train_{name}", row(name))
    monkeypatch.setattr(pipeline, "train_cams", lambda run: [row("cam")(run, name) for name in run.grid()])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(COMMAND, raising=False)
    return found


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a wrong command line gives."""
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("wsss-nb: error: ")
    return lines[0].removeprefix("wsss-nb: error: ")


# Flags and commands

HELP = {
    "": "Importance sampling CAMs",
    "run": "--cam.optimizer.learning_rate",
    "sweep": "--ray-address ADDRESS",
    "train": "Train one stage",
    "train cam": "--variant NAME",
    "train affinitynet": "--seed INT",
    "train deeplab": "--deeplab.crf.bilateral_sxy",
    "evaluate": "--checkpoint FILE",
    "submit": "FILE.tar.gz",
    "verify": "--against DIR",
    "course": "student",
    "data": "Make and check data sets",
    "data synthetic": "--num-train N",
    "data voc": "carries on where it",
    "data labels": "--split NAME",
    "data check": "--skip-bad",
}


@pytest.mark.parametrize("command", HELP)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: wsss-nb {command}".rstrip()) and HELP[command] in shown
    assert all(name in shown for name in cli.COMMANDS) or command


def test_train_takes_variants_and_seeds(opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "cam", "--variant", "lambda0.5_fsl", "--cam.epochs", "3", "--seed", "4"]) == 0
    assert opened.calls == [("cam", "lambda0.5_fsl", 4)] and opened.folders == [Path("runs/quick")]
    assert opened[0].cam.epochs == 3 and opened[0].seeds == (0, 4)
    shown = capsys.readouterr().out
    assert "lambda0.5_fsl" in shown and "50.0    25.0" in shown and "protocol: split val, crf False\n" in shown

    for arguments, expected in (
        ("train cam --variant lambda0.6 --out elsewhere", ("cam", "lambda0.6", 0)),
        ("train cam", ("cam", "lambda1_fsl", 0)),
        ("train deeplab --variant seam", ("deeplab", "seam")),
        ("train affinitynet", ("affinitynet", "lambda1_fsl")),
        ("train affinitynet --variant binomial --seed 0", ("affinitynet", "binomial")),
    ):
        assert cli.main(arguments.split()) == 0
        assert opened.calls[-1] == expected and expected[1] in opened[-1].grid()
    assert opened.folders[1] == Path("elsewhere") and opened[1].variants == ("average", "seam", "lambda0.6")
    assert "deeplab seam" in capsys.readouterr().out


def test_sweep_takes_fields_files_and_variants(opened: Opened, tmp_path: Path) -> None:
    Path("mine.yaml").write_text("seeds: [0, 1]\nworkers: 3\ncam: {mu: 3.0}\n")
    Path("loss_of_mine.py").write_text("def loss(maps, images, labels): return 0\n")
    command = "sweep --config mine.yaml --lambdas 0,1 --workers 1 --data.skip_bad true --data images"
    command += " --variant log_sum_exp --variant average --variant log_sum_exp+fsl --extra-loss loss_of_mine:loss"
    assert cli.main(command.split()) == 0
    (profile,) = opened
    assert profile.lambdas == (0.0, 1.0) and profile.seeds == (0, 1) and profile.workers == 1, "flags win over files"
    assert profile.data.skip_bad and profile.data.root == str(tmp_path / "images") and profile.cam.mu == 3
    assert profile.variants == ("average", "seam", "log_sum_exp", "log_sum_exp+fsl")
    assert profile.cam.extra_loss == "loss_of_mine:loss"
    assert [name for _, name in opened.calls] == list(profile.grid())


def notebook(path: Path, source: str, more: str = "") -> None:
    parameters = f'profile = "quick"\ndata_root = ""\nout_dir = "runs/quick"\nseed = 0\noverrides = ""\n{more}'
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(source)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def test_run(opened: Opened, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write = "import json, os, pathlib\ncommand = os.environ['WSSS_NB_COMMAND']\n"
    write += "values = [profile, data_root, seed, overrides, draws, command]\n"
    write += "pathlib.Path(out_dir, 'a.json').write_text(json.dumps(values))"
    notebook(tmp_path / "books/04_a.ipynb", write, "draws = 1")
    arguments = "run --out mine --notebooks books --seeds 3,4 --data images --cam.epochs 2 -p draws 5"
    command = arguments.split()
    assert cli.main(command) == 0
    assert opened[-1].data.root == str(tmp_path / "images") and opened.folders == [Path("mine")]
    *values, told = json.loads(Path("mine/a.json").read_text())
    assert values == ["mine/config.yaml", "", 3, "", 5], "the run's settings are in its folder"
    assert "mine: 1 notebooks run, 0 up to date, 0 not done" in capsys.readouterr().out
    assert told == command_line() and COMMAND not in os.environ

    assert cli.main(command) == 0
    assert "0 notebooks run, 1 up to date" in capsys.readouterr().out

    notebook(tmp_path / "books/04_a.ipynb", "raise ValueError('no')", "draws = 1")
    notebook(tmp_path / "books/07_b.ipynb", "1")
    assert cli.main(command) == 1
    assert capsys.readouterr().err.splitlines() == [
        "wsss-nb: error: 04_a: 04_a.ipynb: cell 2 (In [3]), line 1: ValueError: no",
        "wsss-nb: error: 07_b: not run: it needs 04_a, which has not run to its end",
    ]


def test_each_notebook_has_its_limit(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("01_a", "04_b", "07_c"):
        notebook(tmp_path / f"books/{name}.ipynb", "1")
    found: list[Any] = []
    monkeypatch.setattr("wsss_nb.run.notebooks.run_notebooks", lambda *_, **options: found.append(options) or [])
    for text, expected in (("1", (60, 60, 60)), ("1,04=9", (60, 540, 60)), ("07_c=5", (None, None, 300))):
        assert cli.main(["run", "--notebooks", "books", "--timeout", text]) == 0
        assert tuple(found[-1]["timeouts"].values()) == expected
    assert cli.main(["run", "--notebooks", "books", "--only", "07,01_a"]) == 0
    assert found[-1]["chosen"] == ["07_c", "01_a"]


def test_drawing_a_finished_run_needs_its_results_only(
    opened: Opened, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Today's settings, data and code are not those that made it, and are not asked for."""
    make_fake_run(tmp_path / "mine", num_val=2, lams=(1.0,), fsl=(True,), baselines=(), seeds=(0,))
    (tmp_path / "mine/run.json").write_text(json.dumps({"command": "wsss-nb run --profile photos"}))
    before = (tmp_path / "mine/run.json").read_bytes()
    notebook(tmp_path / "books/04_a.ipynb", "raise ValueError('trained')")
    shutil.copy(Path(__file__).parents[1] / "notebooks/08_tables.ipynb", tmp_path / "books")
    command = ["run", "--out", "mine", "--notebooks", "books", "--only", "08", "--figures", "published"]
    assert cli.main(command) == 0, capsys.readouterr()
    assert "mine: 1 notebooks run, 0 up to date, 0 not done" in capsys.readouterr().out
    assert not opened and (tmp_path / "mine/run.json").read_bytes() == before
    made = read_json(tmp_path / "published/table_1.json")
    assert made["command"] == command_line() and made["made_by"]["command"] == "wsss-nb run --profile photos"
    assert cli.main(["verify", "published"]) == 0
    assert "files match" in capsys.readouterr().out

    (tmp_path / "mine/results.json").write_text('{"cam": [{}]}')
    assert "mine/results.json: " in error_of(capsys, *command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train cam --variant lambda1.2", "variant: expected one of average, seam, log_sum_exp, binomial, lambda0 to"),
        ("train cam --variant no_module:x", "variant: expected module no_module to import, got ModuleNotFoundError"),
        ("train deeplab --seed 3", "--seed: expected 0, the first of seeds, for deeplab, got 3"),
        ("train cam --seed much", "argument --seed: invalid int value: 'much'"),
        ("sweep --variant max", "variant: expected one of average"),
        ("run --lambdas 0,1.2", "lambdas.1: Input should be less than or equal to 1, got 1.2"),
        ("run --refine []", "refine: expected a variant for 05_b and 06_c, got none; or --only 01,02,03,04"),
        ("run --lambdas 0,0.5", "refine: expected variants of the run (lambda0, "),
        ("run --deeplab.crf.backend cuda", "crf.backend: expected a GPU on which Triton's kernels run"),
        ("run --cam.epoch 3", "unknown flag --cam.epoch, did you mean --cam.epochs"),
        ("run --cam.epochs many", "cam.epochs: Input should be a valid integer, got 'many'"),
        ("run --cam.siamese maybe", "cam.siamese: Input should be a valid boolean"),
        ("run --profile slow", "profile: expected one of icam, paper, photos, quick, seam or a YAML file, got 'slow'"),
        ("run --profile none.yaml", "none.yaml: expected a YAML file, got no file"),
        ("run --config none.yaml", "none.yaml: expected a YAML file, got no file"),
        ("run --config typo.yaml", "cam.epoch: no such field (did you mean cam.epochs?), got 3"),
        ("run --extra-loss x", "cam: expected extra_loss module:function, got 'x'"),
        ("run -p drws 3", "drws: expected a notebook's parameter (draws), got -p drws"),
        ("run -p seed 3", "seed: expected flags of the run (--seeds,"),
        ("run -p draws many", "04_a.ipynb: draws: expected int, got 'many'"),
        ("run --notebooks nowhere", "nowhere: expected numbered notebooks such as 01_name.ipynb, got none"),
        ("run --only 09", "only: expected notebooks of 04_a, 05_b, 06_c, got '09'"),
        ("run --only ,", "argument --only: expected words separated by commas, got ','"),
        ("run --timeout 0", "argument --timeout: expected MINUTES or NOTEBOOK=MINUTES above 0, each notebook once"),
        ("run --timeout 4,04=5,9", "argument --timeout: expected MINUTES or NOTEBOOK=MINUTES above 0, each notebook"),
        ("run --timeout 07=2", "timeout: expected notebooks of 04_a, 05_b, 06_c, got '07'"),
        ("run --ray-gpus 1 --only 04", "--ray-gpus: expected together with --ray-address, got it alone"),
        ("run --out taken/run", "taken/run: expected a writable folder, got Not a directory"),
        ("verify nowhere", "nowhere: expected a folder of figures and tables, got none"),
        ("verify books", "books: expected figures or tables with their manifests, got none"),
        ("submit --data d", "the following arguments are required: --predictions, --out"),
        ("course", "the following arguments are required: --out"),
        ("data cats", "argument WHAT: invalid choice: 'cats'"),
        ("data voc --root x --sbd nowhere.tgz", "nowhere.tgz: "),
        ("train", "the following arguments are required: STAGE"),
        ("fly", "argument COMMAND: invalid choice: 'fly'"),
    ],
)
def test_wrong_input_is_one_line(
    opened: Opened, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: str, message: str
) -> None:
    for name, more in (("04_a", "draws = 1"), ("05_b", ""), ("06_c", "")):
        notebook(tmp_path / f"books/{name}.ipynb", "1", more)
    (tmp_path / "typo.yaml").write_text("cam: {epoch: 3}\n")
    (tmp_path / "taken").write_text("")
    given = arguments.split()
    if given[0] == "run" and "--notebooks" not in given:
        given += ["--notebooks", "books"]
    assert error_of(capsys, *given).startswith(message)
    assert not opened


def test_course_and_submission(opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["course", "--out", "lessons"]) == 0
    assert "lessons in student (solutions removed) and teacher (shown)" in capsys.readouterr().out
    assert {path.parent.name for path in Path("lessons").rglob("01_*.ipynb")} == {"student", "teacher"}
    Path("books").mkdir()
    assert "VOC" in error_of(capsys, "submit", "--data", "books", "--predictions", "books", "--out", "x.tar.gz")


def test_errors_and_interruptions_have_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: Opened
) -> None:
    from wsss_nb.stages.loop import TrainingError
    from wsss_nb.system.errors import DiskFullError
    from wsss_nb.system.workers import WorkerDiedError

    def ending_with(error: BaseException) -> int:
        def sweep(run: Any) -> None:
            raise error

        monkeypatch.setattr(pipeline, "train_cams", sweep)
        return cli.main(["sweep"])

    assert ending_with(KeyboardInterrupt()) == 130
    assert "interrupted; the same command carries on" in capsys.readouterr().err
    assert ending_with(InputError("a.jpg: expected an image,\n got none")) == 2
    assert capsys.readouterr().err == "wsss-nb: error: a.jpg: expected an image, got none\n"
    for kind in (WorkerDiedError, TrainingError, DiskFullError):
        assert ending_with(kind("it ended")) == 1
        assert capsys.readouterr().err == "wsss-nb: error: it ended\n"
    assert ending_with(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. And more")) == 1
    assert "the GPU's memory does not suffice (CUDA out of memory); what is finished is kept" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=r"a bug"):
        ending_with(RuntimeError("a bug"))


def test_a_folder_that_another_run_holds(opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    from wsss_nb.system.files import only_run

    with only_run(Path("mine")):
        assert "mine: expected no other run here, got process" in error_of(capsys, "sweep", "--out", "mine")
    assert not opened and cli.main(["sweep", "--out", "mine"]) == 0


def test_the_module_ends_with_the_exit_code() -> None:
    command = [sys.executable, "-m", "wsss_nb.cli", "train", "cam", "--variant", "lambda1.2"]
    answer = subprocess.run(command, capture_output=True, text=True)
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
    command = ["evaluate", "--predictions", str(tmp_path / "predictions"), "--data", str(voc), "--data.void", "masked"]
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
    assert cli.main(["data", "labels", "--data", str(voc), "--split", "val", "--out", str(tmp_path / "l.csv")]) == 0
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
