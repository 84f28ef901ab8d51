"""Loading weights: our files, published state dicts, MXNet files; nothing executed, everything reported."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mxnet_file import file_bytes, resnet38_arrays
from torch import Tensor, nn

from wsss_nb.models.affinity_net import create_affinity_net
from wsss_nb.models.backbone import Backbone, Taps
from wsss_nb.models.checkpoint import LoadReport, load_checkpoint, read_state_dict
from wsss_nb.models.deeplab import DeepLab, create_deeplab
from wsss_nb.models.networks import BACKBONES, CamNet, create_cam_net, create_seam_net
from wsss_nb.system.errors import InputError


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def net() -> CamNet:
    return create_cam_net("tiny", 4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3, "rng": torch.get_rng_state()},
        lambda state: {"state_dict": state, "iteration": 5},
        lambda state: {"epoch": 1, "model": {"state_dict": state, "name": "x"}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
        lambda state: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
        lambda state: {
            "modules": {"similarity.mu": torch.ones(1), **{f"net.{n}": v for n, v in state.items()}},
            "optimizer": {"state": {}},
            "epoch": 3,
            "history": [],
        },
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_hold_a_state_dict(tmp_path, net, wrap, zipped):
    path = tmp_path / "cam.pth"
    torch.save(wrap(net.state_dict()), path, _use_new_zipfile_serialization=zipped)
    other = create_seam_net("tiny", 4)
    assert not same(net, other)
    report = load_checkpoint(other, path)
    assert report == LoadReport() and not report
    assert same(net, other)


def test_all_kinds_of_difference_are_reported_and_strict_changes_nothing(tmp_path, net):
    state = net.state_dict()
    misshaped = f"fc8.weight: expected {tuple(state['fc8.weight'].shape)}, got (7, 96, 1, 1)"
    state["fc8.weight"] = torch.zeros(7, 96, 1, 1)
    del state["f9.weight"], state["stage1.norm1.running_mean"]
    state["decoder.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "cam.pth")

    other = create_cam_net("tiny", 4)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_checkpoint(other, tmp_path / "cam.pth")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'cam.pth'}: expected the weights of CamNet, got 2 missing (")
    for part in (
        "f9.weight",
        "stage1.norm1.running_mean",
        "1 unexpected (decoder.weight)",
        f"1 misshaped ({misshaped})",
    ):
        assert part in text
    assert "\n" not in text
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())

    report = load_checkpoint(other, tmp_path / "cam.pth", strict=False)
    assert set(report.missing) == {"f9.weight", "stage1.norm1.running_mean"}
    assert report.unexpected == ("decoder.weight",)
    assert report.misshaped == (misshaped,)
    assert report and "2 missing" in str(report)
    assert torch.equal(other.f8_3.weight, net.f8_3.weight)
    assert torch.equal(other.fc8.weight, before["fc8.weight"])


def test_long_lists_are_cut():
    report = LoadReport(missing=tuple(f"layer{i}" for i in range(30)))
    assert str(report) == ("30 missing (" + "; ".join(f"layer{i}" for i in range(8)) + " and 22 more)")
    assert str(LoadReport()) == "everything fits"


def test_weights_pass_between_stages_with_and_without_the_prefix(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "cam.pth")
    lab = create_deeplab("tiny", 4)
    with pytest.raises(InputError, match=r"conv_fov\.weight"):
        load_checkpoint(lab, tmp_path / "cam.pth")
    assert load_checkpoint(lab, tmp_path / "cam.pth", part="backbone") == LoadReport()
    assert same(lab.backbone, net.backbone)

    torch.save(lab.state_dict(), tmp_path / "final.pth")
    back = create_cam_net("tiny", 4)
    head = back.fc8.weight.clone()
    report = load_checkpoint(back, tmp_path / "final.pth", strict=False)
    assert same(back.backbone, net.backbone)
    assert "conv_fov.weight" in report.unexpected
    assert report.missing == ("f8_3.weight", "f8_4.weight", "f9.weight", "fc8.weight")
    assert torch.equal(back.fc8.weight, head)


def test_only_the_backbone_is_taken_where_only_it_is_asked_for(tmp_path, net):
    """A CAM net's f8_3 would fit AffinityNet's, but is another layer."""
    torch.save(net.state_dict(), tmp_path / "cam.pth")
    affinity = create_affinity_net("tiny")
    own = affinity.f8_3.weight.clone()
    assert load_checkpoint(affinity, tmp_path / "cam.pth", part="backbone") == LoadReport()
    assert torch.equal(affinity.f8_3.weight, own)
    assert same(affinity.backbone, net.backbone)
    state = net.state_dict()
    del state["stem.weight"]
    torch.save(state, tmp_path / "cam.pth")
    with pytest.raises(InputError, match=r"got 1 missing \(stem.weight\)$"):
        load_checkpoint(affinity, tmp_path / "cam.pth", part="backbone")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, net, how):
    path, mark = tmp_path / "evil.pth", tmp_path / "it_ran"
    content = {"model": net.state_dict(), "extra": Evil(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    wanted = r"evil\.pth: expected a file of PyTorch weights, got a pickled object besides tensors \("
    with pytest.raises(InputError, match=wanted):
        load_checkpoint(net, path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content,message",
    [
        ({"epoch": 3}, r"expected a state dict \(name -> tensor\), got a dict with epoch"),
        ({}, "got a dict with nothing"),
        ([torch.zeros(1)], "got list"),
        (torch.zeros(3), "got Tensor"),
        ({"model": {"a": 1}}, "got a dict with a"),
    ],
)
def test_files_that_hold_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message):
        read_state_dict(tmp_path / "x.pth")


def test_missing_foreign_and_truncated_files(tmp_path, net):
    with pytest.raises(InputError, match=r"none\.pth: expected a checkpoint file, got none"):
        load_checkpoint(net, tmp_path / "none.pth")
    with pytest.raises(InputError, match="expected a checkpoint file, got a folder"):
        load_checkpoint(net, tmp_path)
    torch.save(net.state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for data in (b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), whole[:100], whole[: len(whole) // 2], whole[:-30]):
        (tmp_path / "bad.pth").write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.pth: expected a file of PyTorch weights") as caught:
            load_checkpoint(net, tmp_path / "bad.pth")
        assert "\n" not in str(caught.value)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc8 = nn.Linear(2, 2)


STATE = {"fc8.weight": torch.ones(2, 2)}
SAVE = r"\): save model\.state_dict\(\) alone, where that class is installed$"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content,message",
    [
        ({"model": STATE, "miou": np.float64(0.5)}, r"a pickled object besides tensors \(numpy\.[\w.]*scalar" + SAVE),
        ({"model": STATE, "mean": np.zeros(3)}, r"a pickled object besides tensors \(numpy\.[\w.]*_reconstruct" + SAVE),
        ({"model": STATE, "args": Namespace(lr=1)}, r"a pickled object besides tensors \(argparse\.Namespace" + SAVE),
        (Small(), r"a whole pickled network \([\w.]*Small" + SAVE),
        ({"epoch": 3, "model": nn.Sequential(Small())}, r"a whole pickled network \(torch\.[\w.]*Sequential" + SAVE),
    ],
)
def test_what_is_no_weights_only_file_is_told(tmp_path, content, message, zipped):
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=rf"x\.pth: expected a file of PyTorch weights, got {message}"):
        read_state_dict(path)


@pytest.mark.parametrize("page", ["<!DOCTYPE html>\n<p>Sign in", "\n <HTML lang=en>", "\ufeff<!doctype html><body>"])
def test_a_saved_web_page_is_told(tmp_path, page):
    (tmp_path / "x.pth").write_text(page, encoding="utf-8")
    with pytest.raises(
        InputError, match=r"got a web page \(HTML\): download the file itself, not the page that shows it$"
    ):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make,kind",
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.empty(2, 2, device="meta"), "meta"),
    ],
)
def test_tensors_that_no_network_can_take_are_refused(tmp_path, make, kind):
    torch.save({"a": torch.ones(1), "fc8.weight": make()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"x\.pth: fc8\.weight: expected a plain dense tensor, got a {kind} one$"):
        read_state_dict(tmp_path / "x.pth")


class MiniBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_branch2a(self.bn_branch2a(x).relu())


class MiniResNet(Backbone):
    """ResNet-38's names on a few small layers."""

    channels = Taps(4, 4, 6)
    head_channels = Taps(2, 2, 2)
    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.b2 = MiniBlock(4, 4)
        self.b3_1 = MiniBlock(4, 6)
        self.bn7 = nn.BatchNorm2d(6)

    def early_modules(self) -> Sequence[nn.Module]:
        return (self.conv1a,)

    def early(self, images: Tensor) -> Tensor:
        return self.conv1a(images)

    def late(self, features: Tensor) -> Taps:
        conv5 = self.b2(features)
        return Taps(features, conv5, self.bn7(self.b3_1(conv5)).relu())


