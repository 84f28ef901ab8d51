"""All stages on a handful of synthetic images: results, masks left alone, kills, other settings, and bad input."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import small_stages

from wsss_nb import cli, crf
from wsss_nb.affinity import walk_cam
from wsss_nb.data.synthetic import make_synthetic
from wsss_nb.data.voc import VOCFolder, read_label_map, save_label_map
from wsss_nb.run import pipeline, prepare, steps
from wsss_nb.run.pipeline import history_of, train_affinitynet, train_cam, train_cams, train_deeplab, walk_input
from wsss_nb.run.prepare import open_notebook_run, open_run
from wsss_nb.run.profiles import Profile, load_profile
from wsss_nb.run.provenance import COMMAND, git_state
from wsss_nb.run.results import CamResult, StageResult
from wsss_nb.run.run import Run, load_run
from wsss_nb.stages import affinitynet, deeplab
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import read_json

STAGES = ("pretrain", "cam", "seam", "affinitynet", "seam_affinitynet", "deeplab")
TINY = {
    "data.num_train": "16",
    "data.num_val": "4",
    "lambdas": "[0,1]",
    "fsl": "[true]",
    "workers": "1",
    "threads": "1",
    **small_stages(STAGES, batch_size=8),
    **{f"{stage}.epochs": "2" for stage in ("pretrain", "cam", "affinitynet", "deeplab")},
}


def settings(**more: str) -> dict[str, str]:
    return TINY | {name.replace("__", "."): value for name, value in more.items()}


def tiny(**more: str) -> Profile:
    return load_profile("quick", " ".join(f"{name}={value}" for name, value in settings(**more).items()))


def flags(**more: str) -> list[str]:
    return [word for name, value in settings(**more).items() for word in (f"--{name}", value)]


# Every file the process opens, and whether scoring was at work just then.
_opened: list[tuple[Path, bool]] | None = None
_scoring = False


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, Path)):
        _opened.append((Path(arguments[0]), _scoring))


sys.addaudithook(_record)


def _while_scoring(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        global _scoring
        _scoring = True
        try:
            return function(*arguments, **options)
        finally:
            _scoring = False

    return call


@dataclass
class World:
    run: Run
    opened: list[tuple[Path, bool]]
    rows: list[CamResult]

    @property
    def out(self) -> Path:
        return self.run.folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything once, the training masks deleted right after opening; what is left of the grid in a worker process."""
    global _opened
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSSS_NB_HEADLESS", "1")
        for name in ("score_label_maps", "part_coverage"):
            patch.setattr(pipeline, name, _while_scoring(getattr(pipeline, name)))
        run = open_run(tiny(), tmp_path_factory.mktemp("world") / "run")
        for name in run.train.names:
            for kind in ("SegmentationClass", "SegmentationParts"):
                (run.train.root / kind / f"{name}.png").unlink()
        _opened = opened = []
        try:
            train_deeplab(run, "lambda1_fsl")
            train_affinitynet(run, "seam")
        finally:
            _opened = None
        yield World(run, opened, train_cams(run))


@pytest.fixture
def copied(world: World, tmp_path: Path) -> Path:
    """A copy of the world's run."""
    return Path(shutil.copytree(world.out, tmp_path / "run"))


def rows_of(out: Path, section: str, variant: str = "lambda1_fsl") -> list[dict[str, Any]]:
    """A variant's rows without what they cost."""
    rows = [row for row in read_json(out / "results.json")[section] if row["variant"] == variant]
    return [{name: value for name, value in row.items() if name != "cost"} for row in rows]


def stamps(out: Path) -> dict[str, int]:
    """Times of all files that steps made."""
    made = (path for path in sorted(out.rglob("*")) if path.suffix in (".pt", ".png", ".npz"))
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in made}


def step_of(run: Run, stage: str, step: str, variant: str = "lambda1_fsl") -> Path:
    (row,) = [row for row in run.results.stages if (row.stage, row.variant) == (stage, variant)]
    return run.folder / row.steps[step]


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_, **__: pytest.fail("a network was trained"))


# What a run leaves


