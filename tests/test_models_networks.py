"""What the four networks promise the trainer: frozen parts, BatchNorm, parameter groups, clean graphs."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import pickle
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wsss_nb.models as models
from wsss_nb.models import (
    CamOutput,
    DeepLab,
    Network,
    create_affinity_net,
    create_cam_net,
    create_deeplab,
    create_seam_net,
)
from wsss_nb.models.resnet38 import ResNet38

NETWORKS: dict[str, Callable[..., Network]] = {
    "cam": lambda backbone, **options: create_cam_net(backbone, 5, **options),
    "seam": lambda backbone, **options: create_seam_net(backbone, 5, **options),
    "affinity": create_affinity_net,
    "deeplab": lambda backbone, **options: create_deeplab(backbone, 5, **options),
}
each_network = pytest.mark.parametrize("kind", NETWORKS)
each_backbone = pytest.mark.parametrize("backbone", ["tiny", "efficientnet_lite0"])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are too small to share among threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def first(output: Tensor | CamOutput) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def loss_of(output: Tensor | CamOutput) -> Tensor:
    outputs = [output] if isinstance(output, Tensor) else list(output)
    return sum((o.square().mean() for o in outputs), torch.zeros(()))


@each_network
@each_backbone
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("size", [(2, 45, 38), (1, 40, 60), (2, 9, 12), (3, 90, 17)])
def test_from_frozen_equals_forward_to_the_bit(kind, backbone, mode, size):
    """Whatever the memory layout in which the features were kept."""
    net = NETWORKS[kind](backbone, pretrained=False)
    net.train(mode == "train")
    images = torch.rand(size[0], 3, *size[1:])
    torch.manual_seed(1)
    whole = net(images)
    kept = net.frozen(images).detach().clone(memory_format=torch.contiguous_format)
    torch.manual_seed(1)
    parts = net.from_frozen(kept, images)
    others = torch.rand_like(images) if kind in {"affinity", "deeplab"} else images
    torch.manual_seed(1)
    given = net(others, features=kept)
    outputs = ((o,) if isinstance(o, Tensor) else o for o in (whole, parts, given))
    for a, b, c in zip(*outputs, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_frozen_features_are_what_the_backbone_says():
    images = torch.rand(1, 3, 64, 48)
    tiny = create_cam_net("tiny", 3)
    torch.testing.assert_close(tiny.frozen(images), (images - 0.5) / 0.25)
    lite = create_cam_net("efficientnet_lite0", 3)
    features = lite.frozen(images)
    assert features.shape == (1, 112, 4, 3)
    assert not features.requires_grad
    torch.testing.assert_close(lite.normalize(images), (images * 255 - 127) / 128)


@pytest.mark.parametrize("backbone,stride", [("tiny", 4), ("efficientnet_lite0", 8)])
@pytest.mark.parametrize("size", [(31, 50), (8, 8), (97, 64), (1, 3)])
def test_any_image_size(backbone, stride, size):
    expected = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    images = torch.rand(1, 3, *size)
    with torch.inference_mode():
        net = create_cam_net(backbone, 7, output_stride=stride, pretrained=False).eval()
        logits, revised = net(images)
        assert logits.shape == revised.shape == (1, 7, *expected)
        assert net(images, revise=False).revised is None
        assert torch.equal(net(images, revise=False).logits, logits)
        lab = create_deeplab(backbone, 7, output_stride=stride, pretrained=False).eval()
        assert lab(images).shape == (1, 7, *expected)
        affinity = create_affinity_net(backbone, output_stride=stride, pretrained=False).eval()
        assert affinity(images).shape == (1, affinity.num_features, *expected)
    assert net.stride == stride


def test_taps_of_different_size_meet_at_the_map():
    """At stride 32 the frozen conv4 stays at stride 16."""
    images = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        net = create_cam_net("efficientnet_lite0", 4, output_stride=32).eval()
        assert net(images).revised.shape == (1, 4, 3, 2)
        affinity = create_affinity_net("efficientnet_lite0", output_stride=32).eval()
        assert affinity(images).shape == (1, 448, 3, 2)


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@each_network
@each_backbone
def test_a_training_step_leaves_the_frozen_part_and_all_statistics_as_they_were(kind, backbone):
    torch.manual_seed(0)
    net = NETWORKS[kind](backbone).train()
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    frozen = {id(p) for m in net.backbone.frozen_modules() for p in m.parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, weight_decay=0.1)
    loss_of(net(torch.rand(2, 3, 64, 64))).backward()
    optimizer.step()
    named = dict(net.backbone.named_parameters())
    fixed_norms = {id(p) for m in norms(net.backbone) for p in m.parameters()}
    trained = 0
    for name, value in net.backbone.state_dict().items():
        parameter = named.get(name)
        if parameter is None or id(parameter) in frozen | fixed_norms:
            assert torch.equal(value, before[name]), name
        else:
            trained += 1
            assert not torch.equal(value, before[name]), name
    assert trained > 5
    assert len(frozen) > 0 if backbone == "efficientnet_lite0" else not frozen


@each_network
def test_train_mode_keeps_batch_norm_in_eval(kind):
    net = NETWORKS[kind]("efficientnet_lite0", pretrained=False).train()
    assert net.training
    assert len(norms(net.backbone)) > 40
    assert not any(m.training for m in norms(net.backbone))
    heads = [m for m in norms(net) if m not in norms(net.backbone)]
    assert len(heads) == (2 if kind == "deeplab" else 0)
    assert all(m.training for m in heads)
    net.eval()
    assert not any(m.training for m in net.modules())


def test_batch_norm_modes():
    net = create_cam_net("tiny", 3, batch_norm="train").train()
    assert all(m.training and m.weight.requires_grad and m.bias.requires_grad for m in norms(net))
    net.batch_norm = "statistics"
    assert all(m.training and not m.weight.requires_grad for m in norms(net))
    net.batch_norm = "frozen"
    assert not any(m.training or m.weight.requires_grad for m in norms(net))
    with pytest.raises(ValueError, match=r"batch_norm: expected one of \('frozen', .*'train'\), got 'eval'"):
        net.batch_norm = "eval"

    lite = create_cam_net("efficientnet_lite0", 3, pretrained=False, batch_norm="train").train()
    early = [m for part in lite.backbone.frozen_modules() for m in part.modules()]
    for m in norms(lite):
        assert m.training == m.weight.requires_grad == (m not in early)


def test_from_scratch_the_tiny_net_learns_with_batch_norm_in_train_mode():
    """Red against green squares, average pooling; the statistics it gathers serve the frozen net."""
    torch.manual_seed(0)
    images = 0.4 + 0.1 * torch.rand(16, 3, 32, 32)
    labels = torch.arange(16) % 2
    for image, label in zip(images, labels, strict=True):
        image[label, 8:24, 8:24] += 0.4
    net = create_cam_net("tiny", 3, batch_norm="train", dropout=0.0).train()
    groups = net.parameter_groups()
    optimizer = torch.optim.SGD([p for g in groups.values() for p in g], lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        logits = net(images, revise=False).logits.mean(dim=(2, 3))[:, 1:]
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    trained = create_cam_net("tiny", 3).train()
    trained.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            first(trained.eval()(images)), first(net.eval()(images)), atol=1e-5, rtol=1e-4
        )


def names_of(net: Network, group: list[nn.Parameter]) -> set[str]:
    ids = {id(p) for p in group}
    return {name for name, p in net.named_parameters() if id(p) in ids}


def test_parameter_groups_of_the_cam_net():
    net = create_cam_net("efficientnet_lite0", 3, pretrained=False)
    groups = net.parameter_groups()
    assert list(groups) == ["pretrained_weights", "pretrained_biases", "new_weights", "new_biases"]
    assert names_of(net, groups["new_weights"]) == {"fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight"}
    assert groups["pretrained_biases"] == groups["new_biases"] == []
    weights = names_of(net, groups["pretrained_weights"])
    assert "_conv_head.weight" in weights and "_blocks.11._expand_conv.weight" in weights
    assert len(weights) == 5 * 3 + 1
    assert not any(name.startswith(("_conv_stem", "_blocks.10.")) or "_bn" in name for name in weights)


def test_parameter_groups_of_deeplab_and_of_trained_batch_norm():
    net = create_deeplab("tiny", 3)
    groups = net.parameter_groups()
    assert names_of(net, groups["new_biases"]) == {"bn_fov.bias", "bn_fov2.bias", "cls_conv.bias"}
    assert "conv_fov.weight" in names_of(net, groups["new_weights"])
    assert groups["pretrained_biases"] == []
    net = create_cam_net("tiny", 3, batch_norm="train")
    groups = net.parameter_groups()
    assert "stage1.norm1.bias" in names_of(net, groups["pretrained_biases"])
    assert "stage1.norm1.weight" in names_of(net, groups["pretrained_weights"])


@each_network
def test_groups_hold_every_trained_parameter_once(kind):
    net = NETWORKS[kind]("tiny")
    grouped = [id(p) for group in net.parameter_groups().values() for p in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters() if p.requires_grad}


def test_initialisation_follows_the_release():
    torch.manual_seed(0)
    net = create_cam_net("efficientnet_lite0", 21, pretrained=False)
    bound = math.sqrt(6 / (1280 + 21))
    assert 0.98 * bound < net.fc8.weight.abs().max() <= bound
    bound = 4 * math.sqrt(6 / (195 + 192))
    assert 0.98 * bound < net.f9.weight.abs().max() <= bound
    for layer, inputs in ((net.f8_3, 112), (net.f8_4, 320)):
        assert abs(layer.weight.std().item() / math.sqrt(2 / inputs) - 1) < 0.05
    affinity = create_affinity_net("efficientnet_lite0", pretrained=False)
    assert abs(affinity.f8_5.weight.std().item() / math.sqrt(2 / 1280) - 1) < 0.05
    bound = 4 * math.sqrt(6 / (448 + 448))
    assert 0.98 * bound < affinity.f9.weight.abs().max() <= bound


def test_the_head_of_deeplab_starts_as_released():
    """Normal with variance 2 / fan_out (outputs x 9 for the 3x3, outputs for the 1x1); bias U(-1, 1) / sqrt(inputs)."""
    torch.manual_seed(0)
    net = DeepLab(ResNet38(freeze=False, slimmer=4), 21, batch_norm="statistics", released_head=True)
    assert net.conv_fov.weight.shape == (512, 1024, 3, 3)
    for layer, fan_out in ((net.conv_fov, 9 * 512), (net.conv_fov2, 512), (net.cls_conv, 21)):
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    bound = 512**-0.5
    assert 0.7 * bound < net.cls_conv.bias.abs().max() <= bound
    for norm in (net.bn_fov, net.bn_fov2):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_dropout_drops_whole_channels_of_conv6_in_training_only():
    net = create_cam_net("tiny", 2, dropout=0.5)
    seen: list[Tensor] = []
    handle = net.fc8.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    images = torch.rand(4, 3, 64, 64)
    net.train()(images, revise=False)
    net.eval()(images, revise=False)
    handle.remove()
    alive = net.backbone(net.normalize(images)).conv6.amax((2, 3)) > 0
    dropped = (seen[0].amax((2, 3)) == 0) & alive
    assert 0.4 < dropped.sum() / alive.sum() < 0.6
    assert ((seen[1].amax((2, 3)) > 0) == alive).all()


@each_network
def test_affinity_and_deeplab_ignore_the_images_argument(kind):
    net = NETWORKS[kind]("tiny").eval()
    images = torch.rand(1, 3, 32, 32)
    features = net.frozen(images)
    same = torch.equal(
        loss_of(net.from_frozen(features, images)), loss_of(net.from_frozen(features, images.flip(3)))
    )
    assert same == (kind in {"affinity", "deeplab"})


class Saved:
    """What autograd keeps of a tensor, so that one can see when it lets go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@each_network
