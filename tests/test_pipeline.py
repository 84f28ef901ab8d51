"""All stages on a handful of synthetic images: results, masks left alone, kills, and bad input at the command line."""

from __future__ import annotations

import json
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

from wsss_nb import cli, crf
from wsss_nb.data import VOCFolder, make_synthetic, read_label_map, save_label_map
from wsss_nb.errors import InputError
from wsss_nb.experiment import pipeline, record
from wsss_nb.experiment.pipeline import Run, open_notebook_run, open_run
from wsss_nb.experiment.profiles import Profile, load_profile
from wsss_nb.experiment.provenance import COMMAND
from wsss_nb.files import read_json
from wsss_nb.pseudo_labels import walk_cam
from wsss_nb.results import load_run
from wsss_nb.stages import affinitynet, cam, deeplab
from wsss_nb.stages.affinitynet import confident_labels

STAGES = ("pretrain", "cam", "seam", "affinitynet", "seam_affinitynet", "deeplab")
TINY: dict[str, Any] = {
    "data.num_train": 16, "data.num_val": 4, "lambdas": [0, 1], "workers": 1, "threads": 1,
    **{f"{stage}.{name}": value for stage in STAGES
       for name, value in (("epochs", 1), ("batch_size", 8), ("views.sizes", [[48, 48]]))},
    **{f"{stage}.epochs": 2 for stage in ("pretrain", "cam", "affinitynet", "deeplab")},
}  # fmt: skip


def tiny(**more: Any) -> Profile:
    return load_profile("quick", TINY | {name.replace("__", "."): value for name, value in more.items()})


def flags(**more: Any) -> list[str]:
    values = TINY | {name.replace("__", "."): value for name, value in more.items()}
    return [
        word
        for name, value in values.items()
        for word in ("--set", f"{name}={json.dumps(value)}".replace(" ", ""))
    ]


# Every file the process opens, and whether scoring was at work just then.
_opened: list[tuple[str, bool]] | None = None
_scoring = False


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, Path)):
        _opened.append((str(arguments[0]), _scoring))


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
    opened: list[tuple[str, bool]]
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything once, the training masks deleted right after opening; the grid in worker processes, the rest here."""
    global _opened
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("world") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSSS_NB_HEADLESS", "1")
        for name in ("score_label_maps", "part_coverage"):
            patch.setattr(pipeline, name, _while_scoring(getattr(pipeline, name)))
        run = open_run(tiny(), out)
        for name in run.train.names:
            for kind in ("SegmentationClass", "SegmentationParts"):
                (run.train.root / kind / f"{name}.png").unlink()
        _opened = opened = []
        try:
            for variant in ("lambda1_fsl", "seam"):
                run.train_cam(variant, 0)
            for method in ("ours", "seam"):
                run.train_deeplab(method)
        finally:
            _opened = None
        yield World(run, opened, run.train_cams())


def results(out: Path) -> dict[str, Any]:
    return read_json(out / "results.json")


def cam_row(out: Path, variant: str = "lambda1_fsl") -> dict[str, Any]:
    """A row of the grid without what it cost."""
    (row,) = [row for row in results(out)["cam"] if row["variant"] == variant]
    return {name: value for name, value in row.items() if name != "cost"}


def stage_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of the three stages of our method without what they cost."""
    rows = [row for row in results(out)["stages"] if row["method"] == "ours"]
    return [{name: value for name, value in row.items() if name != "cost"} for row in rows]


# What a run leaves


def test_results_are_complete(world: World) -> None:
    loaded = load_run(world.run.out)
    assert loaded.synthetic and loaded.results.data.train == 16 and loaded.results.data.val == 4
    assert sorted(row.variant for row in loaded.results.cam) == sorted(
        ["lambda0", "lambda1", "lambda0_fsl", "lambda1_fsl", "average", "seam"]
    )
    stages = {(row.stage, row.method) for row in loaded.results.stages}
    assert stages == {
        (stage, method) for stage in ("cam", "affinitynet", "deeplab") for method in ("ours", "seam")
    }
    stored = results(world.run.out)
    assert stored["profile"] == world.run.profile.model_dump(mode="json")
    assert [row["variant"] for row in world.rows] == list(world.run.variants)
    for row in stored["cam"]:
        assert set(row["parts"]) == {"head", "body", "background"}
        assert [entry[0] for entry in row["mu_sigma"]] == [2 * (n + 1) for n in range(len(row["mu_sigma"]))]
        assert row["cost"]["seconds"] > 0 and row["cost"]["threads"] == 1