def test_results_are_complete(world: World) -> None:
    loaded = load_run(world.out).results
    assert loaded.synthetic and (loaded.data.train, loaded.data.val) == (16, 4)
    names = ["lambda0_fsl", "lambda1_fsl", "average", "seam"]
    assert [row.variant for row in world.rows] == names == list(world.run.config.grid())
    assert sorted(row.variant for row in loaded.cam) == sorted(names)
    ours = {(stage, "lambda1_fsl") for stage in ("cam", "affinitynet", "deeplab")}
    assert {(row.stage, row.variant) for row in loaded.stages} == ours | {("cam", "seam"), ("affinitynet", "seam")}
    assert loaded.profile == world.run.config.model_dump(mode="json") and loaded.pretrain is not None
    for row in (*loaded.cam, *loaded.stages):
        costs = [read_json(world.out / folder / "manifest.json")["cost"] for folder in row.steps.values()]
        assert row.cost.seconds == pytest.approx(sum(cost["seconds"] for cost in costs)) and row.cost.seconds > 0
        assert row.cost.peak_memory_mb == max(cost["peak_memory_mb"] for cost in costs) and row.cost.threads == 1
        wanted = {"affinitynet": ["cams", "crf", "model", "train", "val"]}.get(
            getattr(row, "stage", ""), ["model", "val"]
        )
        assert list(row.steps) == wanted
    for row in loaded.cam:
        assert row.parts is not None and set(row.parts) == {"head", "body", "background"}
        assert row.mu_sigma is not None and [entry[0] for entry in row.mu_sigma] == [2, 4][: len(row.mu_sigma)]
    assert len(history_of(world.run, loaded.pretrain.folder)) == 2


def test_every_score_states_its_protocol_and_is_that_of_the_label_maps(world: World) -> None:
    val = world.run.val
    masks = {name: val.mask(name) for name in val.names}
    for row in (*world.run.results.cam, *world.run.results.stages):
        stage, scores = getattr(row, "stage", "cam"), row.scores
        always = {"split", "background", "crf", "scales", "flips", "image_labels", "void", "seed", "images"}
        protocol = scores.protocol
        assert always <= set(protocol) and (protocol["split"], protocol["images"]) == ("val", 4)
        assert protocol["stage"] == stage and protocol["image_labels"] == (stage != "deeplab")
        confusion = np.zeros((6, 6), int)
        for name, mask in masks.items():
            guess = read_label_map(world.out / row.folder / f"{name}.png")
            np.add.at(confusion, (mask[mask != 255], guess[mask != 255]), 1)
        assert confusion.tolist() == scores.confusion
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        assert scores.miou == pytest.approx((confusion.diagonal()[union > 0] / union[union > 0]).mean())
        assert [value is None for value in scores.iou] == (union == 0).tolist()


def test_cam_files_hold_the_images_classes(world: World) -> None:
    labels = world.run.val.labels()
    (row,) = world.run.cams("seam")
    for name in world.run.val.names:
        with np.load(world.out / row.folder / f"{name}.npz") as file:
            assert file["classes"].tolist() == (np.flatnonzero(labels[name][1:]) + 1).tolist()
            assert file["cam"].shape == (len(file["classes"]), 96, 96) and file["cam"].dtype == np.float16
            assert 0 <= file["cam"].min() <= file["cam"].max() <= 1


def test_every_variant_is_a_network_of_its_own(world: World) -> None:
    paths = [world.out / row.steps["model"] / "checkpoint.pt" for row in world.rows]
    heads = [torch.load(path, weights_only=True)["modules"]["net.fc8.weight"] for path in paths]
    assert all(not torch.equal(a, b) for i, a in enumerate(heads) for b in heads[:i])


def test_the_walk_of_a_training_image(world: World) -> None:
    run, name = world.run, world.run.train.names[0]
    (row,) = run.stages("affinitynet")
    cam, affinity, size = walk_input(run, row, name)
    assert cam.shape[1:] == (96, 96) and size == (24, 24)
    config = run.config.affinitynet
    scores = walk_cam(
        torch.from_numpy(cam), affinity, size, alpha=config.alpha_walk, beta=config.beta, log_t=config.log_t
    )
    classes = np.concatenate([[0], np.flatnonzero(run.train.labels()[name][1:]) + 1])
    assert np.array_equal(classes[scores.argmax(0)], read_label_map(run.folder / row.steps["train"] / f"{name}.png"))


