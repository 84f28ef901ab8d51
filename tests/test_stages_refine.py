"""Stages 2 and 3: their losses against sums written out in NumPy, also of a batch in two processes, and their inference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_stages_cam import resized, similarity_sum, softmax
from torch import Tensor

from wsss_nb.affinity import pair_offsets
from wsss_nb.models import create_affinity_net, create_deeplab
from wsss_nb.stages import affinitynet, deeplab
from wsss_nb.stages.affinitynet import affinitynet_loss, confident_labels, image_affinity, load_cam_file
from wsss_nb.stages.config import AffinityNetConfig, DeepLabConfig
from wsss_nb.stages.deeplab import deeplab_loss, predict
from wsss_nb.stages.views import Batch
from wsss_nb.system.errors import InputError
from wsss_nb.system.processes import Processes


def as_it_is(images: Tensor, features: Tensor) -> Tensor:
    """Stands for a network."""
    return features


def make_batch(channels: int, size: tuple[int, int], target: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(target), channels, *size, generator=generator)
    images = torch.rand(len(target), 3, *size, generator=generator)
    return Batch(images, features, torch.ones(len(target), 2), target=target)


def of_two_processes(monkeypatch: pytest.MonkeyPatch, module: Any, loss: Any, batch: Batch, counts: Tensor) -> float:
    """The mean of the losses of two processes, one of the first image and one of the others."""

    class Half(Processes):
        count = 2

        def sum(self, values: Tensor) -> Tensor:
            assert values.shape == counts.shape
            return counts

    monkeypatch.setattr(module, "processes", Half)
    parts = (Batch(*(None if x is None else x[rows] for x in batch)) for rows in (slice(0, 1), slice(1, None)))
    return sum(loss(part) for part in parts) / 2


def test_affinitynets_loss_is_the_sum_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AffinityNetConfig(radius=2)
    target = torch.randint(0, 3, (3, 6, 7), generator=torch.Generator().manual_seed(0))
    target[0, :, :3], target[1, 2:] = 255, 0
    batch = make_batch(5, (6, 7), target)
    terms: dict[str, list[float]] = {"background": [], "foreground": [], "negative": []}
    features, labels = batch.features.double().numpy(), target.numpy()
    for b, y, x, (dy, dx) in itertools.product(range(3), range(5), range(1, 6), pair_offsets(2)):
        one, other = labels[b, y, x], labels[b, y + dy, x + dx]
        affinity = np.exp(-np.abs(features[b, :, y, x] - features[b, :, y + dy, x + dx]).mean())
        if 255 in (one, other):
            continue
        if one != other:
            terms["negative"].append(-np.log(1 - affinity))
        else:
            terms["foreground" if one else "background"].append(-np.log(affinity))
    assert min(len(found) for found in terms.values()) > 5
    means = {name: np.mean(found) for name, found in terms.items()}
    expected = means["background"] / 4 + means["foreground"] / 4 + means["negative"] / 2

    def loss(part: Batch) -> float:
        found = affinitynet_loss(as_it_is, part, config)
        assert list(found) == ["affinity"]
        return found["affinity"].item()

    assert loss(batch) == pytest.approx(expected, rel=1e-4)
    counts = torch.tensor([float(len(found)) for found in terms.values()])
    both = of_two_processes(monkeypatch, affinitynet, loss, batch, counts)
    assert both == pytest.approx(expected, rel=1e-4), "divided by the pairs of the whole batch"


@pytest.mark.parametrize("fsl_weight", [0.0, 0.5])
def test_deeplabs_loss_is_the_sum_it_says(fsl_weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DeepLabConfig(fsl_weight=fsl_weight, mu=1.5, sigma=2.0)
    target = torch.randint(0, 3, (3, 9, 8), generator=torch.Generator().manual_seed(0))
    target[0, :5], target[2, :, 1:] = 255, 255
    batch = make_batch(3, (4, 5), target)
    scores = batch.features.double().numpy()
    probabilities, labels = softmax(resized(scores, (9, 8))), target.numpy()
    known = [(i, y, x) for i, y, x in np.ndindex(*labels.shape) if labels[i, y, x] != 255]
    labelled = [probabilities[i, labels[i, y, x], y, x] for i, y, x in known]
    expected = {"segmentation": -np.log(labelled).mean()}
    if fsl_weight:
        similarity = similarity_sum(softmax(scores), batch.images.double().numpy(), 1.5, 2.0)
        expected["similarity"] = 0.5 * 2 / 20 * similarity
    found = deeplab_loss(as_it_is, batch, config)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)

    def segmentation(part: Batch) -> float:
        return deeplab_loss(as_it_is, part, config)["segmentation"].item()

    both = of_two_processes(monkeypatch, deeplab, segmentation, batch, torch.tensor(len(labelled)))
    assert both == pytest.approx(expected["segmentation"], rel=1e-5)


def test_a_batch_without_a_labelled_pixel_teaches_nothing() -> None:
    batch = make_batch(3, (4, 5), torch.full((3, 9, 8), 255))
    batch.features.requires_grad_()
    (loss,) = deeplab_loss(as_it_is, batch, DeepLabConfig(fsl_weight=0)).values()
    loss.backward()
    assert loss.item() == 0 and not batch.features.grad.any()


def test_stage_two_takes_each_pixels_best_class_stretched_to_one(tmp_path: Path) -> None:
    cam = np.array([[[0.2, 0.1]], [[0.1, 0.4]]], np.float16)
    np.savez_compressed(tmp_path / "a.npz", classes=np.array([3, 7]), cam=cam)
    classes, found = load_cam_file(tmp_path / "a.npz")
    assert classes.tolist() == [3, 7] and found.dtype == np.float32
    np.testing.assert_allclose(found, [[[1, 0]], [[0, 1]]], atol=1e-3)
    np.savez_compressed(tmp_path / "b.npz", classes=classes, cam=found.astype(np.float16))
    np.testing.assert_allclose(load_cam_file(tmp_path / "b.npz")[1], found, atol=1e-3)
    np.savez(tmp_path / "c.npz", classes=classes)
    (tmp_path / "d.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    for name in ("c", "d", "e"):
        with pytest.raises(InputError, match=rf"{name}\.npz: expected a CAM file of stage 1, got "):
            load_cam_file(tmp_path / f"{name}.npz")


def test_confident_labels_by_hand(tmp_path: Path) -> None:
    """Columns: sure background, sure class 7, unsure, both sure (background, as released), no score at all."""
    amplified = np.array([[[1, 0.3, 1, 0.1, 0]], [[0, 0.7, 0, 0.9, 0]]])
    weakened = np.array([[[1, 0.1, 0, 1, 0]], [[0, 0.9, 1, 0, 0]]])
    np.savez(tmp_path / "a.npz", classes=np.array([0, 7]), amplified=amplified, weakened=weakened)
    assert confident_labels(tmp_path / "a.npz", (1, 5)).tolist() == [[0, 7, 255, 0, 255]]


def test_a_map_too_small_for_pairs_is_refused() -> None:
    net = create_affinity_net("tiny").eval()
    with pytest.raises(InputError, match=r"^image: expected .*at least 5 pixels"):
        image_affinity(net, np.zeros((16, 64, 3), np.uint8), AffinityNetConfig())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_segmentations_are_the_softmax_of_the_mean_logits(interpolation: Any) -> None:
    torch.manual_seed(0)
    net = create_deeplab("tiny", 4).eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    config = DeepLabConfig(scales=(1.0, 0.5), interpolation=interpolation)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    views = [tensor, F.interpolate(tensor, (20, 26), mode=interpolation)]  # neither antialiased nor clamped
    with torch.no_grad():
        logits = [side for view in views for side in (net(view), net(view.flip(-1)).flip(-1))]
    mean = np.mean([resized(x.double().numpy(), (40, 52)) for x in logits], axis=0)
    found = predict(net, image, config)
    assert found.dtype == np.float32 and mean.std() > 1e-3
    np.testing.assert_allclose(found, softmax(mean)[0], atol=1e-5)
