"""The backbones: the port of EfficientNet-Lite0, dilation, receptive field, folding of BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from wsss_nb.models.backbone import Taps, conv_norm, folded_batch_norm
from wsss_nb.models.efficientnet import EfficientNetLite0, _same_conv_norm, imagenet_file
from wsss_nb.models.networks import BACKBONES, create_backbone, create_imagenet_classifier


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are too small to share among threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cat() -> torch.Tensor:
    image = Image.fromarray(skimage.data.chelsea()).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_cat_is_an_egyptian_cat_with_dilation_too(cat, output_stride):
    probabilities = create_imagenet_classifier(output_stride)(cat).softmax(dim=1)[0]
    assert probabilities.argmax() == 285 and probabilities[285] > 0.7
    assert output_stride < 32 or abs(probabilities[285].item() - 0.771) < 0.005


def test_class_activation_map_by_hand_from_features_and_weights(cat):
    net = create_imagenet_classifier(16)
    features = net.features(cat)
    cam = torch.einsum("ck,bkij->bcij", net.fc.weight, features) + net.fc.bias[:, None, None]
    torch.testing.assert_close(cam.mean(dim=(2, 3)), net(cat), rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.training


def test_every_tensor_of_the_weight_file_is_used():
    state = torch.load(imagenet_file(), weights_only=True)
    loaded = create_backbone("efficientnet_lite0").state_dict()
    assert set(loaded) == {key for key in state if not key.startswith("_fc.")}
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    fresh = create_backbone("efficientnet_lite0", pretrained=False).state_dict()
    assert not torch.equal(fresh["_conv_head.weight"], state["_conv_head.weight"])


@pytest.mark.parametrize("coarse,fine", [(32, 16), (16, 8)])
def test_a_finer_stride_only_adds_pixels(cat, coarse, fine):
    """With SAME padding of even sizes the strided grid is every second pixel, from the second on."""
    x = (cat * 255 - 127) / 128
    with torch.inference_mode():
        backbones = [EfficientNetLite0(stride).eval() for stride in (coarse, fine)]
        for backbone in backbones:
            backbone.load_imagenet()
        few, many = (backbone(x) for backbone in backbones)
    assert few.conv6.shape[2] == 224 // coarse and many.conv6.shape[2] == 224 // fine
    torch.testing.assert_close(many.conv6[:, :, 1::2, 1::2], few.conv6, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name,stride,channels",
    [
        ("tiny", 4, Taps(24, 48, 64)),
        ("efficientnet_lite0", 16, Taps(112, 320, 1280)),
        ("efficientnet_lite0_stride8", 8, Taps(112, 320, 1280)),
    ],
)
@pytest.mark.parametrize("size", [(33, 47), (64, 96), (7, 5)])
def test_taps_have_the_stated_channels_and_stride(name, stride, channels, size):
    backbone = create_backbone(name, pretrained=False).eval()
    with torch.inference_mode():
        taps = backbone(torch.rand(2, 3, *size))
    expected = (-(-size[0] // stride), -(-size[1] // stride))
    assert backbone.stride == stride and backbone.channels == channels
    for tap, count in zip(taps, channels, strict=True):
        assert tap.shape[:2] == (2, count)
    assert tuple(taps.conv5.shape[2:]) == tuple(taps.conv6.shape[2:]) == expected


def test_tiny_sees_an_object_from_end_to_end_and_not_the_whole_image():
    backbone = create_backbone("tiny").eval()
    x = torch.rand(1, 3, 96, 96, requires_grad=True)
    backbone(x).conv6[0, :, 12, 12].sum().backward()
    assert x.grad is not None
    rows = x.grad[0].abs().amax(dim=(0, 2)).nonzero()
    columns = x.grad[0].abs().amax(dim=(0, 1)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == int(columns.max() - columns.min()) + 1 == 79
    assert 60_000 < sum(p.numel() for p in backbone.parameters()) < 100_000


def test_frozen_part_of_efficientnet_ends_with_block_10():
    backbone = create_backbone("efficientnet_lite0", pretrained=False).eval()
    x = torch.randn(1, 3, 64, 64)
    features = backbone.frozen(x)
    assert features.shape == (1, 112, 4, 4) and len(backbone.frozen_modules()) == 2 + 11
    assert backbone.taps(features).conv4 is features
    unfrozen = create_backbone("efficientnet_lite0", pretrained=False, freeze=False).eval()
    unfrozen.load_state_dict(backbone.state_dict())
    assert unfrozen.frozen(x) is x
    assert not unfrozen.frozen_modules()
    torch.testing.assert_close(unfrozen(x).conv6, backbone(x).conv6, rtol=0, atol=0)


def _conv_and_norm(groups: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(4, 6 if groups == 1 else 4, 3, 2, 1, groups=groups, bias=False).double()
    norm = nn.BatchNorm2d(conv.out_channels, eps=1e-3).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return conv, norm


@pytest.mark.parametrize("groups", [1, 4])
def test_folded_batch_norm_equals_convolution_then_norm(groups):
    conv, norm = _conv_and_norm(groups)
    norm.eval()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, conv.weight, norm.weight, norm.bias)
    plain = torch.autograd.grad(norm(conv(x)).square().sum(), inputs)
    folded = torch.autograd.grad(conv_norm(x, conv, norm).square().sum(), inputs)
    torch.testing.assert_close(conv_norm(x, conv, norm), norm(conv(x)))
    for a, b in zip(folded, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kernel,even,odd", [(3, (0, 1), (1, 1)), (5, (1, 2), (2, 2))])
def test_same_padding_of_strided_convolutions_in_both_modes(kernel, even, odd, training):
    """Even sizes pad one pixel more behind than in front; statistics of training see no pixel beside these."""
    conv = nn.Conv2d(4, 4, kernel, 2, groups=4, bias=False).double()
    norm = _conv_and_norm(groups=4)[1].train(training)
    x = torch.randn(2, 4, 10, 9, dtype=torch.float64, requires_grad=True)
    expected = norm(conv(F.pad(x, (*odd, *even))))
    found = _same_conv_norm(x, conv, norm)
    assert found.shape == (2, 4, 5, 5)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    inputs = (x, conv.weight, norm.weight)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_batch_norm_is_folded_once_for_each_precision():
    conv, norm = _conv_and_norm()
    conv, norm = conv.float(), norm.float().eval()
    x = torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        before = conv_norm(x, conv, norm)
        with folded_batch_norm():
            assert torch.equal(conv_norm(x, conv, norm), before)
            conv.weight.mul_(2)
            assert torch.equal(conv_norm(x, conv, norm), before)
            doubled = norm(conv(x))
            with torch.autocast("cpu", dtype=torch.bfloat16), folded_batch_norm():
                half = conv_norm(x, conv, norm)
                assert half.dtype == torch.bfloat16 and torch.equal(half, conv_norm(x, conv, norm))
                torch.testing.assert_close(half.float(), doubled, rtol=0.05, atol=0.05)
            assert torch.equal(conv_norm(x, conv, norm), before)
        torch.testing.assert_close(conv_norm(x, conv, norm), doubled)


def test_bad_names_and_strides_are_refused():
    with pytest.raises(ValueError, match=r"backbone: expected one of tiny, efficientnet_lite0, .*resnet38, got 'vgg'"):
        create_backbone("vgg")
    with pytest.raises(ValueError, match="output_stride: expected 8, 16 or 32, got 4"):
        create_imagenet_classifier(4)
    assert list(BACKBONES) == ["tiny", "efficientnet_lite0", "efficientnet_lite0_stride8", "resnet38"]