def test_a_point_that_the_run_does_not_train(world: World) -> None:
    for call in (lambda: train_cam(world.run, "lambda0.5", 0), lambda: train_deeplab(world.run, "lambda1")):
        with pytest.raises(InputError, match=r"variant: expected one of lambda0_fsl, .*, got 'lambda"):
            call()
    with pytest.raises(InputError, match=r"refine: expected variants of the run \(lambda0_fsl, .*\), got 'lambda1'"):
        pipeline.check_refined(tiny(refine="[lambda1]"))


# Training reads labels only


def test_no_mask_is_opened_but_to_score(world: World) -> None:
    """The training masks are gone; those of the val split are opened by the scores and by nothing else."""
    kinds = ("SegmentationClass", "SegmentationParts")
    masks = [(path, scoring) for path, scoring in world.opened if path.parent.name in kinds]
    images = {path.stem for path, _ in world.opened if path.parent.name == "JPEGImages"}
    assert set(world.run.train.names) | set(world.run.val.names) <= images, "the hook sees what is opened"
    assert {path.stem for path, _ in masks} == set(world.run.val.names)
    assert all(scoring for _, scoring in masks)


def test_labels_made_of_masks_are_written_down_before_training(tmp_path: Path, small: Path) -> None:
    (small / "labels.csv").unlink()
    expected = {name: y.tolist() for name, y in VOCFolder(small, "train").labels().items()}
    run = open_run(tiny(data__root=str(small)), tmp_path / "run")
    shutil.rmtree(small / "SegmentationClass")
    assert {name: y.tolist() for name, y in run.train.labels().items()} == expected


def test_training_needs_no_masks_where_labels_have_another_source(tmp_path: Path, small: Path) -> None:
    for name in VOCFolder(small, "train").names:
        (small / "SegmentationClass" / f"{name}.png").unlink()
    run = open_run(tiny(data__root=str(small)), tmp_path / "run")
    assert len(run.train.names) == 8 and not run.results.synthetic, "a folder of the user's is not our synthetic set"


# The same again, and other settings