def test_every_score_states_its_protocol(world: World) -> None:
    stored = results(world.run.out)
    for row in stored["cam"] + stored["stages"]:
        scores, stage = row["scores"], row.get("stage", "cam")
        protocol = scores["protocol"]
        assert {
            "split",
            "background",
            "crf",
            "scales",
            "flips",
            "image_labels",
            "void",
            "seed",
            "images",
        } <= set(protocol)
        assert protocol["stage"] == stage and protocol["images"] == 4 and protocol["split"] == "val"
        assert protocol["image_labels"] == (stage != "deeplab")
        confusion, masks = (
            np.array(scores["confusion"]),
            [world.run.val.mask(name) for name in world.run.val.names],
        )
        assert confusion.sum() == sum((mask != 255).sum() for mask in masks)
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        iou = confusion.diagonal()[union > 0] / union[union > 0]
        assert scores["miou"] == pytest.approx(iou.mean())
        assert [value is None for value in scores["iou"]] == (union == 0).tolist()


def test_scores_are_those_of_the_label_maps_on_disk(world: World) -> None:
    for folder in ("cam/lambda1_fsl/seed0", "affinitynet/ours/seed0", "deeplab/seam/seed0"):
        (scores,) = {
            json.dumps(row["scores"]["confusion"])
            for row in results(world.run.out)["cam"] + results(world.run.out)["stages"] if row["folder"] == folder
        }  # fmt: skip
        confusion = np.zeros((6, 6), int)
        for name in world.run.val.names:
            mask = world.run.val.mask(name)
            guess = read_label_map(world.run.out / folder / "val" / f"{name}.png")
            np.add.at(confusion, (mask[mask != 255], guess[mask != 255]), 1)
        assert confusion.tolist() == json.loads(scores)


def test_cam_files_hold_the_images_classes(world: World) -> None:
    labels = world.run.val.labels()
    for name in world.run.val.names:
        with np.load(world.run.out / "cam/seam/seed0/val" / f"{name}.npz") as file:
            assert file["classes"].tolist() == (np.flatnonzero(labels[name][1:]) + 1).tolist()
            assert file["cam"].shape == (len(file["classes"]), 96, 96) and file["cam"].dtype == np.float16
            assert file["cam"].min() >= 0 and file["cam"].max() <= 1


def test_variants_differ_where_they_should(world: World) -> None:
    configs = {name: world.run.cam_config(variant) for name, variant in world.run.variants.items()}
    assert configs["lambda0"].weight == 0 and configs["lambda0"].similarity_weight == 0
    assert configs["lambda1_fsl"].weight == 1 and configs["lambda1_fsl"].similarity_weight == 2
    assert configs["average"].pooling == "average" and configs["average"].weight == 0
    assert configs["average"].similarity_weight == 0 and configs["seam"].method == "seam"
    checkpoints = [world.run.out / "cam" / name / "seed0/model/checkpoint.pt" for name in world.run.variants]
    heads = [torch.load(path, weights_only=True)["modules"]["net.fc8.weight"] for path in checkpoints]
    assert all(not torch.equal(a, b) for i, a in enumerate(heads) for b in heads[:i])


def test_readers_of_a_run(world: World) -> None:
    run, name = world.run, world.run.train.names[0]
    assert len(run.history("pretrain")) == 2 and len(run.history("cam/lambda1_fsl/seed0")) == 2
    assert run.pseudo_label(name).shape == (96, 96)
    cam_, affinity, size = run.walk_input(name)
    assert cam_.shape[1:] == (96, 96) and size == (24, 24)
    config = run.profile.affinitynet
    scores = walk_cam(
        torch.from_numpy(cam_), affinity, size, alpha=config.alpha_walk, beta=config.beta, log_t=config.log_t
    )
    classes = np.concatenate([[0], np.flatnonzero(run.train.labels()[name][1:]) + 1])
    assert np.array_equal(classes[scores.argmax(0)], run.pseudo_label(name)), "as the stage writes it"
    assert np.array_equal(
        run.label_map("lambda1_fsl", 0, "val_00000"), run.stage_map("cam", "ours", "val_00000")
    )
    for call in (lambda: run.train_cam("lambda2", 0), lambda: run.train_deeplab("theirs")):
        with pytest.raises(InputError, match=r"expected (one of lambda0, .*|ours or seam), got"):
            call()


