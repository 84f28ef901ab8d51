"""What the networks promise the trainer (frozen parts, BatchNorm, parameter groups, clean graphs), and the PCM."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import pickle
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wsss_nb.models as models
from wsss_nb.models import networks
from wsss_nb.models.affinity_net import create_affinity_net
from wsss_nb.models.checkpoint import identify_network
from wsss_nb.models.deeplab import DeepLab, create_deeplab
from wsss_nb.models.networks import (
    BACKBONES,
    CamOutput,
    Network,
    create_backbone,
    create_cam_net,
    create_seam_net,
    pixel_correlation,
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
def test_kept_features_give_the_same_to_the_bit(kind, backbone, mode, size):
    """Whatever the memory layout in which the features were kept; only the PCM looks at the images too."""
    net = NETWORKS[kind](backbone, pretrained=False)
    net.train(mode == "train")
    images = torch.rand(size[0], 3, *size[1:])
    torch.manual_seed(1)
    whole = net(images)
    kept = net.frozen(images).detach().clone(memory_format=torch.contiguous_format)
    torch.manual_seed(1)
    fed = net(images, kept)
    torch.manual_seed(1)
    others = net(images.flip(3), kept)
    outputs = [(o,) if isinstance(o, Tensor) else o for o in (whole, fed, others)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs[:2], strict=True))
    assert torch.equal(outputs[0][0], outputs[2][0])
    assert kind in {"affinity", "deeplab"} or not torch.equal(outputs[0][1], outputs[2][1])


def test_frozen_features_are_what_the_backbone_says():
    images = torch.rand(1, 3, 64, 48)
    tiny = create_cam_net("tiny", 3)
    torch.testing.assert_close(tiny.frozen(images), (images - 0.5) / 0.25)
    lite = create_cam_net("efficientnet_lite0", 3)
    features = lite.frozen(images)
    assert features.shape == (1, 112, 4, 3)
    assert not features.requires_grad
    torch.testing.assert_close(lite.normalize(images), (images * 255 - 127) / 128)


@pytest.mark.parametrize(
    "backbone,stride", [("tiny", 4), ("efficientnet_lite0_stride8", 8), ("efficientnet_lite0", 16)]
)
@pytest.mark.parametrize("size", [(31, 50), (8, 8), (97, 64), (1, 3)])
def test_any_image_size(backbone, stride, size):
    expected = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    images = torch.rand(1, 3, *size)
    with torch.inference_mode():
        net = create_cam_net(backbone, 7, pretrained=False).eval()
        logits, revised = net(images)
        assert logits.shape == revised.shape == (1, 7, *expected)
        assert net(images, revise=False).revised is None
        assert torch.equal(net(images, revise=False).logits, logits)
        lab = create_deeplab(backbone, 7, pretrained=False).eval()
        assert lab(images).shape == (1, 7, *expected)
        affinity = create_affinity_net(backbone, pretrained=False).eval()
        assert affinity(images).shape == (1, affinity.f9.out_channels, *expected)
    assert net.stride == stride


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
    net = create_cam_net("tiny", 3, batch_norm="statistics").train()
    assert all(m.training and not m.weight.requires_grad for m in norms(net))
    net = create_cam_net("tiny", 3, batch_norm="frozen").train()
    assert not any(m.training or m.weight.requires_grad for m in norms(net))
    with pytest.raises(ValueError, match=r"batch_norm: expected one of \('frozen', .*'train'\), got 'eval'"):
        create_cam_net("tiny", 3, batch_norm="eval")

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
        torch.testing.assert_close(first(trained.eval()(images)), first(net.eval()(images)), atol=1e-5, rtol=1e-4)


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

    class Slim(ResNet38):
        widths = tuple(width // 4 for width in ResNet38.widths)

    net = DeepLab(Slim(freeze=False), 21, BACKBONES["resnet38"])
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert net.batch_norm == "statistics" and {norm.momentum for norm in norms} == {3e-4}
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
        create_cam_net("tiny", 3, dropout=1.0)
    for create in NETWORKS.values():
        with pytest.raises(ValueError, match=r"backbone: expected one of tiny, .*, got 'vgg16'"):
            create("vgg16")


def test_deeplab_head_reaches_as_far_at_every_stride():
    for backbone, dilation in (("efficientnet_lite0_stride8", 12), ("efficientnet_lite0", 6)):
        net = create_deeplab(backbone, 4, pretrained=False)
        assert net.conv_fov.dilation == (dilation, dilation)


def by_hand(maps: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The module's formula with loops, float64."""
    batch, classes, height, width = maps.shape
    x = maps.reshape(batch, classes, -1).astype(np.float64)
    g = features.reshape(batch, features.shape[1], -1).astype(np.float64)
    out = np.zeros_like(x)
    for b in range(batch):
        f = [g[b, :, i] / (np.sqrt((g[b, :, i] ** 2).sum()) + 1e-5) for i in range(height * width)]
        for j in range(height * width):
            a = np.array([max(0.0, float(f[i] @ f[j])) for i in range(height * width)])
            a = a / (a.sum() + 1e-5)
            out[b, :, j] = x[b] @ a
    return out.reshape(maps.shape)


