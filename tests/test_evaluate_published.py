"""``wsss-nb evaluate`` on full-size files as published: ResNet-38 with formula weights, scored against the golden passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import jaccard_score
from test_evaluate import golden_names
from test_models_golden import fill, load

from wsss_nb import cli
from wsss_nb.data.layout import VOC_CLASSES
from wsss_nb.data.voc import read_label_map, save_label_map

NAMES = ("a", "b")
PRESENT = (2, 8, 14)  # of all triples the one whose label map is most mixed
ONE_VIEW = ["--inference.scales", "1", "--inference.flip", "false"]


def published(path: Path, network: str, zipped: bool, means: np.ndarray | None = None) -> None:
    """A state dict of the published names and sizes (420 and 500 MB) as torch writes it, or wrote it before 1.6.

    ``means`` are taken off the logits by the last layer's bias: with random weights one class would win everywhere.
    """
    state = {name: torch.zeros(value.shape) for name, value in golden_names(network).items()}
    for name, value in state.items():
        fill(name, value)
        if means is not None and name == "cls_conv.bias":
            value -= torch.from_numpy(means)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)


def voc(root: Path, image: np.ndarray, masks: dict[str, np.ndarray]) -> Path:
    """Two images in VOC layout, the second the mirrored first; without loss, whatever the names say."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, pixels in zip(NAMES, (image, image[:, ::-1]), strict=True):
        Image.fromarray(np.ascontiguousarray(pixels)).save(root / f"JPEGImages/{name}.jpg", "PNG")
        save_label_map(root / f"SegmentationClass/{name}.png", masks[name])
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\n")
    classes = ";".join(VOC_CLASSES[number] for number in PRESENT)
    (root / "labels.csv").write_text(f"name,class\na,{classes}\nb,{classes}\n")
    return root


def release_cam(arrays: dict[str, np.ndarray], size: tuple[int, int]) -> torch.Tensor:
    """Foreground (20, H, W): labels, renormalised, resized, winner takes all, maximum 1, as the release has it."""
    cam = torch.from_numpy((arrays["cam"] + arrays["cam_rv"]) / 2)
    labels = torch.zeros(21)
    labels[[0, *PRESENT]] = 1
    cam = cam * labels[:, None, None]
    cam = F.interpolate((cam / cam.sum(1, keepdim=True))[:, 1:], size, mode="bilinear")[0]
    cam = cam * (cam == cam.amax(0))
    return cam / (cam.amax((1, 2), keepdim=True) + 1e-5)


@pytest.mark.parametrize(
    ("network", "zipped"), [("camnet", False), ("deeplab", True)], ids=["cam, old format", "deeplab, new format"]
)
def test_a_published_file_from_disk_to_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network: str, zipped: bool
) -> None:
    arrays, _ = load(network)
    size = arrays["image"].shape[:2]
    path, means = tmp_path / f"{network}.pth", None
    if network == "deeplab":
        means = arrays["logits"][0].mean((1, 2))
        expected = (arrays["logits"][0] - means[:, None, None]).argmax(0)
    else:
        cam = release_cam(arrays, size)
        expected = torch.cat([1 - cam.sum(0, keepdim=True), cam]).argmax(0).numpy()
    rng = np.random.default_rng(0)
    masks = {name: np.where(rng.random(size) < 0.3, 0, expected).astype(np.uint8) for name in NAMES}
    root = voc(tmp_path / "voc", arrays["image"], masks)
    published(path, network, zipped, means)
    command = ["evaluate", "--checkpoint", str(path), "--data", str(root), "--out", str(tmp_path / "out")]
    command += ["--json", str(tmp_path / "scores.json"), *ONE_VIEW]
    command += ["--deeplab.scales", "1", "--deeplab.flip", "false", "--deeplab.crf", "null"]
    try:
        assert cli.main(command) == 0
    finally:
        path.unlink()  # pytest keeps the folders of three sessions
    shown = capsys.readouterr().out
    name = {"camnet": "cam", "deeplab": "deeplab"}[network]
    assert f"network {name} on resnet38, settings of profile paper" in shown
    assert "left out" not in shown and "aeroplane" in shown

    (maps,) = (tmp_path / "out").glob("maps-*")
    found = {name: read_label_map(maps / f"{name}.png") for name in NAMES}
    assert (found["a"] == expected).mean() > 0.99 and len(np.unique(expected)) > 2
    if network == "camnet":
        with np.load(maps / "a.npz") as made:
            assert made["classes"].tolist() == list(PRESENT)
            np.testing.assert_allclose(made["cam"], cam[[number - 1 for number in PRESENT]], atol=2e-3)
    scores: dict[str, Any] = json.loads((tmp_path / "scores.json").read_text())
    truth, guess = (np.stack([label_maps[name] for name in NAMES]).ravel() for label_maps in (masks, found))
    assert scores["protocol"]["images"] == 2 and len(scores["iou"]) == 21
    assert scores["miou"] == pytest.approx(jaccard_score(truth, guess, average="macro"))
