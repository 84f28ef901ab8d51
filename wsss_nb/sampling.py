"""Importance sampling of image-level predictions and the classification loss: Eq. 3-5.

Where gradients flow: the *place* of a draw is a random choice and passes no gradient; the *value* of the map
at that place does. The probabilities of Eq. 4 are therefore constants in the backward pass.
"""

import inspect
from collections.abc import Callable
from functools import partial
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.cam import check_maps, global_average_pool, global_max_pool
from wsss_nb.system.errors import InputError, require
from wsss_nb.system.plugins import is_plugin, load_function
from wsss_nb.system.processes import draw_rows

__all__ = [
    "POOLINGS", "Pooling", "classification_loss", "draw_pixels", "expected_image_level_loss", "find_pooling",
    "image_level_loss", "image_level_loss_with_logits", "importance_sample", "sampling_probabilities"
]  # fmt: skip

Pooling = Callable[[Tensor], Tensor]
"""What the (1 - lambda) term of Eq. 5 pools. The name of its parameter tells: ``logits`` (B, K, H, W) become image-level
logits (B, K), any other parameter takes the maps of Eq. 1 and gives probabilities (B, K)."""

POOLINGS: dict[str, Pooling] = {"max": global_max_pool, "average": global_average_pool}
"""The poolings by name: the maximum of the map (paper, Eq. 2) and the mean logit (release)."""

ROUNDING = 2**-7  # how far a probability in bfloat16 may come out above 1


def sampling_probabilities(cam: Tensor) -> Tensor:
    """Return the probability mass function over pixels that each class map induces (Eq. 4).

    ``p_k(i, j) = a_ijk / sum_ij a_ijk``

    Args:
        cam: a, (B, K, H, W), non-negative and finite.

    Returns:
        p, (B, K, H, W), sums to one over the pixels of each map; float32 for half-precision maps, else the
        dtype of ``cam``. A map that is zero everywhere gives the uniform distribution. Carries no gradient.

    Raises:
        ValueError: ``cam`` is not a floating-point (B, K, H, W) tensor, or has negative or non-finite values.

    Example:
        >>> sampling_probabilities(torch.tensor([[[[0.3, 0.1]]]]))
        tensor([[[[0.7500, 0.2500]]]])

    Paper and release agree; the paper leaves the all-zero map open.
    """
    mass = _mass(cam).to(torch.promote_types(cam.dtype, torch.float32))
    return (mass / mass.sum(dim=2, keepdim=True)).view(cam.shape)


def draw_pixels(cam: Tensor, num_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Draw pixels of each class map, with replacement, from Eq. 4.

    ``(i, j) ~ p_k(i, j)``, by inversion of the cumulative sum in float64

    Args:
        cam: a, (B, K, H, W), non-negative and finite.
        num_samples: S, draws per image and class, at least 1.
        generator: source of randomness, on any device; the default one of the map's device if None.

    Returns:
        Pixel numbers ``i * W + j`` (row i, column j), int64 (B, K, S). A pixel of probability zero is never
        drawn, except from a map that is zero everywhere, which is drawn from uniformly.

    Raises:
        ValueError: as :func:`sampling_probabilities`, or ``num_samples`` is not a positive integer.

    Example:
        >>> draw_pixels(torch.tensor([[[[0.0, 0.7, 0.0]]]]), num_samples=2)
        tensor([[[1, 1]]])

    The draw of Section 3.2, paper and release alike; both leave open how it is made.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, Integral) or num_samples < 1:
        raise InputError(f"num_samples: expected an integer of at least 1, got {num_samples!r}")
    cumulative = _mass(cam).cumsum(dim=2)
    total = cumulative[..., -1:].contiguous()
    device = cam.device if generator is None else generator.device
    draw = partial(torch.rand, dtype=torch.float64, device=device, generator=generator)
    uniform = draw_rows(draw, (*cam.shape[:2], int(num_samples))).to(cam.device)
    pixels = torch.searchsorted(cumulative, uniform * total, right=True)
    # uniform * total may round up to total; the last pixel with any mass is the right answer then.
    return torch.minimum(pixels, torch.searchsorted(cumulative, total))


