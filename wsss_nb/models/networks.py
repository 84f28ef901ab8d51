"""The networks of the three stages on any backbone, and an ImageNet classifier for lessons."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Dropout2d, Taps, Tiny
from wsss_nb.models.efficientnet import EfficientNetLite0, imagenet_file, imagenet_weights
from wsss_nb.models.resnet38 import ResNet38
from wsss_nb.pseudo_labels import winner_take_all

__all__ = [
    "BACKBONES", "BackboneSpec", "BatchNormMode", "CamNet", "CamOutput", "ImageNetClassifier", "Network", "SeamNet",
    "channels_last", "check_head", "create_backbone", "create_cam_net", "create_imagenet_classifier", "create_seam_net",
    "pixel_correlation"
]  # fmt: skip

_EPS = 1e-5
_MAX_BLOCK = 1 << 24  # affinities held at once where no gradient is asked for

BatchNormMode = Literal["frozen", "statistics", "train"]
Self = TypeVar("Self", bound="Network")


class BackboneSpec(NamedTuple):
    """How to build a backbone and the DeepLab head that suits it.

    Attributes:
        build: freeze -> backbone without pretrained weights.
        pretrained_file: where pip put the ImageNet weights that ``load_imagenet`` takes; None where there are none.
        deeplab_width: channels of DeepLab's head.
        deeplab_reach: dilation of DeepLab's 3x3 convolution in pixels of the image.
        deeplab_released: whether DeepLab starts and trains as in the release, see ``DeepLab``.
    """

    build: Callable[[bool], Backbone]
    pretrained_file: Callable[[], Path] | None = None
    deeplab_width: int = 512
    deeplab_reach: int = 96
    deeplab_released: bool = False


BACKBONES = {
    "tiny": BackboneSpec(lambda freeze: Tiny(), deeplab_width=96, deeplab_reach=12),
    "efficientnet_lite0": BackboneSpec(partial(EfficientNetLite0, 16), imagenet_file, deeplab_width=256),
    "efficientnet_lite0_stride8": BackboneSpec(partial(EfficientNetLite0, 8), imagenet_file, deeplab_width=256),
    "resnet38": BackboneSpec(ResNet38, deeplab_released=True),
}


def create_backbone(name: str, *, pretrained: bool = True, freeze: bool = True) -> Backbone:
    """Build a backbone by its name in :data:`BACKBONES`.

    Args:
        name: "tiny", "efficientnet_lite0" or "resnet38".
        pretrained: take ImageNet weights where a pip package carries them (EfficientNet-Lite0). The tiny net
            has none, and those of ResNet-38 come from a file, see ``load_checkpoint``; both start at random.
        freeze: whether the early part is never trained.

    Raises:
        ValueError: unknown name.

    Example:
        >>> create_backbone("tiny").stride
        4

    Paper (Section 4.1) and release: ResNet-38 (Wu et al., 2019) at stride 8. The others are ours, for small machines.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {name!r}")
    backbone = BACKBONES[name].build(freeze)
    if pretrained:
        backbone.load_imagenet()
    return backbone


