"""The numbers behind the explorers: activations of a photograph, where gradients go, descent on Eq. 6."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb import data
from wsss_nb.cam import class_activation_map
from wsss_nb.crf import CRFConfig, dense_crf
from wsss_nb.data.synthetic import synthetic_sample
from wsss_nb.metrics import confusion_matrix, contour_f, contour_matches
from wsss_nb.models import create_imagenet_classifier
from wsss_nb.pseudo_labels import add_background, label_map
from wsss_nb.sampling import classification_loss
from wsss_nb.similarity import feature_similarity_loss
from wsss_nb.widgets.photos import load_photo
from wsss_nb.widgets.threads import single_thread

__all__ = [
    "Descent",
    "Normalize",
    "Pooling",
    "activation",
    "class_logits",
    "cross_over",
    "descend",
    "enlarge",
    "image_score",
    "loss_gradient",
    "photo_logits",
    "refine_map",
    "score_map",
    "similarity_field",
    "snap_example",
    "to_tensor",
]

Normalize = Literal["maximum", "softmax"]
Pooling = Literal["average", "max"]
_CLASSIFIERS = lru_cache(maxsize=3)(create_imagenet_classifier)


def to_tensor(image: npt.NDArray[np.uint8]) -> Tensor:
    """An image (H, W, 3) uint8 as (1, 3, H, W) in 0..1."""
    return data.to_tensor(image)[None]


def class_logits(image: npt.NDArray[np.uint8], stride: int = 16) -> Tensor:
    """Class activation maps of the ImageNet classifier before any normalisation, s_c = W_c f + b_c, (1000, h, w)."""
    net = _CLASSIFIERS(stride)
    with torch.inference_mode():
        features = net.features(to_tensor(image))
        return torch.einsum("ck,bkhw->bchw", net.fc.weight, features)[0] + net.fc.bias[:, None, None]


@lru_cache(maxsize=12)
def photo_logits(name: str, stride: int = 16) -> Tensor:
    """`class_logits` of one of the lessons' photographs; computed once."""
    return class_logits(load_photo(name).image, stride)


def activation(logits: Tensor, index: int, normalize: Normalize = "maximum") -> Tensor:
    """Map of one class in 0..1, (h, w), from the logits of all classes (C, h, w).

    "maximum": max(s, 0) / max_xy s, the classic CAM; "softmax": Eq. 1 over all C classes.

    Raises:
        ValueError: unknown normalisation or class.
    """
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize: expected one of {get_args(Normalize)}, got {normalize!r}")
    if not 0 <= index < len(logits):
        raise ValueError(f"index: expected 0..{len(logits) - 1}, got {index}")
    if normalize == "softmax":
        return class_activation_map(logits[None])[0, index]
    positive = logits[index].clamp(min=0)
    return positive / positive.max().clamp(min=1e-5)


def image_score(logits: Tensor, index: int, pooling: Pooling = "average") -> tuple[float, float]:
    """What pooling makes of the maps of all classes (C, h, w) for one class: its logit, and its softmax probability.

    "average": the mean over the pixels, as the classifier was trained; "max": the largest of each class.
    """
    pooled = logits.mean((1, 2)) if pooling == "average" else logits.amax((1, 2))
    return float(pooled[index]), float(pooled.softmax(0)[index])