# Training reads labels only


def test_no_mask_is_opened_but_to_score(world: World) -> None:
    """The training masks are gone; those of the val split are opened by the scores and by nothing else."""
    masks = [
        (Path(path), scoring) for path, scoring in world.opened if "Segmentation" in Path(path).parent.name
    ]
    images = {Path(path).stem for path, _ in world.opened if Path(path).parent.name == "JPEGImages"}
    assert set(world.run.train.names) | set(world.run.val.names) <= images, "the hook sees what is opened"
    assert masks and {path.stem for path, _ in masks if path.suffix == ".png"} == set(world.run.val.names)
    assert all(scoring for _, scoring in masks)


def test_labels_made_of_masks_are_written_down_before_training(tmp_path: Path, small: Path) -> None:
    (small / "labels.csv").unlink()
    expected = VOCFolder(small, "train").labels()
    run = open_run(tiny(data__root=str(small), data__kind="voc"), tmp_path / "run")
    shutil.rmtree(small / "SegmentationClass")
    assert {name: y.tolist() for name, y in run.train.labels().items()} == {
        name: y.tolist() for name, y in expected.items()
    }


def test_training_needs_no_masks_where_labels_have_another_source(tmp_path: Path, small: Path) -> None:
    for name in VOCFolder(small, "train").names:
        (small / "SegmentationClass" / f"{name}.png").unlink()
    run = open_run(tiny(data__root=str(small), data__kind="voc"), tmp_path / "run")
    assert len(run.train.names) == 8 and not results(run.out)["synthetic"]


# The same again


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
    run = open_run(tiny(data__root=str(small), lambdas=[1]), tmp_path / "run")
    assert run.val.labels()["val_00001"].tolist() == [1, 0, 0, 0, 0, 0]
    row = run.train_deeplab("ours")
    with np.load(run.stage_folder("affinitynet") / "crf/train_00001.npz") as file:
        assert file["classes"].tolist() == [0]
        for key in ("amplified", "weakened"):
            assert file[key].shape == (1, 48, 48) and (file[key] == 1).all()
    assert (confident_labels(run.stage_folder("affinitynet") / "crf/train_00001.npz", (12, 12)) == 0).all()
    assert (run.pseudo_label("train_00001") == 0).all() and run.pseudo_label("train_00000").any()
    assert (run.stage_map("affinitynet", "ours", "val_00001") == 0).all()
    assert run.walk_input("train_00001")[0].shape == (0, 48, 48)
    assert row["scores"]["protocol"]["images"] == 2


def stamps(out: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in sorted(out.rglob("*"))
        if path.suffix in (".pt", ".png", ".npz")
    }


def test_the_second_time_nothing_is_trained(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before, stored = stamps(world.run.out), results(world.run.out)
    author = (world.run.out / "run.json").stat()
    monkeypatch.setenv(COMMAND, "wsss-nb look")
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_, **__: pytest.fail("a network was trained"))
    again = open_run(tiny(), world.run.out)
    for variant in again.variants:
        again.train_cam(variant, 0)
    for method in ("ours", "seam"):
        again.train_deeplab(method)
    assert stamps(world.run.out) == before
    assert results(world.run.out) == stored
    now = (world.run.out / "run.json").stat()
    assert (now.st_mtime_ns, now.st_ino) == (author.st_mtime_ns, author.st_ino), "who made it, not who looked"