class Network(nn.Module):
    """A backbone and a head; images are (B, 3, H, W) in [0, 1] and normalised inside.

    ``net(x, net.frozen(x))`` equals ``net(x)``, so the output of ``frozen`` may be computed once per image and kept.

    Args:
        backbone: the feature extractor.
        prefixed: whether the backbone's names in the state dict begin with "backbone.", else they stand
            at the root.
        batch_norm: what the backbone's BatchNorm does in training; heads and the frozen part are not concerned.
            "frozen": eval mode, affine parameters fixed. "statistics": normalises by the batch and updates the
            running statistics, affine parameters fixed. "train": the usual, affine parameters learned.

    Attributes:
        stride: pixels of the image per pixel of the map.

    Raises:
        ValueError: another ``batch_norm``.
    """

    backbone: Backbone
    mean: Tensor
    std: Tensor
    f8_3: nn.Conv2d
    f8_4: nn.Conv2d
    f8_5: nn.Conv2d

    def __init__(self, backbone: Backbone, *, prefixed: bool = False, batch_norm: BatchNormMode = "frozen") -> None:
        super().__init__()
        if batch_norm not in get_args(BatchNormMode):
            raise ValueError(f"batch_norm: expected one of {get_args(BatchNormMode)}, got {batch_norm!r}")
        self.prefixed, self.batch_norm, self.stride = prefixed, batch_norm, backbone.stride
        if prefixed:
            self.backbone = backbone
        else:
            for name, block in backbone.named_children():
                self.add_module(name, block)
            # the blocks above are the registered ones; registering their owner too would double every name
            object.__setattr__(self, "backbone", backbone)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)
        for norm in self._norms():
            norm.requires_grad_(batch_norm == "train")
        for module in backbone.frozen_modules():
            module.requires_grad_(False)
        self.train()

    def add_pixel_layers(self, levels: int, colours: int = 0) -> None:
        """1x1 layers without bias for features of pixels: ``f8_3``, ``f8_4``, ... on the taps, ``f9`` on all of them."""
        widths = self.backbone.head_channels[:levels]
        sizes = zip(self.backbone.channels[:levels], widths, strict=True)
        layers = [nn.Conv2d(inputs, width, 1, bias=False) for inputs, width in sizes]
        for number, layer in enumerate(layers, 3):
            self.add_module(f"f8_{number}", layer)
        self.f9 = nn.Conv2d(colours + sum(widths), sum(widths), 1, bias=False)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self: Self, mode: bool = True) -> Self:
        """Training mode, except for what stays frozen (see ``batch_norm``)."""
        super().train(mode)
        if mode:
            norms = self._norms() if self.batch_norm == "frozen" else []
            for module in (*norms, *self.backbone.frozen_modules()):
                module.eval()
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """(images - mean) / std, per channel.

        Raises:
            ValueError: the images are not (B, 3, H, W) floating point.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images: expected floating point (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        return (images - self.mean) / self.std

    def frozen(self, images: Tensor) -> Tensor:
        """Features of the part that is never trained: (B, 3, H, W) -> (B, C, h, w), may be cached."""
        return self.backbone.frozen(self.normalize(images))

    def taps(self, images: Tensor, features: Tensor | None = None) -> Taps:
        """The backbone's tapped maps; ``features`` is the output of :meth:`frozen` where it is known, in any layout."""
        features = self.frozen(images) if features is None else features
        return self.backbone.taps(features.contiguous(memory_format=torch.channels_last))

    def synchronise_batch_norm(self) -> None:
        """Let BatchNorm that is trained see the rows of all processes; on GPUs only. Names and weights stay."""
        kept = set(self._norms()) if self.batch_norm == "frozen" else set()
        norms = {module for module in self.modules() if isinstance(module, nn.BatchNorm2d)} - kept
        made = {norm: nn.SyncBatchNorm.convert_sync_batchnorm(norm) for norm in norms}
        for owner in [*self.modules(), self.backbone]:  # the backbone is no module of the network where not prefixed
            for name, module in list(owner.named_children()):
                if module in made:
                    setattr(owner, name, made[module])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters in the four groups that get different learning rates.

        Returns:
            ``pretrained_weights`` (learning rate x1) and ``pretrained_biases`` (x2, no decay): the backbone;
            ``new_weights`` (x10) and ``new_biases`` (x20, no decay): the head. Weights are the parameters
            named ``weight``, BatchNorm scales included where they are trained; frozen ones are in no group.
            The backbone counts as pretrained also where it started at random.
        """
        names = ("pretrained_weights", "pretrained_biases", "new_weights", "new_biases")
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in names}
        backbone = {id(parameter) for parameter in self.backbone.parameters()}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = "pretrained" if id(parameter) in backbone else "new"
                groups[f"{part}_{'weights' if name.endswith('weight') else 'biases'}"].append(parameter)
        return groups


def channels_last(net: Self) -> Self:
    """Lay the convolutions' weights out channels-last, which makes every convolution run that way."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


