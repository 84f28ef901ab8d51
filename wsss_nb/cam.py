"""Class activation maps: Eq. 1, the pooling of Eq. 2, and conditioning on image-level labels.

Tensors are channel-first with the background at class 0: logits and maps are (B, K, H, W).
"""

import torch
from torch import Tensor

from wsss_nb.system.errors import require

__all__ = ["class_activation_map", "condition_on_labels", "global_average_pool", "global_max_pool"]


def class_activation_map(logits: Tensor) -> Tensor:
    """Turn logits into per-pixel class probabilities (Eq. 1).

    ``a_ijk = exp(s_ijk) / sum_t exp(s_ijt)``

    Args:
        logits: s, (B, K, H, W), unnormalised, K counts the background.

    Returns:
        a, (B, K, H, W) in [0, 1], sums to one over the classes of each pixel; the dtype of ``logits``.

    Raises:
        ValueError: ``logits`` is not a floating-point (B, K, H, W) tensor with at least one element.

    Example:
        >>> class_activation_map(torch.zeros(1, 4, 2, 2))[0, :, 0, 0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])

    Paper and release agree.
    """
    check_maps("logits", logits)
    return torch.softmax(logits, dim=1)


def global_max_pool(cam: Tensor) -> Tensor:
    """Pool a map into image-level probabilities with its maximum (Eq. 2).

    ``y_k = max_ij a_ijk``

    The gradient goes to one pixel per class, the first maximum in row order where several are equal.

    Args:
        cam: a, (B, K, H, W) in [0, 1].

    Returns:
        y, (B, K) in [0, 1].

    Raises:
        ValueError: ``cam`` is not a floating-point (B, K, H, W) tensor with at least one element.

    Example:
        >>> global_max_pool(torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]]))
        tensor([[0.9000, 0.8000]])

    Paper: the (1 - lambda) term of Eq. 5. The release pools it by the average of the logits instead.
    """
    check_maps("cam", cam)
    return cam.flatten(2).max(dim=2).values


def global_average_pool(logits: Tensor) -> Tensor:
    """Pool logits into image-level logits with their mean.

    ``s_k = (H W)^-1 sum_ij s_ijk``

    Args:
        logits: s, (B, K, H, W), unnormalised.

    Returns:
        Image-level **logits** (B, K), unbounded; their sigmoid is the probability that the class is present.

    Raises:
        ValueError: ``logits`` is not a floating-point (B, K, H, W) tensor with at least one element.

    Example:
        >>> global_average_pool(torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]]))
        tensor([[ 2., -1.]])

    The usual head of a CAM network (Zhou et al., CVPR 2016) and the release's (1 - lambda) term; the paper pools
    by the maximum of the probabilities.
    """
    check_maps("logits", logits)
    return logits.mean(dim=(2, 3))


def condition_on_labels(cam: Tensor, labels: Tensor) -> Tensor:
    """Drop the classes that the image-level labels rule out, and renormalise.

    ``a'_ijk = y_k a_ijk / (sum_t y_t a_ijt + 1e-8)`` with ``y_0 = 1``

    Args:
        cam: a, (B, K, H, W) in [0, 1].
        labels: y, (B, K), 1 where the class is present and 0 elsewhere; the background is taken as present
            whatever ``labels[:, 0]`` says.

    Returns:
        a', (B, K, H, W) in [0, 1], zero for absent classes. A pixel that had all its mass on absent classes
        keeps the proportions of what is left; one with nothing left is zero everywhere. Half-precision maps
        are renormalised in float32 and returned in their own dtype.

    Raises:
        ValueError: ``cam`` is not a floating-point (B, K, H, W) tensor or ``labels`` is not (B, K).

    Example:
        >>> cam = torch.tensor([[[[0.2]], [[0.2]], [[0.6]]]])
        >>> condition_on_labels(cam, torch.tensor([[1, 1, 0]])).flatten()
        tensor([0.5000, 0.5000, 0.0000])

    In neither the equations nor the text of the paper; it is what the release does before it writes CAMs.
    """
    check_maps("cam", cam)
    require(
        labels.shape == cam.shape[:2], f"labels: expected (B, K) = {tuple(cam.shape[:2])}, got {tuple(labels.shape)}"
    )
    dtype = torch.promote_types(cam.dtype, torch.float32)
    present = labels.to(device=cam.device, dtype=dtype, copy=True)
    present[:, 0] = 1
    kept = cam.to(dtype) * present[:, :, None, None]
    return (kept / (kept.sum(dim=1, keepdim=True) + 1e-8)).to(cam.dtype)


def check_maps(name: str, maps: Tensor) -> None:
    """Raise ValueError, in the words of argument ``name``, unless ``maps`` is a non-empty floating (B, K, H, W) tensor."""
    shape = tuple(maps.shape)
    require(len(shape) == 4 and 0 not in shape, f"{name}: expected a non-empty (B, K, H, W) tensor, got {shape}")
    require(maps.is_floating_point(), f"{name}: expected a floating-point tensor, got {maps.dtype}")