@pytest.mark.parametrize("version", [0, 2])
def test_imagenet_weights_from_mxnet_start_every_network(tmp_path, version):
    arrays = resnet38_arrays({name: torch.rand_like(t.float()) for name, t in MiniResNet().state_dict().items()})
    path = tmp_path / "imagenet.params"
    path.write_bytes(file_bytes(arrays, version))
    net = CamNet(MiniResNet(), 3)
    head = net.fc8.weight.clone()
    report = load_checkpoint(net, path)
    assert set(report.missing) == {"fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight"}
    assert report.unexpected == ("arg:linear1000_weight", "arg:linear1000_bias")
    assert report.misshaped == ()
    assert torch.equal(net.fc8.weight, head)
    np.testing.assert_array_equal(net.b3_1.conv_branch2a.weight.detach(), arrays["arg:res3b1_branch2a_weight"])
    np.testing.assert_array_equal(net.b2.bn_branch2a.running_var, arrays["aux:bn2a_branch2a_moving_var"])
    np.testing.assert_array_equal(net.bn7.bias.detach(), arrays["arg:bn7_beta"])
    lab = DeepLab(MiniResNet(), 3, BACKBONES["tiny"])
    load_checkpoint(lab, path)
    assert same(lab.backbone, net.backbone)


def test_mxnet_files_must_hold_the_whole_backbone_and_nothing_foreign(tmp_path):
    arrays = resnet38_arrays(MiniResNet().state_dict())
    path = tmp_path / "imagenet.params"
    del arrays["arg:res3b1_branch2a_weight"]
    arrays["arg:conv1a_weight"] = np.zeros((64, 3, 3, 3), "<f4")
    arrays["arg:res9a_branch2a_weight"] = np.zeros(1, "<f4")
    path.write_bytes(file_bytes(arrays))
    net = CamNet(MiniResNet(), 3)
    with pytest.raises(InputError) as caught:
        load_checkpoint(net, path)
    assert str(caught.value).endswith(
        "got 1 missing (b3_1.conv_branch2a.weight), 1 unexpected (arg:res9a_branch2a_weight), "
        "1 misshaped (conv1a.weight: expected (4, 3, 3, 3), got (64, 3, 3, 3))"
    )
    with pytest.raises(InputError, match=r"missing .*unexpected .*conv1a"):
        load_checkpoint(create_cam_net("tiny", 3), path)


def test_layout_and_gradient_flags_survive_loading(tmp_path, net):
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    torch.save(net.state_dict(), tmp_path / "cam.pth")
    other = create_cam_net("tiny", 4)
    load_checkpoint(other, tmp_path / "cam.pth")
    assert {name: p.requires_grad for name, p in other.named_parameters()} == flags
    assert other.stage2.conv1.weight.is_contiguous(memory_format=torch.channels_last)
