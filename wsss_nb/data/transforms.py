"""Augmentation: pure functions with explicit numbers, and two small classes that draw the numbers.

Images are (3, H, W) float in [0, 1]; the networks normalise. Every random number comes from the generator
handed in, so that `seeded_generator(seed, epoch, index)` gives the same augmented image in any process.
"""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.data.palette import IGNORE

__all__ = [
    "IMAGENET_MEAN",
    "CamAugmentation",
    "SegmentationAugmentation",
    "color_jitter",
    "crop_or_pad",
    "hsv_shift",
    "resize",
    "resize_long_side",
    "seeded_generator",
    "shift_image",
    "to_tensor",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean RGB of ImageNet: the padding that becomes zero when a network normalises."""

_Size = int | tuple[int, int]


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
    if any(number < 0 for number in numbers):
        raise ValueError(f"numbers: expected non-negative integers, got {numbers}")
    # the count goes first because a SeedSequence takes (1, 2) and (1, 2, 0) for the same
    state = int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def to_tensor(image: np.ndarray) -> Tensor:
    """Image (H, W, 3) uint8 as (3, H, W) float32 in [0, 1].

    Raises:
        ValueError: another shape or type.

    Example:
        >>> to_tensor(np.full((4, 6, 3), 255, dtype=np.uint8)).shape
        torch.Size([3, 4, 6])
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
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
    resized = F.interpolate(image[None], size=size, mode="bicubic", align_corners=False, antialias=antialias)[
        0
    ]
    return resized.clamp_(0, 1)


def resize_long_side(image: Tensor, long_side: int) -> Tensor:
    """Image (3, H, W) whose longer side becomes ``long_side`` pixels, proportions kept, bicubic.

    Example:
        >>> resize_long_side(torch.rand(3, 100, 200), 50).shape
        torch.Size([3, 25, 50])
    """
    return resize(image, _long_side_size(image, long_side))


def crop_or_pad(
    image: Tensor, top: int, left: int, size: _Size, fill: tuple[float, ...] | float = 0
) -> Tensor:
    """Window (..., h, w) of an image (C, H, W) or a map (H, W), with ``fill`` where it lies outside.

    Args:
        image: (C, H, W) or (H, W).
        top: row of the window's first row in the image; negative = padding above.
        left: its first column.
        size: (h, w) of the window, or one number for a square.
        fill: one value, or one per channel.

    Example:
        >>> crop_or_pad(torch.ones(1, 2, 2), -1, 0, 2)[0].tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    h, w = _pair(size)
    H, W = image.shape[-2:]
    if top >= 0 and left >= 0 and top + h <= H and left + w <= W:
        return image[..., top : top + h, left : left + w]
    value = torch.as_tensor(fill, dtype=image.dtype, device=image.device)
    window = value.reshape(*value.shape, 1, 1).expand(*image.shape[:-2], h, w).clone()
    y0, y1, x0, x1 = max(top, 0), min(top + h, H), max(left, 0), min(left + w, W)
    if y0 < y1 and x0 < x1:
        window[..., y0 - top : y1 - top, x0 - left : x1 - left] = image[..., y0:y1, x0:x1]
    return window


def shift_image(image: Tensor, down: int, right: int) -> Tensor:
    """Image (..., H, W) moved by whole pixels; the border is repeated where nothing comes in.

    Example:
        >>> shift_image(torch.tensor([[1, 2, 3]]), 0, 1).tolist()
        [[1, 1, 2]]
    """
    H, W = image.shape[-2:]
    rows = (torch.arange(H) - down).clamp_(0, H - 1)
    columns = (torch.arange(W) - right).clamp_(0, W - 1)
    return image.index_select(-2, rows).index_select(-1, columns)


def color_jitter(
    image: Tensor,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    order: tuple[int, ...] = (0, 1, 2, 3),
) -> Tensor:
    """Colour changes of an image (3, H, W), clamped to [0, 1] after each.

    0 brightness: b x; 1 contrast: c x + (1 - c) mean grey of the image; 2 saturation: s x + (1 - s) grey of
    the pixel; 3 hue: turned by ``hue`` of a full circle. ``order`` says in which order.

    Example:
        >>> color_jitter(torch.full((3, 1, 1), 0.5), brightness=1.2).flatten().tolist()
        [0.6000000238418579, 0.6000000238418579, 0.6000000238418579]
    """
    from kornia import enhance  # here, so that no one waits for kornia who does not use it

    for step in order:
        if step == 0:
            image = enhance.adjust_brightness_accumulative(image, brightness)
        elif step == 1:
            image = enhance.adjust_contrast_with_mean_subtraction(image, contrast)
        elif step == 2:
            image = enhance.adjust_saturation_with_gray_subtraction(image, saturation)
        elif hue:
            image = enhance.adjust_hue(image, 2 * np.pi * hue)
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


class CamAugmentation:
    """Augmentation of the CAM and affinity stages: resize, flip, jitter, shift, crop.

    Long side ~ U{scale[0]..scale[1]} pixels (bicubic), horizontal flip with probability 1/2, colour jitter in
    random order with factors U[1 - b, 1 + b], U[1 - c, 1 + c], U[1 - s, 1 + s] and hue U[-h, h], shift by
    U{-shift..shift} pixels, and a crop at a random place; a smaller image lies at a random place in padding.
    The release pads with zeros after normalising, which is ``fill`` = ImageNet's mean here; in stage 2 before it, black.

    Args:
        crop: side or (h, w) of the output in pixels; None keeps the size.
        scale: range of the long side in pixels, both ends included; paper (448, 768); None = off.
        flip: mirror half of the images.
        jitter: (brightness, contrast, saturation, hue) strengths; paper (0.3, 0.3, 0.3, 0.1); None = off.
        shift: largest shift in pixels, borders repeated.
        fill: RGB of the padding.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> augment = CamAugmentation(448, scale=(448, 768), jitter=(0.3, 0.3, 0.3, 0.1))
        >>> augment(torch.rand(3, 300, 500), seeded_generator(0, 0, 0)).shape
        torch.Size([3, 448, 448])
    """

    def __init__(
        self,
        crop: _Size | None,
        scale: tuple[int, int] | None = None,
        flip: bool = True,
        jitter: tuple[float, float, float, float] | None = None,
        *,
        shift: int = 0,
        fill: tuple[float, float, float] = IMAGENET_MEAN,
    ) -> None:
        if crop is not None and min(_pair(crop)) < 1:
            raise ValueError(f"crop: expected at least 1 pixel, got {crop}")
        if scale is not None and not 1 <= scale[0] <= scale[1]:
            raise ValueError(f"scale: expected 1 <= low <= high pixels, got {scale}")
        if jitter is not None and (
            len(jitter) != 4 or not all(0 <= j <= 1 for j in jitter) or jitter[3] > 0.5
        ):
            raise ValueError(f"jitter: expected three strengths in 0..1 and a hue in 0..0.5, got {jitter}")
        if shift < 0:
            raise ValueError(f"shift: expected a non-negative number of pixels, got {shift}")
        self.crop, self.scale, self.flip, self.jitter = crop, scale, flip, jitter
        self.shift, self.fill = shift, fill

    @overload
    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor: ...
    @overload
    def __call__(self, image: Tensor, generator: torch.Generator, mask: Tensor) -> tuple[Tensor, Tensor]: ...
    def __call__(
        self, image: Tensor, generator: torch.Generator, mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Augment one image (3, H, W); a label map (H, W) given with it moves along (nearest, 255 outside).

        Scores (C, H, W), floating, may be given in its place (bilinear, 0 outside).

        Raises:
            ValueError: an image or mask of another shape.
        """
        _check_pair(image, mask)
        # always the same number of draws, so that no setting changes what the others draw
        draw = torch.rand(14, generator=generator, dtype=torch.float64).tolist()
        if self.scale is not None:
            low, high = self.scale
            size = _long_side_size(image, low + int(draw[0] * (high - low + 1)))
            image, mask = resize(image, size), None if mask is None else _resize_labels(mask, size)
        if self.flip and draw[1] < 0.5:
            image, mask = image.flip(-1), None if mask is None else mask.flip(-1)
        if self.jitter is not None:
            b, c, s, h = ((2 * u - 1) * strength for u, strength in zip(draw[2:6], self.jitter, strict=True))
            order = sorted(range(4), key=draw[6:10].__getitem__)
            image = color_jitter(image, 1 + b, 1 + c, 1 + s, h, tuple(order))
        if self.shift:
            down, right = (int(u * (2 * self.shift + 1)) - self.shift for u in draw[10:12])
            image = shift_image(image, down, right)
            mask = None if mask is None else shift_image(mask, down, right)
        if self.crop is not None:
            crop = _pair(self.crop)
            top, left = _place(image, crop, draw[12:14])
            image = crop_or_pad(image, top, left, crop, self.fill)
            outside = 0 if mask is not None and mask.is_floating_point() else IGNORE
            mask = None if mask is None else crop_or_pad(mask, top, left, crop, outside)
        return image if mask is None else (image, mask)


class SegmentationAugmentation:
    """Augmentation of the segmentation stage, jointly on an image and its label map.

    Size times U[scale[0], scale[1]] (image bicubic without antialiasing, as released; labels nearest), crop at a
    random place with padding (labels 255), horizontal flip with probability 1/2, and a shift of hue by
    U{-hsv..hsv} * 2 degrees and of saturation and value by U{-hsv..hsv} / 255 (OpenCV's 8-bit HSV units, in which
    the release draws).

    Args:
        crop: side or (h, w) of the output in pixels; None keeps the size.
        scale: range of the factor, paper (0.5, 1.5); None = no resizing.
        flip: mirror half of the images.
        hsv: largest HSV shift, paper 10; 0 = off, free.
        shift: largest shift in pixels, borders repeated.
        fill: RGB of the padding.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> augment = SegmentationAugmentation(448)
        >>> image, labels = torch.rand(3, 300, 500), torch.zeros(300, 500, dtype=torch.uint8)
        >>> [x.shape for x in augment(image, labels, seeded_generator(0, 0, 0))]
        [torch.Size([3, 448, 448]), torch.Size([448, 448])]
    """

    def __init__(
        self,
        crop: _Size | None,
        scale: tuple[float, float] | None = (0.5, 1.5),
        flip: bool = True,
        hsv: int = 10,
        *,
        shift: int = 0,
        fill: tuple[float, float, float] = IMAGENET_MEAN,
    ) -> None:
        if crop is not None and min(_pair(crop)) < 1:
            raise ValueError(f"crop: expected at least 1 pixel, got {crop}")
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale: expected 0 < low <= high, got {scale}")
        if not 0 <= hsv <= 127:
            raise ValueError(f"hsv: expected 0..127, got {hsv}")
        if shift < 0:
            raise ValueError(f"shift: expected a non-negative number of pixels, got {shift}")
        self.crop, self.scale, self.flip, self.hsv = crop, scale, flip, hsv
        self.shift, self.fill = shift, fill

    def __call__(self, image: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment an image (3, H, W) and its label map (H, W).

        Raises:
            ValueError: an image or label map of another shape.
        """
        _check_pair(image, labels)
        draw = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
        if self.scale is not None:
            factor = self.scale[0] + draw[0] * (self.scale[1] - self.scale[0])
            size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor)))
            image, labels = resize(image, size, antialias=False), _resize_labels(labels, size)
        if self.shift:
            down, right = (int(u * (2 * self.shift + 1)) - self.shift for u in draw[7:9])
            image, labels = shift_image(image, down, right), shift_image(labels, down, right)
        if self.hsv:
            h, s, v = (int(u * (2 * self.hsv + 1)) - self.hsv for u in draw[4:7])
            image = hsv_shift(image, h / 180, s / 255, v / 255)
        if self.crop is not None:
            crop = _pair(self.crop)
            top, left = _place(image, crop, draw[2:4])
            image = crop_or_pad(image, top, left, crop, self.fill)
            labels = crop_or_pad(labels, top, left, crop, IGNORE)
        if self.flip and draw[1] < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        return image, labels


def _pair(size: _Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _long_side_size(image: Tensor, long_side: int) -> tuple[int, int]:
    H, W = image.shape[-2:]
    factor = long_side / max(H, W)
    return max(1, round(H * factor)), max(1, round(W * factor))


def _resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(labels.shape[-2:]) == size:
        return labels
    if labels.ndim == 3:
        return F.interpolate(labels[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(labels.dtype)


def _place(image: Tensor, size: tuple[int, int], draw: list[float]) -> tuple[int, int]:
    """Top and left of a random window; of a smaller image, so that it lies at random inside the window."""
    rooms = (image.shape[-2] - size[0], image.shape[-1] - size[1])
    top, left = (
        int(u * (room + 1)) if room >= 0 else -int(u * (1 - room))
        for u, room in zip(draw, rooms, strict=True)
    )
    return top, left


def _check_pair(image: Tensor, labels: Tensor | None) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(f"image: expected (3, H, W) float, got {tuple(image.shape)} {image.dtype}")
    if labels is None or (
        labels.ndim == 3 and labels.is_floating_point() and labels.shape[1:] == image.shape[1:]
    ):
        return
    if labels.shape != image.shape[1:]:
        raise ValueError(f"labels: expected (H, W) = {tuple(image.shape[1:])}, got {tuple(labels.shape)}")
