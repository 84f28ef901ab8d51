"""The benchmark of training steps and the ablation on photographs, at toy size; nothing here depends on speed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ablation, training
from benchmarks.training import STAGES, hours_of, steps_of, summary, training_row
from wsss_nb.data import make_synthetic
from wsss_nb.models.checkpoint import identify_network
from wsss_nb.models.efficientnet import EfficientNetLite0
from wsss_nb.models.networks import BACKBONES, create_cam_net
from wsss_nb.models.resnet38 import ResNet38
from wsss_nb.run.pipeline import train_cam
from wsss_nb.run.prepare import open_run
from wsss_nb.run.profiles import load_profile
from wsss_nb.stages.config import DeepLabConfig, TrainingConfig


class Slim(ResNet38):
    """A quarter of the widths."""

    widths = tuple(width // 4 for width in ResNet38.widths)


def test_steps_and_hours_by_hand() -> None:
    paper = load_profile("paper")
    assert steps_of(paper.cam) == steps_of(paper.affinitynet) == 8 * 1322
    assert steps_of(paper.deeplab) == 20_000
    assert steps_of(TrainingConfig(epochs=3, batch_size=10), images=99) == 27
    assert steps_of(DeepLabConfig(epochs=2, batch_size=10), images=100) == 20
    hours = hours_of({"cam": 0.9, "affinitynet": 0.45, "deeplab": 1.8}, paper)
    assert hours == {"cam": pytest.approx(2.644), "affinitynet": pytest.approx(1.322), "deeplab": pytest.approx(10)}
    rows = [
        {
            "stage": stage,
            "precision": precision,
            "batch_size": 8,
            "size": 448,
            "seconds": seconds,
            "memory_mb": 1000.0,
            "images_per_second": 8 / seconds,
        }
        for precision, factor in (("float32", 1), ("bfloat16", 0.5))
        for stage, seconds in (("cam", 0.9 * factor), ("affinitynet", 0.45 * factor), ("deeplab", 1.8 * factor))
    ]
    rows[0] |= {"similarity_share": 0.125, "all_pairs_step_seconds": 1.5}
    text = summary(rows, paper)
    assert "| cam | float32 | 8 x 448 px | 8.9 | 900 | 1000 | 12.5% | 1500 ms |" in text
    assert (
        "float32: 14.0 hours" in text
        and "bfloat16: 7.0 hours" in text
        and "(cam 2.6, affinitynet 1.3, deeplab 10.0)" in text
    )


def test_a_step_of_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is counted by hand: every look at the clock is a second later; the loss alone and the step take one each."""
    spec = BACKBONES["resnet38"]._replace(build=Slim, deeplab_width=32)
    monkeypatch.setitem(BACKBONES, "resnet38", spec)
    clock = iter(range(10_000))
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(clock)))
    called: list[Any] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a, **o: called.append(self) or step(self, *a, **o))
    paper, cpu = load_profile("paper"), torch.device("cpu")
    rows = [training_row(stage, paper, cpu, "float32", repeats=1, size=48, batch_size=2) for stage in STAGES]
    assert [row["stage"] for row in rows] == ["cam", "affinitynet", "deeplab"]
    assert len(called) == 2 * 3, "one to warm up and one that is timed, each a whole step"
    for row in rows:
        assert (row["seconds"], row["images_per_second"], row["batch_size"], row["size"]) == (1, 2, 2, 48)
    assert rows[0]["similarity_share"] == 1 and rows[0]["all_pairs_step_seconds"] == 1
    assert "similarity_share" not in rows[1]


