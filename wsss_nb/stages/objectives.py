"""The losses of stage 1: classification, siamese equivariance and feature similarity; and those of SEAM."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.cam import class_activation_map
from wsss_nb.sampling import classification_loss, image_level_loss
from wsss_nb.similarity import FeatureSimilarityLoss
from wsss_nb.stages.config import CamConfig
from wsss_nb.stages.engine import NotFiniteError
from wsss_nb.stages.views import Batch

__all__ = ["equivariance_loss", "paper_objective", "seam_objective"]


def _to_size(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=True)


def equivariance_loss(cam1: Tensor, cam2: Tensor, revised1: Tensor, revised2: Tensor) -> dict[str, Tensor]:
    r"""Siamese terms of the release, equally weighted; view 1 is resized to view 2's map (bilinear, align_corners).

    ER = mean|a1 - a2| + mean|r1 - r2| + mean|a1 - r1| + mean|a2 - r2|, ECR = mean|a1 - r2| + mean|a2 - r1|.

    Args:
        cam1, cam2: softmax maps of both views, (B, K, h1, w1) and (B, K, h2, w2).
        revised1, revised2: the same of the PCM's revised logits.

    Returns:
        ``er`` and ``ecr``, scalars.
    """
    cam1, revised1 = _to_size(cam1, cam2), _to_size(revised1, revised2)
    er = sum(
        (a - b).abs().mean()
        for a, b in [(cam1, cam2), (revised1, revised2), (cam1, revised1), (cam2, revised2)]
    )
    ecr = (cam1 - revised2).abs().mean() + (cam2 - revised1).abs().mean()
    return {"er": torch.as_tensor(er), "ecr": ecr}


def paper_objective(
    net: Any, batch: Batch, config: CamConfig, similarity: FeatureSimilarityLoss, generator: torch.Generator
) -> dict[str, Tensor]:
    r"""Eq. 5 on the plain maps, max pooling on the revised ones, ER, ECR and Eq. 6 on view 1.

    Without ``config.siamese`` the network shows view 1 alone and neither PCM nor siamese terms enter. The
    feature-similarity term is scaled as in the release, weight * 2 * L_fs, in the "pixels" normalisation, and is
    weight * L_fs of Eq. 6 in the "pairs" normalisation, whose weight the paper does not state.

    Returns:
        Named losses, already weighted; their sum is minimised.

    Raises:
        NotFiniteError: the logits are not finite; no pixel can be drawn from such a map.
        ValueError: view 2 is missing where ``config.siamese`` asks for it.
    """
    views = [(batch.images, batch.features)]
    if config.siamese:
        if batch.small_images is None or batch.small_features is None:
            raise ValueError(
                "batch: expected view 2 (small_images, small_features) with siamese=True, got none"
            )
        views.append((batch.small_images, batch.small_features))
    losses: dict[str, Tensor] = {}
    cams, revised = [], []
    for number, (images, features) in enumerate(views, start=1):
        output = net.from_frozen(features, images, revise=config.siamese)
        logits = output.logits.float()
        if not logits.isfinite().all():
            raise NotFiniteError(f"the logits of view {number} are not finite")
        cams.append(class_activation_map(logits))
        losses[f"classification{number}" if config.siamese else "classification"] = classification_loss(
            cams[-1],
            batch.labels,
            config.weight,
            num_samples=config.num_samples,
            pooling=config.pooling,
            logits=logits,
            background=config.sample_background,
            generator=generator,
            eps=config.eps,
        )
        if config.siamese:
            revised.append(class_activation_map(output.revised.float()))
            losses[f"revised{number}"] = image_level_loss(revised[-1].amax((2, 3)), batch.labels, config.eps)
    if config.siamese:
        losses |= equivariance_loss(cams[0], cams[1], revised[0], revised[1])
    if config.similarity_weight > 0:
        scale = 2 if config.similarity_normalization == "pixels" else 1
        losses["similarity"] = scale * config.similarity_weight * similarity(cams[0], batch.images)
    return losses


def _max_normalized(maps: Tensor, labels: Tensor) -> Tensor:
    """Non-negative maps divided by their maximum, absent classes 0."""
    maps = F.relu(maps)
    return maps / (maps.amax((2, 3), keepdim=True) + 1e-5) * labels[:, :, None, None]


def _with_background(maps: Tensor) -> Tensor:
    """Replace channel 0 by 1 - max over the foreground."""
    return torch.cat([1 - maps[:, 1:].amax(1, keepdim=True), maps[:, 1:]], 1)


def _winner_takes_all(maps: Tensor) -> Tensor:
    """Keep the background and each pixel's largest foreground class."""
    foreground = maps[:, 1:]
    return torch.cat([maps[:, :1], foreground * (foreground == foreground.amax(1, keepdim=True))], 1)


def _adaptive_min_pool(revised: Tensor, labels: Tensor) -> Tensor:
    """relu of the smallest quarter of the pixelwise maxima over the labelled foreground, averaged."""
    largest = (revised[:, 1:] * labels[:, 1:, None, None]).amax(1).flatten(1)
    quarter = max(1, largest.shape[1] // 4)
    return F.relu(largest.topk(quarter, largest=False).values).mean()


def _hardest(difference: Tensor, share: float = 0.2) -> Tensor:
    flat = difference.flatten(1)
    return flat.topk(max(1, int(share * flat.shape[1]))).values.mean()


def seam_objective(net: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """The baseline SEAM (Wang et al., CVPR 2020; Fig. 1e and Table 1): REFERENCE section 1, last paragraph.

    Average pooling of the foreground logits with the multilabel soft margin, mean over both views; ER on the foreground
    maps; ECR on the hardest 20 %; adaptive min pooling of the revised maps. ``generator`` is not used: SEAM draws nothing.

    Returns:
        Named losses whose sum is minimised.
    """
    if batch.small_images is None or batch.small_features is None:
        raise ValueError("batch: expected view 2 (small_images, small_features), got none")
    labels = batch.labels
    one = net.from_frozen(batch.features, batch.images)
    two = net.from_frozen(batch.small_features, batch.small_images)
    logits = [_to_size(one.logits.float(), two.logits), two.logits.float()]
    revised = [_to_size(one.revised.float(), two.revised), two.revised.float()]
    classification = [
        F.multilabel_soft_margin_loss(output.logits.float()[:, 1:].mean((2, 3)), labels[:, 1:])
        for output in (one, two)
    ]
    minimum = [_adaptive_min_pool(maps.float(), labels) for maps in (one.revised, two.revised)]
    maps = [_max_normalized(value, labels) for value in logits]
    refined = [_max_normalized(value, labels) for value in revised]
    er = (maps[0][:, 1:] - maps[1][:, 1:]).abs().mean()
    ecr = sum(
        _hardest((_winner_takes_all(_with_background(other)).detach() - rv).abs())
        for other, rv in [(maps[0], refined[1]), (maps[1], refined[0])]
    )
    return {
        "classification": torch.stack(classification).mean(),
        "minimum": torch.stack(minimum).mean(),
        "er": er,
        "ecr": torch.as_tensor(ecr),
    }
