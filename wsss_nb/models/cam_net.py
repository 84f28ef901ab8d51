"""Stage 1: the CAM network, and the SEAM baseline on the same backbones."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Taps
from wsss_nb.models.dropout import Dropout2d
from wsss_nb.models.network import BatchNormMode, channels_last
from wsss_nb.models.pcm import PixelCorrelationNetwork, pixel_correlation, winner_take_all
from wsss_nb.models.registry import create_backbone

__all__ = ["CamNet", "CamOutput", "SeamNet", "create_cam_net", "create_seam_net"]


class CamOutput(NamedTuple):
    """What a CAM network gives for a batch of images.

    Attributes:
        logits: s, (B, K, h, w), h = ceil(H / stride), background at index 0; Eq. 1 turns them into CAMs.
        revised: what the PCM made of them, (B, K, h, w); None where it was skipped.
    """

    logits: Tensor
    revised: Tensor | None


class CamNet(PixelCorrelationNetwork):
    """The CAM network: s = fc8(dropout(conv6)), revised logits = PCM(s).

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
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        dropout: float = 0.5,
        batch_norm: BatchNormMode = "frozen",
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes: expected background and at least one class, got {num_classes}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        super().__init__(backbone, batch_norm=batch_norm)
        self.num_classes = num_classes
        self.dropout = Dropout2d(dropout)
        self.fc8 = nn.Conv2d(backbone.channels.conv6, num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)

    def revise(self, logits: Tensor, taps: Taps[Tensor], images: Tensor) -> Tensor:
        """The maps after the PCM, (B, K, h, w)."""
        features = self.correlation_features(taps, images, (logits.shape[2], logits.shape[3]))
        return pixel_correlation(logits, features)

    def from_frozen(self, features: Tensor, images: Tensor, revise: bool = True) -> CamOutput:
        """The trained part.

        Args:
            features: output of :meth:`frozen` for ``images``.
            images: (B, 3, H, W) in [0, 1]; the PCM looks at their colours.
            revise: False skips the PCM.
        """
        taps = self.taps(features)
        logits = self.fc8(self.dropout(taps.conv6)).contiguous()
        return CamOutput(logits, self.revise(logits, taps, images) if revise else None)

    def forward(self, images: Tensor, revise: bool = True, features: Tensor | None = None) -> CamOutput:
        """Images -> logits and revised logits, (B, K, h, w).

        Args:
            images: (B, 3, H, W) in [0, 1].
            revise: False skips the PCM.
            features: output of :meth:`frozen` where it is known; for wrappers that only see ``forward``.
        """
        return self.from_frozen(self.frozen(images) if features is None else features, images, revise)


class SeamNet(CamNet):
    """The SEAM baseline: the same layers, but the PCM refines max-normalised, winner-take-all CAMs.

    ``revised`` is a CAM in [0, 1] here, and no gradient flows from it to the logits.
    """

    def revise(self, logits: Tensor, taps: Taps[Tensor], images: Tensor) -> Tensor:
        """PCM of :func:`winner_take_all` of the logits, (B, K, h, w)."""
        return super().revise(winner_take_all(logits), taps, images)


def create_cam_net(
    backbone: str,
    num_classes: int,
    *,
    output_stride: int | None = None,
    pretrained: bool = True,
    freeze: bool = True,
    dropout: float = 0.5,
    batch_norm: BatchNormMode = "frozen",
) -> CamNet:
    """Build the CAM network of stage 1.

    Args:
        backbone: "tiny", "efficientnet_lite0" or "resnet38".
        num_classes: K, background included.
        output_stride: pixels per map pixel; None = the backbone's default (4, 16, 8).
        pretrained: take the ImageNet weights where pip has them, see :func:`create_backbone`.
        freeze: keep the backbone's early layers as they are, as in the paper; False trains all convolutions.
        dropout: spatial dropout on conv6.
        batch_norm: "frozen" as in the paper; "train" to train a net from scratch.

    Raises:
        ValueError: unknown backbone, stride, fewer than two classes.

    Example:
        >>> net = create_cam_net("tiny", 6)
        >>> net(torch.rand(1, 3, 96, 96)).logits.shape
        torch.Size([1, 6, 24, 24])

    Paper (Section 4.1): SEAM's network, trained with Eq. 5 and 6. Release: the same with "resnet38", whose names in the
    state dict are kept; its PCM acts on the logits.
    """
    features = create_backbone(backbone, output_stride=output_stride, pretrained=pretrained, freeze=freeze)
    net = CamNet(features, num_classes, dropout=dropout, batch_norm=batch_norm)
    return channels_last(net)


def create_seam_net(
    backbone: str,
    num_classes: int,
    *,
    output_stride: int | None = None,
    pretrained: bool = True,
    freeze: bool = True,
    dropout: float = 0.5,
    batch_norm: BatchNormMode = "frozen",
) -> SeamNet:
    """Build the SEAM baseline (Wang et al., CVPR 2020): :func:`create_cam_net` with another input of the PCM.

    Args:
        backbone: "tiny", "efficientnet_lite0" or "resnet38".
        num_classes: K, background included.
        output_stride: pixels per map pixel; None = the backbone's default (4, 16, 8).
        pretrained: take the ImageNet weights where pip has them, see :func:`create_backbone`.
        dropout: spatial dropout on conv6.
        batch_norm: "frozen" as published; "train" to train a net from scratch.
        freeze: False trains the backbone's early blocks too.

    Raises:
        ValueError: unknown backbone, stride or mode, fewer than two classes.

    Example:
        >>> net = create_seam_net("tiny", 6)
        >>> net(torch.rand(1, 3, 96, 96)).revised.shape
        torch.Size([1, 6, 24, 24])

    The paper's baseline (Section 4.1); layers and names as in SEAM's own release with "resnet38".
    """
    features = create_backbone(backbone, output_stride=output_stride, pretrained=pretrained, freeze=freeze)
    net = SeamNet(features, num_classes, dropout=dropout, batch_norm=batch_norm)
    return channels_last(net)