def check_head(num_classes: int, dropout: float = 0.0) -> None:
    """Refuse a head without classes and a dropout of everything.

    Raises:
        ValueError: fewer than two classes, or a dropout outside [0, 1).
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected background and at least one class, got {num_classes}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")


def pixel_correlation(maps: Tensor, features: Tensor) -> Tensor:
    r"""Average each pixel's maps over the pixels that look like it.

    ``y_kj = sum_i x_ki A_ij / (sum_i A_ij + 1e-5)`` with ``A_ij = max(0, f_i . f_j)``, ``f_i = g_i / (|g_i| + 1e-5)``
    (SEAM, Eq. 6-7: ReLU in place of exp; normalised over i).

    Args:
        maps: x, (B, K, h, w).
        features: g, (B, C, h, w).

    Returns:
        y, (B, K, h, w). Memory is B x (hw)^2 with gradients, bounded without.

    Raises:
        ValueError: batch or map sizes differ.

    Example:
        >>> x = torch.tensor([[[[1.0, 0.0]]]])
        >>> pixel_correlation(x, torch.tensor([[[[1.0, 1.0]]]])).round(decimals=3)
        tensor([[[[0.5000, 0.5000]]]])

    The paper does not mention it beyond taking SEAM as its baseline (Section 4.1); its release applies it to logits.
    """
    sizes = [(x.ndim, x.shape[:1], x.shape[2:]) for x in (maps, features)]
    if maps.ndim != 4 or sizes[0] != sizes[1]:
        found = tuple(features.shape)
        raise ValueError(f"features: expected (B, C, h, w) beside maps {tuple(maps.shape)}, got {found}")
    if features.dtype == torch.float16:  # sums over thousands of pixels leave its range
        with torch.autocast(features.device.type, enabled=False):
            return pixel_correlation(maps.float(), features.float())
    g = features.flatten(2)
    f = g / (g.norm(dim=1, keepdim=True) + _EPS)
    x = maps.flatten(2).to(f.dtype)
    # a row of ones gives sum_i A_ij in the same product
    x = torch.cat([x, x.new_ones(x.shape[0], 1, x.shape[2])], dim=1)
    pixels = f.shape[2]
    grad = torch.is_grad_enabled() and (maps.requires_grad or features.requires_grad)
    block = pixels if grad else max(1, _MAX_BLOCK // (f.shape[0] * pixels))
    parts = [x @ F.relu(f.transpose(1, 2) @ columns, inplace=True) for columns in f.split(block, dim=2)]
    y = torch.cat(parts, dim=2)
    return (y[:, :-1] / (y[:, -1:] + _EPS)).view(maps.shape)


class CamOutput(NamedTuple):
    """What a CAM network gives for a batch of images.

    Attributes:
        logits: s, (B, K, h, w), h = ceil(H / stride), background at index 0; Eq. 1 turns them into CAMs.
        revised: what the PCM made of them, (B, K, h, w); None where it was skipped.
    """

    logits: Tensor
    revised: Tensor | None


class CamNet(Network):
    """Stage 1, the CAM network: s = fc8(dropout(conv6)), revised logits = PCM(s).

    The PCM acts on the *logits* and passes gradients to them, as in the release of the paper.

    Args:
        backbone: the feature extractor.
        num_classes: K, background included.
        dropout: probability that a channel of conv6 is dropped in training.
        batch_norm: what the backbone's BatchNorm does in training.

    Raises:
        ValueError: fewer than two classes, or a dropout outside [0, 1).
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, *, dropout: float = 0.5, batch_norm: BatchNormMode = "frozen"
    ) -> None:
        check_head(num_classes, dropout)
        super().__init__(backbone, batch_norm=batch_norm)
        self.num_classes = num_classes
        self.add_pixel_layers(levels=2, colours=3)
        self.dropout = Dropout2d(dropout)
        self.fc8 = nn.Conv2d(backbone.channels.conv6, num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)

    def revise(self, maps: Tensor, taps: Taps, images: Tensor) -> Tensor:
        """The maps (B, K, h, w) after the PCM, with the features g = f9([image, relu(f8_3(conv4)), relu(f8_4(conv5))]).

        The taps are detached, so that the PCM does not train the backbone through them; the normalised image is
        resized bilinearly with aligned corners.
        """
        small = F.interpolate(self.normalize(images), maps.shape[2:], mode="bilinear", align_corners=True)
        conv4, conv5 = F.relu(self.f8_3(taps.conv4.detach())), F.relu(self.f8_4(taps.conv5.detach()))
        return pixel_correlation(maps, self.f9(torch.cat([small.to(conv4.dtype), conv4, conv5], dim=1)))

    def forward(self, images: Tensor, features: Tensor | None = None, revise: bool = True) -> CamOutput:
        """Images -> logits and revised logits, (B, K, h, w).

        Args:
            images: (B, 3, H, W) in [0, 1]; the PCM looks at their colours.
            features: output of :meth:`frozen` for ``images`` where it is known.
            revise: False skips the PCM.
        """
        taps = self.taps(images, features)
        logits = self.fc8(self.dropout(taps.conv6)).contiguous()
        return CamOutput(logits, self.revise(logits, taps, images) if revise else None)


