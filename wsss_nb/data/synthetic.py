"""The synthetic data set: fish whose body is shared by all classes and whose small head gives the class.

It makes two problems of class activation maps measurable: a classifier needs only the head, so its map stays
on the head; and nothing in its loss makes the map end where the fish ends. Part masks tell head from body.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss_nb.data.layout import labels_from_mask, new_folder
from wsss_nb.data.voc import save_label_map, write_lists
from wsss_nb.system.errors import require

__all__ = ["BODY", "FISH", "HEAD", "SyntheticSample", "make_synthetic", "synthetic_sample"]

BODY, HEAD = 1, 2
"""Labels of the part masks (0 is background)."""

_Array = npt.NDArray[np.float32]
_SPLITS = ("train", "val")


# name, pattern, and the two colours in percent of red, green and blue
_TABLE = """
clownfish bands 98 45 5 100 97 92      zebrafish stripes 5 5 10 97 97 97    leopardfish spots 100 85 10 25 12 2
parrotfish checks 5 75 55 95 25 65     sunfish rings 85 5 8 100 85 20       angelfish stripes 10 20 85 98 90 25
lanternfish spots 40 8 60 80 100 85    harlequin checks 90 10 10 8 8 35     dragonet rings 5 35 90 30 100 60
wrasse bands 95 55 75 20 45 15         goby stripes 60 95 15 55 5 10        grouper checks 95 95 95 60 30 5
"""
FISH: dict[str, tuple[str, _Array]] = {
    name: (pattern, (np.array(rgb, float) / 100).astype(np.float32).reshape(2, 3))
    for name, pattern, *rgb in np.reshape(_TABLE.split(), (-1, 8)).tolist()
}
"""The look of the head by class, its pattern and two RGB colours (2, 3) in 0..1, in the order of the ids 1, 2, ...; a data
set uses the first ``num_classes - 1``."""


class SyntheticSample(NamedTuple):
    """An image (S, S, 3) uint8 with its mask (ids) and part mask (0, BODY, HEAD), (S, S) uint8, and its ids, ascending."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    part: npt.NDArray[np.uint8]
    classes: tuple[int, ...]


