"""ResNet-38: published state-dict names, and forward passes equal to those of the public implementations.

The weights are a formula of each tensor's name, so that the large arrays need not be stored.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.affinity_net import AffinityNet, create_affinity_net
from wsss_nb.models.deeplab import DeepLab, create_deeplab
from wsss_nb.models.networks import BACKBONES, CamNet, SeamNet, create_cam_net, create_seam_net
from wsss_nb.models.resnet38 import ResNet38

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are too small to share among threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fill(name: str, tensor: Tensor) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    shape = tensor.shape
    if tensor.ndim == 4:
        tensor.normal_(generator=generator).mul_(math.sqrt(1 / math.prod(shape[1:])))
    elif name.endswith("running_var"):
        tensor.copy_(1 + 0.2 * torch.rand(shape, generator=generator))
    elif name.endswith("running_mean"):
        tensor.copy_(0.1 * torch.randn(shape, generator=generator))
    elif tensor.ndim == 1 and name.endswith("weight"):
        tensor.copy_(1 + 0.1 * torch.randn(shape, generator=generator))
    elif tensor.ndim == 1:
        tensor.copy_(0.1 * torch.randn(shape, generator=generator))


def fill_all(module: nn.Module, prefix: str = "") -> None:
    for name, tensor in module.state_dict().items():
        fill(prefix + name, tensor)


def fill_heads(net: nn.Module, *heads: str) -> None:
    for head in heads:
        fill_all(net.get_submodule(head), f"{head}.")


def load(name: str) -> tuple[dict[str, np.ndarray], Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    return arrays, torch.from_numpy(arrays["image"]).permute(2, 0, 1)[None] / 255


def close(actual: Tensor | np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


@pytest.fixture(scope="module")
def backbone() -> Iterator[ResNet38]:
    """One backbone serves all networks, one after the other: its 100 million weights are made once."""
    with mock.patch.object(nn.Conv2d, "reset_parameters"):
        yield ResNet38()


@pytest.fixture(scope="module")
def rooted(backbone: ResNet38) -> ResNet38:
    fill_all(backbone)
    return backbone


@torch.inference_mode()
def test_cam_net(rooted):
    arrays, images = load("camnet")
    net = CamNet(rooted, 21).eval()
    fill_heads(net, "fc8", "f8_3", "f8_4", "f9")
    logits, revised = net(images)
    close(logits, arrays["cam_logits"])
    close(logits.softmax(dim=1), arrays["cam"])
    close(revised, arrays["cam_rv_logits"])
    close(revised.softmax(dim=1), arrays["cam_rv"])


@torch.inference_mode()
def test_seam_net(rooted):
    arrays, images = load("seam")
    net = SeamNet(rooted, 21).eval()
    fill_heads(net, "fc8", "f8_3", "f8_4", "f9")
    for maps, name in zip(net(images), ("cam", "cam_rv"), strict=True):
        full = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=True)
        close(full[:, :, ::4, ::4], arrays[name])


@torch.inference_mode()
def test_affinity_net(rooted):
    """exp(-mean|f_i - f_j|) of the features is the published affinity wherever that is given."""
    arrays, images = load("affinity")
    net = AffinityNet(rooted).eval()
    fill_heads(net, "f8_3", "f8_4", "f8_5", "f9")
    features = net(images)
    assert features.shape == (1, 448, 8, 12)
    flat = features[0].flatten(1).numpy()
    affinity = np.exp(-np.abs(flat[:, :, None] - flat[:, None]).mean(axis=0))
    given = arrays["dense"] > 0
    assert given.sum() > 1000
    close(affinity[given], arrays["dense"][given])


@torch.inference_mode()
def test_training_of_resnet38_is_frozen_where_published(rooted):
    net = CamNet(rooted, 21).train()
    frozen = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad and p.ndim == 4}
    assert frozen == {"conv1a", "b2", "b2_1", "b2_2"}
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    images = torch.rand(1, 3, 17, 25)
    features = net.frozen(images)
    assert features.shape == (1, 128, 9, 13)
    assert net(images, features).logits.shape == (1, 21, 3, 4)


class Slim(ResNet38):
    widths = tuple(width // 4 for width in ResNet38.widths)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cam", "deeplab"])
def test_b6_and_b7_drop_channels_before_both_later_convolutions(kind, monkeypatch):
    """Shares of 0.3 and 0.5, of the quarter and of the half of a block's width; in training only."""
    slim, spec = Slim(freeze=kind == "cam"), BACKBONES["resnet38"]._replace(deeplab_width=8)
    fill_all(slim)
    net = CamNet(slim, 21) if kind == "cam" else DeepLab(slim, 21, spec)
    drawn = []
    draw = F.dropout2d

    def record(x, p, training, *rest):
        y = draw(x, p, training, *rest)
        alive = x.amax((2, 3)) > 0
        drawn.append((p, x.shape[1], ((y.amax((2, 3)) == 0) & alive).sum().item() / alive.sum().item()))
        return y

    monkeypatch.setattr(F, "dropout2d", record)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net.train().backbone(net.normalize(images))
    assert [draw[:2] for draw in drawn] == [(0.3, 128), (0.3, 256), (0.5, 256), (0.5, 512)]
    assert [draw[2] for draw in drawn] == [pytest.approx(p, abs=0.08) for p in (0.3, 0.3, 0.5, 0.5)]
    drawn.clear()
    net.eval().backbone(net.normalize(images))
    assert [draw[2] for draw in drawn] == [0, 0, 0, 0]


