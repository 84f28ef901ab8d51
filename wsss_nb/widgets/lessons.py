"""What the lessons share: a few synthetic fish as tensors, and a training that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.cam import class_activation_map, condition_on_labels
from wsss_nb.data.synthetic import FISH, synthetic_sample
from wsss_nb.metrics import ContourFScore, MeanIoU, PartCoverage
from wsss_nb.models import CamNet, create_cam_net

__all__ = ["FishBatch", "cams", "draw_fish", "score_cams", "train_in_seconds"]

Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class FishBatch:
    """Synthetic images (N, 3, S, S) in 0..1, labels (N, K), masks and parts (N, S, S), class names (K)."""

    images: Tensor
    labels: Tensor
    masks: Tensor
    parts: Tensor
    names: tuple[str, ...]


def draw_fish(
    count: int, split: str = "train", seed: int = 0, size: int = 64, num_classes: int = 4, clutter: float = 0.3
) -> FishBatch:
    """Draw images of the synthetic data set into memory; K = num_classes counts the background."""
    samples = [
        synthetic_sample(seed, split, i, size=size, num_classes=num_classes, clutter=clutter) for i in range(count)
    ]
    labels = torch.zeros(count, num_classes)
    for row, sample in zip(labels, samples, strict=True):
        row[[0, *sample.classes]] = 1
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2) / 255
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples]))
    parts = torch.from_numpy(np.stack([sample.part for sample in samples]))
    names = ("background", *(fish.name for fish in FISH[: num_classes - 1]))
    return FishBatch(images.contiguous(), labels, masks, parts, names)


def train_in_seconds(
    loss_of: Loss,
    fish: FishBatch,
    *,
    steps: int = 250,
    learning_rate: float = 0.05,
    batch_size: int = 16,
    seed: int = 0,
    net: CamNet | None = None,
    watch: Callable[[int, CamNet], None] | None = None,
) -> tuple[CamNet, list[float]]:
    """Train the tiny CAM network (without its PCM) on image-level labels; SGD, polynomial decay, flips
    and quarter turns.

    Args:
        loss_of: loss of logits (B, K, h, w) and labels (B, K), given a random generator.
        fish: training images.
        steps: number of batches.
        learning_rate: of the first step.
        batch_size: images in a batch.
        seed: of the weights, the batches and the draws.
        net: network to go on with (it is changed); a fresh one if None.
        watch: called with the step number (0 first, ``steps`` last) and the network in eval mode.

    Returns:
        The network in eval mode and the loss of every step.
    """
    if net is None:
        torch.manual_seed(seed)
        net = create_cam_net("tiny", fish.labels.shape[1], pretrained=False, batch_norm="train", dropout=0.0)
    weights = [*net.backbone.parameters(), *net.fc8.parameters()]
    optimizer = torch.optim.SGD(weights, learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 0.9)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for step in range(steps):
        if watch is not None:
            watch(step, net.eval())
        net.train()
        chosen = torch.randint(len(fish.images), (batch_size,), generator=generator)
        images = fish.images[chosen]
        for axis in (2, 3):
            if torch.rand((), generator=generator) < 0.5:
                images = images.flip(axis)
        if torch.rand((), generator=generator) < 0.5:
            images = images.transpose(2, 3)
        loss = loss_of(net(images, revise=False).logits, fish.labels[chosen], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    if watch is not None:
        watch(steps, net.eval())
    return net.eval(), losses


def cams(net: CamNet, fish: FishBatch) -> Tensor:
    """Maps of Eq. 1, conditioned on the image-level labels, at image size, (N, K, S, S)."""
    with torch.inference_mode():
        logits = net(fish.images, revise=False).logits
        maps = condition_on_labels(class_activation_map(logits), fish.labels)
        return F.interpolate(maps, size=fish.images.shape[2:], mode="bilinear")


def score_cams(maps: Tensor, fish: FishBatch) -> dict[str, float]:
    """Argmax of maps (N, K, S, S) against the masks: head, body, background (fractions found), miou, contour_f."""
    found = maps.argmax(1).to(torch.uint8)
    parts, miou, contour = PartCoverage(), MeanIoU(maps.shape[1]), ContourFScore(maps.shape[1])
    parts.update(found, fish.masks, fish.parts)
    miou.update(found, fish.masks)
    contour.update(found, fish.masks)
    return {**parts.compute(), "miou": miou.compute()["miou"], "contour_f": contour.compute()["contour_f"]}
