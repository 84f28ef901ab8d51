"""DeepLab-v1 of stage 3."""

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Dropout
from wsss_nb.models.networks import BACKBONES, BackboneSpec, Network, channels_last, check_head, create_backbone

__all__ = ["DeepLab", "create_deeplab"]


class DeepLab(Network):
    """DeepLab-v1 (Chen et al., ICLR 2015, LargeFOV).

    3x3 dilated convolution, 1x1 convolution (each with BatchNorm and ReLU), dropout, 1x1 to K classes.

    The state dict's backbone names begin with "backbone.", as published. The head's BatchNorm uses batch statistics
    whatever ``batch_norm`` says; the momentum of its running statistics also holds for the backbone's.

    In the release all three convolutions of the head start from Kaiming's normal distribution by fan-out, the classifier's
    bias from torch's default, and the optimiser gets convolutions only, so that the affine parameters of BatchNorm stay 1
    and 0 (``spec.deeplab_released``). Otherwise, where nothing is published, the two inner convolutions start by
    fan-in, the classifier from Xavier's uniform distribution with bias 0, and the affine parameters are learned.

    Args:
        backbone: the feature extractor.
        num_classes: K, background included.
        spec: the backbone's record, with the head's width, reach, momentum and start.

    Raises:
        ValueError: fewer than two classes.
    """

    def __init__(self, backbone: Backbone, num_classes: int, spec: BackboneSpec) -> None:
        check_head(num_classes)
        released = spec.deeplab_released
        super().__init__(backbone, prefixed=True, batch_norm="statistics" if released else "frozen")
        self.num_classes = num_classes
        width, dilation = spec.deeplab_width, max(1, spec.deeplab_reach // backbone.stride)
        self.conv_fov = nn.Conv2d(backbone.channels.conv6, width, 3, 1, dilation, dilation, bias=False)
        self.bn_fov = nn.BatchNorm2d(width)
        self.conv_fov2 = nn.Conv2d(width, width, 1, bias=False)
        self.bn_fov2 = nn.BatchNorm2d(width)
        self.dropout = Dropout(0.5)
        self.cls_conv = nn.Conv2d(width, num_classes, 1)
        for conv, norm in ((self.conv_fov, self.bn_fov), (self.conv_fov2, self.bn_fov2)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out" if released else "fan_in", nonlinearity="relu")
            norm.requires_grad_(not released)
        if released:
            nn.init.kaiming_normal_(self.cls_conv.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(self.cls_conv.weight)
            nn.init.zeros_(self.cls_conv.get_parameter("bias"))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 3e-4 if released else 0.1

    def forward(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images -> logits (B, K, h, w), h = ceil(H / stride); not upsampled.

        Args:
            images: (B, 3, H, W) in [0, 1]; not looked at where the features are given.
            features: output of :meth:`frozen` where it is known.
        """
        x = self.taps(images, features).conv6
        x = F.relu(self.bn_fov(self.conv_fov(x)))
        x = F.relu(self.bn_fov2(self.conv_fov2(x)))
        return self.cls_conv(self.dropout(x)).contiguous()


def create_deeplab(backbone: str, num_classes: int, *, pretrained: bool = True) -> DeepLab:
    """Build the DeepLab of stage 3.

    Args:
        backbone: "tiny", "efficientnet_lite0" or "resnet38".
        num_classes: K, background included.
        pretrained: take the ImageNet weights where pip has them, see :func:`create_backbone`.

    ResNet-38's BatchNorm uses batch statistics (affine parameters fixed) and nothing is frozen, as published; ``frozen`` is
    then no more than the normalisation of the images. That of the others is frozen, and so are their early layers.

    Raises:
        ValueError: unknown backbone, or fewer than two classes.

    Example:
        >>> create_deeplab("tiny", 6)(torch.rand(1, 3, 96, 96)).shape
        torch.Size([1, 6, 24, 24])

    Paper (Section 4.1): DeepLab-v1 (Chen et al., ICLR 2015). With "resnet38" layers, names and momentum are the
    release's; the widths of the other heads are ours.
    """
    features = create_backbone(backbone, pretrained=pretrained)
    spec = BACKBONES[backbone]
    features.freeze = not spec.deeplab_released
    return channels_last(DeepLab(features, num_classes, spec))