@torch.inference_mode()
def test_deeplab(backbone):
    arrays, images = load("deeplab")
    fill_all(backbone, "backbone.")
    backbone.freeze = False
    net = DeepLab(backbone, 21, BACKBONES["resnet38"]).eval()
    fill_heads(net, "conv_fov", "bn_fov", "conv_fov2", "bn_fov2", "cls_conv")
    full = F.interpolate(net(images), images.shape[2:], mode="bilinear", align_corners=True)
    close(full, arrays["logits"])


@pytest.mark.parametrize(
    "create,keys",
    [
        (lambda: create_cam_net("resnet38", 21), "camnet"),
        (lambda: create_seam_net("resnet38", 21), "camnet"),
        (lambda: create_affinity_net("resnet38"), "affinitynet"),
        (lambda: create_deeplab("resnet38", 21), "deeplab"),
    ],
)
def test_state_dict_has_the_published_names_and_shapes(create, keys):
    lines = (GOLDEN / f"{keys}_keys.txt").read_text().splitlines()
    published = dict(line.split(" ", 1) for line in lines)
    with torch.device("meta"):
        net = create()
    assert {name: str(tuple(value.shape)) for name, value in net.state_dict().items()} == published


def test_deeplab_of_resnet38_trains_with_batch_statistics_and_convolutions_only():
    """The released optimiser gets convolutions: the affine parameters of BatchNorm, the head's too, are in no group."""
    with torch.device("meta"):
        net = create_deeplab("resnet38", 21).train()
    norms = [m for m in net.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 37
    assert all(m.training and m.momentum == 3e-4 and not m.weight.requires_grad for m in norms)
    heads = [net.bn_fov, net.bn_fov2]
    assert all(m.training and m.momentum == 3e-4 and not m.weight.requires_grad for m in heads)
    assert all(p.requires_grad for p in net.backbone.parameters() if p.ndim == 4)
    assert net.conv_fov.dilation == (12, 12)
    groups = net.parameter_groups()
    assert groups["pretrained_biases"] == []
    assert all(p.ndim == 4 for p in groups["pretrained_weights"])
    assert [id(p) for p in groups["new_weights"]] == [
        id(layer.weight) for layer in (net.conv_fov, net.conv_fov2, net.cls_conv)
    ]
    assert [id(p) for p in groups["new_biases"]] == [id(net.cls_conv.bias)]