def test_memory_that_does_not_suffice_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little for all pairs of pixels: the step's own numbers stay; too little for a step: the row says so."""
    spec = BACKBONES["resnet38"]._replace(build=Slim, deeplab_width=32)
    monkeypatch.setitem(BACKBONES, "resnet38", spec)
    paper, cpu = load_profile("paper"), torch.device("cpu")

    def row(stage: training.Stage) -> dict[str, Any]:
        return training_row(stage, paper, cpu, "float32", repeats=1, size=48, batch_size=2)

    def fails(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(training, "all_pairs_loss", fails)
    cam = row("cam")
    assert cam["seconds"] > 0 and cam["similarity_share"] > 0 and "all_pairs_seconds" not in cam
    assert cam["all_pairs_out_of_memory"] == "CUDA out of memory"
    monkeypatch.setattr(torch.optim.SGD, "step", fails)
    deeplab = row("deeplab")
    assert deeplab == {
        "stage": "deeplab",
        "precision": "float32",
        "batch_size": 2,
        "size": 48,
        "out_of_memory": "CUDA out of memory",
    }
    affinity = {**cam, "stage": "affinitynet", "precision": "float16"}
    lines = summary([cam, deeplab, affinity], paper).splitlines()
    assert "| cam | float32 | 2 x 48 px |" in lines[2] and lines[2].endswith("| out of memory |")
    assert lines[3] == "| deeplab | float32 | 2 x 48 px | out of memory | | | | |"
    assert {line.count("|") for line in lines[:5]} == {9}
    assert "float32: no hours, deeplab ran out of memory." in lines
    assert lines[-1].startswith("float16: ") and "(affinitynet " in lines[-1]


def test_stride_8_is_a_backbone_of_its_own() -> None:
    net = create_cam_net("efficientnet_lite0_stride8", 4, pretrained=False).eval()
    assert net.stride == 8 and net(torch.rand(1, 3, 64, 96)).logits.shape == (1, 4, 8, 12)
    assert identify_network(net.state_dict()).backbone == "efficientnet_lite0", "the same weights, the same names"


def flat(fields: dict[str, Any], parents: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= flat(value, f"{parents}{name}.") if isinstance(value, dict) else {f"{parents}{name}": value}
    return found


def test_every_row_differs_from_the_recipe_in_what_its_name_says() -> None:
    """Before -> after of every field that is not the recipe's; what only augmented views read counts as well."""
    base = flat(load_profile("photos").model_dump())
    unused = {"cam.views.crop", "cam.views.long_side", "cam.views.jitter"}  # of cached views
    assert base["cam.views.cached"] and base["cam.freeze"]
    single = {
        "cam.freeze": (True, False),
        "cam.siamese": (False, True),
        "cam.learn_fsl": (False, True),
        "cam.num_samples": (1, 100),
    }
    stride = {"backbone": ("efficientnet_lite0", "efficientnet_lite0_stride8"), "cam.sigma": (2.5, 5.0)}
    augmented = {"cam.views.cached": (True, False)}
    expected: dict[str, dict[str, Any]] = {
        "recipe": {},
        "trained": {"cam.freeze": (True, False)},
        "siamese": {"cam.siamese": (False, True)},
        "learned": {"cam.learn_fsl": (False, True)},
        "draws100": {"cam.num_samples": (1, 100)},
        "stride8_sigma5": stride,
        "augmented448": augmented,
        "all": single | stride | augmented,
    }
    assert list(ablation.ROWS) == list(expected)
    for name, changes in ablation.ROWS.items():
        row = flat(load_profile("photos", changes).model_dump())
        changed = {field: (base[field], row[field]) for field in row if row[field] != base[field]}
        assert {field: value for field, value in changed.items() if field not in unused} == expected[name], name
        if not row["cam.views.cached"]:
            assert (row["cam.views.crop"], row["cam.views.long_side"]) == (448, (448, 768)), name
            assert row["cam.views.jitter"] == (0.3, 0.3, 0.3, 0.1), name


def test_the_row_trained_reaches_the_first_layer(tmp_path: Path) -> None:
    """On the photographs' own backbone: its stem learns, and no file keeps features; in the recipe it is the other way."""
    make_synthetic(tmp_path / "fish", num_train=2, num_val=1, size=48)
    small = "cam.epochs=1 cam.batch_size=2 cam.views.sizes=[[48,48]] threads=1"
    start = EfficientNetLite0()
    start.load_imagenet()
    first, last = "_conv_stem.weight", "_blocks.12._project_conv.weight"
    for name, learns in (("recipe", False), ("trained", True)):
        data = {"data": {"root": str(tmp_path / "fish")}}
        row = train_cam(
            open_run(load_profile("photos", small, ablation.ROWS[name], data), tmp_path / name), "lambda1_fsl", 0
        )
        saved = torch.load(tmp_path / name / row.steps["model"] / "checkpoint.pt", weights_only=True)
        modules = saved["modules"]
        assert torch.equal(modules[f"net.{first}"], start.state_dict()[first]) != learns
        assert not torch.equal(modules[f"net.{last}"], start.state_dict()[last])
        assert torch.equal(modules["net._bn0.weight"], start.state_dict()["_bn0.weight"]), "BatchNorm is fixed"
        assert bool(list((tmp_path / name).glob("views/*.pt"))) != learns


def test_the_ablation_in_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_synthetic(tmp_path / "fish", num_train=4, num_val=2, size=48)
    small = ["backbone=tiny", "cam.epochs=1", "cam.batch_size=2", "cam.views.sizes=[[48,48]]", "threads=1"]
    words = ["--data", str(tmp_path / "fish"), "--out", str(tmp_path / "runs"), "--seeds", "0,3"]
    words += [word for change in small for word in ("--set", change)]
    assert ablation.main([*words, "--only", "recipe,draws100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [bool(re.match(r"\| (recipe|draws100) \| 2 \| [\d.]+ ± [\d.]+ \|", line)) for line in lines].count(True) == 4
    rows = json.loads((tmp_path / "runs/ablation.json").read_text())["rows"]
    assert [(row["row"], row["seeds"], len(row["miou"])) for row in rows] == [
        ("recipe", [0, 3], 2),
        ("draws100", [0, 3], 2),
    ]
    profile = json.loads((tmp_path / "runs/draws100/results.json").read_text())["profile"]
    assert profile["cam"]["num_samples"] == 100 and profile["cam"]["epochs"] == 1
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_, **__: pytest.fail("a network was trained again"))
    assert ablation.main([*words, "--only", "recipe"]) == 0
    assert ablation.main([*words, "--only", "stride9"]) == 2
    assert "only: expected rows of recipe, trained, siamese" in capsys.readouterr().err


def test_the_table_by_hand() -> None:
    row = {"row": "recipe", "seeds": [0, 1], "miou": [0.5, 0.6], "contour_f": [0.2, 0.2], "seconds": 90.4}
    assert ablation.table([row]).splitlines()[-1] == "| recipe | 2 | 55.0 ± 7.1 | 20.0 ± 0.0 | 90 |"
    assert "| 50.0 |" in ablation.table([{**row, "seeds": [0], "miou": [0.5], "contour_f": [0.2]}])
