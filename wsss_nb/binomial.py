"""The binomial posterior of the authors' follow-up: a sigmoid per class in the place of Eq. 1's softmax.

A. Jonnarth, Y. Zhang, M. Felsberg, "High-fidelity Pseudo-labels for Boosting Weakly-Supervised Segmentation", WACV 2024.
"""

import torch
from torch import Tensor

__all__ = ["binomial_activation"]


def binomial_activation(logits: Tensor) -> Tensor:
    """Turn logits into the posteriors of independent binary problems, one for each foreground class.

    ``a_ijk = 1 / (1 + exp(-s_ijk))`` for k = 1 .. K-1, ``a_ij0 = 1 - max_k a_ijk``

    Classes do not exclude each other, so the maps do not sum to one. Importance sampling (Eq. 4-5) draws from the
    foreground maps; the feature-similarity loss (Eq. 6) compares all K.

    Args:
        logits: s, (B, K, H, W), background at class 0; its own logit plays no part.

    Returns:
        a, (B, K, H, W) in [0, 1].

    Example:
        >>> binomial_activation(torch.tensor([[[[9.0]], [[0.0]]]])).flatten()
        tensor([0.5000, 0.5000])

    The publication restates sampling and feature similarity so. Its release samples logits of the foreground with 10 draws
    at lambda 0.2 beside average pooling, and compares maps divided by their maximum in the feature-similarity loss.
    """
    foreground = torch.sigmoid(logits[:, 1:])
    return torch.cat([1 - foreground.amax(dim=1, keepdim=True), foreground], dim=1)