def enlarge(coarse: Tensor, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """A map (h, w) resized bilinearly to (H, W) = size, clipped to 0..1."""
    large = F.interpolate(coarse.detach().float()[None, None], size=size, mode="bilinear")[0, 0]
    return large.clamp(0, 1).numpy()


def score_map(
    foreground: npt.NDArray[np.floating], rule: str, mask: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
    """Label map (H, W) of one foreground map under a background rule, with its scores against a mask.

    Scores are "covered" (fraction of the image called foreground) and, with a mask, "iou" of the foreground and
    "contour_f".
    """
    labels = label_map(add_background(np.asarray(foreground, np.float32)[None], rule))
    values = {"covered": float((labels == 1).mean())}
    if mask is not None:
        target = mask.astype(np.uint8)
        (_, false_positive), (false_negative, hit) = confusion_matrix(labels, target, 2).tolist()
        values["iou"] = hit / max(hit + false_positive + false_negative, 1)
        values["contour_f"] = float(contour_f(contour_matches(labels, target, 2))[0])
    return labels, values


def refine_map(
    image: npt.NDArray[np.uint8], activation: Tensor, rule: str, crf: CRFConfig
) -> npt.NDArray[np.floating]:
    """Foreground probability (H, W) after a dense CRF of one map (h, w) and the background that a rule gives it.

    Args:
        image: (H, W, 3).
        activation: in 0..1, enlarged to the image.
        rule: background rule, such as "threshold:0.3".
        crf: parameters of the CRF.
    """
    scores = add_background(enlarge(activation, (image.shape[0], image.shape[1]))[None], rule)
    return np.asarray(dense_crf(image.copy(), scores / scores.sum(0).clip(1e-5), **vars(crf))[1])


@single_thread()
def loss_gradient(
    logits: Tensor,
    labels: Tensor,
    weight: float = 1.0,
    num_samples: int | None = 1,
    pooling: Pooling = "max",
    seed: int = 0,
) -> Tensor:
    """Gradient of Eq. 5 with respect to the logits, (1, K, h, w): minus it is where a training step pushes them."""
    leaf = logits.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    loss = classification_loss(
        class_activation_map(leaf),
        labels,
        weight,
        num_samples,
        pooling=pooling,
        logits=leaf,
        generator=generator,
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def cross_over(mu: float) -> float:
    """Dissimilarity at which f of Eq. 8 changes sign: mu + logit(delta) = 0, so delta = 1 / (1 + e^mu)."""
    return 1 / (1 + float(np.exp(mu)))


@single_thread()
def similarity_field(cam: Tensor, image: Tensor, mu: float, sigma: float) -> tuple[float, Tensor]:
    """Loss of Eq. 6 ("pixels" normalisation) and its gradient with respect to the map, times H W, (K, h, w)."""
    leaf = cam.detach().clone().requires_grad_()
    loss = feature_similarity_loss(leaf, image, mu, sigma)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient[0] * (cam.shape[2] * cam.shape[3])


@dataclass(frozen=True)
class Descent:
    """What gradient descent on Eq. 6 went through: foreground maps (n + 1, h, w) and losses (n + 1)."""

    maps: npt.NDArray[np.float32]
    losses: npt.NDArray[np.float64]


@single_thread()
def descend(
    foreground: Tensor, image: Tensor, mu: float = 2.5, sigma: float = 3.0, steps: int = 40, rate: float = 1.0
) -> Descent:
    """Let one foreground map follow the feature similarity loss alone.

    The map is a = sigmoid(s), background 1 - a; every step s <- s - rate * H W * dL/ds. No classifier holds the map
    back, so one sees what Eq. 6 wants.

    Args:
        foreground: (h, w) in 0..1.
        image: (1, 3, h, w) in 0..1.
        mu: as in Eq. 8.
        sigma: as in Eq. 7, map pixels.
        steps: number of steps.
        rate: step length.
    """
    height, width = foreground.shape
    logits = torch.logit(foreground.detach().double().clamp(0.02, 0.98)).float()[None, None]
    maps, losses = [], []
    for _ in range(steps + 1):
        logits = logits.requires_grad_()
        a = torch.sigmoid(logits)
        loss = feature_similarity_loss(torch.cat([1 - a, a], dim=1), image, mu, sigma)
        (gradient,) = torch.autograd.grad(loss, logits)
        maps.append(a.detach()[0, 0].numpy())
        losses.append(loss.item())
        logits = (logits - rate * height * width * gradient).detach()
    return Descent(np.stack(maps), np.array(losses))


def snap_example(name: str, size: int = 56) -> tuple[Tensor, Tensor, npt.NDArray[np.bool_] | None]:
    """An image at map size with a diffuse map of its object, and the object's mask.

    Args:
        name: a photograph, with the CAM of its first class, or "fish": a synthetic image, whose CAM is imitated by
            blurring the mask.
        size: of the map in pixels.

    Returns:
        image (1, 3, size, size), foreground (size, size) in 0..1, mask (size, size) or None.
    """
    if name == "fish":
        return _imitated_cam(size)
    photo = load_photo(name)
    image = F.interpolate(to_tensor(photo.image), size=(size, size), mode="area")
    coarse = activation(photo_logits(name, 16), photo.classes[0])
    foreground = F.interpolate(coarse[None, None], size=(size, size), mode="bilinear")[0, 0].clone()
    if photo.mask is None:
        return image, foreground, None
    mask = F.interpolate(torch.from_numpy(photo.mask)[None, None].float(), size=(size, size), mode="area")
    return image, foreground, mask[0, 0].numpy() > 0.5


def _imitated_cam(size: int) -> tuple[Tensor, Tensor, npt.NDArray[np.bool_]]:
    sample = synthetic_sample(0, "val", 2, size=2 * size)
    image = F.interpolate(to_tensor(sample.image), size=(size, size), mode="area")
    mask = torch.from_numpy(sample.mask > 0)[None, None].float()
    blurred = F.interpolate(mask, size=(size, size), mode="area")
    for radius in (size // 8, size // 14):
        padded = F.pad(blurred, (radius,) * 4, mode="replicate")
        blurred = F.avg_pool2d(padded, 2 * radius + 1, stride=1)
    sharp = F.interpolate(mask, size=(size, size), mode="area")[0, 0] > 0.5
    return image, 0.95 * (blurred / blurred.max())[0, 0], sharp.numpy()
