"""Feature-similarity loss: Eq. 6-8.

:func:`all_pairs_loss` is the definition, ten lines over all pairs of pixels. :func:`feature_similarity_loss`, which training
calls, is the same number in a fraction of time and memory; the two are tested against each other.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsss_nb.fast.pairwise import MU_LIMIT, pairwise_form
from wsss_nb.system.errors import InputError, require

__all__ = [
    "MU_RANGE", "SIGMA_RANGE", "FeatureSimilarityLoss", "Normalization", "all_pairs_loss", "dissimilarity",
    "feature_similarity", "feature_similarity_loss", "spatial_weight"
]  # fmt: skip

Normalization = Literal["pixels", "pairs", "release"]
"""What the sum over pairs is divided by: HW, (HW)^2 as in Eq. 6, or HW / 2 (the release: 1 / HW with g = |a_i - a_j|^2)."""

MU_RANGE = (-4.0, 6.0)
"""Where a learned mu stays."""
SIGMA_RANGE = (0.5, 20.0)
"""Where a learned sigma stays, in pixels."""

# Far below, no pixel has a neighbour; far above, all of a map weigh the same; further out 1 / sigma^3 overflows.
SIGMA_LIMITS = (1e-3, 1e4)
_LIMITS = f"[{SIGMA_LIMITS[0]:g}, {SIGMA_LIMITS[1]:g}]"


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """Dissimilarity of two pixels' features (Section 3.3).

    ``delta = |a - b|_1 / C``

    Args:
        a: features, (..., C); for RGB C = 3 and values in [0, 1].
        b: features, broadcastable to ``a``.

    Returns:
        delta, (...), in [0, 1] for features in [0, 1]; 0 for equal pixels, 1 for black against white.

    Raises:
        ValueError: the last dimensions differ.

    Example:
        >>> dissimilarity(torch.tensor([0.2, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.5]))
        tensor(0.1000)

    Paper and release agree.
    """
    require(a.shape[-1:] == b.shape[-1:], f"b: expected (..., C) as in a = {tuple(a.shape)}, got {tuple(b.shape)}")
    return (a - b).abs().mean(dim=-1)


def feature_similarity(delta: Tensor, mu: float | Tensor) -> Tensor:
    """Map a dissimilarity to an attraction (-1) or a repulsion (+1) (Eq. 8).

    ``f = tanh(mu + log(delta / (1 - delta))) = (c delta^2 - (1 - delta)^2) / (c delta^2 + (1 - delta)^2)``
    with ``c = exp(2 mu)``

    The closed form needs no logarithm and is exact at delta = 0 and 1. f changes sign at
    delta = 1 / (1 + exp(mu)); df/dmu = 1 - f^2.

    Args:
        delta: dissimilarity in [0, 1], (...), any shape.
        mu: bias; the larger, the smaller the differences that repel. 2.5 crosses over at delta = 0.076.

    Returns:
        f, in [-1, 1], the shape of ``delta``.

    Example:
        >>> feature_similarity(torch.tensor([0.0, 0.5, 1.0]), mu=0.0)
        tensor([-1.,  0.,  1.])

    Paper: Eq. 8, undefined at delta = 0 and 1. Release: 1e-5 added to numerator and denominator of the logit, which
    the closed form makes unnecessary.
    """
    precise = delta.float() if delta.dtype in (torch.float16, torch.bfloat16) else delta
    mu = torch.as_tensor(mu, dtype=precise.dtype, device=delta.device).clamp(-MU_LIMIT, MU_LIMIT)
    far, near = torch.exp(mu) * precise.square(), torch.exp(-mu) * (1 - precise).square()
    return ((far - near) / (far + near)).to(delta.dtype)


def spatial_weight(offsets: Tensor, sigma: float | Tensor) -> Tensor:
    """Gaussian neighbourhood of two pixels (Eq. 7).

    ``w = (2 pi sigma^2)^-1 exp(-|p_i - p_j|^2 / (2 sigma^2))``

    Args:
        offsets: p_i - p_j, (..., 2), in pixels of the map (not of the image); integers count as torch's default
            float dtype.
        sigma: standard deviation in pixels of the map, 0.001 to 10000; a number, or a tensor that broadcasts.

    Returns:
        w, (...), sums to about one over the plane.

    Raises:
        ValueError: the last dimension is not 2, or sigma is outside [0.001, 10000].

    Example:
        >>> spatial_weight(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), sigma=5.0)
        tensor([0.0064, 0.0039])

    Paper and release agree.
    """
    require(offsets.shape[-1:] == (2,), f"offsets: expected (..., 2), got {tuple(offsets.shape)}")
    _check_sigma(sigma)
    if not offsets.is_floating_point():
        offsets = offsets.to(torch.get_default_dtype())
    sigma = torch.as_tensor(sigma, dtype=offsets.dtype, device=offsets.device)
    return torch.exp(-offsets.square().sum(dim=-1) / (2 * sigma**2)) / (2 * math.pi * sigma**2)


def all_pairs_loss(
    cam: Tensor, image: Tensor, mu: float | Tensor, sigma: float | Tensor, normalization: Normalization = "pixels"
) -> Tensor:
    """Feature-similarity loss (Eq. 6) as it is defined: over all pairs of pixels, differentiable in everything.

    ``L = -N sum_ij w_ij g_ij f_ij``, ``g = 1/2 |a_i - a_j|^2``; time and memory grow with (HW)^2

    Args:
        cam: a, (B, K, H, W).
        image: x, (B, C, H, W) with values in [0, 1].
        mu: bias of Eq. 8.
        sigma: standard deviation of Eq. 7 in pixels of the map.
        normalization: N as in :func:`feature_similarity_loss`.

    Returns:
        Scalar, the mean over the batch.

    Raises:
        ValueError: as :func:`spatial_weight`, or unknown ``normalization``.

    Example:
        >>> cam, image = torch.eye(2).view(1, 2, 1, 2), torch.zeros(1, 3, 1, 2)
        >>> all_pairs_loss(cam, image, mu=2.5, sigma=1.0)
        tensor(0.0965)

    Paper: Eq. 6 with ``pairs``. Release: with ``release``, over all pairs of the map as here.
    """
    B, _, H, W = cam.shape
    position = torch.cartesian_prod(torch.arange(H), torch.arange(W)).to(cam)
    a, x = cam.flatten(2).mT, image.flatten(2).mT
    w = spatial_weight(position[:, None] - position, sigma)
    f = feature_similarity(dissimilarity(x[:, :, None], x[:, None]), mu)
    g = (a[:, :, None] - a[:, None]).square().sum(dim=-1) / 2
    return -(w * g * f).sum() / (B * _pairs(H, W, normalization))


def feature_similarity_loss(
    cam: Tensor, image: Tensor, mu: float | Tensor, sigma: float | Tensor, normalization: Normalization = "pixels"
) -> Tensor:
    """Feature similarity loss (Eq. 6): nearby pixels that look alike shall be classified alike.

    ``L = -N sum_ij w_ij g_ij f_ij``, ``g = 1/2 |a_i - a_j|^2``, w of Eq. 7, f of Eq. 8, mean over the batch;
    ``N = 1/(HW)`` for ``pixels``, ``N = (HW)^-2`` for ``pairs``, ``N = 2/(HW)`` for ``release``

    Gradients flow to ``cam``, and to ``mu`` and ``sigma`` where these are tensors that require them; all are
    computed together with the value. The image is a constant. Second derivatives are not available.

    Memory grows with HW, time with HW times the window: parts of the map that lie more than about 8 sigma
    from each other (5.5 sigma in float32) are skipped. Their weights are below exp(-32), or exp(-15), times
    the weight of direct neighbours, which is below what the dtype resolves once neighbours contribute at all.

    Args:
        cam: a, (B, K, H, W).
        image: x, (B, C, h, w) with values in [0, 1], usually RGB; where it is larger than the map it is
            resized to it (bilinear, align_corners).
        mu: bias of Eq. 8; a number, or a one-element tensor.
        sigma: standard deviation of Eq. 7 in pixels of the map, 0.001 to 10000; a number, or a one-element tensor.
        normalization: ``pixels`` keeps the loss comparable between map sizes; ``pairs`` is Eq. 6 itself; ``release`` is the
            scale of the release, whose g has no 1/2.

    Returns:
        Scalar, negative where differing neighbours are classified differently. It has the dtype of ``cam``,
        or float32 for half-precision maps, which are computed in float32.

    Raises:
        ValueError: wrong shapes or dtypes, an image smaller than the map or with values outside [0, 1],
            ``mu`` not finite, ``sigma`` outside [0.001, 10000], unknown ``normalization``.

    Example:
        >>> cam, image = torch.eye(2).view(1, 2, 1, 2), torch.zeros(1, 3, 1, 2)
        >>> feature_similarity_loss(cam, image, mu=2.5, sigma=1.0)
        tensor(0.0965)

    Paper: ``pairs``, mu and sigma learned. Release: ``release`` (twice ``pixels``, 2 HW times ``pairs``), mu = 2.5 and
    sigma = 5 fixed, and a guard in f (see :func:`feature_similarity`).
    """
    if cam.ndim != 4 or cam.numel() == 0 or not cam.is_floating_point():
        raise InputError(f"cam: expected floats (B, K, H, W), got {cam.dtype} {tuple(cam.shape)}")
    B, _, H, W = cam.shape
    if image.ndim != 4 or image.shape[0] != B or image.numel() == 0 or not image.is_floating_point():
        raise InputError(f"image: expected floats (B, 3, h, w), B = {B}, got {image.dtype} {tuple(image.shape)}")
    h, w = image.shape[2:]
    require(h >= H and w >= W, f"image: expected at least the map's size {(H, W)}, got {(h, w)}")
    mu, sigma = (
        value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64) for value in (mu, sigma)
    )
    for name, value in (("mu", mu), ("sigma", sigma)):
        if value.numel() != 1:
            raise InputError(f"{name}: expected one number, got {value.tolist()}")
    scalars = [value.detach().to(image.device, torch.float64).view(()) for value in (*torch.aminmax(image), mu, sigma)]
    low, high, mu_value, sigma_value = torch.stack(scalars).tolist()  # together: each fetch waits for a GPU
    require(
        -1e-4 <= low <= high <= 1.0001, f"image: expected values in [0, 1], got values from {low:.4g} to {high:.4g}"
    )
    require(math.isfinite(mu_value), f"mu: expected one finite number, got {mu_value}")
    _check_sigma(sigma_value)
    scale = -1.0 / (B * _pairs(H, W, normalization))
    if (h, w) != (H, W):
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        image = F.interpolate(image, size=(H, W), mode="bilinear", align_corners=True)
    return _FeatureSimilarity.apply(cam, image, mu, sigma, (mu_value, sigma_value), scale)


class FeatureSimilarityLoss(nn.Module):
    """Feature similarity loss (Eq. 6) that holds mu and sigma, fixed or learned.

    ``value = v0 + room tanh(raw / room)``, room = distance from the initial value v0 to the bound
    that raw points to

    Learned values start exactly at ``mu`` and ``sigma`` (raw = 0) with dvalue/draw = 1, so that a learning
    rate acts in units of mu, or in pixels for sigma. They never leave ``mu_range`` and ``sigma_range``
    (closed intervals) and never become NaN: gradients that are not finite are dropped. Weight decay pulls
    them to their initial values. At the network's learning rate mu runs to its upper bound, where everything
    counts as dissimilar: give ``parameters()`` of this module a smaller rate of their own.

    Args:
        mu: initial or fixed bias of Eq. 8.
        sigma: initial or fixed standard deviation of Eq. 7, in pixels of the map.
        learnable: learn mu and sigma (parameters ``raw_mu`` and ``raw_sigma``), or keep them.
        normalization: as in :func:`feature_similarity_loss`.
        mu_range: finite bounds of a learned mu; the default allows cross-overs from delta = 0.98 down to 0.0025.
        sigma_range: bounds of a learned sigma, in pixels, from 0.001 to 10000.

    Raises:
        ValueError: ``mu`` or a bound not finite, ``sigma`` or a bound of it outside [0.001, 10000], unknown
            ``normalization``, or an initial value to be learned from that is not strictly inside its range.

    Example:
        >>> loss = FeatureSimilarityLoss(learnable=True)
        >>> loss.mu.item(), loss.sigma.item()
        (2.5, 5.0)

    Called with maps (B, K, H, W) and images (B, 3, h, w), it gives a scalar. Paper: learned, from initial
    values and with a parametrisation that it does not state. Release: fixed.
    """

    initial_mu: Tensor
    initial_sigma: Tensor

    def __init__(
        self, mu: float = 2.5, sigma: float = 5.0, learnable: bool = False, normalization: Normalization = "pixels",
        mu_range: tuple[float, float] = MU_RANGE, sigma_range: tuple[float, float] = SIGMA_RANGE
    ) -> None:  # fmt: skip
        super().__init__()
        require(math.isfinite(mu), f"mu: expected one finite number, got {mu}")
        _check_sigma(sigma)
        for name, value, (low, high) in (("mu", mu, mu_range), ("sigma", sigma, sigma_range)):
            finite, fits = math.isfinite(low) and math.isfinite(high), low < value < high
            require(finite, f"{name}_range: expected finite bounds, got {(low, high)}")
            require(fits or not learnable, f"{name}: expected {low} < {name} < {high} to be learned, got {value}")
        if not SIGMA_LIMITS[0] <= min(sigma_range) <= max(sigma_range) <= SIGMA_LIMITS[1]:
            raise InputError(f"sigma_range: expected bounds in {_LIMITS}, got {sigma_range}")
        _pairs(1, 1, normalization)  # refuses an unknown one at once
        self.normalization: Normalization = normalization
        self.mu_range, self.sigma_range = mu_range, sigma_range
        self.register_buffer("initial_mu", torch.tensor(float(mu)))
        self.register_buffer("initial_sigma", torch.tensor(float(sigma)))
        self.raw_mu, self.raw_sigma = (nn.Parameter(torch.zeros(())) if learnable else None for _ in range(2))

    @property
    def mu(self) -> Tensor:
        """Current mu, a scalar tensor; carries gradient if learnable."""
        return _bounded(self.initial_mu, self.raw_mu, self.mu_range)

    @property
    def sigma(self) -> Tensor:
        """Current sigma in pixels of the map, a scalar tensor; carries gradient if learnable."""
        return _bounded(self.initial_sigma, self.raw_sigma, self.sigma_range)

    def forward(self, cam: Tensor, image: Tensor) -> Tensor:
        """Loss of maps (B, K, H, W) with their images (B, 3, h, w), see :func:`feature_similarity_loss`."""
        return feature_similarity_loss(cam, image, self.mu, self.sigma, self.normalization)


class _FeatureSimilarity(torch.autograd.Function):
    """The scaled sum over pairs; saves its derivatives, which come with the value, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, cam: Tensor, image: Tensor, mu: Tensor, sigma: Tensor, numbers: tuple[float, float], scale: float
    ) -> Tensor:
        dtype = torch.promote_types(cam.dtype, torch.float32)
        with_scalars = any(ctx.needs_input_grad[2:4])
        with torch.autocast(cam.device.type, enabled=False):
            value, d_cam, *slopes = pairwise_form(cam.to(dtype), image.to(cam.device, dtype), *numbers, with_scalars)
        # Numbers nobody asked for stay where they are: bringing them to mu's device would wait for the GPU.
        if with_scalars:
            slopes = [
                (scale * slope).to(like.device, torch.promote_types(like.dtype, torch.float32)).view_as(like)
                for slope, like in zip(slopes, (mu, sigma), strict=True)
            ]
        # Not in half precision: what comes from above may be a loss scale that lifts them out of its underflow.
        ctx.save_for_backward(scale * d_cam, *slopes)
        ctx.dtypes = cam.dtype, mu.dtype, sigma.dtype
        return (scale * value).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cam, _, mu, sigma, *_ = ctx.needs_input_grad
        d_cam, d_mu, d_sigma = (
            (grad.to(derivative) * derivative).to(dtype) if needed else None
            for derivative, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, (cam, mu, sigma), strict=True)
        )
        return d_cam, None, d_mu, d_sigma, None, None


def _bounded(initial: Tensor, raw: Tensor | None, bounds: tuple[float, float]) -> Tensor:
    if raw is None:
        return initial
    raw = torch.nan_to_num(raw, nan=0.0)
    room = torch.where(raw >= 0, bounds[1] - initial, initial - bounds[0])
    value = (initial + room * torch.tanh(raw / room)).clamp(*bounds)
    if value.requires_grad:
        value.register_hook(lambda grad: grad.nan_to_num(0.0, 0.0, 0.0))
    return value


def _check_sigma(sigma: float | Tensor) -> None:
    values = sigma.detach().flatten().tolist() if isinstance(sigma, Tensor) else [sigma]
    for value in values:
        require(SIGMA_LIMITS[0] <= value <= SIGMA_LIMITS[1], f"sigma: expected a number in {_LIMITS}, got {value:g}")


def _pairs(H: int, W: int, normalization: Normalization) -> float:
    """1 / N of Eq. 6."""
    numbers = {"pixels": H * W, "pairs": (H * W) ** 2, "release": H * W / 2}
    require(normalization in numbers, f"normalization: expected one of {', '.join(numbers)}, got {normalization!r}")
    return numbers[normalization]
