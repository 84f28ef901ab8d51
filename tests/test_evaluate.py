"""Scores of checkpoints: which network a file holds, and that its label maps are those of the stages."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mxnet_file import file_bytes

from wsss_nb import cli
from wsss_nb.data.synthetic import make_synthetic
from wsss_nb.data.voc import VOCFolder, read_label_map
from wsss_nb.models.affinity_net import create_affinity_net
from wsss_nb.models.checkpoint import Identity, identify_network, read_state_dict
from wsss_nb.models.deeplab import create_deeplab
from wsss_nb.models.networks import create_cam_net, create_seam_net
from wsss_nb.run import evaluation
from wsss_nb.run.pipeline import train_cam, train_deeplab
from wsss_nb.run.prepare import open_run
from wsss_nb.run.profiles import load_profile
from wsss_nb.stages.cam import infer_cams
from wsss_nb.stages.scoring import score_label_maps
from wsss_nb.system.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"epochs": 1, "batch_size": 8, "views": {"sizes": [[48, 48]]}}
PROFILE: dict[str, Any] = {
    "data": {"num_train": 8, "num_val": 3},
    "lambdas": [1.0],
    "workers": 1,
    "threads": 1,
    **{stage: SMALL for stage in ("pretrain", "cam", "seam", "affinitynet", "seam_affinitynet", "deeplab")},
}


def golden_names(network: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """The names and shapes of a published file, without its weights."""
    state = {}
    for line in (GOLDEN / f"{network}_keys.txt").read_text().splitlines():
        name, _, shape = line.partition(" ")
        state[prefix + name] = torch.empty([int(size) for size in re.findall(r"\d+", shape)], device="meta")
    return state


# Which network


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("camnet", Identity("cam", "resnet38", 21)),  # cam.pth; SEAM's resnet38_SEAM.pth has the same names
        ("affinitynet", Identity("affinitynet", "resnet38", None)),
        ("deeplab", Identity("deeplab", "resnet38", 21)),
    ],
)
def test_published_names(file: str, expected: Identity) -> None:
    state = golden_names(file)
    assert identify_network(state) == expected
    some = {n: value for number, (n, value) in enumerate(state.items()) if number % 4 or ".bn_" not in n}
    assert identify_network(some | {"fc_extra.weight": torch.zeros(1)}) == expected


@pytest.mark.parametrize("backbone", ["tiny", "efficientnet_lite0"])
def test_our_names(backbone: str) -> None:
    for net, network, classes in (
        (create_cam_net(backbone, 4, pretrained=False), "cam", 4),
        (create_seam_net(backbone, 4, pretrained=False), "cam", 4),
        (create_affinity_net(backbone, pretrained=False), "affinitynet", None),
        (create_deeplab(backbone, 7, pretrained=False), "deeplab", 7),
    ):
        assert identify_network(net.state_dict()) == Identity(network, backbone, classes)


def test_unknown_networks(tmp_path: Path) -> None:
    names = golden_names("camnet")
    classifier = {name: value for name, value in names.items() if not name.startswith(("fc8", "f8", "f9"))}
    with pytest.raises(InputError, match=r"x: expected a network with one of cls_conv.weight \(deeplab\)"):
        identify_network(classifier, "x")
    other = {"fc8.weight": torch.zeros(21, 8), "conv1a.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"expected the layers of tiny, .*, got at most \d %"):
        identify_network(other)
    path = tmp_path / "ilsvrc.params"
    path.write_bytes(file_bytes({"arg:conv1a_weight": np.zeros((2, 3), np.float32)}))
    with pytest.raises(InputError, match="got MXNet's ImageNet weights, where training starts"):
        read_state_dict(path)
    with pytest.raises(InputError, match="expected a checkpoint file, got none"):
        read_state_dict(tmp_path / "none.pth")


def test_the_profile_of_a_backbone() -> None:
    names = ("resnet38", "efficientnet_lite0", "tiny")
    assert [evaluation.profile_for(name) for name in names] == ["paper", "photos", "quick"]


# Label maps and scores


class World:
    """Every stage trained for an epoch on eight images, through the pipeline."""

    def __init__(self, out: Path) -> None:
        self.profile = load_profile("quick", PROFILE)
        self.run = open_run(self.profile, out)
        rows = (train_deeplab(self.run), train_cam(self.run, "lambda1_fsl", 0), *self.run.stages("affinitynet"))
        self.rows: dict[str, Any] = {getattr(row, "stage", "cam"): row for row in rows}
        self.rows["seam"] = train_cam(self.run, "seam", 0)

    def maps(self, stage: str) -> Path:
        return self.run.folder / self.rows[stage].folder

    def checkpoint(self, stage: str) -> Path:
        return self.run.folder / self.rows[stage].steps["model"] / "checkpoint.pt"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSSS_NB_HEADLESS", "1")
        return World(tmp_path_factory.mktemp("world") / "run")


def without(scores: dict[str, Any], *names: str) -> dict[str, Any]:
    protocol = {key: value for key, value in scores["protocol"].items() if key not in names}
    return {**scores, "protocol": protocol}


@pytest.mark.parametrize("stage", ["cam", "seam", "affinitynet", "deeplab"])
def test_same_scores_as_the_run(world: World, tmp_path: Path, stage: str) -> None:
    """The checkpoint a run left, scored from outside: label maps and protocol are those of the run."""
    checkpoint, val = evaluation.open_checkpoint(world.checkpoint(stage)), world.run.val
    variant = "seam" if stage == "seam" else "lambda1_fsl"
    cams = world.checkpoint("cam") if stage == "affinitynet" else None
    maps, scores = evaluation.evaluate_checkpoint(
        checkpoint, val, world.profile, tmp_path / "out", variant=variant, cams=cams
    )
    assert scores is not None and maps.parent == tmp_path / "out"
    assert scores["protocol"]["weights"] == f"checkpoint.pt {checkpoint.digest[:12]}"
    assert without(scores, "weights", "variant", "cams") == without(world.rows[stage].scores.model_dump(), "seed")
    for name in val.names:
        ours = read_label_map(world.maps(stage) / f"{name}.png")
        np.testing.assert_array_equal(read_label_map(maps / f"{name}.png"), ours)
    if stage == "affinitynet":  # the same CAMs, given as a folder
        _, again = evaluation.evaluate_checkpoint(
            checkpoint, val, world.profile, tmp_path / "out", cams=world.maps("cam")
        )
        unknown = ("cams", "scales", "flips", "variant")  # a folder does not say how its CAMs were made
        assert again is not None and without(again, *unknown) == without(scores, *unknown)


def test_published_file_with_our_settings(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare state dict of DataParallel at the command line, with a flag of the profile and a name too many."""
    state = read_state_dict(world.checkpoint("cam"))
    path = tmp_path / "cam.pth"
    torch.save({f"module.{name}": value for name, value in state.items()} | {"extra": torch.zeros(2)}, path)
    val = world.run.val
    command = ["evaluate", "--checkpoint", str(path), "--data", str(val.root), "--json", str(tmp_path / "scores.json")]
    command += ["--inference.scales", "0.5,1", "--inference.max_normalize", "true", "--data.void", "masked"]
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "cam.pth: network cam on tiny, settings of profile quick" in shown and "variant" not in shown
    assert "cam.pth: left out 1 unexpected (extra)" in shown
    assert "scales [0.5, 1.0]" in shown and "not known here" not in shown
    scores = json.loads((tmp_path / "scores.json").read_text())

    net = create_cam_net("tiny", val.num_classes)
    net.load_state_dict(state)
    inference = world.profile.inference.model_copy(update={"scales": (0.5, 1.0), "max_normalize": True})
    infer_cams(net.eval(), val, world.profile.cam, inference, tmp_path / "direct")
    expected = score_label_maps(val, tmp_path / "direct", {}, "masked")
    assert {name: scores[name] for name in ("miou", "contour_f", "confusion", "matches")} == {
        name: expected[name] for name in ("miou", "contour_f", "confusion", "matches")
    }
    protocol = scores["protocol"]
    assert (protocol["flips"], protocol["max_normalized"], protocol["void"]) == (True, True, "masked")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    made = Path(f"runs/evaluate/cam-{digest[:8]}-val").glob("maps-*/*.png")
    assert {path.name for path in made} == {f"{name}.png" for name in val.names}

    # again: nothing is computed; with other settings it is
    def never(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("computed")

    monkeypatch.setattr(evaluation.cam, "infer_cams", never)
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    with pytest.raises(RuntimeError, match="computed"):
        cli.main([*command, "--inference.background", "power:4"])
    with pytest.raises(RuntimeError, match="computed"):
        cli.main([*command, "--variant", "seam"])


def test_checkpoints_of_one_name_have_folders_of_their_own(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``checkpoint.pt`` of two trainings: the label maps of the first outlive the second."""
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "--data", str(world.run.val.root), "--inference.scales", "1", "--checkpoint"]
    before: set[Path] = set()
    for number, weight in enumerate((0.0, 1.0), start=1):
        path = tmp_path / f"run{number}/checkpoint.pt"
        path.parent.mkdir()
        torch.save(read_state_dict(world.checkpoint("cam")) | {"extra": torch.tensor([weight])}, path)
        assert cli.main([*command, str(path)]) == 0
        maps = set(Path("runs/evaluate").glob("checkpoint-*-val/maps-*/*.png"))
        assert len(maps) == number * len(world.run.val) and before <= maps
        before = maps


def test_split_without_masks_is_not_scored(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a test split has: images and no labels of any kind. DeepLab needs no more."""
    root = make_synthetic(tmp_path / "test", num_train=1, num_val=2, size=48)
    for path in (*(root / "SegmentationClass").iterdir(), root / "labels.csv"):
        path.unlink()
    common = ["evaluate", "--data", str(root), "--out", str(tmp_path / "out")]
    settings = ["--deeplab.scales", "1", "--deeplab.crf", "null"]
    assert cli.main([*common, "--checkpoint", str(world.checkpoint("deeplab")), *settings]) == 0
    assert "2 label maps; the split has no masks, no score" in capsys.readouterr().out
    folder = VOCFolder(root, "val")
    (maps,) = (tmp_path / "out").glob("maps-*")
    assert all(folder.prediction(maps, name).shape == (48, 48) for name in folder.names)
    assert cli.main([*common, "--checkpoint", str(world.checkpoint("cam"))]) == 2  # CAMs need image labels
    assert "expected a mask of image" in capsys.readouterr().err


# What does not fit


def save(path: Path, state: dict[str, torch.Tensor]) -> evaluation.Checkpoint:
    torch.save(state, path)
    return evaluation.open_checkpoint(path)


def test_weights_that_do_not_fit_are_listed(world: World, tmp_path: Path) -> None:
    state = create_cam_net("tiny", 6).state_dict()
    lacking = {name: value for name, value in state.items() if name != "f9.weight"}
    val = world.run.val
    with pytest.raises(InputError, match=r"expected the weights of CamNet, got 1 missing \(f9.weight\)"):
        evaluation.evaluate_checkpoint(save(tmp_path / "a.pth", lacking), val, world.profile, tmp_path / "out")
    other = create_cam_net("tiny", 21).state_dict()
    message = r"1 misshaped \(fc8.weight: expected \(6, \d+, 1, 1\), got \(21, \d+, 1, 1\)\)"
    with pytest.raises(InputError, match=message):
        evaluation.evaluate_checkpoint(save(tmp_path / "b.pth", other), val, world.profile, tmp_path / "out")


def test_cams_are_for_affinitynet(world: World, tmp_path: Path) -> None:
    walker = save(tmp_path / "aff.pth", create_affinity_net("tiny").state_dict())
    classifier = save(tmp_path / "cam.pth", create_cam_net("tiny", 6).state_dict())
    val, out = world.run.val, tmp_path / "out"
    for checkpoint, cams, message in (
        (walker, None, "cams: expected for AffinityNet, .*, got none"),
        (classifier, tmp_path, "cams: expected for AffinityNet only, got them for a network cam"),
        (walker, tmp_path, "expected a CAM of every image, got none of"),
        (walker, walker.path, r"aff.pth: expected a CAM network, got affinitynet"),
        (walker, tmp_path / "none", "expected a checkpoint file, got none"),
    ):
        with pytest.raises(InputError, match=message):
            evaluation.evaluate_checkpoint(checkpoint, val, world.profile, out, cams=cams)


def test_flags_of_checkpoints_with_label_maps(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    val = world.run.val
    maps = ["evaluate", "--data", str(val.root), "--predictions", str(world.maps("cam"))]
    assert cli.main(maps) == 0
    assert "not known here" in capsys.readouterr().out
    for more, flag in ((["--out", "x"], "--out"), (["--inference.flip", "false"], "--inference")):
        assert cli.main([*maps, *more]) == 2
        assert f"{flag}: expected with --checkpoint only" in capsys.readouterr().err
    for arguments in (maps[:3], [*maps, "--checkpoint", "cam.pth"]):
        assert cli.main(arguments) == 2
        assert "--checkpoint" in capsys.readouterr().err
