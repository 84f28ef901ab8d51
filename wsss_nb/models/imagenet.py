"""A plain ImageNet classifier, to compute a class activation map by hand."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_nb.models.efficientnet import EfficientNetLite0, load_imagenet_weights
from wsss_nb.models.network import Network, channels_last

__all__ = ["ImageNetClassifier", "create_imagenet_classifier"]


class ImageNetClassifier(Network):
    """EfficientNet-Lite0 with its 1000-way layer: y_c = b_c + sum_k W_ck mean_ij f_kij.

    Because pooling and the last layer are both linear, sum_k W_ck f_kij + b_c is the class activation map of
    class c (Zhou et al., CVPR 2016). ``fc.weight`` is W (1000, 1280), ``fc.bias`` b (1000). The network is in
    eval mode and needs no gradients.
    """

    def __init__(self, output_stride: int = 32) -> None:
        backbone = EfficientNetLite0(output_stride)
        super().__init__(backbone)
        self.fc = nn.Linear(backbone.channels.conv6, 1000)
        state = load_imagenet_weights()
        last = {key.removeprefix("_fc."): state.pop(key) for key in ("_fc.weight", "_fc.bias")}
        backbone.load_state_dict(state)
        backbone.pretrained = True
        self.fc.load_state_dict(last)
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
