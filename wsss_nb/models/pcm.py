"""The pixel correlation module (PCM) of SEAM (Wang et al., CVPR 2020): maps refined by pixel affinities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Taps
from wsss_nb.models.network import BatchNormMode, Network

__all__ = ["PixelCorrelationNetwork", "pixel_correlation", "winner_take_all"]

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
    if (
        maps.ndim != 4
        or features.ndim != 4
        or (maps.shape[0], *maps.shape[2:])
        != (
            features.shape[0],
            *features.shape[2:],
        )
    ):
        raise ValueError(
            f"features: expected (B, C, h, w) beside maps {tuple(maps.shape)}, got {tuple(features.shape)}"
        )
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
    parts = []
    for columns in f.split(block, dim=2):
        parts.append(x @ F.relu(f.transpose(1, 2) @ columns, inplace=True))
    y = torch.cat(parts, dim=2)
    return (y[:, :-1] / (y[:, -1:] + _EPS)).view(maps.shape)


def winner_take_all(logits: Tensor) -> Tensor:
    """The maps that SEAM's PCM refines: detached, normalised by each class's maximum, one class per pixel.

    Foreground k: ``c_k = max(0, s_k - 1e-5) / (max over pixels of s_k + 1e-5)``, set to 0 where another
    foreground class is larger; background: ``c_0 = 1 - max_k c_k`` per pixel.

    Args:
        logits: s, (B, K, h, w), background at index 0.

    Returns:
        (B, K, h, w) without gradient.

    Example:
        >>> winner_take_all(torch.tensor([[[[9.0, 9.0]], [[4.0, 2.0]]]])).round(decimals=2)
        tensor([[[[0.0000, 0.5000]],
        <BLANKLINE>
                 [[1.0000, 0.5000]]]])

    SEAM's release (Wang et al., CVPR 2020); the paper's own release skips it, the paper does not mention it.
    """
    s = logits.detach()[:, 1:]
    c = F.relu(s - _EPS) / (s.amax(dim=(2, 3), keepdim=True) + _EPS)
    best = c.amax(dim=1, keepdim=True)
    return torch.cat([1 - best, torch.where(c < best, 0, c)], dim=1)


class PixelCorrelationNetwork(Network):
    """A network with the PCM's layers ``f8_3``, ``f8_4`` and ``f9`` at its root."""

    def __init__(self, backbone: Backbone, *, batch_norm: BatchNormMode = "frozen") -> None:
        super().__init__(backbone, batch_norm=batch_norm)
        channels, widths = backbone.channels, backbone.head_channels
        width = widths.conv4 + widths.conv5
        self.f8_3 = nn.Conv2d(channels.conv4, widths.conv4, 1, bias=False)
        self.f8_4 = nn.Conv2d(channels.conv5, widths.conv5, 1, bias=False)
        self.f9 = nn.Conv2d(3 + width, width, 1, bias=False)
        nn.init.kaiming_normal_(self.f8_3.weight)
        nn.init.kaiming_normal_(self.f8_4.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def correlation_features(self, taps: Taps[Tensor], images: Tensor, size: tuple[int, int]) -> Tensor:
        """The features g whose correlation is the affinity: (B, C, h, w) for ``size`` = (h, w).

        f9([image, relu(f8_3(conv4)), relu(f8_4(conv5))]): the taps are detached, so that the PCM does not
        train the backbone through them; the normalised image is resized bilinearly with aligned corners.
        """
        small = F.interpolate(self.normalize(images), size, mode="bilinear", align_corners=True)
        conv4, conv5 = F.relu(self.f8_3(taps.conv4.detach())), F.relu(self.f8_4(taps.conv5.detach()))
        if conv4.shape[2:] != size:
            conv4 = F.interpolate(conv4, size, mode="bilinear", align_corners=True)
        return self.f9(torch.cat([small.to(conv4.dtype), conv4, conv5], dim=1))
