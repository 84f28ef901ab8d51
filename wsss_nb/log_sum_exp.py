"""Log-sum-exp pooling (Pinheiro and Collobert, CVPR 2015): between the average and the maximum of a class's logits."""

import math

from torch import Tensor

__all__ = ["log_sum_exp_pool"]

SHARPNESS = 4.0


def log_sum_exp_pool(logits: Tensor, r: float = SHARPNESS) -> Tensor:
    """Pool logits into image-level logits by a smooth maximum.

    ``s_k = 1/r log( (H W)^-1 sum_ij exp(r s_ijk) )``; the mean as r goes to 0, the maximum as r grows

    Args:
        logits: s, (B, K, H, W), unnormalised.
        r: sharpness, above 0.

    Returns:
        Image-level logits (B, K); their sigmoid is the probability that the class is present.

    Raises:
        ValueError: ``r`` is not a finite number above 0.

    Example:
        >>> import torch
        >>> log_sum_exp_pool(torch.tensor([[[[0.0, 1.0]]]])).round(decimals=3)
        tensor([[0.8313]])

    Neither the paper nor its release pools so. Pinheiro and Collobert (2015), Section 3.1, leave r open.
    """
    if not 0 < r < math.inf:
        raise ValueError(f"r: expected a finite number above 0, got {r}")
    scores = logits.flatten(2)
    return (scores * r).logsumexp(dim=2).sub(math.log(scores.shape[2])) / r