def test_the_second_time_nothing_is_trained(world: World, untrained: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before, stored, author = stamps(world.out), read_json(world.out / "results.json"), (world.out / "run.json").stat()
    monkeypatch.setenv(COMMAND, "wsss-nb look")
    again = open_run(tiny(), world.out)
    for variant in again.config.grid():
        train_cam(again, variant, 0)
    train_deeplab(again, "lambda1_fsl")
    train_affinitynet(again, "seam")
    assert stamps(world.out) == before and read_json(world.out / "results.json") == stored
    now = (world.out / "run.json").stat()
    assert (now.st_mtime_ns, now.st_ino) == (author.st_mtime_ns, author.st_ino), "who made it, not who looked"


def test_run_json_names_who_trained(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step with something to do makes a command the author, also if it is interrupted in it."""
    first = read_json(copied / "run.json")
    assert first["profile"] == tiny().model_dump(mode="json") and first["seeds"] == [0] and first["git"] == git_state()
    assert first["data_hash"] == read_json(copied / "data/prepared.json")["hash"]
    manifests = sorted(path for path in copied.rglob("manifest.json"))
    authors = {path: read_json(path)["made_by"] for path in manifests}
    assert {author["command"] for author in authors.values()} == {first["command"]}

    monkeypatch.setenv(COMMAND, "wsss-nb again")
    run = open_run(tiny(cam__mu="3"), copied)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_cam(run, "average", 0)
    assert read_json(copied / "run.json")["command"] == "wsss-nb again"
    assert {path: read_json(path)["made_by"] for path in manifests} == authors


def test_other_settings_make_what_depends_on_them_and_going_back_finds_the_old(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, stored = stamps(copied), rows_of(copied, "cam")
    run = open_run(tiny(inference__background="threshold:0.3"), copied)
    assert run.results.cam == run.results.stages == [], "scores of other settings are not shown as these"
    row = train_cam(run, "lambda1_fsl", 0)
    assert row.scores.protocol["background"] == "threshold:0.3"
    added = stamps(copied).keys() - before.keys()
    assert added and all(path.startswith(f"{row.steps['val']}/") for path in added), "the network is the same"
    assert {path: stamp for path, stamp in stamps(copied).items() if path in before} == before, "nothing is removed"

    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_, **__: pytest.fail("a network was trained"))
    again = open_run(tiny(), copied)
    assert rows_of(copied, "cam") == stored, "the rows of these settings are there again"
    train_cam(again, "lambda1_fsl", 0)
    assert rows_of(copied, "cam") == stored and stamps(copied).keys() == before.keys() | added


def test_what_only_inference_reads_does_not_train_again(copied: Path, untrained: None) -> None:
    before = {row["stage"]: row["steps"] for row in read_json(copied / "results.json")["stages"]
              if row["variant"] == "lambda1_fsl"}  # fmt: skip
    walked = train_affinitynet(open_run(tiny(affinitynet__log_t="2"), copied), "lambda1_fsl")
    same = {name for name, folder in walked.steps.items() if folder == before["affinitynet"][name]}
    assert same == {"cams", "crf", "model"}, "and what follows is walked anew"

    seen = train_deeplab(open_run(tiny(deeplab__scales="[1.0,1.5]"), copied), "lambda1_fsl")
    assert seen.steps["model"] == before["deeplab"]["model"] and seen.steps["val"] != before["deeplab"]["val"]


def test_other_code_is_another_start_and_looks_at_the_data_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curve of the pre-training that is shown is that of the one which the networks started from."""
    looked = []
    original, look = prepare.code_version, prepare.check_folder
    monkeypatch.setattr(prepare, "code_version", lambda *modules: f"other {original(*modules)}")
    monkeypatch.setattr(prepare, "check_folder", lambda *a, **k: looked.append(a) or look(*a, **k))
    run = open_run(tiny(), copied)
    assert len(looked) == 1 and run.results.pretrain is not None
    old = run.results.pretrain.folder
    place, _ = pipeline.pretrain(run)
    assert place is not None and run.results.pretrain.folder == place.parent.name != old
    assert (copied / old).is_dir()


def test_another_point_leaves_the_scores_of_the_others(copied: Path) -> None:
    before = read_json(copied / "results.json")

    def opened(**changes: str) -> Run:
        return open_run(tiny(**changes), copied)

    assert {row.variant for row in opened(lambdas="[0,1,0.9]").results.cam} == {row["variant"] for row in before["cam"]}
    assert read_json(copied / "results.json")["stages"] == before["stages"]
    fewer = opened(variants="[]", refine="[lambda1_fsl]")
    assert {row.variant for row in fewer.results.cam} == {"lambda0_fsl", "lambda1_fsl"}
    assert {row.variant for row in fewer.results.stages} == {"lambda1_fsl"}
    assert opened(seeds="[1,0]").results.cam == [], "the classifier all points start from has the first seed"


def test_the_crf_is_computed_by_what_the_profile_names(
    copied: Path, world: World, untrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where "auto" would mean a GPU; under its own name the same code is no change."""
    before, stored = stamps(copied), rows_of(copied, "stages")
    monkeypatch.setattr(crf, "_gpu_runs_kernels", lambda: True)
    row = train_deeplab(
        open_run(tiny(affinitynet__crf__backend="pydensecrf", deeplab__crf__backend="pydensecrf"), copied)
    )
    assert stamps(copied) == before and rows_of(copied, "stages") == stored
    manifest = read_json(step_of(world.run, "affinitynet", "crf") / "manifest.json")
    assert manifest["inputs"]["backend"] == "pydensecrf" and row.scores.protocol["crf"]["backend"] == "pydensecrf"

    asked: list[str] = []

    def stopped(jobs: Any, config: crf.CRFConfig, workers: int) -> None:
        asked.append(config.backend)
        raise KeyboardInterrupt

    monkeypatch.setattr(affinitynet, "dense_crf_many", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_affinitynet(open_run(tiny(affinitynet__crf__backend="torch"), copied))
    assert asked == ["torch"] and len(list(copied.glob("affinitynet/lambda1_fsl/seed0/crf-*"))) == 2


# Opening


def test_data_are_opened_once(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tiny(data__root=str(small))
    first = open_run(profile, tmp_path / "run").prepared
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "check_folder", lambda *_, **__: pytest.fail("the files were opened again"))
        again = open_run(profile, tmp_path / "run").prepared
        assert {**again, "made_by": None} == {**first, "made_by": None}
        open_run(tiny(data__root=str(small), cam__epochs="3"), tmp_path / "run")
    image = small / "JPEGImages/train_00000.jpg"
    content = image.read_bytes()
    image.write_bytes((small / "JPEGImages/train_00001.jpg").read_bytes())
    assert open_run(profile, tmp_path / "run").prepared["hash"] != first["hash"], "a changed file is noticed"
    image.write_bytes(content)
    assert open_run(profile, tmp_path / "run").prepared["hash"] == first["hash"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "results.json: results: Input should be"),
        ('{"cam": [{}]}', "expected this field, got none"),
        ('{"schema": 2', "expected JSON"),
        (
            '{"schema": 1, "cam": []}',
            "expected a run of this version, got one of an earlier layout; run into another folder",
        ),
    ],
)
def test_broken_and_earlier_results_are_not_overwritten(
    tmp_path: Path, small: Path, content: str, message: str
) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError) as caught:
        open_run(tiny(data__root=str(small)), tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "results.json").read_text() == content


def test_parameters_of_notebooks(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    run = open_notebook_run("quick", "fish", "runs/a", 3, "cam.epochs=2")
    assert run.folder == tmp_path / "runs/a" and run.train.root == small
    assert run.config.seeds == (3,) and run.config.cam.epochs == 2
    monkeypatch.chdir(tmp_path)
    assert open_notebook_run("runs/a/config.yaml", "", "runs/a", 3, "").config == run.config
    assert open_notebook_run("quick", "fish", "runs/b", 3, "seeds=[5]").config.seeds == (5,)
    assert open_notebook_run("quick", "fish", "runs/b", 3, "seeds=[1,2] variants=[]").config.seeds == (1, 2)


# A pooling of one's own


def test_a_variant_of_ones_own(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--variant module:function``: another source is another step."""
    monkeypatch.chdir(copied.parent)
    module = copied.parent / "pooling_by_me.py"
    command = ["train", "cam", "--out", "run", "--variant", "pooling_by_me:middle", *flags()]
    assert cli.main(command) == 2
    assert "variant: expected module pooling_by_me to import" in capsys.readouterr().err
    places = []
    for text in ("middle = lambda cam: cam.mean((2, 3))\n", "def middle(cam):\n    return 0.9 * cam.mean((2, 3))\n"):
        module.write_text(text)
        monkeypatch.delitem(sys.modules, "pooling_by_me", raising=False)
        assert cli.main(command) == 0
        assert "pooling_by_me.middle" in capsys.readouterr().out
        (row,) = rows_of(copied, "cam", "pooling_by_me.middle")
        assert row["title"] == "middle" and row["lambda"] is None and row["steps"]["model"] not in places
        places.append(row["steps"]["model"])
        inputs = read_json(copied / places[-1] / "manifest.json")["inputs"]
        assert list(inputs["plugins"]) == ["pooling_by_me:middle"]
    assert all((copied / place / "checkpoint.pt").exists() for place in places)

    def listed() -> set[str]:
        return {row.variant for row in open_run(tiny(variants="[pooling_by_me:middle]"), copied).results.cam}

    assert listed() == {"lambda0_fsl", "lambda1_fsl", "pooling_by_me.middle"}
    module.write_text("middle = lambda cam: 0.8 * cam.mean((2, 3))\n")
    assert listed() == {"lambda0_fsl", "lambda1_fsl"}, (
        "scores of a function as it was are not shown as those of another"
    )


# Kills


class _Killed:
    """Kills this process at the n-th call of a function, for good."""

    def __init__(self, owner: Any, name: str, calls: int) -> None:
        self.function, self.left = getattr(owner, name), calls
        setattr(owner, name, self if not isinstance(owner, type) else lambda *a, **o: self(*a, **o))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(*arguments, **options)


OWNERS = {"step": torch.optim.SGD, "savez_compressed": np, "write_json": steps, "replace": os, "walk": affinitynet,
          "predict": deeplab}  # fmt: skip


def _command(arguments: list[str], moment: tuple[str, int] | None) -> None:
    torch.set_num_threads(1)
    os.environ["WSSS_NB_HEADLESS"] = "1"
    if moment is not None:
        _Killed(OWNERS[moment[0]], *moment)
    sys.exit(cli.main(arguments))


def killed_at(moments: list[tuple[str, int]], arguments: list[str]) -> None:
    """The same command again and again, killed at each moment; then once more, undisturbed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wsss_nb.cli", "wsss_nb.run.prepare", "wsss_nb.run.pipeline"])
    codes = []
    for moment in [*moments, None]:
        process = context.Process(target=_command, args=(arguments, moment))
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * len(moments) + [0]


def nothing_half_done(folder: Path) -> bool:
    hidden = [path for path in folder.rglob(".*") if path.suffix != ".lock"]
    return not hidden and not list(folder.rglob("started.json"))


def test_a_command_killed_anywhere_ends_with_the_same_scores(world: World, tmp_path: Path) -> None:
    """Steps 1-4 are pre-training, 5-8 the CAM network; then come the CAMs of four images and the step's manifest."""
    moments = [("replace", 2), ("step", 3), ("step", 5), ("savez_compressed", 3), ("write_json", 2)]
    killed_at(moments, ["train", "cam", "--out", str(tmp_path / "run"), *flags()])
    assert rows_of(tmp_path / "run", "cam") == rows_of(world.out, "cam")
    assert nothing_half_done(tmp_path / "run/cam")


def test_later_stages_killed_anywhere_end_with_the_same_scores(world: World, copied: Path) -> None:
    """From a trained CAM network on: CAMs of 16 images, their CRF maps, then two networks of two epochs, two steps each."""
    names = [f"{stage}/lambda1_fsl/seed0" for stage in ("affinitynet", "deeplab")]
    for name in names:
        shutil.rmtree(copied / name)
    before = stamps(copied / "cam")
    moments = [("savez_compressed", 5), ("savez_compressed", 12 + 7), ("step", 3), ("walk", 5), ("walk", 12 + 2),
               ("step", 3), ("predict", 3)]  # fmt: skip
    killed_at(moments, ["train", "deeplab", "--out", str(copied), *flags()])
    assert stamps(copied / "cam") == before, "finished CAM networks are not trained again"
    assert rows_of(copied, "stages") == rows_of(world.out, "stages")
    for stage, name in zip(("affinitynet", "deeplab"), names, strict=True):
        place = step_of(world.run, stage, "model").relative_to(world.out) / "checkpoint.pt"
        one, other = (torch.load(root / place, weights_only=True)["modules"] for root in (copied, world.out))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for path in sorted((world.out / name).rglob("*.png")):
            assert (copied / path.relative_to(world.out)).read_bytes() == path.read_bytes()
        assert nothing_half_done(copied / name)


def test_a_killed_sweep_of_two_workers_ends_as_one_workers(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "wsss_nb.cli", "sweep", "--out", str(out)]
    command += flags(workers="2", lambdas="[1]", variants="[average]")
    environment = os.environ | {"WSSS_NB_HEADLESS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600
    while not list(out.glob("cam/*/seed0/model-*/checkpoint.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not read_json(out / "results.json")["cam"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert read_json(out / "run.json")["command"].startswith("python -m wsss_nb.cli sweep")
    for variant in ("lambda1_fsl", "average"):
        assert rows_of(out, "cam", variant) == rows_of(world.out, "cam", variant)
        (row,) = world.run.cams(variant)
        place = f"{row.steps['model']}/checkpoint.pt"
        one, other = (torch.load(root / place, weights_only=True)["modules"] for root in (out, world.out))
        assert all(torch.equal(one[key], other[key]) for key in one), place


# Bad input


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "fish"
    make_synthetic(root, num_train=8, num_val=2, size=48)
    return root


@pytest.fixture
def small(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "fish"))


def _mask(values: np.ndarray) -> Callable[[Path], object]:
    return lambda root: save_label_map(root / "SegmentationClass/val_00001.png", values)


def _cut(root: Path) -> None:
    path = root / "JPEGImages/train_00002.jpg"
    path.write_bytes(path.read_bytes()[:300])


def _written(place: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / place).write_text(text)


def _removed(place: str) -> Callable[[Path], object]:
    return lambda root: (root / place).unlink()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wsss-nb: error: ")
    return line


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "fish: expected a folder in VOC layout, got no folder"),
        (_written("ImageSets/Segmentation/val.txt", "\n"), "val.txt: expected at least one image name"),
        (_removed("ImageSets/Segmentation/train.txt"), "train.txt: expected a list of image names"),
        (_removed("SegmentationClass/val_00001.png"), "val_00001.png: expected a mask of image 'val_00001'"),
        (_mask(np.zeros((48, 40), np.uint8)), "val_00001.png: expected the image's size 48x48, got 40x48"),
        (_mask(np.full((48, 48), 6, np.uint8)), "val_00001.png: expected class ids 0..5 or 255, got 6"),
        (_cut, "train_00002.jpg: expected a readable image"),
        (_written("labels.csv", "name,classes\n"), "labels.csv: expected a row for image 'train_00000'"),
        (_written("labels.csv", "train_00000,shark\n"), "line 1: expected one of the 6 classes, got 'shark'"),
    ],
)
def test_bad_data_is_one_line_and_exit_code_2(
    small: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    damage(small)
    command = ["train", "cam", "--data", str(small), "--out", str(tmp_path / "run"), *flags()]
    assert message in refused(capsys, *command)


def test_no_data_folder_where_the_profile_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "sweep", "--profile", "photos", "--out", str(tmp_path / "run"))
    assert line == "wsss-nb: error: data.root: expected a folder in VOC layout (--data FOLDER), got none"


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nothing/run", "/dev/null/run"])
def test_output_that_cannot_be_written(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capsys, "train", "cam", "--data", str(small), "--out", str(tmp_path / place), *flags())
    assert place in line and "writable" in line
    with pytest.raises(InputError, match="writable"):
        open_run(tiny(data__root=str(small)), tmp_path / place)


def test_grey_and_cmyk_images_count_and_corrupt_ones_are_skipped_on_demand(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mode in (("train_00000", "L"), ("train_00001", "CMYK"), ("val_00000", "L")):
        path = small / f"JPEGImages/{name}.jpg"
        Image.open(path).convert(mode).save(path)
    _cut(small)
    command = ["train", "cam", "--data", str(small), "--out", str(tmp_path / "run"), *flags()]
    refused(capsys, *command)
    assert cli.main([*command, "--data.skip_bad", "true"]) == 0
    assert "fish: left out 1 bad images: train_00002" in capsys.readouterr().out
    run = load_run(tmp_path / "run")
    assert run.prepared["bad"] == ["train_00002"] and (run.results.data.train, run.results.data.val) == (7, 2)
    assert len(run.train) == 7 and run.results.cam[0].scores.protocol["images"] == 2


def test_images_of_background_only_go_through_all_stages(tmp_path: Path, small: Path) -> None:
    """The second image of each split has no class: an empty CAM, no CRF, a walk of the background alone."""
    rows = []
    for split in ("train", "val"):
        folder, empty = VOCFolder(small, split), f"{split}_00001"
        vectors = folder.labels()
        for name in folder.names:
            present = [] if name == empty else [folder.classes[k] for k in np.flatnonzero(vectors[name]) if k]
            rows.append(f"{name},{';'.join(present)}\n")
        save_label_map(small / f"SegmentationClass/{empty}.png", np.zeros((48, 48), np.uint8))
    (small / "labels.csv").write_text("".join(rows))
    run = open_run(
        tiny(data__root=str(small), cam__epochs="1", affinitynet__epochs="1", deeplab__epochs="1"), tmp_path / "run"
    )
    assert run.val.labels()["val_00001"].tolist() == [1, 0, 0, 0, 0, 0]
    row = train_deeplab(run)
    path = step_of(run, "affinitynet", "crf") / "train_00001.npz"
    with np.load(path) as file:
        assert file["classes"].tolist() == [0]
        for key in ("amplified", "weakened"):
            assert file[key].shape == (1, 48, 48) and (file[key] == 1).all()
    assert (affinitynet.confident_labels(path, (12, 12)) == 0).all()
    labels = step_of(run, "affinitynet", "train")
    assert not read_label_map(labels / "train_00001.png").any() and read_label_map(labels / "train_00000.png").any()
    (walked,) = run.stages("affinitynet")
    assert not run.label_map(walked, "val_00001").any() and walk_input(run, walked, "train_00001")[0].shape == (
        0,
        48,
        48,
    )
    assert isinstance(row, StageResult) and row.scores.protocol["images"] == 2