def test_no_hooks_and_no_graph_stay_behind(kind):
    net = NETWORKS[kind]("tiny").train()
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    saved: list[weakref.ref[Saved]] = []

    def pack(tensor: Tensor) -> Saved:
        box = Saved(tensor.detach())  # not its grad_fn, which would hold the graph that holds the box
        saved.append(weakref.ref(box))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        output = net(torch.rand(1, 3, 32, 32))
    held = weakref.ref(first(output))
    assert len(saved) > 20 and all(reference() is not None for reference in saved)
    del output
    assert held() is None and all(reference() is None for reference in saved)
    for name, module in net.named_modules():
        assert set(vars(module)) == attributes[name]
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks


@each_network
def test_names_stand_at_the_root_and_once(kind):
    net = NETWORKS[kind]("tiny")
    names = list(net.state_dict())
    prefix = "backbone." if kind == "deeplab" else ""
    assert prefix + "stage1.conv1.weight" in names
    assert {n for n in names if n.startswith("backbone.")} == (
        {"backbone." + n for n in net.backbone.state_dict()} if prefix else set()
    )
    assert len([p for p in net.parameters()]) == len({id(p) for p in net.parameters()})
    assert not any(n == "mean" or n == "std" for n in names)


@each_network
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_whole_and_independent(kind, clone):
    net = NETWORKS[kind]("tiny").eval()
    other = clone(net)
    images = torch.rand(1, 3, 24, 24)
    expected = first(net(images)).detach().clone()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(first(net(images)), expected)
    assert first(other(images)).abs().max() == 0