def test_three_pixels_by_hand():
    """Pixels 1 and 2 look alike, pixel 3 is orthogonal, so it keeps its value and they share theirs."""
    maps = torch.tensor([[[[1.0, 0.0, 5.0]]]], dtype=torch.float64)
    features = torch.tensor([[[[1.0, 2.0, 0.0]], [[0.0, 0.0, 3.0]]]], dtype=torch.float64)
    revised = pixel_correlation(maps, features)
    torch.testing.assert_close(revised, torch.tensor([[[[0.5, 0.5, 5.0]]]], dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 2, 1, 6), (3, 21, 3, 3)])
def test_equals_numpy(shape):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape, generator=generator)
    features = torch.randn((shape[0], 9, *shape[2:]), generator=generator)
    expected = by_hand(maps.numpy(), features.numpy())
    np.testing.assert_allclose(pixel_correlation(maps, features).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_blocks_do_not_change_the_result(monkeypatch):
    maps, features = torch.randn(2, 3, 6, 5), torch.randn(2, 4, 6, 5)
    whole = pixel_correlation(maps, features.requires_grad_())
    monkeypatch.setattr(networks, "_MAX_BLOCK", 2 * 30 * 7)
    with torch.no_grad():
        torch.testing.assert_close(pixel_correlation(maps, features), whole.detach(), rtol=1e-5, atol=1e-6)


def test_memory_is_bounded_without_gradients(monkeypatch):
    sizes = []
    relu = networks.F.relu
    monkeypatch.setattr(networks.F, "relu", lambda x, inplace=False: (sizes.append(x.numel()), relu(x))[1])
    monkeypatch.setattr(networks, "_MAX_BLOCK", 1000)
    with torch.no_grad():
        pixel_correlation(torch.rand(1, 2, 10, 10), torch.rand(1, 2, 10, 10))
    assert sum(sizes) == 100 * 100 and max(sizes) <= 1000


def test_gradients_of_maps_and_features():
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    features = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pixel_correlation, (maps, features))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_is_an_average_that_ignores_the_order_of_pixels(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand((1, 2, height, width), generator=generator, dtype=torch.float64)
    features = torch.randn((1, 3, height, width), generator=generator, dtype=torch.float64)
    revised = pixel_correlation(maps, features)
    assert (revised >= 0).all() and (revised.amax((2, 3)) <= maps.amax((2, 3))).all()
    order = torch.randperm(height * width, generator=generator)
    shuffled = pixel_correlation(
        maps.flatten(2)[:, :, order].view_as(maps), features.flatten(2)[:, :, order].view_as(features)
    )
    torch.testing.assert_close(shuffled.flatten(2), revised.flatten(2)[:, :, order])


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"features: expected .* \(1, 2, 4, 4\), got \(1, 2, 4, 5\)"):
        pixel_correlation(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 5))


