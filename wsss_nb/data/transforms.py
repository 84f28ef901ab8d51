"""Augmentation: pure functions with explicit numbers, and two small classes that draw the numbers.

Images are (3, H, W) float in [0, 1]; the networks normalise. Every random number comes from the generator
handed in, so that `seeded_generator(seed, epoch, index)` gives the same augmented image in any process.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.system.config import VOID
from wsss_nb.system.errors import require

__all__ = ["IMAGENET_MEAN", "CamAugmentation", "SegmentationAugmentation", "seeded_generator", "to_tensor"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean RGB of ImageNet: the padding that becomes zero when a network normalises."""


def seeded_generator(*numbers: int) -> torch.Generator:
    """CPU generator whose stream depends on all of the non-negative ``numbers`` and nothing else.

    Use ``seeded_generator(seed, epoch, index)`` per image: then results depend neither on the number of
    workers nor on where a run was resumed. (seed, epoch, worker) works as well.

    Raises:
        ValueError: a negative number.

    Example:
        >>> a, b = seeded_generator(0, 1, 2), seeded_generator(0, 1, 2)
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        True
    """
    # the count goes first because a SeedSequence takes (1, 2) and (1, 2, 0) for the same
    state = int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def to_tensor(image: np.ndarray) -> Tensor:
    """Image (H, W, 3) uint8 as (3, H, W) float32 in [0, 1].

    Raises:
        InputError: another shape or type.

    Example:
        >>> to_tensor(np.full((4, 6, 3), 255, dtype=np.uint8)).shape
        torch.Size([3, 4, 6])
    """
    is_image = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    require(is_image, f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    # a copy: Pillow's arrays are read-only, and from_numpy warns of those
    return torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


def resize(image: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """Image (3, H, W) resized to (3, h, w), bicubic, clamped to [0, 1].

    With ``antialias`` as Pillow does it (a = -1/2, a wider kernel where the image shrinks), else as OpenCV (a = -3/4).

    Example:
        >>> resize(torch.rand(3, 10, 20), (5, 8)).shape
        torch.Size([3, 5, 8])
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = F.interpolate(image[None], size=size, mode="bicubic", align_corners=False, antialias=antialias)[0]
    return resized.clamp_(0, 1)


def color_jitter(
    image: Tensor, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0,
    order: tuple[int, ...] = (0, 1, 2, 3)
) -> Tensor:  # fmt: skip
    """Colour changes of an image (3, H, W), clamped to [0, 1] after each.

    0 brightness: b x; 1 contrast: c x + (1 - c) mean grey of the image; 2 saturation: s x + (1 - s) grey of
    the pixel; 3 hue: turned by ``hue`` of a full circle. ``order`` says in which order.

    Example:
        >>> color_jitter(torch.full((3, 1, 1), 0.5), brightness=1.2).flatten().tolist()
        [0.6000000238418579, 0.6000000238418579, 0.6000000238418579]
    """
    from kornia import enhance  # here, so that no one waits for kornia who does not use it

    steps = (
        (enhance.adjust_brightness_accumulative, brightness), (enhance.adjust_contrast_with_mean_subtraction, contrast),
        (enhance.adjust_saturation_with_gray_subtraction, saturation), (enhance.adjust_hue, 2 * np.pi * hue)
    )  # fmt: skip
    for adjust, amount in (steps[step] for step in order if step < 3 or hue):
        image = adjust(image, amount)
    return image.clamp(0, 1)


def hsv_shift(image: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """Image (3, H, W) with amounts added to its hue (full circle = 1, wraps), saturation and value (clamped).

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
        >>> hsv_shift(red, 1 / 3, 0.0, 0.0).flatten().round().tolist()
        [0.0, 1.0, 0.0]
    """
    from kornia import color

    h, s, v = color.rgb_to_hsv(image[None])[0]
    h = torch.remainder(h + 2 * np.pi * hue, 2 * np.pi)
    return color.hsv_to_rgb(torch.stack([h, (s + saturation).clamp(0, 1), (v + value).clamp(0, 1)])[None])[0]


@dataclass(frozen=True)
class CamAugmentation:
    """Augmentation of the CAM and affinity stages: resize, flip, jitter, crop.

    Long side ~ U{scale[0]..scale[1]} pixels (bicubic), horizontal flip with probability 1/2, colour jitter in
    random order with factors U[1 - b, 1 + b], U[1 - c, 1 + c], U[1 - s, 1 + s] and hue U[-h, h], and a crop at a
    random place; a smaller image lies at a random place in padding.
    The release pads with zeros after normalising, which is ``fill`` = ImageNet's mean here; in stage 2 before it, black.

    Args:
        crop: side of the output in pixels.
        scale: range of the long side in pixels, both ends included; paper (448, 768); None = off.
        flip: mirror half of the images.
        jitter: (brightness, contrast, saturation, hue) strengths; paper (0.3, 0.3, 0.3, 0.1); None = off.
        fill: RGB of the padding.

    Raises:
        InputError: ``scale`` or ``jitter`` outside its range.

    Example:
        >>> augment = CamAugmentation(448, scale=(448, 768), jitter=(0.3, 0.3, 0.3, 0.1))
        >>> image, labels = torch.rand(3, 300, 500), torch.zeros(300, 500, dtype=torch.uint8)
        >>> [x.shape for x in augment(image, labels, seeded_generator(0, 0, 0))]
        [torch.Size([3, 448, 448]), torch.Size([448, 448])]
    """

    crop: int
    scale: tuple[int, int] | None = None
    flip: bool = True
    jitter: tuple[float, float, float, float] | None = None
    fill: tuple[float, float, float] = IMAGENET_MEAN

    def __post_init__(self) -> None:
        low, high = self.scale or (1, 1)
        require(0 < low <= high, f"scale: expected 0 < low <= high, got {self.scale}")
        within = all(0 <= j <= m for j, m in zip(self.jitter or (0, 0, 0, 0), (1, 1, 1, 0.5), strict=True))
        require(within, f"jitter: expected three strengths in 0..1 and a hue in 0..0.5, got {self.jitter}")

    def __call__(self, image: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment an image (3, H, W) and its label map (H, W), which moves along (nearest, 255 outside).

        Scores (C, H, W), floating, may be given in its place (bilinear, 0 outside).

        Raises:
            InputError: an image or label map of another shape.
        """
        _check_pair(image, labels)
        # always the same number of draws, so that no setting changes what the others draw
        draw = torch.rand(14, generator=generator, dtype=torch.float64).tolist()
        if self.scale is not None:
            low, high = self.scale
            image, labels = _zoom(image, labels, (low + int(draw[0] * (high - low + 1))) / max(image.shape[1:]))
        if self.flip and draw[1] < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        if self.jitter is not None:
            b, c, s, h = ((2 * u - 1) * strength for u, strength in zip(draw[2:6], self.jitter, strict=True))
            order = sorted(range(4), key=draw[6:10].__getitem__)
            image = color_jitter(image, 1 + b, 1 + c, 1 + s, h, tuple(order))
        return _random_crop(image, labels, self.crop, draw[12:14], self.fill)


@dataclass(frozen=True)
class SegmentationAugmentation:
    """Augmentation of the segmentation stage, jointly on an image and its label map.

    Size times U[scale[0], scale[1]] (image bicubic without antialiasing, as released; labels nearest), a shift of hue
    by U{-hsv..hsv} * 2 degrees and of saturation and value by U{-hsv..hsv} / 255 (OpenCV's 8-bit HSV units, in which
    the release draws), crop at a random place with padding (labels 255), and horizontal flip with probability 1/2.

    Args:
        crop: side of the output in pixels.
        scale: range of the factor, paper (0.5, 1.5).
        flip: mirror half of the images.
        hsv: largest HSV shift, 0..127, paper 10; 0 = off, free.

    Raises:
        InputError: ``scale`` outside its range.

    Example:
        >>> augment = SegmentationAugmentation(448)
        >>> image, labels = torch.rand(3, 300, 500), torch.zeros(300, 500, dtype=torch.uint8)
        >>> [x.shape for x in augment(image, labels, seeded_generator(0, 0, 0))]
        [torch.Size([3, 448, 448]), torch.Size([448, 448])]
    """

    crop: int
    scale: tuple[float, float] = (0.5, 1.5)
    flip: bool = True
    hsv: int = 10

    def __post_init__(self) -> None:
        require(0 < self.scale[0] <= self.scale[1], f"scale: expected 0 < low <= high, got {self.scale}")

    def __call__(self, image: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment an image (3, H, W) and its label map (H, W).

        Raises:
            InputError: an image or label map of another shape.
        """
        _check_pair(image, labels)
        draw = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
        factor = self.scale[0] + draw[0] * (self.scale[1] - self.scale[0])
        image, labels = _zoom(image, labels, factor, antialias=False)
        if self.hsv:
            h, s, v = (int(u * (2 * self.hsv + 1)) - self.hsv for u in draw[4:7])
            image = hsv_shift(image, h / 180, s / 255, v / 255)
        image, labels = _random_crop(image, labels, self.crop, draw[2:4], IMAGENET_MEAN)
        return (image.flip(-1), labels.flip(-1)) if self.flip and draw[1] < 0.5 else (image, labels)


def _check_pair(image: Tensor, labels: Tensor) -> None:
    is_image = image.ndim == 3 and image.shape[0] == 3 and image.is_floating_point()
    require(is_image, f"image: expected (3, H, W) float, got {tuple(image.shape)} {image.dtype}")
    fits = labels.shape[-2:] == image.shape[1:] and labels.ndim <= 2 + labels.is_floating_point()
    require(fits, f"labels: expected (H, W) = {tuple(image.shape[1:])}, got {tuple(labels.shape)}")


def _zoom(image: Tensor, labels: Tensor, factor: float, antialias: bool = True) -> tuple[Tensor, Tensor]:
    """Both at ``factor`` times the size: scores (C, H, W) bilinear, labels (H, W) nearest."""
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor))
    if labels.ndim == 3:
        zoomed = F.interpolate(labels[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    else:
        zoomed = F.interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].to(labels.dtype)
    return resize(image, size, antialias), zoomed


def _random_crop(
    image: Tensor, labels: Tensor, size: int, draw: list[float], fill: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """A random window; where the image is smaller, it lies at random inside the window."""
    rooms = zip(draw, (image.shape[1] - size, image.shape[2] - size), strict=True)
    top, left = (int(u * (room + 1)) if room >= 0 else -int(u * (1 - room)) for u, room in rooms)
    pads = (-left, left + size - image.shape[2], -top, top + size - image.shape[1])  # a negative one crops
    window = torch.stack([F.pad(channel, pads, value=shade) for channel, shade in zip(image, fill, strict=True)])
    return window, F.pad(labels, pads, value=0 if labels.is_floating_point() else VOID)