def importance_sample(cam: Tensor, num_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Predict at image level by the map's value at randomly drawn pixels (Section 3.2).

    ``y_k = a_ijk`` with ``(i, j) ~ p_k`` of Eq. 4

    The gradient flows through the drawn value a_ijk only: for each draw it is one at the drawn pixel and zero
    elsewhere; the draw itself and p_k are constants.

    Args:
        cam: a, (B, K, H, W) in [0, 1].
        num_samples: S, draws per image and class, with replacement.
        generator: source of randomness, on any device.

    Returns:
        y, (B, K, S), in the dtype of ``cam``.

    Raises:
        ValueError: as :func:`draw_pixels`.

    Example:
        >>> importance_sample(torch.tensor([[[[0.0, 0.7, 0.0]]]]), num_samples=2)
        tensor([[[0.7000, 0.7000]]])

    Paper: one draw per class. Release: 100 draws, their losses averaged.
    """
    return cam.flatten(2).gather(2, draw_pixels(cam, num_samples, generator))


def image_level_loss(
    probabilities: Tensor, labels: Tensor, eps: float = 1e-3, background: bool = True, name: str = "probabilities"
) -> Tensor:
    """Binary cross-entropy of image-level probabilities (Eq. 3), averaged over the batch and the draws.

    ``L = -1/K sum_k y_k log q_k + (1 - y_k) log(1 - q_k)``, ``q = (p (1 - e) + e) / (1 + e)``

    q lies in [e / (1 + e), 1 / (1 + e)], so the loss stays finite: Eq. 3 with p kept about e away from 0 and
    1, without a clamp's loss of gradient there.

    Args:
        probabilities: p, (B, K) or (B, K, S) in [0, 1]; up to 2^-7 outside counts as rounding, and as 0 or 1. NaN
            makes the loss NaN.
        labels: y, (B, K), 1 where the class is present, 0 elsewhere, or in between; any dtype.
        eps: e, in (0, 0.5).
        background: average over all K classes, or over the foreground classes 1..K-1 only.
        name: what errors call the probabilities.

    Returns:
        Scalar in nats; float32 for half-precision input.

    Raises:
        ValueError: wrong shapes, probabilities or labels outside [0, 1], ``eps`` outside (0, 0.5), or no class left
            to average over.

    Example:
        >>> image_level_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.0010)

    Paper: Eq. 3 without a guard, over all K classes. Release: the multi-label soft margin of
    ``log(p (1 - e) + e) - log(1 - p (1 - e))`` with e = 1e-3, which is the formula above; background left out
    of the sampling term.
    """
    require(probabilities.ndim in (2, 3), f"{name}: expected (B, K) or (B, K, S), got {tuple(probabilities.shape)}")
    probabilities, target = _select(probabilities, labels, background, name)
    present, absent = _log_likelihoods(probabilities, eps)
    target = target.view(*target.shape, *[1] * (probabilities.ndim - 2))
    return -torch.lerp(absent, present, target.expand_as(present)).mean()


def image_level_loss_with_logits(logits: Tensor, labels: Tensor, background: bool = True) -> Tensor:
    """Binary cross-entropy of image-level logits, as used with average pooling.

    ``L = -1/K sum_k y_k log sigmoid(s_k) + (1 - y_k) log sigmoid(-s_k)``, averaged over the batch

    Args:
        logits: s, (B, K), unnormalised.
        labels: y, (B, K), 1 where the class is present, 0 elsewhere, or in between; any dtype.
        background: average over all K classes, or over the foreground classes 1..K-1 only.

    Returns:
        Scalar in nats; float32 for half-precision input.

    Raises:
        ValueError: wrong shapes, labels outside [0, 1], or no class left to average over.

    Example:
        >>> image_level_loss_with_logits(torch.tensor([[0.0, 0.0]]), torch.tensor([[1, 0]]))
        tensor(0.6931)

    The paper pools by the maximum instead (Eq. 2); the release and SEAM leave the background out.
    """
    require(logits.ndim == 2, f"logits: expected (B, K), got {tuple(logits.shape)}")
    return F.binary_cross_entropy_with_logits(*_select(logits, labels, background))


def expected_image_level_loss(cam: Tensor, labels: Tensor, eps: float = 1e-3, background: bool = True) -> Tensor:
    """Expectation of Eq. 3 over the draw of Eq. 4: the noise-free limit of many draws.

    ``E[L] = 1/K sum_k sum_ij p_k(i, j) l(a_ijk, y_k)``, l = one term of :func:`image_level_loss`

    p_k is a constant in the backward pass, so the gradient is the expectation of the sampled loss's gradient,
    ``p_k(i, j) dl/da_ijk`` at each pixel.

    Args:
        cam: a, (B, K, H, W) in [0, 1].
        labels: y, (B, K), 1 where the class is present, 0 elsewhere, or in between; any dtype.
        eps: e, in (0, 0.5).
        background: average over all K classes, or over the foreground classes 1..K-1 only.

    Returns:
        Scalar in nats; float32 for half-precision input.

    Raises:
        ValueError: as :func:`sampling_probabilities` and :func:`image_level_loss`.

    Example:
        >>> expected_image_level_loss(torch.ones(1, 2, 3, 3), torch.tensor([[1, 1]]))
        tensor(0.0010)

    In neither the paper (one draw) nor the release (100 draws).
    """
    probability = sampling_probabilities(cam).flatten(2)
    values, target = _select(cam.flatten(2), labels, background, "cam")
    probability = probability[:, probability.shape[1] - values.shape[1] :]
    present, absent = _log_likelihoods(values, eps)
    likelihood = torch.lerp(absent, present, target.unsqueeze(2).expand_as(present))
    return -(probability * likelihood).sum(dim=2).mean()


def classification_loss(
    cam: Tensor, labels: Tensor, weight: float, num_samples: int | None = 1, pooling: str | Pooling = "max",
    logits: Tensor | None = None, background: bool = True, generator: torch.Generator | None = None, eps: float = 1e-3
) -> Tensor:  # fmt: skip
    """Classification loss of the CAM network (Eq. 5).

    ``L_cls = (1 - lambda) L_ce(y, pooled) + lambda L_ce(y, sampled)``

    The sampled term passes gradients through the drawn values only, see :func:`importance_sample`. A term of
    weight zero is not computed; with ``weight=0`` the generator is not advanced.

    Args:
        cam: a, (B, K, H, W) in [0, 1].
        labels: y, (B, K), 1 where the class is present, 0 elsewhere, or in between; any dtype.
        weight: lambda in [0, 1]; 0 is pooling alone, 1 is sampling alone.
        num_samples: draws per image and class, their losses averaged; None takes the exact expectation over
            the draw, :func:`expected_image_level_loss`.
        pooling: "max" pools the map (Eq. 2), "average" the ``logits``; or a :data:`Pooling`, or its name
            ``module:function``.
        logits: s, (B, K, H, W), needed where logits are pooled.
        background: count the background in the sampling term and where logits are pooled. The term that pools maps
            always counts it, as in the release.
        generator: source of randomness for the draws, on any device.
        eps: e of :func:`image_level_loss`, in (0, 0.5); average pooling of logits needs none.

    Returns:
        Scalar in nats; float32 for half-precision input.

    Raises:
        ValueError: ``weight``, a probability or a label outside [0, 1], unknown ``pooling``, missing ``logits``,
            ``eps`` outside (0, 0.5), or wrong shapes. NaN in ``cam`` makes the max-pooling term NaN and is refused
            by the draw.

    Example:
        >>> cam, labels = torch.full((1, 2, 4, 4), 0.5), torch.tensor([[1, 1]])
        >>> classification_loss(cam, labels, weight=1.0)
        tensor(0.6931)

    Paper: max pooling, lambda = 1 (from Fig. 2), one draw, all K classes, no ``eps``. Release: average pooling,
    lambda = 0.8, 100 draws, ``background=False``, ``eps=1e-3``.
    """
    require(0 <= weight <= 1, f"weight: expected 0 <= weight <= 1, got {weight}")
    pool = find_pooling(pooling)
    require(cam.ndim == 4, f"cam: expected (B, K, H, W), got {tuple(cam.shape)}")
    terms = []
    if weight < 1:
        of_logits = _takes_logits(pool)
        pooled_maps = logits if of_logits else cam
        if pooled_maps is None:
            raise InputError(f"logits: expected (B, K, H, W) with pooling={pooling!r}, got None")
        predicted = pool(pooled_maps)
        shape = tuple(getattr(predicted, "shape", ()))
        require(shape == cam.shape[:2], f"pooling: expected a tensor (B, K) = {tuple(cam.shape[:2])}, got {shape}")
        if of_logits:
            pooled = image_level_loss_with_logits(predicted, labels, background)
        else:
            pooled = image_level_loss(predicted, labels, eps, name="cam")
        terms.append(pooled if weight == 0 else (1 - weight) * pooled)
    if weight > 0:
        if num_samples is None:
            sampled = expected_image_level_loss(cam, labels, eps, background)
        else:
            drawn = importance_sample(cam, num_samples, generator)
            sampled = image_level_loss(drawn, labels, eps, background, name="cam")
        terms.append(sampled if weight == 1 else weight * sampled)
    return sum(terms[1:], start=terms[0])


def _takes_logits(pool: Pooling) -> bool:
    try:
        return "logits" in inspect.signature(pool).parameters
    except ValueError:  # compiled functions have none
        return False


def find_pooling(pooling: str | Pooling) -> Pooling:
    """A pooling by its name in :data:`POOLINGS` or as ``module:function``; a function is returned as it is.

    ``y_k = pool(a_k)``: maps (B, K, H, W) to image-level predictions (B, K)

    Args:
        pooling: the name, or the function.

    Raises:
        ValueError: no such pooling.

    Example:
        >>> find_pooling("max") is global_max_pool
        True

    Paper: "max" (Eq. 2). Release: "average".
    """
    if not isinstance(pooling, str):
        return pooling
    if is_plugin(pooling):
        return load_function(pooling, "pooling")
    require(pooling in POOLINGS, f"pooling: expected one of {', '.join(POOLINGS)} or module:function, got {pooling!r}")
    return POOLINGS[pooling]


def _mass(cam: Tensor) -> Tensor:
    """The maps as float64 (B, K, H*W) without gradient, ones where a map is zero everywhere."""
    check_maps("cam", cam)
    mass = cam.detach().flatten(2).to(torch.float64)
    low, high = torch.stack(torch.aminmax(mass)).tolist()  # one wait for a GPU
    if not (low >= 0 and high < float("inf")):
        raise InputError(f"cam: expected finite values of at least 0, got values from {low} to {high}")
    return torch.where((mass == 0).all(dim=2, keepdim=True), 1.0, mass)


def _select(values: Tensor, labels: Tensor, background: bool, name: str | None = None) -> tuple[Tensor, Tensor]:
    """Values and labels in at least float32, with or without class 0; values that are probabilities have a name."""
    if labels.shape != values.shape[:2]:
        raise InputError(f"labels: expected (B, K) = {tuple(values.shape[:2])}, got {tuple(labels.shape)}")
    K, first = values.shape[1], 0 if background else 1
    require(first < K, f"background: expected K of at least 2 without background, got {K}")
    values = values[:, first:].to(torch.promote_types(values.dtype, torch.float32))
    target = labels[:, first:].to(values)
    bounds = [*torch.aminmax(target)]
    if name is not None:
        bounds += torch.aminmax(values.detach())
    (low, high), *others = torch.stack(bounds).view(-1, 2).tolist()  # one wait for a GPU
    require(low >= 0 and high <= 1, f"labels: expected values in [0, 1], got values from {low:g} to {high:g}")
    for low, high in others:
        if low < -ROUNDING or high > 1 + ROUNDING:  # false for NaN, which shall reach the loss
            raise InputError(f"{name}: expected values in [0, 1], got values from {low:g} to {high:g}")
        if low < 0 or high > 1:  # the loss is that of 0 or 1, its gradient is kept
            values = values + (values.clamp(0, 1) - values).detach()
    return values, target


def _log_likelihoods(probabilities: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return log q and log(1 - q) of Eq. 3's guarded probability q."""
    require(0 < eps < 0.5, f"eps: expected 0 < eps < 0.5, got {eps}")
    slope, floor = (1 - eps) / (1 + eps), eps / (1 + eps)
    return torch.log(probabilities * slope + floor), torch.log((1 - probabilities) * slope + floor)