def test_double_precision_moves_everything():
    net = create_cam_net("tiny", 3).eval().double()
    output = net(torch.rand(1, 3, 24, 24, dtype=torch.float64))
    assert output.logits.dtype == output.revised.dtype == torch.float64


def test_autocast_stays_near_full_precision():
    torch.manual_seed(0)
    net = create_cam_net("tiny", 3).eval()
    images = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        exact = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(images)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b.float()).abs().max() < 0.1 * a.abs().max()


def test_outputs_can_be_viewed():
    """Networks compute channels-last; what they return is laid out plainly."""
    images = torch.rand(1, 3, 24, 24)
    for kind, create in NETWORKS.items():
        assert first(create("tiny")(images)).is_contiguous(), kind
    assert create_cam_net("tiny", 3).stage2.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "images", [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match=r"images: expected floating point \(B, 3, H, W\), got torch\."):
        create_cam_net("tiny", 3)(images)


def test_bad_arguments_are_refused():
    for create in (create_cam_net, create_seam_net, create_deeplab):
        with pytest.raises(ValueError, match=r"num_classes: expected background and .* class, got 1"):
            create("tiny", 1)
        with pytest.raises(ValueError, match=r"dropout: expected a probability in \[0, 1\), got 1.0"):
            create("tiny", 3, dropout=1.0)
    for create in NETWORKS.values():
        with pytest.raises(ValueError, match=r"backbone: expected one of tiny, .*, got 'vgg16'"):
            create("vgg16")


def test_deeplab_head_reaches_as_far_at_every_stride():
    for stride, dilation in ((8, 12), (16, 6), (32, 3)):
        net = create_deeplab("efficientnet_lite0", 4, output_stride=stride, pretrained=False)
        assert net.conv_fov.dilation == (dilation, dilation)


@pytest.mark.parametrize(
    "name",
    [
        "affinity_net",
        "backbone",
        "cam_net",
        "checkpoint",
        "deeplab",
        "imagenet",
        "mxnet_params",
        "pcm",
        "registry",
    ],
)
def test_docstring_examples(name):
    module = importlib.import_module(f"wsss_nb.models.{name}")
    scope = {"torch": torch, **vars(models)}
    result = doctest.testmod(module, extraglobs=scope)
    assert result.failed == 0
