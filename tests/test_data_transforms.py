from __future__ import annotations

import colorsys
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from skimage import data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsss_nb.data.transforms import (
    IMAGENET_MEAN,
    CamAugmentation,
    SegmentationAugmentation,
    color_jitter,
    hsv_shift,
    resize,
    seeded_generator,
    to_tensor,
)

RECORDED = (
    [[55, 56, 57, 59, 60], [64, 65, 66, 68, 69], [82, 83, 84, 86, 87], [91, 92, 93, 95, 96], [100, 101, 102, 104, 105]],
    [[28, 30, 31, 32, 34], [37, 39, 40, 41, 43], [55, 57, 58, 59, 61], [64, 66, 67, 68, 70], [73, 75, 76, 77, 79]],
)
PAPER = CamAugmentation(448, scale=(448, 768), jitter=(0.3, 0.3, 0.3, 0.1))


def _coded(h: int, w: int) -> tuple[Tensor, Tensor]:
    """A label map of distinct labels and an image that carries the label of each pixel in its channels."""
    labels = torch.arange(h * w, dtype=torch.uint8).reshape(h, w)
    return labels.float().div(255).expand(3, h, w).clone(), labels


def _photo() -> Image.Image:
    return Image.fromarray(data.astronaut()[:300, 100:500])


