"""Stage 3: DeepLab-v1 (Chen et al., ICLR 2015, LargeFOV) on the same backbones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone
from wsss_nb.models.dropout import Dropout
from wsss_nb.models.network import BatchNormMode, Network, channels_last
from wsss_nb.models.registry import BACKBONES, create_backbone

__all__ = ["DeepLab", "create_deeplab"]


class DeepLab(Network):
    """3x3 dilated convolution, 1x1 convolution (each with BatchNorm and ReLU), dropout, 1x1 to K classes.

    The state dict's backbone names begin with "backbone.", as published. The head's BatchNorm uses batch statistics
    whatever ``batch_norm`` says; a non-default ``momentum`` also holds for the backbone's.

    In the release all three convolutions of the head start from Kaiming's normal distribution by fan-out, the classifier's
    bias from torch's default, and the optimiser gets convolutions only, so that the affine parameters of BatchNorm stay 1
    and 0 (``released_head``). Otherwise, where nothing is published, the two inner convolutions start by fan-in, the
    classifier from Xavier's uniform distribution with bias 0, and the affine parameters are learned.

    Args:
        backbone: the feature extractor.
        num_classes: K, background included.
        width: channels of the head.
        dilation: of the 3x3 convolution, in map pixels.
        dropout: probability before the classifier.
        momentum: of the running statistics.
        batch_norm: what the backbone's BatchNorm does in training.
        released_head: start and train the head as in the release.

    Raises:
        ValueError: fewer than two classes, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        width: int = 512,
        dilation: int = 12,
        dropout: float = 0.5,
        momentum: float = 0.1,
        batch_norm: BatchNormMode = "frozen",
        released_head: bool = False,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes: expected background and at least one class, got {num_classes}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        super().__init__(backbone, prefixed=True, batch_norm=batch_norm)
        self.num_classes = num_classes
        inputs = backbone.channels.conv6
        self.conv_fov = nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_fov = nn.BatchNorm2d(width)
        self.conv_fov2 = nn.Conv2d(width, width, 1, bias=False)
        self.bn_fov2 = nn.BatchNorm2d(width)
        self.dropout = Dropout(dropout)
        self.cls_conv = nn.Conv2d(width, num_classes, 1)
        if released_head:
            for layer in (self.conv_fov, self.conv_fov2, self.cls_conv):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            for norm in (self.bn_fov, self.bn_fov2):
                norm.requires_grad_(False)
        else:
            nn.init.kaiming_normal_(self.conv_fov.weight, nonlinearity="relu")
            nn.init.kaiming_normal_(self.conv_fov2.weight, nonlinearity="relu")
            nn.init.xavier_uniform_(self.cls_conv.weight)
            assert self.cls_conv.bias is not None
            nn.init.zeros_(self.cls_conv.bias)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def from_frozen(self, features: Tensor, images: Tensor | None = None) -> Tensor:
        """Output of :meth:`frozen` -> logits (B, K, h, w); the images are not looked at."""
        x = self.taps(features).conv6
        x = F.relu(self.bn_fov(self.conv_fov(x)))
        x = F.relu(self.bn_fov2(self.conv_fov2(x)))
        return self.cls_conv(self.dropout(x)).contiguous()

    def forward(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images -> logits (B, K, h, w), h = ceil(H / stride); not upsampled.

        Args:
            images: (B, 3, H, W) in [0, 1].
            features: output of :meth:`frozen` where it is known; for wrappers that only see ``forward``.
        """
        return self.from_frozen(self.frozen(images) if features is None else features, images)


def create_deeplab(
    backbone: str,
    num_classes: int,
    *,
    output_stride: int | None = None,
    pretrained: bool = True,
    dropout: float = 0.5,
    batch_norm: BatchNormMode | None = None,
) -> DeepLab:
    """Build the DeepLab of stage 3.

    Args:
        backbone: "tiny", "efficientnet_lite0" or "resnet38".
        num_classes: K, background included.
        output_stride: pixels per map pixel; None = the backbone's default.
        pretrained: take the ImageNet weights where pip has them, see :func:`create_backbone`.
        dropout: before the classifier.
        batch_norm: None = "statistics" for ResNet-38 (batch statistics, affine parameters fixed, nothing
            frozen, as published), "frozen" for the others. Only with "frozen" are the early layers kept from
            training; otherwise ``frozen`` is no more than the normalisation of the images.

    Raises:
        ValueError: unknown backbone, stride or mode, fewer than two classes.

    Example:
        >>> create_deeplab("tiny", 6)(torch.rand(1, 3, 96, 96)).shape
        torch.Size([1, 6, 24, 24])

    Paper (Section 4.1): DeepLab-v1 (Chen et al., ICLR 2015). With "resnet38" layers, names and momentum are the
    release's; the widths of the other heads are ours.
    """
    spec = BACKBONES.get(backbone)
    mode = batch_norm or (spec.deeplab_batch_norm if spec else "frozen")
    freeze = mode == "frozen"
    features = create_backbone(backbone, output_stride=output_stride, pretrained=pretrained, freeze=freeze)
    assert spec is not None  # an unknown name was refused above
    net = DeepLab(
        features,
        num_classes,
        width=spec.deeplab_width,
        dilation=max(1, spec.deeplab_reach // features.stride),
        dropout=dropout,
        momentum=spec.deeplab_momentum,
        batch_norm=mode,
        released_head=spec.deeplab_released_head,
    )
    return channels_last(net)