def synthetic_sample(seed: int, split: str, index: int, *, size: int = 96, num_classes: int = 6) -> SyntheticSample:
    """Draw image ``index`` of a split; it depends on nothing but the arguments.

    Args:
        seed: of the data set, non-negative.
        split: "train" or "val".
        index: of the image in the split; other images have no influence on it.
        size: side of the square image in pixels, at least 48; fish are 0.37 to 0.57 of it long.
        num_classes: counts the background, 2..13.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> sample = synthetic_sample(0, "train", 0)
        >>> sample.image.shape, sample.mask.shape
        ((96, 96, 3), (96, 96))
    """
    most = len(FISH) + 1
    require(size >= 48, f"size: expected at least 48 pixels, got {size}")
    require(2 <= num_classes <= most, f"num_classes: expected 2..{most} (background counted), got {num_classes}")
    require(seed >= 0, f"seed: expected a non-negative integer, got {seed}")
    require(split in _SPLITS, f"split: expected one of {_SPLITS}, got {split!r}")
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    canvas = _background(rng, size)
    mask, part = np.zeros((2, size, size), np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        kind = int(rng.integers(1, num_classes))
        for _attempt in range(30):
            shape = _draw_shape(rng, size)
            covered = mask[shape.inside]
            # a later fish may touch or partly cover an earlier one, but never its head
            hides_head = (part[shape.inside] == HEAD).any()
            if not hides_head and np.count_nonzero(covered) <= 0.1 * covered.size:
                break
        else:
            break
        canvas = _paint(rng, canvas, shape, *[*FISH.values()][kind - 1])
        mask[shape.inside] = kind
        part[shape.inside] = np.where(shape.head_distance[shape.inside] < 0, HEAD, BODY)
    image = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return SyntheticSample(image, mask, part, tuple(np.unique(mask[mask > 0]).tolist()))


def make_synthetic(
    root: str | os.PathLike[str], *, num_train: int = 600, num_val: int = 150, size: int = 96, num_classes: int = 6,
    seed: int = 0
) -> Path:  # fmt: skip
    """Write the synthetic data set as a VOC-layout folder; seconds, deterministic, all or nothing.

    Writes JPEGImages (quality 95, no chroma subsampling), SegmentationClass, SegmentationParts (0 background,
    1 body, 2 head), ImageSets/Segmentation/{train,val}.txt, classes.txt and labels.csv. Image i of a split is
    the same whatever the number of images (see `synthetic_sample` for the other arguments).

    Returns:
        The folder.

    Raises:
        InputError: the folder exists and is not empty, or cannot be written; an argument outside its range.

    Example:
        >>> root = make_synthetic("fish", num_train=8, num_val=4)
        >>> VOCFolder(root, "train").classes[:3]
        ('background', 'clownfish', 'zebrafish')
    """
    counts = {"train": num_train, "val": num_val}
    for split, count in counts.items():
        require(count >= 1, f"num_{split}: expected at least 1, got {count}")
    classes = ("background", *[*FISH][: num_classes - 1])
    labels: dict[str, dict[str, npt.NDArray[np.uint8]]] = {split: {} for split in counts}
    with new_folder(root) as folder:
        (folder / "JPEGImages").mkdir()
        for split, count in counts.items():
            for index in range(count):
                name = f"{split}_{index:05d}"
                sample = synthetic_sample(seed, split, index, size=size, num_classes=num_classes)
                path = folder / "JPEGImages" / f"{name}.jpg"
                Image.fromarray(sample.image).save(path, quality=95, subsampling=0)
                save_label_map(folder / "SegmentationClass" / f"{name}.png", sample.mask)
                save_label_map(folder / "SegmentationParts" / f"{name}.png", sample.part)
                labels[split][name] = labels_from_mask(sample.mask, num_classes)
        write_lists(folder, classes, labels)
    return Path(root)


# --- shape -------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    along: _Array  # (S, S) position along the axis, -0.5 (tail) .. 0.5 (nose), in fish lengths
    across: _Array  # (S, S) position across the axis, belly < 0 < back, in fish lengths
    distance: _Array  # (S, S) approximate signed distance to the outline in pixels, negative inside
    head_distance: _Array  # (S, S) the same to the gill line, negative on the head's side
    length: float  # pixels
    inside: npt.NDArray[np.bool_]  # coverage above one half


def _draw_shape(rng: np.random.Generator, size: int) -> _Shape:
    """A fish of random length, plumpness, bend and direction, at a random place wholly inside the image."""
    share, plump, bend, angle = rng.uniform([0.38, 0.29, -0.35, 0], [0.54, 0.35, 0.35, 2 * np.pi]).tolist()
    length = share * size
    flip = 1.0 if rng.random() < 0.5 else -1.0
    head_share = float(rng.uniform(0.16, 0.19))
    place = rng.random(2)

    # where it may stand: its extent is that of a slightly larger fish sampled on a grid around the origin
    grid = np.linspace(-0.62, 0.62, 63, dtype=np.float32)
    u, v = np.meshgrid(grid, grid)
    hit = _outline(u, _straighten(u, v, bend), plump) < 0
    x, y = (length * axis[hit] for axis in _turn(u, flip * v, -angle))
    step = length * float(grid[1] - grid[0])
    margin = 2.0  # pixels of background between a fish and the image border
    low = np.array([-x.min(), -y.min()]) + margin + step
    high = size - 1 - np.array([x.max(), y.max()]) - margin - step
    left, top = (low + place * np.maximum(high - low, 0)).tolist()

    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    along, across = _turn((xs - left) / length, (ys - top) / length, angle)
    across = _straighten(along, flip * across, bend)
    distance = _to_pixels(_outline(along, across, plump))
    gill = along + 0.9 * across**2  # the gill line is an arc, open to the nose
    inside = distance < 0
    cut = float(np.quantile(gill[inside], 1 - head_share))
    return _Shape(along, across, distance, _to_pixels(cut - gill), length, inside)


def _turn(x: _Array, y: _Array, angle: float) -> tuple[_Array, _Array]:
    """The points (x, y) in axes turned by an angle; Python floats keep them in float32."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _straighten(along: _Array, across: _Array, bend: float) -> _Array:
    return (across - bend * (along**2 - 0.06)).astype(np.float32)


def _outline(along: _Array, across: _Array, plump: float) -> _Array:
    """Implicit function of the outline, negative inside: an egg, blunt at the nose, with fins and a tail."""
    t = (along - 0.13) / 0.37
    profile = np.sqrt(np.clip(1 - t * t, 0, None)) * (1 + 0.18 * t) * plump
    fin = np.where(across > 0, 0.07, 0.035) * np.exp(-(((t + 0.25) / 0.35) ** 2))
    egg = np.where(np.abs(t) < 1, np.abs(across) - profile - fin, np.abs(t) - 1 + np.abs(across))
    fan = np.abs(across) - (0.035 + 0.55 * np.clip(-along - 0.18, 0, None))
    notch = (-0.5 + 0.35 * np.clip(0.12 - np.abs(across), 0, None)) - along
    tail = np.maximum(np.maximum(fan, notch), along + 0.05)
    return np.minimum(egg, tail).astype(np.float32)


def _to_pixels(implicit: npt.NDArray[np.floating]) -> _Array:
    """First-order signed distance: value over gradient length (differences between neighbouring pixels)."""
    gy, gx = np.gradient(implicit)
    return (implicit / np.maximum(np.sqrt(gx * gx + gy * gy), 1e-3)).astype(np.float32)


# --- colour ------------------------------------------------------------------------------------------------


def _muted_colors(rng: np.random.Generator, count: int) -> _Array:
    """Colours (count, 3) of bodies and of backgrounds alike: any hue, never as vivid as a head."""
    hue, saturation, value = rng.random(count), rng.uniform(0.1, 0.5, count), rng.uniform(0.25, 1.0, count)
    sector = np.mod(hue[:, None] * 6 + np.array([5.0, 3.0, 1.0]), 6)
    ramp = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * ramp)).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int, channels: int) -> _Array:
    """Random values on a (cells + 1)^2 grid, interpolated by smooth steps to (S, S, channels)."""
    values = rng.standard_normal((cells + 1, cells + 1, channels)).astype(np.float32)
    position = np.linspace(0, cells, size, endpoint=False)
    left = position.astype(int)
    t = position - left
    t = t * t * (3 - 2 * t)
    weight = np.zeros((size, cells + 1), np.float32)
    weight[np.arange(size), left] = 1 - t
    weight[np.arange(size), left + 1] += t
    return np.einsum("ya,abc,xb->yxc", weight, values, weight, optimize=True).astype(np.float32)


def _background(rng: np.random.Generator, size: int) -> _Array:
    """Gravel of two related muted colours with light, grain and a few stones of unrelated colour."""
    base = _muted_colors(rng, 1)[0]
    tint = base + rng.uniform(-0.12, 0.12, 3).astype(np.float32)
    blend = 1 / (1 + np.exp(-2 * _smooth_noise(rng, size, 3, 1)))
    canvas = base * (1 - blend) + tint * blend

    count = int(rng.integers(40, 90))
    seeds = (rng.random((count, 2)) * (size + 20) - 10).astype(np.float32)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    wobble = 1.5 * _smooth_noise(rng, size, 12, 2)
    points = np.stack([xs + wobble[..., 0], ys + wobble[..., 1]], -1).reshape(-1, 2)
    squared = (points**2).sum(1)[:, None] - 2 * points @ seeds.T + (seeds**2).sum(1)
    nearest = squared.argmin(1)
    first, second = np.partition(squared, 1, axis=1)[:, :2].T
    gap = np.sqrt(np.maximum(second, 0)) - np.sqrt(np.maximum(first, 0))  # 0 on the border of two pebbles
    tone = rng.normal(0, 0.055, (count, 1)) + rng.normal(0, 0.02, (count, 3))
    groove = 0.128 * np.exp(-gap.reshape(size, size, 1) / 1.2)
    canvas = (canvas + tone.astype(np.float32)[nearest].reshape(size, size, 3)) * (1 - groove)

    for _ in range(int(rng.integers(0, 4))):
        x, y = (rng.random(2) * size).tolist()
        radii: list[float] = (rng.uniform(0.03, 0.085, 2) * size).tolist()
        u, v = _turn(xs - x, ys - y, float(rng.uniform(0, np.pi)))
        r = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2)
        cover = np.clip(0.5 - (r - 1) * (sum(radii) / 2), 0, 1)[..., None]
        light = (1.1 - 0.3 * r.clip(0, 1) ** 2)[..., None]
        canvas = canvas * (1 - cover) + _muted_colors(rng, 1)[0] * light * cover
    canvas = canvas * (1 + 0.05 * _smooth_noise(rng, size, 2, 1))
    # dark scenes and bright ones: what is a body's colour here is the gravel's there
    canvas = canvas * (float(rng.uniform(0.1, 0.6)) / float(canvas.mean()))
    grey, colour = (rng.standard_normal((size, size, channels), dtype=np.float32) for channels in (1, 3))
    canvas = canvas + (0.02 * grey + 0.008 * colour)
    return np.clip(canvas, 0.02, 0.98).astype(np.float32)


def _paint(rng: np.random.Generator, canvas: _Array, shape: _Shape, pattern: str, colors: _Array) -> _Array:
    """Lay the fish over the canvas; its edges are antialiased by coverage."""
    body = _contrasting_color(rng, canvas[(shape.distance > 0.5) & (shape.distance < 5)])
    depth = np.clip(-shape.distance / (0.16 * shape.length), 0, 1)
    roundness = np.sqrt(1 - (1 - depth) ** 2)
    light = 0.80 + 0.24 * roundness + 0.25 * shape.across  # lit from above its back
    scales = np.sin(2 * np.pi * shape.along * 13) * np.sin(2 * np.pi * shape.across * 13)
    rays = np.sin(2 * np.pi * shape.across * 22) * np.clip((-shape.along - 0.2) * 10, 0, 1)
    grain = 0.03 * scales + 0.04 * rays + 0.02 * rng.standard_normal(rays.shape, dtype=np.float32)
    coat = body * (light + grain)[..., None]

    head = _head(shape, pattern, colors) * (0.85 + 0.2 * roundness)[..., None]
    head_cover = np.clip(0.5 - shape.head_distance, 0, 1)[..., None]
    coat = coat * (1 - head_cover) + head * head_cover
    cover = np.clip(0.5 - shape.distance, 0, 1)[..., None]
    return (canvas * (1 - cover) + np.clip(coat, 0, 1) * cover).astype(np.float32)


def _contrasting_color(rng: np.random.Generator, ring: _Array) -> _Array:
    """A muted colour lighter than the ring of background around the fish, and unlike nearly all of it.

    Lighter everywhere, because "the look all classes share" must be something a network can learn: with bodies
    lighter here and darker there, it takes the lighter side of every edge for the fish. But no lighter than it
    must be, and scenes are dark or bright, so that no colour of its own gives a body away: of 256 draws, the
    darkest that qualifies.
    """
    colors = _muted_colors(rng, 256)
    shaded = 0.93 * colors  # about the mean after shading
    mean = np.abs(shaded - ring.mean(0)).mean(1)
    close = (np.abs(shaded[:, None] - ring[None, ::3]).mean(2) < 0.1).mean(1)
    lighter = shaded.mean(1) - ring.mean()
    good = (mean > 0.26) & (close < 0.05) & (lighter > 0.15)
    best = np.where(good, lighter, np.inf).argmin() if good.any() else (lighter - close).argmax()
    return colors[int(best)]


def _head(shape: _Shape, pattern: str, colors: _Array) -> _Array:
    """The head's two-coloured pattern (S, S, 3), some four pixels from crest to crest at size 96, and eye."""
    u, v = shape.along * 10, shape.across * 10  # period 1 = a tenth of the fish's length
    waves: dict[str, _Array] = {
        "bands": np.sin(2 * np.pi * (u - 0.35) / 1.3),
        "stripes": np.sin(2 * np.pi * v / 0.95),
        "spots": np.cos(2 * np.pi * u / 1.1) + np.cos(2 * np.pi * v / 1.1) - 0.35,
        "checks": np.sin(2 * np.pi * u / 1.9) * np.sin(2 * np.pi * v / 1.9),
        "rings": np.sin(2 * np.pi * np.hypot(u - 4.0, v) / 1.35 + 0.6),
    }
    blend = np.clip(0.5 + 2.5 * waves[pattern], 0, 1)[..., None]
    head = colors[0] * (1 - blend) + colors[1] * blend
    from_eye = np.hypot(shape.along - 0.42, shape.across - 0.055) * shape.length
    for radius, shade in ((0.042, 1.0), (0.025, 0.03)):
        eye = np.clip(0.5 + radius * shape.length - from_eye, 0, 1)[..., None]
        head = head * (1 - eye) + shade * eye
    return head.astype(np.float32)