def test_generators_depend_on_every_number_and_on_nothing_else() -> None:
    def first(*numbers: int) -> float:
        return torch.rand(1, generator=seeded_generator(*numbers), dtype=torch.float64).item()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    value = first(1, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert first(1, 2, 3) == value
    others = {first(0, 2, 3), first(1, 0, 3), first(1, 2, 0), first(3, 2, 1), first(1, 2), first(12, 3), value}
    assert len(others) == 7
    with pytest.raises(ValueError, match="expected non-negative integer"):
        first(1, -2)


def test_first_draws_of_neighbouring_generators_are_uniform() -> None:
    values = [torch.rand(1, generator=seeded_generator(0, 0, index)).item() for index in range(500)]
    counts = np.histogram(values, bins=5, range=(0, 1))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 18.5  # chi-square with 4 degrees of freedom, p = 0.001


def test_to_tensor_by_hand() -> None:
    image = np.array([[[0, 51, 255]], [[255, 0, 102]]], dtype=np.uint8)
    image.setflags(write=False)
    tensor = to_tensor(image)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.tensor([[[0.0], [1.0]], [[0.2], [0.0]], [[1.0], [0.4]]]))
    with pytest.raises(ValueError, match=r"image: expected \(H, W, 3\) uint8, got \(2, 3\) uint8"):
        to_tensor(np.zeros((2, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"got .* float64"):
        to_tensor(np.zeros((2, 3, 3)))


def test_to_tensor_takes_read_only_and_reversed_images_without_a_warning() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image.setflags(write=False)
    torch.set_warn_always(True)  # not once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain, flipped = to_tensor(image), to_tensor(image[:, ::-1])
    finally:
        torch.set_warn_always(False)
    assert torch.equal(plain, flipped.flip(-1)) and plain[2, 1, 3] == pytest.approx(23 / 255)


@pytest.mark.parametrize("long_side", [100, 250, 400, 700])
def test_resizing_is_pillows_bicubic(long_side: int) -> None:
    photo = _photo()
    size = (long_side, round(long_side * 300 / 400))
    resized = resize(to_tensor(np.array(photo)), size[::-1])
    # in floating point, because Pillow rounds 8-bit images between its two passes
    channels = [Image.fromarray(np.asarray(c, np.float32) / 255) for c in photo.split()]
    expected = np.stack([c.resize(size, Image.Resampling.BICUBIC) for c in channels]).clip(0, 1)
    np.testing.assert_allclose(resized.numpy(), expected, atol=1e-4)
    assert resized.min() >= 0
    assert resized.max() <= 1


def test_resizing_keeps_at_least_one_pixel() -> None:
    image, labels = torch.rand(3, 1, 500), torch.zeros(1, 500)
    for augment in (CamAugmentation(30, (20, 20)), SegmentationAugmentation(30, (0.04, 0.04), hsv=0)):
        assert augment(image, labels, seeded_generator(0))[0].shape == (3, 30, 30)
    assert resize(image, (1, 500)) is image


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_jitter_is_pillows_enhancement(factor: float) -> None:
    photo = _photo()
    tensor = to_tensor(np.array(photo))
    for name, enhancer, order in (
        ("brightness", ImageEnhance.Brightness, 0),
        ("contrast", ImageEnhance.Contrast, 1),
        ("saturation", ImageEnhance.Color, 2),
    ):
        expected = to_tensor(np.array(enhancer(photo).enhance(factor)))
        got = color_jitter(tensor, **{name: factor}, order=(order,))
        assert (got - expected).abs().max() < 2.5 / 255, name
        assert (got - expected).abs().mean() < 1 / 255, name


@pytest.mark.parametrize("hue", [-0.1, 0.04, 0.5])
def test_hue_turns_as_in_colorsys(hue: float) -> None:
    colors = torch.rand(3, 1, 50, generator=seeded_generator(0))
    got = color_jitter(colors, hue=hue, order=(3,))[:, 0].T
    for color, turned in zip(colors[:, 0].T.tolist(), got.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*color)
        np.testing.assert_allclose(turned, colorsys.hsv_to_rgb((h + hue) % 1, s, v), atol=2e-3)


def test_jitter_obeys_its_order() -> None:
    image = to_tensor(np.array(_photo()))
    one_after_the_other = color_jitter(color_jitter(image, brightness=1.3, order=(0,)), contrast=0.7, order=(1,))
    torch.testing.assert_close(color_jitter(image, 1.3, 0.7, order=(0, 1)), one_after_the_other)
    assert (color_jitter(image, 1.3, 0.7, order=(1, 0)) - one_after_the_other).abs().max() > 0.02
    torch.testing.assert_close(color_jitter(image), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("amounts", [(0.1, 0.0, 0.0), (-0.3, 0.04, -0.04), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)])
def test_hsv_shift_as_in_colorsys(amounts: tuple[float, float, float]) -> None:
    colors = torch.rand(3, 1, 50, generator=seeded_generator(1))
    got = hsv_shift(colors, *amounts)[:, 0].T
    for color, shifted in zip(colors[:, 0].T.tolist(), got.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*color)
        s, v = min(max(s + amounts[1], 0), 1), min(max(v + amounts[2], 0), 1)
        np.testing.assert_allclose(shifted, colorsys.hsv_to_rgb((h + amounts[0]) % 1, s, v), atol=2e-3)


def test_nothing_switched_on_changes_nothing() -> None:
    image, labels = _coded(11, 11)
    for augment in (CamAugmentation(11, flip=False), SegmentationAugmentation(11, (1, 1), False, 0)):
        same, same_labels = augment(image, labels, seeded_generator(0))
        assert torch.equal(same, image) and torch.equal(same_labels, labels)


def test_the_input_is_never_written_to() -> None:
    image, labels = _coded(20, 12)
    for index in range(5):
        for augment in (CamAugmentation(16, (10, 30), jitter=(0.3, 0.3, 0.3, 0.1)), SegmentationAugmentation(16)):
            augment(image, labels, seeded_generator(index))
    fresh, fresh_labels = _coded(20, 12)
    assert torch.equal(image, fresh) and torch.equal(labels, fresh_labels)


@pytest.mark.parametrize("crop", [9, 14, 20])
def test_image_and_labels_move_together(crop: int) -> None:
    image, labels = _coded(13, 15)
    for index in range(30):
        for augment in (CamAugmentation(crop), SegmentationAugmentation(crop, (1, 1), hsv=0)):
            moved, moved_labels = augment(image, labels, seeded_generator(index))
            assert moved.shape[1:] == moved_labels.shape == (crop, crop)
            inside = moved_labels != 255
            assert torch.equal((moved * 255).round().to(torch.uint8)[:, inside], moved_labels[inside].expand(3, -1))
            padding = moved[:, ~inside]
            assert torch.equal(padding, torch.tensor(IMAGENET_MEAN)[:, None].expand_as(padding))
            assert inside.sum() == min(crop, 13) * min(crop, 15)


def test_scores_move_with_the_image_and_are_zero_outside() -> None:
    image, labels = _coded(13, 15)
    scores = torch.stack([labels.float(), 1 - labels.float()])
    for index in range(20):
        _, moved_labels = CamAugmentation(14)(image, labels, seeded_generator(index))
        _, moved = CamAugmentation(14)(image, scores, seeded_generator(index))
        inside = moved_labels != 255
        assert torch.equal(moved[0][inside], moved_labels[inside].float()) and not moved[:, ~inside].any()
    _, constant = CamAugmentation(10, (10, 10))(torch.rand(3, 5, 5), torch.full((2, 5, 5), 0.25), seeded_generator(0))
    torch.testing.assert_close(constant, torch.full((2, 10, 10), 0.25))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CamAugmentation(8, (9, 8)), r"scale: expected 0 < low <= high, got \(9, 8\)"),
        (lambda: SegmentationAugmentation(8, (0, 1)), r"scale: expected 0 < low <= high, got \(0, 1\)"),
        (lambda: CamAugmentation(8, jitter=(0.3, 0.3, 0.3, 0.6)), "jitter: expected three strengths in 0..1 and a hue"),
        (lambda: CamAugmentation(8)(torch.rand(4, 4), torch.zeros(4, 4), seeded_generator(0)), "image: expected"),
        (
            lambda: CamAugmentation(8)(torch.rand(3, 4, 4), torch.zeros(4, 5), seeded_generator(0)),
            r"labels: expected \(H, W\) = \(4, 4\), got \(4, 5\)",
        ),
        (
            lambda: SegmentationAugmentation(8)(
                torch.rand(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8), seeded_generator(0)
            ),
            r"labels: expected \(H, W\) = \(4, 4\), got \(1, 4, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_flips_happen_half_of_the_time() -> None:
    image, labels = _coded(3, 3)
    for augment in (CamAugmentation(3), SegmentationAugmentation(3, (1, 1), hsv=0)):
        results = [augment(image, labels, seeded_generator(0, i))[0] for i in range(400)]
        flipped = sum(torch.equal(result, image.flip(-1)) for result in results)
        assert flipped + sum(torch.equal(result, image) for result in results) == 400
        assert 160 < flipped < 240


def test_long_sides_are_uniform_with_both_ends() -> None:
    image, labels = torch.rand(3, 4, 8), torch.zeros(4, 8, dtype=torch.uint8)
    sizes = []
    for index in range(500):
        inside = CamAugmentation(20, (6, 10))(image, labels, seeded_generator(index))[1] != 255
        sizes.append((int(inside.any(1).sum()), int(inside.any(0).sum())))
    assert {w for _, w in sizes} == {6, 7, 8, 9, 10}
    assert all(h == round(w / 2) for h, w in sizes)
    counts = np.bincount([w for _, w in sizes])[6:]
    assert ((counts - 100) ** 2 / 100).sum() < 18.5


@pytest.mark.parametrize("size", [3, 9])
def test_crops_are_uniform_over_all_places(size: int) -> None:
    image, labels = _coded(6, 6)
    corners = []
    for index in range(800):
        _, moved = CamAugmentation(size, flip=False)(image, labels, seeded_generator(index))
        if size < 6:
            corners.append((int(moved[0, 0]) // 6, int(moved[0, 0]) % 6))
        else:
            corners.append(tuple(torch.nonzero(moved == 0)[0].tolist()))
    counts = np.array([corners.count((y, x)) for y in range(4) for x in range(4)])
    assert counts.sum() == 800
    assert ((counts - 50) ** 2 / 50).sum() < 37.7  # chi-square with 15 degrees of freedom, p = 0.001


def test_jitter_fills_its_range_and_stays_within() -> None:
    grey, labels = torch.full((3, 2, 2), 0.5), torch.zeros(2, 2)
    augment = CamAugmentation(2, flip=False, jitter=(0.3, 0.0, 0.0, 0.0))
    values = np.array([augment(grey, labels, seeded_generator(i))[0][0, 0, 0].item() / 0.5 for i in range(300)])
    assert values.min() >= 0.7 - 1e-6
    assert values.max() <= 1.3 + 1e-6
    assert values.min() < 0.72
    assert values.max() > 1.28
    assert abs(values.mean() - 1) < 0.04


def test_steps_of_the_jitter_come_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders, brightness_when_first = set(), []

    def record(image: Tensor, b: float, c: float, s: float, h: float, order: tuple[int, ...]) -> Tensor:
        orders.add(order)
        brightness_when_first.extend([b] if order[0] == 0 else [])
        assert max(abs(b - 1), abs(c - 1), abs(s - 1)) <= 0.3
        assert abs(h) <= 0.1
        return image

    monkeypatch.setattr("wsss_nb.data.transforms.color_jitter", record)
    for index in range(300):
        CamAugmentation(2, jitter=PAPER.jitter)(torch.rand(3, 2, 2), torch.zeros(2, 2), seeded_generator(index))
    assert len(orders) == 24
    assert abs(np.mean(brightness_when_first) - 1) < 0.08  # the order says nothing about the strengths


def test_one_setting_does_not_change_what_another_draws() -> None:
    image, labels = _coded(12, 12)
    off, on = {"jitter": None}, {"jitter": (0.3, 0.3, 0.3, 0.1)}
    for make, one, other in (
        (CamAugmentation, off, on),
        (partial(SegmentationAugmentation, scale=(1, 1)), {"hsv": 0}, {"hsv": 10}),
    ):
        for index in range(20):
            plain, changed = (make(8, **setting)(image, labels, seeded_generator(index))[1] for setting in (one, other))
            assert torch.equal(plain, changed)


def test_draws_and_their_use_as_recorded() -> None:
    """Another order or number of draws would change what every training sees."""
    image, labels = _coded(12, 9)
    generator = seeded_generator(7)
    _, moved = CamAugmentation(5, (8, 16))(image, labels, generator)
    assert torch.equal(generator.get_state(), _after(7, 14))
    generator = seeded_generator(7)
    _, other = SegmentationAugmentation(5, hsv=0)(image, labels, generator)
    assert torch.equal(generator.get_state(), _after(7, 9))
    assert (moved.tolist(), other.tolist()) == RECORDED


def _after(seed: int, count: int) -> Tensor:
    generator = seeded_generator(seed)
    torch.rand(count, generator=generator, dtype=torch.float64)
    return generator.get_state()


def _cubic_matrix(length: int, wanted: int) -> np.ndarray:
    """OpenCV's cubic: Keys' kernel with a = -3/4 at half-pixel centres, the border repeated; (wanted, length)."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = np.zeros((wanted, length))
    for row in range(wanted):
        place = (row + 0.5) * length / wanted - 0.5
        for pixel in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[row, min(max(pixel, 0), length - 1)] += kernel(place - pixel)
    return matrix


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.5])
def test_segmentation_scales_images_by_opencvs_cubic(factor: float) -> None:
    """Not antialiased, clamped."""
    image = (torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    augment = SegmentationAugmentation(64, (factor, factor), flip=False, hsv=0)
    scaled, labels = augment(image, torch.zeros(30, 40, dtype=torch.int64), seeded_generator(0))
    rows, columns = (_cubic_matrix(length, round(length * factor)) for length in (30, 40))
    expected = np.einsum("ih,chw,jw->cij", rows, image.numpy(), columns)
    np.testing.assert_allclose(scaled[:, labels == 0].numpy(), expected.clip(0, 1).reshape(3, -1), atol=1e-5)
    assert expected.max() > 1.05


def test_scaled_labels_are_labels_of_the_same_place() -> None:
    labels = torch.zeros(40, 60, dtype=torch.int64)
    labels[10:30, 20:50] = 7
    image = (labels == 7).float().expand(3, -1, -1).clone()
    sizes = set()
    for index in range(40):
        scaled, moved = SegmentationAugmentation(100, (0.5, 1.5), hsv=0)(image, labels, seeded_generator(index))
        assert moved.dtype == torch.int64
        assert set(moved.unique().tolist()) == {0, 7, 255}
        inside = moved != 255
        assert ((scaled[0] > 0.5) == (moved == 7))[inside].float().mean() > 0.97
        h, w = int(inside.any(1).sum()), int(inside.any(0).sum())
        sizes.add(h)
        assert abs(h / 40 - w / 60) < 0.03
    assert 20 <= min(sizes) < 24
    assert 56 < max(sizes) <= 60


def test_hsv_draws_are_opencv_units(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def record(image: Tensor, *amounts: float) -> Tensor:
        drawn.append(amounts)
        return image

    monkeypatch.setattr("wsss_nb.data.transforms.hsv_shift", record)
    image, labels = _coded(2, 2)
    for index in range(400):
        SegmentationAugmentation(2, (1, 1))(image, labels, seeded_generator(index))
    for column, unit in enumerate((180, 255, 255)):
        steps = {round(amounts[column] * unit, 6) for amounts in drawn}
        assert steps == set(range(-10, 11))


def test_the_papers_crop_of_a_photo() -> None:
    photo = to_tensor(np.array(_photo()))
    labels = torch.zeros(photo.shape[1:], dtype=torch.uint8)
    views = [PAPER(photo, labels, seeded_generator(0, index))[0] for index in range(4)]
    for view in views:
        assert view.shape == (3, 448, 448)
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1
    assert torch.equal(views[0], PAPER(photo, labels, seeded_generator(0, 0))[0])
    assert not torch.equal(views[0], views[1])


class _Views(Dataset[Tensor]):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.augment = CamAugmentation(8, (6, 12), jitter=(0.3, 0.3, 0.3, 0.1))

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        image = torch.rand(3, 10, 9, generator=seeded_generator(5, index))
        return self.augment(image, torch.zeros(10, 9), seeded_generator(0, self.epoch, index))[0]


def test_epochs_are_reproducible_whatever_the_number_of_workers() -> None:
    first = torch.cat(list(DataLoader(_Views(0), batch_size=4)))
    assert torch.equal(first, torch.cat(list(DataLoader(_Views(0), batch_size=4, num_workers=2))))
    assert torch.equal(first[5], _Views(0)[5])
    assert not torch.equal(first, torch.cat(list(DataLoader(_Views(1), batch_size=4))))


def test_without_jitter_kornia_is_not_even_imported() -> None:
    code = (
        "import sys, torch\n"
        "from wsss_nb.data.transforms import CamAugmentation, SegmentationAugmentation, seeded_generator\n"
        "image, labels = torch.rand(3, 96, 96), torch.zeros(96, 96, dtype=torch.uint8)\n"
        "CamAugmentation(64, (80, 100))(image, labels, seeded_generator(0))\n"
        "SegmentationAugmentation(64, hsv=0)(image, labels, seeded_generator(0))\n"
        "print('kornia' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