def test_run_json_names_who_trained(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step with something to do makes a command the author, also if it is interrupted in it."""
    out = tmp_path / "run"
    shutil.copytree(world.run.out, out)
    first = read_json(out / "run.json")
    assert first["profile"] == world.run.profile.model_dump(mode="json") and first["seeds"] == [0]
    assert first["data_hash"] == world.run.prepared["hash"] and first["git"] is not None
    manifests = sorted(path for path in out.rglob("manifest.json"))
    assert len(manifests) == 1 + 6 * 2 + 2 * (5 + 2), "pre-training, CAM networks, later stages"
    for path in manifests:
        made_by = read_json(path)["made_by"]
        assert made_by.keys() == {"created", "command", "git"} and made_by["git"] == first["git"]
        assert first["created"] <= made_by["created"]
    monkeypatch.setenv(COMMAND, "wsss-nb second")
    changed = tiny(inference__background="threshold:0.3")
    run = open_run(changed, out)
    assert read_json(out / "run.json") == first, "nothing trained yet"

    def interrupted(*arguments: Any, **options: Any) -> None:
        assert read_json(out / "run.json")["command"] == "wsss-nb second"
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cam, "infer_cams", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.train_cam("lambda1_fsl", 0)
    assert read_json(out / "run.json")["command"] == "wsss-nb second"
    monkeypatch.setenv(COMMAND, "wsss-nb third")
    open_run(changed, out).train_cam("lambda1_fsl", 0)
    (last, *_) = [
        author for author in load_run(out).made_by()["steps"] if author["command"] == "wsss-nb third"
    ]
    assert last["steps"] == ["cam/lambda1_fsl/seed0/val"], "the training stays the first command's"
    assert read_json(out / "run.json")["command"] == "wsss-nb third"

    monkeypatch.setenv(COMMAND, "wsss-nb train")
    assert cli.main(["train", "cam", "--seed", "1", "--out", str(out), *flags(seeds=[0, 1])]) == 0
    assert read_json(out / "run.json")["command"] == "wsss-nb train"


def test_costs_count_all_steps_alike(world: World) -> None:
    def seconds(*folders: str) -> float:
        return sum(read_json(world.run.out / name / "manifest.json")["cost"]["seconds"] for name in folders)

    stored = results(world.run.out)
    assert stored["pretrain"]["cost"]["seconds"] == seconds("pretrain") and stored["pretrain"]["seed"] == 0
    for row in stored["cam"]:
        assert row["cost"]["steps"] == ["model", "val"]
        assert row["cost"]["seconds"] == pytest.approx(
            seconds(*(f"{row['folder']}/{s}" for s in ("model", "val")))
        )
    for row in stored["stages"]:
        steps = (
            ["cams", "crf", "model", "train", "val"] if row["stage"] == "affinitynet" else ["model", "val"]
        )
        assert row["cost"]["steps"] == steps
        assert row["cost"]["seconds"] == pytest.approx(seconds(*(f"{row['folder']}/{s}" for s in steps)))


@pytest.mark.parametrize("content", ["[1]", '{"cam": null}', '{"cam": [{}]}', '{"schema": 1'])
def test_broken_results_are_not_overwritten(world: World, tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(
        InputError, match=r"results.json: .*; remove the file: finished steps give their scores"
    ):
        open_run(tiny(), tmp_path)
    assert (tmp_path / "results.json").read_text() == content


def test_only_what_depends_on_a_change_is_made_again(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(world.run.out, out)
    before = stamps(out)
    run = open_run(tiny(inference__background="threshold:0.3"), out)
    assert results(out)["cam"] == [], "scores of another profile are not shown as this one's"
    run.train_cam("lambda1_fsl", 0)
    changed = {
        Path(path).relative_to(out).as_posix()
        for path, stamp in stamps(out).items()
        if before.get(path) != stamp
    }
    assert changed and all(path.startswith("cam/lambda1_fsl/seed0/val/") for path in changed)
    assert cam_row(out)["scores"]["protocol"]["background"] == "threshold:0.3"


def test_the_crf_is_computed_by_what_the_profile_names(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where "auto" would mean a GPU; under its own name the same code is no change."""
    out = tmp_path / "run"
    shutil.copytree(world.run.out, out)
    before, stored = stamps(out), stage_rows(out)
    monkeypatch.setattr(crf, "_gpu_runs_kernels", lambda: True)

    def train(backend: str) -> dict[str, Any]:
        named = {f"{stage}__crf__backend": backend for stage in ("affinitynet", "deeplab")}
        return open_run(tiny(**named), out).train_deeplab("ours")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", lambda *_, **__: pytest.fail("a network was trained"))
        row = train("pydensecrf")
    assert stamps(out) == before and stage_rows(out)[-1] == stored[-1]
    assert row["scores"] == stored[-1]["scores"]

    assert train("torch")["scores"]["protocol"]["crf"]["backend"] == "torch"
    manifests = ("affinitynet/ours/seed0/crf", "deeplab/ours/seed0/val")
    assert {read_json(out / name / "manifest.json")["inputs"]["backend"] for name in manifests} == {"torch"}
    (made,) = {path for path in (out / "affinitynet/ours/seed0/crf").glob(f"{world.run.train.names[0]}.npz")}
    with np.load(made) as ours, np.load(world.run.out / made.relative_to(out)) as native:
        assert not np.array_equal(ours["amplified"], native["amplified"])


def test_another_point_leaves_the_scores_of_the_others(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(world.run.out, out)
    before = results(out)
    open_run(tiny(lambdas=[0, 1, 0.9], fsl=[True]), out)
    assert {row["variant"] for row in results(out)["cam"]} == {
        "lambda0_fsl",
        "lambda1_fsl",
        "average",
        "seam",
    }
    assert results(out)["stages"] == before["stages"]
    open_run(tiny(baselines=[]), out)
    assert {row["variant"] for row in results(out)["cam"]} == {"lambda0_fsl", "lambda1_fsl"}
    assert {row["method"] for row in results(out)["stages"]} == {"ours"}
    open_run(tiny(seeds=[1, 0]), out)
    assert results(out)["cam"] == [], "the classifier all points start from has the first seed"


def test_learned_mu_and_sigma_have_a_rate_of_their_own(world: World, tmp_path: Path) -> None:
    variant = world.run.variants["lambda1_fsl"]
    config = world.run.cam_config(variant).model_copy(
        update={"learn_similarity": True, "similarity_learning_rate": 0.25, "epochs": 2}
    )
    history = cam.train_cam(world.run.train, "tiny", config, 0, tmp_path)
    assert len({row["mu"] for row in history}) == len({row["sigma"] for row in history}) == 2
    assert all(-4 < row["mu"] < 6 and 0.5 < row["sigma"] < 20 for row in history)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    assert (
        rates[-1] == pytest.approx(0.25 * rates[0])
        and state["optimizer"]["param_groups"][-1]["weight_decay"] == 0
    )
    assert history[-1]["mu"] != config.mu


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


def _command(arguments: list[str], moment: tuple[str, int] | None) -> None:
    torch.set_num_threads(1)
    os.environ["WSSS_NB_HEADLESS"] = "1"
    if moment is not None:
        where, calls = moment
        owners = {
            "step": torch.optim.SGD, "savez_compressed": np, "write_json": record, "replace": os,
            "walk": affinitynet, "predict": deeplab,
        }  # fmt: skip
        _Killed(owners[where], where, calls)
    sys.exit(cli.main(arguments))


def killed_at(moments: list[tuple[str, int]], arguments: list[str]) -> None:
    """The same command again and again, killed at each moment; then once more, undisturbed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wsss_nb.cli.experiment", "wsss_nb.experiment.pipeline"])
    codes = []
    for moment in [*moments, None]:
        process = context.Process(target=_command, args=(arguments, moment))
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * len(moments) + [0]


def test_a_command_killed_anywhere_ends_with_the_same_scores(world: World, tmp_path: Path) -> None:
    """Steps 1-4 are pre-training, 5-8 the CAM network; then come the CAMs of four images and results.json."""
    moments = [("replace", 2), ("step", 3), ("step", 5), ("savez_compressed", 3), ("write_json", 2)]
    killed_at(moments, ["train", "cam", "--out", str(tmp_path / "run"), *flags()])
    assert cam_row(tmp_path / "run") == cam_row(world.run.out)
    assert not list((tmp_path / "run/cam").rglob("started.json"))
    assert not list((tmp_path / "run/cam").rglob(".*")), "half-written files"


def test_later_stages_killed_anywhere_end_with_the_same_scores(world: World, tmp_path: Path) -> None:
    """From a trained CAM network on: CAMs of 16 images, their CRF maps, then two networks of two epochs, two steps each."""
    out = tmp_path / "run"
    shutil.copytree(world.run.out, out)
    for stage in ("affinitynet", "deeplab"):
        shutil.rmtree(out / stage / "ours")
    before = stamps(out / "cam")
    moments = [("savez_compressed", 5), ("savez_compressed", 12 + 7), ("step", 3), ("walk", 5), ("walk", 12 + 2),
               ("step", 1), ("step", 3), ("predict", 3)]  # fmt: skip
    killed_at(moments, ["train", "deeplab", "--out", str(out), *flags()])
    assert stamps(out / "cam") == before, "finished CAM networks are trained again"
    assert stage_rows(out) == stage_rows(world.run.out)
    for stage in ("affinitynet", "deeplab"):
        name = f"{stage}/ours/seed0"
        one, other = (
            torch.load(root / name / "model/checkpoint.pt", weights_only=True)["modules"]
            for root in (out, world.run.out)
        )
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for path in sorted((world.run.out / name).rglob("*.png")):
            assert (out / path.relative_to(world.run.out)).read_bytes() == path.read_bytes()
        assert not list((out / name).rglob("started.json"))
        assert not list((out / name).rglob(".*")), "half-written files"


def test_a_killed_sweep_of_two_workers_ends_as_one_workers(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = flags(workers=2, lambdas=[1], fsl=[True], baselines=["average"])
    command = [sys.executable, "-m", "wsss_nb.cli", "sweep", "--out", str(out), *more]
    environment = os.environ | {"WSSS_NB_HEADLESS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600
    while not list(out.glob("cam/*/seed0/model/checkpoint.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not results(out)["cam"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert read_json(out / "run.json")["command"].startswith("python -m wsss_nb.cli sweep")
    for variant in ("lambda1_fsl", "average"):
        assert cam_row(out, variant) == cam_row(world.run.out, variant)
    for place in ("pretrain", "cam/lambda1_fsl/seed0/model", "cam/average/seed0/model"):
        one, other = (
            torch.load(root / place / "checkpoint.pt", weights_only=True)["modules"]
            for root in (out, world.run.out)
        )
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
)  # fmt: skip
def test_bad_data_is_one_line_and_exit_code_2(
    small: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
    tmp_path: Path,
) -> None:
    damage(small)
    assert cli.main(["train", "cam", "--data", str(small), "--out", str(tmp_path / "run"), *flags()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wsss-nb: error: ") and message in line


def test_no_data_folder_where_the_profile_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "--profile", "photos", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "wsss-nb: error: data.root: expected a folder in VOC layout (--data FOLDER), got none"


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nothing/run", "/dev/null/run"])
def test_output_that_cannot_be_written(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "cam", "--data", str(small), "--out", str(tmp_path / place), *flags()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert place in line and "writable" in line
    with pytest.raises(InputError, match="writable"):
        open_run(tiny(data__root=str(small)), tmp_path / place)


def test_a_folder_of_something_else_is_not_cleared(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "run/pretrain/thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    assert cli.main(["train", "cam", "--data", str(small), "--out", str(tmp_path / "run"), *flags()]) == 2
    assert "pretrain: expected an empty folder or an earlier result" in capsys.readouterr().err
    assert mine.read_text() == "precious"


def test_grey_and_cmyk_images_count_and_corrupt_ones_are_skipped_on_demand(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mode in (("train_00000", "L"), ("train_00001", "CMYK"), ("val_00000", "L")):
        path = small / f"JPEGImages/{name}.jpg"
        Image.open(path).convert(mode).save(path)
    _cut(small)
    command = ["train", "cam", "--data", str(small), "--out", str(tmp_path / "run"), *flags()]
    assert cli.main(command) == 2
    capsys.readouterr()
    assert cli.main([*command, "--skip-bad"]) == 0
    assert "fish: left out 1 bad images: train_00002" in capsys.readouterr().out
    data = results(tmp_path / "run")["data"]
    assert data["bad"] == ["train_00002"] and data["train"] == 7 and data["val"] == 2
    assert cam_row(tmp_path / "run")["scores"]["protocol"]["images"] == 2
    assert results(tmp_path / "run")["synthetic"] is False, "a folder of the user's is not our synthetic set"


def test_parameters_of_notebooks(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    run = open_notebook_run("quick", "fish", "runs/a", 3, "cam.epochs=2")
    assert run.out == tmp_path / "runs/a" and run.train.root == small
    assert run.profile.seeds == (3,) and run.profile.cam.epochs == 2
    monkeypatch.chdir(tmp_path)
    assert open_notebook_run("quick", "fish", "runs/b", 3, "seeds=[5]").profile.seeds == (5,)
    several = "seeds=[1,2] baselines=[]"
    assert open_notebook_run("quick", "fish", "runs/b", 3, several).profile.seeds == (1, 2)
