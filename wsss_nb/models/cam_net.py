"""Stage 1: the CAM network and the SEAM baseline, with the pixel correlation module (PCM) of Wang et al. (CVPR 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Dropout2d, Taps
from wsss_nb.models.network import BatchNormMode, Network, channels_last, check_head
from wsss_nb.models.registry import create_backbone
from wsss_nb.pseudo_labels import winner_take_all

__all__ = ["CamNet", "CamOutput", "SeamNet", "create_cam_net", "create_seam_net", "pixel_correlation"]

_EPS = 1e-5
_MAX_BLOCK = 1 << 24  # affinities held at once where no gradient is asked for


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
        channels, widths = backbone.channels, backbone.head_channels
        width = widths.conv4 + widths.conv5
        self.f8_3 = nn.Conv2d(channels.conv4, widths.conv4, 1, bias=False)
        self.f8_4 = nn.Conv2d(channels.conv5, widths.conv5, 1, bias=False)
        self.f9 = nn.Conv2d(3 + width, width, 1, bias=False)
        nn.init.kaiming_normal_(self.f8_3.weight)
        nn.init.kaiming_normal_(self.f8_4.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        self.dropout = Dropout2d(dropout)
        self.fc8 = nn.Conv2d(channels.conv6, num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)

    def revise(self, maps: Tensor, taps: Taps[Tensor], images: Tensor) -> Tensor:
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

    def revise(self, maps: Tensor, taps: Taps[Tensor], images: Tensor) -> Tensor:
        """PCM of the CAMs c of the logits, (B, K, h, w)."""
        s = maps.detach()[:, 1:]
        c = F.relu(s - _EPS) / (s.amax(dim=(2, 3), keepdim=True) + _EPS)
        background = 1 - c.amax(dim=1, keepdim=True)
        return super().revise(torch.cat([background, winner_take_all(c, dim=1)], dim=1), taps, images)


def create_cam_net(
    backbone: str,
    num_classes: int,
    *,
    pretrained: bool = True,
    freeze: bool = True,
    dropout: float = 0.5,
    batch_norm: BatchNormMode = "frozen",
) -> CamNet:
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
