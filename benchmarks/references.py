"""The straightforward way to write what the library computes: yardsticks for time, and second opinions."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from wsss_nb.affinity import pair_indices
from wsss_nb.crf import CRFConfig

__all__ = ["all_pairs_crf", "all_pairs_loss", "contour_by_dilation", "dense_random_walk", "one_view_at_a_time"]


def all_pairs_loss(cam: Tensor, image: Tensor, mu: Tensor | float, sigma: Tensor | float) -> Tensor:
    """Eq. 6-8 with every matrix of pixel pairs written out."""
    B, _, H, W = cam.shape
    a, x = (maps.flatten(2).transpose(1, 2) for maps in (cam, image))
    delta = torch.cdist(x, x, p=1) / x.shape[2]
    f = torch.tanh(mu + torch.log((delta + 1e-5) / (1 - delta + 1e-5)))
    g = torch.cdist(a, a).square() / 2
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], dim=1).to(cam)
    w = torch.exp(-torch.cdist(place, place).square() / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    return -(w * g * f).sum() / (B * H * W)


def all_pairs_crf(
    image: np.ndarray, probabilities: np.ndarray, config: CRFConfig, device: str | torch.device = "cpu"
) -> np.ndarray:
    """The dense CRF's marginals in float64, with both matrices of pixel pairs written out."""
    place = torch.from_numpy(np.indices(image.shape[:2]).reshape(2, -1).T).to(device, torch.float64)
    colour = torch.from_numpy(image.reshape(-1, 3)).to(place)
    scores = torch.from_numpy(probabilities).to(place).flatten(1).clamp(1e-5, 1).log()
    matrices = []
    for compat, features in (
        (config.gaussian_compat, place / config.gaussian_sxy),
        (config.bilateral_compat, torch.cat([place / config.bilateral_sxy, colour / config.bilateral_srgb], 1)),
    ):
        matrix = torch.exp(-0.5 * torch.cdist(features, features).square())
        normalizer = matrix.sum(1).rsqrt()
        matrices.append(compat * normalizer[:, None] * matrix * normalizer)
    marginals = scores.softmax(0)
    for _ in range(config.iterations):
        marginals = torch.stack([scores, *(marginals @ matrix for matrix in matrices)]).sum(0).softmax(0)
    return marginals.view(probabilities.shape).cpu().numpy()


def contour_by_dilation(prediction: np.ndarray, target: np.ndarray, num_classes: int) -> np.ndarray:
    """Contour matches with a disk dilation of the whole image for every class."""
    radius = math.ceil(0.008 * math.hypot(*target.shape))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = y**2 + x**2 <= radius**2
    matches = np.zeros((num_classes - 1, 4), dtype=np.int64)
    for label in range(1, num_classes):
        true, found = _boundary(target == label), _boundary(prediction == label)
        matches[label - 1] = (
            np.sum(true & ndimage.binary_dilation(found, disk)),
            np.sum(found & ndimage.binary_dilation(true, disk)),
            true.sum(),
            found.sum(),
        )
    return matches


def _boundary(mask: np.ndarray) -> np.ndarray:
    edge = np.zeros_like(mask)
    edge[:-1, :-1] = (
        (mask[:-1, :-1] ^ mask[:-1, 1:]) | (mask[:-1, :-1] ^ mask[1:, :-1]) | (mask[:-1, :-1] ^ mask[1:, 1:])
    )
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def dense_random_walk(scores: Tensor, affinity: Tensor, beta: float, log_t: int) -> Tensor:
    """The random walk as a dense matrix, squared ``log_t`` times."""
    K, H, W = scores.shape
    start, end = pair_indices(5, H, W)
    matrix = torch.eye(H * W, dtype=affinity.dtype)
    for to, values in zip(end, affinity, strict=True):
        matrix[start, to] = values
        matrix[to, start] = values
    matrix = matrix**beta
    matrix /= matrix.sum(0, keepdim=True)
    for _ in range(log_t):
        matrix = matrix @ matrix
    return (scores.flatten(1) @ matrix).view(K, H, W)


@torch.inference_mode()
def one_view_at_a_time(
    net: torch.nn.Module, image: np.ndarray, labels: np.ndarray, scales: tuple[float, ...]
) -> np.ndarray:
    """Multi-scale flip inference of foreground CAMs, one float32 forward pass per view."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    size = image.shape[:2]
    present = torch.from_numpy(labels).float().view(1, -1, 1, 1)
    maps = []
    for scale in scales:
        wanted = (round(size[0] * scale), round(size[1] * scale))
        scaled = tensor
        if scale != 1:
            scaled = F.interpolate(tensor, wanted, mode="bicubic", antialias=scale < 1).clamp(0, 1)
        for flipped in (False, True):
            view = scaled.flip(-1) if flipped else scaled
            cam = net(view, revise=False).logits.softmax(1) * present
            cam = cam / cam.sum(1, keepdim=True).clamp(min=1e-8)
            cam = cam.flip(-1) if flipped else cam
            maps.append(F.interpolate(cam[:, 1:], size, mode="bilinear"))
    return torch.cat(maps).mean(0).numpy()
