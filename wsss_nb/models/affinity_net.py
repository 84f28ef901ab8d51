"""AffinityNet of stage 2."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.models.backbone import Backbone
from wsss_nb.models.networks import Network, channels_last, create_backbone

__all__ = ["AffinityNet", "create_affinity_net"]


class AffinityNet(Network):
    """AffinityNet (Ahn and Kwak, CVPR 2018): features whose differences are pixel affinities.

    f = elu(f9([elu(f8_3(conv4)), elu(f8_4(conv5)), elu(f8_5(conv6))])), all 1x1 without bias. The affinity of pixels i and j
    is exp(-mean_c |f_ci - f_cj|), see ``wsss_nb.affinity``.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.add_pixel_layers(levels=3)

    def forward(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images -> affinity features (B, C, h, w), h = ceil(H / stride).

        Args:
            images: (B, 3, H, W) in [0, 1]; not looked at where the features are given.
            features: output of :meth:`frozen` where it is known.
        """
        taps = self.taps(images, features)
        parts = [F.elu(layer(tap)) for layer, tap in zip((self.f8_3, self.f8_4, self.f8_5), taps, strict=True)]
        return F.elu(self.f9(torch.cat(parts, dim=1))).contiguous()


def create_affinity_net(backbone: str, *, pretrained: bool = True) -> AffinityNet:
    """Build the AffinityNet of stage 2 (Ahn and Kwak 2018, Sec. 3.2).

    Args:
        backbone: "tiny", "efficientnet_lite0" or "resnet38".
        pretrained: take the ImageNet weights where pip has them, see :func:`create_backbone`.

    Raises:
        ValueError: unknown backbone.

    Example:
        >>> create_affinity_net("tiny")(torch.rand(1, 3, 96, 96)).shape
        torch.Size([1, 96, 24, 24])

    Paper (Section 4.1): trained on the CAMs, no changes named. With "resnet38" layers and names are the release's.
    """
    return channels_last(AffinityNet(create_backbone(backbone, pretrained=pretrained)))
