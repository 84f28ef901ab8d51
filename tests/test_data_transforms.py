from __future__ import annotations

import colorsys
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from skimage import data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsss_nb.data import CamAugmentation, SegmentationAugmentation, seeded_generator, to_tensor
from wsss_nb.data.transforms import (
    IMAGENET_MEAN,
    color_jitter,
    crop_or_pad,
    hsv_shift,
    resize,
    resize_long_side,
    shift_image,
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
    others = {
        first(0, 2, 3),
        first(1, 0, 3),
        first(1, 2, 0),
        first(3, 2, 1),
        first(1, 2),
        first(12, 3),
        value,
    }
    assert len(others) == 7
    with pytest.raises(ValueError, match=r"numbers: expected non-negative integers, got \(1, -2\)"):
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
    resized = resize_long_side(to_tensor(np.array(photo)), long_side)
    size = (long_side, round(long_side * 300 / 400))
    # in floating point, because Pillow rounds 8-bit images between its two passes
    channels = [Image.fromarray(np.asarray(c, np.float32) / 255) for c in photo.split()]
    expected = np.stack([c.resize(size, Image.Resampling.BICUBIC) for c in channels]).clip(0, 1)
    np.testing.assert_allclose(resized.numpy(), expected, atol=1e-4)
    assert resized.min() >= 0
    assert resized.max() <= 1


def test_resizing_keeps_at_least_one_pixel() -> None:
    assert resize_long_side(torch.rand(3, 1, 500), 20).shape == (3, 1, 20)
    image = torch.rand(3, 4, 5)
    assert resize(image, (4, 5)) is image


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(-8, 8),
    st.integers(-8, 8),
    st.integers(1, 7),
    st.integers(1, 7),
)
def test_crop_or_pad_is_a_window_of_the_padded_image(
    H: int, W: int, top: int, left: int, h: int, w: int
) -> None:
    image = torch.arange(2 * H * W, dtype=torch.float32).reshape(2, H, W)
    padded = np.stack(
        [
            np.pad(channel, 20, constant_values=value)
            for channel, value in zip(image.numpy(), (-1, -2), strict=True)
        ]
    )
    expected = padded[:, 20 + top : 20 + top + h, 20 + left : 20 + left + w]
    np.testing.assert_array_equal(crop_or_pad(image, top, left, (h, w), (-1.0, -2.0)).numpy(), expected)
    labels = crop_or_pad(image[0].to(torch.uint8), top, left, (h, w), 255)
    np.testing.assert_array_equal(labels.numpy(), np.where(expected[0] == -1, 255, expected[0]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(-7, 7), st.integers(-7, 7))
def test_shift_repeats_the_border(H: int, W: int, down: int, right: int) -> None:
    image = torch.arange(H * W).reshape(H, W)
    expected = np.pad(image.numpy(), 10, mode="edge")[10 - down : 10 - down + H, 10 - right : 10 - right + W]
    np.testing.assert_array_equal(shift_image(image, down, right).numpy(), expected)


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
    one_after_the_other = color_jitter(
        color_jitter(image, brightness=1.3, order=(0,)), contrast=0.7, order=(1,)
    )
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
    image, labels = _coded(9, 11)
    same, same_labels = CamAugmentation(None, flip=False)(image, seeded_generator(0), labels)
    assert torch.equal(same, image)
    assert torch.equal(same_labels, labels)
    same, same_labels = SegmentationAugmentation((9, 11), None, False, 0)(image, labels, seeded_generator(0))
    assert torch.equal(same, image)
    assert torch.equal(same_labels, labels)


def test_the_input_is_never_written_to() -> None:
    image, labels = _coded(20, 12)
    for index in range(5):
        augment = CamAugmentation(16, (10, 30), jitter=(0.3, 0.3, 0.3, 0.1), shift=2)
        augment(image, seeded_generator(index), labels)
        SegmentationAugmentation(16)(image, labels, seeded_generator(index))
    fresh, fresh_labels = _coded(20, 12)
    assert torch.equal(image, fresh)
    assert torch.equal(labels, fresh_labels)


@pytest.mark.parametrize(("crop", "shift"), [((7, 20), 0), (9, 3), ((20, 5), 2), (None, 4)])
def test_image_and_labels_move_together(crop: tuple[int, int] | int | None, shift: int) -> None:
    image, labels = _coded(13, 15)
    for index in range(30):
        for moved, moved_labels in (
            CamAugmentation(crop, shift=shift)(image, seeded_generator(index), labels),
            SegmentationAugmentation(crop, None, hsv=0, shift=shift)(image, labels, seeded_generator(index)),
        ):
            assert moved.shape[1:] == moved_labels.shape
            inside = moved_labels != 255
            assert torch.equal(
                (moved * 255).round().to(torch.uint8)[:, inside], moved_labels[inside].expand(3, -1)
            )
            padding = moved[:, ~inside]
            assert torch.equal(padding, torch.tensor(IMAGENET_MEAN)[:, None].expand_as(padding))
            if crop == (7, 20):
                assert (~inside).sum() == 7 * 5


def test_flips_happen_half_of_the_time() -> None:
    image, labels = _coded(2, 3)
    for results in (
        [CamAugmentation(None)(image, seeded_generator(0, i)) for i in range(400)],
        [
            SegmentationAugmentation(None, None, hsv=0)(image, labels, seeded_generator(0, i))[0]
            for i in range(400)
        ],
    ):
        flipped = sum(torch.equal(result, image.flip(-1)) for result in results)
        assert flipped + sum(torch.equal(result, image) for result in results) == 400
        assert 160 < flipped < 240


def test_long_sides_are_uniform_with_both_ends() -> None:
    image = torch.rand(3, 4, 8)
    sizes = [tuple(CamAugmentation(None, (6, 10))(image, seeded_generator(i)).shape[1:]) for i in range(500)]
    assert {w for _, w in sizes} == {6, 7, 8, 9, 10}
    assert all(h == round(w / 2) for h, w in sizes)
    counts = np.bincount([w for _, w in sizes])[6:]
    assert ((counts - 100) ** 2 / 100).sum() < 18.5


@pytest.mark.parametrize("size", [3, 9])
def test_crops_are_uniform_over_all_places(size: int) -> None:
    image, labels = _coded(6, 6)
    corners = []
    for index in range(800):
        _, moved = CamAugmentation(size, flip=False)(image, seeded_generator(index), labels)
        if size < 6:
            corners.append((int(moved[0, 0]) // 6, int(moved[0, 0]) % 6))
        else:
            corners.append(tuple(torch.nonzero(moved == 0)[0].tolist()))
    counts = np.array([corners.count((y, x)) for y in range(4) for x in range(4)])
    assert counts.sum() == 800
    assert ((counts - 50) ** 2 / 50).sum() < 37.7  # chi-square with 15 degrees of freedom, p = 0.001


def test_shifts_are_uniform_with_both_ends() -> None:
    image, labels = _coded(9, 9)
    seen = []
    for index in range(900):
        moved = CamAugmentation(None, flip=False, shift=1)(image, seeded_generator(index), labels)[1]
        seen.append((int(moved[4, 4]) // 9 - 4, int(moved[4, 4]) % 9 - 4))
    counts = np.array([seen.count((y, x)) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    assert counts.sum() == 900
    assert ((counts - 100) ** 2 / 100).sum() < 26.1  # 8 degrees of freedom


def test_jitter_fills_its_range_and_stays_within() -> None:
    grey = torch.full((3, 2, 2), 0.5)
    augment = CamAugmentation(None, flip=False, jitter=(0.3, 0.0, 0.0, 0.0))
    values = np.array([augment(grey, seeded_generator(i))[0, 0, 0].item() / 0.5 for i in range(300)])
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
        CamAugmentation(2, jitter=PAPER.jitter)(torch.rand(3, 2, 2), seeded_generator(index))
    assert len(orders) == 24
    assert abs(np.mean(brightness_when_first) - 1) < 0.08  # the order says nothing about the strengths


def test_one_setting_does_not_change_what_another_draws() -> None:
    image, labels = _coded(12, 12)
    for index in range(20):
        _, plain = CamAugmentation(8)(image, seeded_generator(index), labels)
        _, jittered = CamAugmentation(8, jitter=(0.3, 0.3, 0.3, 0.1))(image, seeded_generator(index), labels)
        assert torch.equal(plain, jittered)
        _, plain = SegmentationAugmentation(8, None, hsv=0)(image, labels, seeded_generator(index))
        _, shifted = SegmentationAugmentation(8, None, hsv=10)(image, labels, seeded_generator(index))
        assert torch.equal(plain, shifted)


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
    augment = SegmentationAugmentation(None, (factor, factor), flip=False, hsv=0)
    scaled, _ = augment(image, torch.zeros(30, 40, dtype=torch.int64), seeded_generator(0))
    rows, columns = (_cubic_matrix(length, round(length * factor)) for length in (30, 40))
    expected = np.einsum("ih,chw,jw->cij", rows, image.numpy(), columns)
    np.testing.assert_allclose(scaled.numpy(), expected.clip(0, 1), atol=1e-5)
    assert expected.max() > 1.05


def test_scaled_labels_are_labels_of_the_same_place() -> None:
    labels = torch.zeros(40, 60, dtype=torch.int64)
    labels[10:30, 20:50] = 7
    image = (labels == 7).float().expand(3, -1, -1).clone()
    sizes = set()
    for index in range(40):
        scaled, moved = SegmentationAugmentation(None, (0.5, 1.5), hsv=0)(
            image, labels, seeded_generator(index)
        )
        assert moved.dtype == torch.int64
        assert set(moved.unique().tolist()) == {0, 7}
        assert ((scaled[0] > 0.5) == (moved == 7)).float().mean() > 0.97
        sizes.add(moved.shape[0])
        assert abs(moved.shape[0] / 40 - moved.shape[1] / 60) < 0.03
    assert min(sizes) < 24
    assert max(sizes) > 56
    assert min(sizes) >= 20
    assert max(sizes) <= 60


def test_hsv_draws_are_opencv_units(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def record(image: Tensor, *amounts: float) -> Tensor:
        drawn.append(amounts)
        return image

    monkeypatch.setattr("wsss_nb.data.transforms.hsv_shift", record)
    image, labels = _coded(2, 2)
    for index in range(400):
        SegmentationAugmentation(2, None)(image, labels, seeded_generator(index))
    for column, unit in enumerate((180, 255, 255)):
        steps = {round(amounts[column] * unit, 6) for amounts in drawn}
        assert steps == set(range(-10, 11))


def test_the_papers_crop_of_a_photo() -> None:
    photo = to_tensor(np.array(_photo()))
    views = [PAPER(photo, seeded_generator(0, index)) for index in range(4)]
    for view in views:
        assert view.shape == (3, 448, 448)
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1
    assert torch.equal(views[0], PAPER(photo, seeded_generator(0, 0)))
    assert not torch.equal(views[0], views[1])


class _Views(Dataset[Tensor]):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.augment = CamAugmentation(8, (6, 12), jitter=(0.3, 0.3, 0.3, 0.1), shift=2)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        image = torch.rand(3, 10, 9, generator=seeded_generator(5, index))
        return self.augment(image, seeded_generator(0, self.epoch, index))


def test_epochs_are_reproducible_whatever_the_number_of_workers() -> None:
    first = torch.cat(list(DataLoader(_Views(0), batch_size=4)))
    assert torch.equal(first, torch.cat(list(DataLoader(_Views(0), batch_size=4, num_workers=2))))
    assert torch.equal(first[5], _Views(0)[5])
    assert not torch.equal(first, torch.cat(list(DataLoader(_Views(1), batch_size=4))))


def test_without_jitter_kornia_is_not_even_imported() -> None:
    code = (
        "import sys, torch\n"
        "from wsss_nb.data import CamAugmentation, SegmentationAugmentation, seeded_generator\n"
        "image, labels = torch.rand(3, 96, 96), torch.zeros(96, 96, dtype=torch.uint8)\n"
        "CamAugmentation(64, (80, 100), shift=4)(image, seeded_generator(0))\n"
        "SegmentationAugmentation(64, hsv=0)(image, labels, seeded_generator(0))\n"
        "print('kornia' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
