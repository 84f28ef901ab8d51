from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from wsss_nb.data import VOCFolder, check_folder, make_synthetic
from wsss_nb.data import synthetic as module
from wsss_nb.data.layout import labels_from_mask
from wsss_nb.data.synthetic import BODY, FISH, HEAD, SyntheticSample, synthetic_sample
from wsss_nb.system.errors import InputError


@pytest.fixture(scope="module")
def samples() -> list[SyntheticSample]:
    return [synthetic_sample(0, "train", index) for index in range(200)]


@pytest.fixture(scope="module")
def singles(samples: list[SyntheticSample]) -> list[SyntheticSample]:
    """Images of exactly one fish: their head is one piece, and so is the fish."""
    single = [
        s
        for s in samples
        if ndimage.label(s.mask)[1] == 1 and ndimage.label(ndimage.binary_erosion(s.part == HEAD))[1] == 1
    ]
    assert len(single) > 70
    return single


def test_a_sample_depends_on_nothing_but_its_arguments() -> None:
    first = synthetic_sample(3, "val", 5)
    np.random.seed(99)  # a global state must play no part
    synthetic_sample(3, "val", 4)
    again = synthetic_sample(3, "val", 5)
    for a, b in zip((first.image, first.mask, first.part), (again.image, again.mask, again.part), strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (synthetic_sample(4, "val", 5), synthetic_sample(3, "train", 5), synthetic_sample(3, "val", 6)):
        assert np.abs(other.image.astype(int) - first.image).mean() > 5


def test_the_pixels_are_those_of_the_published_figures() -> None:
    sample = synthetic_sample(0, "train", 0)
    digest = hashlib.sha256(sample.image.tobytes() + sample.mask.tobytes() + sample.part.tobytes()).hexdigest()
    assert digest.startswith("490fbabfb74cc6b8")


def test_shapes_types_and_labels(samples: list[SyntheticSample]) -> None:
    for sample in samples:
        assert (sample.image.shape, sample.mask.shape, sample.part.shape) == ((96, 96, 3), (96, 96), (96, 96))
        assert (sample.image.dtype, sample.mask.dtype, sample.part.dtype) == (np.uint8,) * 3
        np.testing.assert_array_equal(sample.part > 0, sample.mask > 0)
        assert set(np.unique(sample.part)) == {0, BODY, HEAD}
        assert 1 <= len(sample.classes) <= 2
        assert max(sample.classes) <= 5
        # no fish hides another's head, so every class in the image can be told
        assert all(((sample.mask == k) & (sample.part == HEAD)).sum() >= 20 for k in sample.classes)


def test_classes_are_even_and_half_of_the_images_show_two_fish(samples: list[SyntheticSample]) -> None:
    counts = np.bincount([k for s in samples for k in s.classes], minlength=6)[1:]
    assert counts.min() > 0.6 * counts.mean()
    two = np.mean([len(s.classes) == 2 for s in samples])
    assert 0.3 < two < 0.5  # half of the images, less those whose second fish is of the same class


def test_fish_never_leave_the_image(samples: list[SyntheticSample]) -> None:
    for sample in samples:
        frame = sample.mask.copy()
        frame[2:-2, 2:-2] = 0
        assert not frame.any()


def test_size_and_share_of_the_head(singles: list[SyntheticSample]) -> None:
    for sample in singles:
        y, x = np.nonzero(sample.mask)
        rim = sample.mask[y - 1, x] + sample.mask[y + 1, x] < 2 * sample.mask[y, x]  # its ends lie on the rim
        length = np.hypot(y[rim][:, None] - y[rim], x[rim][:, None] - x[rim]).max()
        assert 34 <= length <= 57
        assert 0.15 <= (sample.part == HEAD).sum() / y.size <= 0.20


def test_bodies_differ_from_the_background_around_them(singles: list[SyntheticSample]) -> None:
    edges = []
    for sample in singles:
        image = sample.image / 255
        ring = ndimage.binary_dilation(sample.mask > 0, iterations=5) & (sample.mask == 0)
        difference = image[sample.part == BODY].mean(0) - image[ring].mean(0)
        assert np.abs(difference).mean() > 0.2
        across = np.abs(image[:, 2:] - image[:, :-2]).mean(2)
        border = (sample.part[:, 2:] == BODY) & (sample.part[:, :-2] == 0)
        edges += (across[border] > 0.1).tolist()
    assert np.mean(edges) > 0.93


def test_colour_is_a_cue_but_does_not_settle_what_is_body(samples: list[SyntheticSample]) -> None:
    rng = np.random.default_rng(0)
    colors, is_body, image_of = [], [], []
    for index, sample in enumerate(samples):
        for part in (0, BODY):
            pixels = sample.image[sample.part == part]
            colors.append(pixels[rng.integers(0, len(pixels), 10)])
            is_body += [part == BODY] * 10
            image_of += [index] * 10
    x, y, fold = np.concatenate(colors) / 255, np.array(is_body), np.array(image_of) % 2
    accuracy = KNeighborsClassifier(25).fit(x[fold == 0], y[fold == 0]).score(x[fold == 1], y[fold == 1])
    assert 0.6 < accuracy < 0.82  # bodies are lighter than what is around them; 0.5 would be chance


def test_only_the_head_tells_the_class(singles: list[SyntheticSample]) -> None:
    single = [s for s in singles if len(s.classes) == 1]
    y = np.array([s.classes[0] for s in single])

    def features(part: int) -> np.ndarray:
        pixels = [s.image[s.part == part] / 255 for s in single]
        return np.array([np.concatenate([p.mean(0), p.std(0), np.quantile(p, [0.2, 0.8], 0).ravel()]) for p in pixels])

    head = cross_val_score(KNeighborsClassifier(3), features(HEAD), y, cv=4).mean()
    body = cross_val_score(KNeighborsClassifier(3), features(BODY), y, cv=4).mean()
    assert head > 0.9
    assert body < 0.4  # chance is 0.2
    brightness = [features(BODY)[y == k, :3].mean(1) for k in range(1, 6)]
    assert stats.kruskal(*brightness).pvalue > 1e-3


def test_other_sizes_and_numbers_of_classes() -> None:
    for size, num_classes in ((48, 2), (128, 13)):
        drawn = [synthetic_sample(1, "train", i, size=size, num_classes=num_classes) for i in range(40)]
        assert drawn[0].image.shape == (size, size, 3)
        seen = {k for sample in drawn for k in sample.classes}
        assert max(seen) <= num_classes - 1
        assert len(seen) > 0.7 * (num_classes - 1)
    assert len(FISH) == 12


def test_the_written_folder_holds_the_samples(tmp_path: Path) -> None:
    root = make_synthetic(tmp_path / "fish", num_train=6, num_val=3, seed=7)
    assert root == tmp_path / "fish"
    assert check_folder(root, ["train", "val"]).bad == {}
    for split, count in (("train", 6), ("val", 3)):
        folder = VOCFolder(root, split)
        assert len(folder) == count
        assert folder.classes == ("background", "clownfish", "zebrafish", "leopardfish", "parrotfish", "sunfish")
        assert folder.label_source == "csv"
        assert folder.has_parts
        for index, name in enumerate(folder.names):
            sample = synthetic_sample(7, split, index)
            np.testing.assert_array_equal(folder.mask(name), sample.mask)
            np.testing.assert_array_equal(folder.part(name), sample.part)
            assert np.abs(folder.image(name).astype(int) - sample.image).mean() < 3
            assert folder.label(name).tolist() == labels_from_mask(sample.mask, 6).tolist()
    with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
        assert image.info.get("dpi") is None
        assert image.layer[0][1:3] == image.layer[1][1:3] == (1, 1)  # colour is not subsampled


def test_folders_are_equal_byte_for_byte_and_grow_at_the_end(tmp_path: Path) -> None:
    small = make_synthetic(tmp_path / "small", num_train=2, num_val=1, size=48)
    large = make_synthetic(tmp_path / "large", num_train=4, num_val=1, size=48)
    files = sorted(path.relative_to(small) for path in small.rglob("*.jpg")) + sorted(
        path.relative_to(small) for path in small.rglob("*.png")
    )
    assert len(files) == 9
    for file in files:
        assert (small / file).read_bytes() == (large / file).read_bytes()
    again = make_synthetic(tmp_path / "again", num_train=2, num_val=1, size=48)
    for path in small.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (again / path.relative_to(small)).read_bytes()
    assert VOCFolder(small, "train").split_hash(masks=True) == VOCFolder(again, "train").split_hash(masks=True)


def test_a_killed_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = module.synthetic_sample, []

    def dies(*arguments: object, **options: object) -> SyntheticSample:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, "synthetic_sample", dies)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "fish", num_train=5, num_val=1, size=48)
    assert os.listdir(tmp_path) == []


def test_a_folder_with_content_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty folder, got one with content"):
        make_synthetic(tmp_path, num_train=1, num_val=1, size=48)
    assert os.listdir(tmp_path) == ["precious.txt"]
    (tmp_path / "empty").mkdir()
    make_synthetic(tmp_path / "empty", num_train=1, num_val=1, size=48)
    assert len(VOCFolder(tmp_path / "empty", "val")) == 1
    with pytest.raises(InputError, match="expected a writable place"):
        make_synthetic(tmp_path / "precious.txt" / "fish", num_train=1, num_val=1, size=48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 47}, "size: expected at least 48 pixels, got 47"),
        ({"num_classes": 1}, r"num_classes: expected 2\.\.13 \(background counted\), got 1"),
        ({"num_classes": 14}, r"num_classes: expected 2\.\.13 \(background counted\), got 14"),
        ({"seed": -1}, "seed: expected a non-negative integer, got -1"),
        ({"num_train": 0}, "num_train: expected at least 1, got 0"),
        ({"num_val": 0}, "num_val: expected at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_synthetic(tmp_path / "fish", **arguments)
    assert not (tmp_path / "fish").exists()


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"split: expected one of \('train', 'val'\), got 'test'"):
        synthetic_sample(0, "test", 0)