def test_winner_take_all_maps_by_hand(monkeypatch):
    """A class's maximum is 1, one class per pixel wins, and what is left is background; absent classes are all 0."""
    monkeypatch.setattr(networks, "pixel_correlation", lambda maps, features: maps)
    net, images = create_seam_net("tiny", 3), torch.rand(1, 3, 4, 12)
    taps = net.taps(images)
    logits = torch.tensor([[[[7.0, 7.0, 7.0]], [[4.0, 2.0, -1.0]], [[1.0, 10.0, 0.0]]]], requires_grad=True)
    expected = torch.tensor([[[[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]])
    maps = net.revise(logits, taps, images)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
    assert not maps.requires_grad
    absent = net.revise(torch.full((1, 3, 1, 3), -2.0), taps, images)
    assert torch.equal(absent, torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 1, 3))


def test_cam_net_revises_logits_and_seam_net_revises_normalised_maps():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 48)
    cam_net, seam_net = create_cam_net("tiny", 4).eval(), create_seam_net("tiny", 4).eval()
    seam_net.load_state_dict(cam_net.state_dict())
    with torch.no_grad():
        cam, seam = cam_net(images), seam_net(images)
        taps = cam_net.backbone.taps(cam_net.frozen(images))
        small = torch.nn.functional.interpolate((images - 0.5) / 0.25, (8, 12), mode="bilinear", align_corners=True)
        parts = [small, cam_net.f8_3(taps.conv4).clamp_min(0), cam_net.f8_4(taps.conv5).clamp_min(0)]
        features = cam_net.f9(torch.cat(parts, dim=1)).numpy()
    assert torch.equal(cam.logits, seam.logits)
    np.testing.assert_allclose(cam.revised, by_hand(cam.logits.numpy(), features), rtol=1e-3, atol=1e-4)
    foreground = cam.logits[:, 1:].numpy()
    c = np.maximum(foreground - 1e-5, 0) / (foreground.max(axis=(2, 3), keepdims=True) + 1e-5)
    best = c.max(axis=1, keepdims=True)
    maps = np.concatenate([1 - best, np.where(c < best, 0, c)], axis=1)
    np.testing.assert_allclose(seam.revised, by_hand(maps, features), rtol=1e-3, atol=1e-4)
    assert seam.revised.min() >= 0 and seam.revised.max() <= 1


def test_revised_maps_train_the_backbone_only_through_the_logits():
    images = torch.rand(1, 3, 32, 32)
    seam = create_seam_net("tiny", 4)
    seam(images).revised.square().sum().backward()
    assert all(p.grad is None for p in seam.backbone.parameters())
    assert seam.fc8.weight.grad is None
    for layer in (seam.f8_3, seam.f8_4, seam.f9):
        assert layer.weight.grad.abs().max() > 0

    cam = create_cam_net("tiny", 4, dropout=0.0)
    logits, _ = cam(images)
    _, revised = cam(images)
    features = cam.frozen(images)
    taps = cam.backbone.taps(features)
    for tap in taps:
        tap.retain_grad()
    small = cam.revise(cam.fc8(taps.conv6).detach().requires_grad_(), taps, images)
    small.square().sum().backward()
    assert all(tap.grad is None for tap in taps)
    cam.zero_grad(set_to_none=True)
    revised.square().sum().backward()
    assert cam.fc8.weight.grad.abs().max() > 0
    assert cam.backbone.stem.weight.grad.abs().max() > 0
    assert logits.requires_grad


@pytest.mark.parametrize("name", ["backbone", "checkpoint", "networks"])
def test_docstring_examples(name):
    scope = {"torch": torch, "create_backbone": create_backbone, "identify_network": identify_network, **vars(models)}
    result = doctest.testmod(importlib.import_module(f"wsss_nb.models.{name}"), extraglobs=scope)
    assert result.failed == 0 and result.attempted