class SeamNet(CamNet):
    """The SEAM baseline: the same layers, but the PCM refines max-normalised, winner-take-all CAMs.

    Foreground k: ``c_k = max(0, s_k - 1e-5) / (max over pixels of s_k + 1e-5)``, set to 0 where another foreground class
    is larger; background: ``c_0 = 1 - max_k c_k`` per pixel (SEAM's release; the paper's own release skips it).
    ``revised`` is a CAM in [0, 1] here, and no gradient flows from it to the logits.
    """

    def revise(self, maps: Tensor, taps: Taps, images: Tensor) -> Tensor:
        """PCM of the CAMs c of the logits, (B, K, h, w)."""
        s = maps.detach()[:, 1:]
        c = F.relu(s - _EPS) / (s.amax(dim=(2, 3), keepdim=True) + _EPS)
        background = 1 - c.amax(dim=1, keepdim=True)
        return super().revise(torch.cat([background, winner_take_all(c, dim=1)], dim=1), taps, images)


def create_cam_net(
    backbone: str, num_classes: int, *, pretrained: bool = True, freeze: bool = True, dropout: float = 0.5,
    batch_norm: BatchNormMode = "frozen"
) -> CamNet:  # fmt: skip
    """Build the CAM network of stage 1.

    Args:
        backbone: "tiny", "efficientnet_lite0" or "resnet38".
        num_classes: K, background included.
        pretrained: take the ImageNet weights where pip has them, see :func:`create_backbone`.
        freeze: keep the backbone's early layers as they are, as in the paper; False trains all convolutions.
        dropout: spatial dropout on conv6.
        batch_norm: "frozen" as in the paper; "train" to train a net from scratch.

    Raises:
        ValueError: unknown backbone, or fewer than two classes.

    Example:
        >>> net = create_cam_net("tiny", 6)
        >>> net(torch.rand(1, 3, 96, 96)).logits.shape
        torch.Size([1, 6, 24, 24])

    Paper (Section 4.1): SEAM's network, trained with Eq. 5 and 6. Release: the same with "resnet38", whose names in the
    state dict are kept; its PCM acts on the logits.
    """
    features = create_backbone(backbone, pretrained=pretrained, freeze=freeze)
    return channels_last(CamNet(features, num_classes, dropout=dropout, batch_norm=batch_norm))


def create_seam_net(
    backbone: str, num_classes: int, *, pretrained: bool = True, freeze: bool = True, dropout: float = 0.5
) -> SeamNet:
    """Build the SEAM baseline (Wang et al., CVPR 2020): :func:`create_cam_net` with another input of the PCM.

    Args:
        backbone: "tiny", "efficientnet_lite0" or "resnet38".
        num_classes: K, background included.
        pretrained: take the ImageNet weights where pip has them, see :func:`create_backbone`.
        freeze: keep the backbone's early layers as they are, as in the paper; False trains all convolutions.
        dropout: spatial dropout on conv6.

    Raises:
        ValueError: unknown backbone, or fewer than two classes.

    Example:
        >>> net = create_seam_net("tiny", 6)
        >>> net(torch.rand(1, 3, 96, 96)).revised.shape
        torch.Size([1, 6, 24, 24])

    The paper's baseline (Section 4.1); layers and names as in SEAM's own release with "resnet38".
    """
    features = create_backbone(backbone, pretrained=pretrained, freeze=freeze)
    return channels_last(SeamNet(features, num_classes, dropout=dropout))


class ImageNetClassifier(Network):
    """EfficientNet-Lite0 with its 1000-way layer: y_c = b_c + sum_k W_ck mean_ij f_kij.

    Because pooling and the last layer are both linear, sum_k W_ck f_kij + b_c is the class activation map of
    class c (Zhou et al., CVPR 2016). ``fc.weight`` is W (1000, 1280), ``fc.bias`` b (1000). The network is in
    eval mode and needs no gradients.
    """

    def __init__(self, output_stride: int = 32) -> None:
        super().__init__(EfficientNetLite0(output_stride))
        self.fc = nn.Linear(self.backbone.channels.conv6, 1000)
        self.load_state_dict({key.replace("_fc.", "fc."): value for key, value in imagenet_weights().items()})
        self.requires_grad_(False)
        self.eval()

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> f, (B, 1280, h, w)."""
        return self.backbone(self.normalize(images)).conv6

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> logits y, (B, 1000)."""
        return self.fc(self.features(images).mean(dim=(2, 3)))


def create_imagenet_classifier(output_stride: int = 32) -> ImageNetClassifier:
    """Build the classifier with its ImageNet weights.

    Args:
        output_stride: 8, 16 or 32 pixels of the image per pixel of the map; smaller gives finer features.

    Raises:
        ValueError: another ``output_stride``.

    Example:
        >>> net = create_imagenet_classifier()
        >>> net.features(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 1280, 7, 7])

    In neither the paper nor the release; it is for lessons, on CAMs as Zhou et al. (CVPR 2016) define them.
    """
    return channels_last(ImageNetClassifier(output_stride))
