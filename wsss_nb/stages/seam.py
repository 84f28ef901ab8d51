"""The losses of the baseline SEAM (Wang et al., CVPR 2020; Fig. 1e and Table 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.pseudo_labels import winner_take_all
from wsss_nb.stages.views import Batch

__all__ = ["seam_loss"]


def _to_size(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=True)


def _max_normalized(maps: Tensor, labels: Tensor) -> Tensor:
    """Non-negative maps divided by their maximum, absent classes 0."""
    maps = F.relu(maps)
    return maps / (maps.amax((2, 3), keepdim=True) + 1e-5) * labels[:, :, None, None]


def _one_class(maps: Tensor) -> Tensor:
    """Each pixel's largest foreground class, and 1 - max over the foreground as channel 0."""
    foreground = maps[:, 1:]
    return torch.cat([1 - foreground.amax(1, keepdim=True), winner_take_all(foreground, 1)], 1)


def _adaptive_min_pool(revised: Tensor, labels: Tensor) -> Tensor:
    """relu of the smallest quarter of the pixelwise maxima over the labelled foreground, averaged."""
    largest = (revised[:, 1:] * labels[:, 1:, None, None]).amax(1).flatten(1)
    quarter = max(1, largest.shape[1] // 4)
    return F.relu(largest.topk(quarter, largest=False).values).mean()


def _hardest(difference: Tensor, share: float = 0.2) -> Tensor:
    flat = difference.flatten(1)
    return flat.topk(max(1, int(share * flat.shape[1]))).values.mean()


def seam_loss(net: Any, batch: Batch) -> dict[str, Tensor]:
    """SEAM's classification, adaptive min pooling, equivariance (ER) and cross regularisation (ECR).

    Average pooling of the foreground logits with the multilabel soft margin, mean over both views; ER on the foreground
    maps; ECR on the hardest 20 %; adaptive min pooling of the revised maps. Maps are compared at the size of view 2's map.

    Returns:
        Named losses whose sum is minimised.

    Raises:
        ValueError: the batch has no view 2.
    """
    if batch.small_images is None or batch.small_features is None:
        raise ValueError("batch: expected view 2 (small_images, small_features), got none")
    labels = batch.labels
    one = net(batch.images, batch.features)
    two = net(batch.small_images, batch.small_features)
    logits = [_to_size(one.logits.float(), two.logits), two.logits.float()]
    revised = [_to_size(one.revised.float(), two.revised), two.revised.float()]
    classification = [
        F.multilabel_soft_margin_loss(output.logits.float()[:, 1:].mean((2, 3)), labels[:, 1:]) for output in (one, two)
    ]
    minimum = [_adaptive_min_pool(output.revised.float(), labels) for output in (one, two)]
    maps = [_max_normalized(value, labels) for value in logits]
    refined = [_max_normalized(value, labels) for value in revised]
    er = (maps[0][:, 1:] - maps[1][:, 1:]).abs().mean()
    pairs = [(maps[0], refined[1]), (maps[1], refined[0])]
    ecr = sum(_hardest((_one_class(other).detach() - rv).abs()) for other, rv in pairs)
    return {
        "classification": torch.stack(classification).mean(),
        "minimum": torch.stack(minimum).mean(),
        "er": er,
        "ecr": torch.as_tensor(ecr),
    }
