"""Two processes on this machine's CPU, connected by gloo, against one: the same curve, every image once, one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss_nb import cli
from wsss_nb.data import VOCFolder, make_synthetic
from wsss_nb.data.voc import save_label_map
from wsss_nb.models import create_cam_net, create_deeplab
from wsss_nb.models.backbone import Dropout, Dropout2d
from wsss_nb.sampling import draw_pixels
from wsss_nb.stages import affinitynet, cam, deeplab
from wsss_nb.stages.affinitynet import confident_labels
from wsss_nb.stages.config import AffinityNetConfig, CamConfig, DeepLabConfig, InferenceConfig, ViewsConfig
from wsss_nb.system import processes as module
from wsss_nb.system.errors import InputError
from wsss_nb.system.processes import Processes, draw_rows, is_slice, launched, processes, slice_of_batch


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    return kept | {"WSSS_NB_HEADLESS": "1", "OMP_NUM_THREADS": "1", "HF_HOME": os.devnull} | more


def start(*words: str) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run([sys.executable, "-m", *words], env=environment(), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer


# The same trainings by both: this file is also the script that two processes run


def train_all(base: Path, out: Path) -> None:
    """All three stages with dropout and draws, of which the means are over pixels and pairs; then CAMs of the val split."""
    torch.set_num_threads(1)
    folder = VOCFolder(base / "fish", "train")
    common: dict[str, Any] = {"epochs": 2, "batch_size": 4}
    cached = {**common, "views": ViewsConfig(cached=True, sizes=((48, 48),))}
    fresh = {**common, "views": ViewsConfig(crop=40, long_side=None)}
    first = CamConfig(**cached, siamese_scale=0.5, num_samples=3, mu=2.0, sigma=2.0, learn_fsl=True)
    cam.train_cam(folder, "tiny", first, 0, out / "cam")
    affinitynet.train_affinitynet(folder, "tiny", AffinityNetConfig(**fresh), 0, base / "crf", out / "affinitynet")
    # BatchNorm of DeepLab's head sees the rows of one process, where that is a CPU
    batch_norm, nn.BatchNorm2d.forward = nn.BatchNorm2d.forward, lambda self, x: x  # type: ignore[method-assign]
    try:
        deeplab.train_deeplab(folder, "tiny", DeepLabConfig(**cached), 0, base / "labels", out / "deeplab")
    finally:
        nn.BatchNorm2d.forward = batch_norm  # type: ignore[method-assign]
    torch.manual_seed(0)
    net = create_cam_net("tiny", folder.num_classes).eval()
    cam.infer_cams(net, VOCFolder(folder.root, "val"), first, InferenceConfig(scales=(1.0,)), out / "val")


def make_inputs(base: Path) -> None:
    """CRF maps and pseudo-labels, of which each image has another number."""
    make_synthetic(base / "fish", num_train=8, num_val=3, size=48)
    (base / "crf").mkdir()
    for number, name in enumerate(VOCFolder(base / "fish", "train").names):
        # sure background left, sure class 1 in a band, open right
        amplified, weakened = np.zeros((2, 48, 48)), np.zeros((2, 48, 48))
        amplified[0], weakened[1] = 1, 1
        weakened[:, :, : 12 + 2 * number], amplified[:, :, 20 : 24 + 2 * number] = [[[1]], [[0]]], [[[0]], [[1]]]
        np.savez(base / f"crf/{name}.npz", classes=np.array([0, 1]), amplified=amplified, weakened=weakened)
        labels = np.full((48, 48), 255, np.uint8)
        labels[: 4 + 6 * number] = number % 3
        save_label_map(base / f"labels/{name}.png", labels)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What this process makes, and what two of ``torchrun`` make together."""
    base = tmp_path_factory.mktemp("processes")
    make_inputs(base)
    train_all(base, base / "one")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start(*torchrun, __file__, str(base), str(base / "two"))
    return base / "one", base / "two"


@pytest.mark.parametrize("stage", ["cam", "affinitynet", "deeplab"])
def test_the_training_is_that_of_one_process(pair: tuple[Path, Path], stage: str) -> None:
    one, two = (torch.load(out / stage / "checkpoint.pt", weights_only=True) for out in pair)
    assert len(one["history"]) == len(two["history"]) == 2
    for row, other in zip(one["history"], two["history"], strict=True):
        assert row.keys() == other.keys() and len(row) > 3
        for name in row.keys() - {"seconds"}:
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), name
    assert list(one["modules"]) == list(two["modules"]), "saved without the wrapper's names"
    for name, value in one["modules"].items():
        torch.testing.assert_close(two["modules"][name], value, rtol=1e-3, atol=1e-4)


def test_one_image_has_more_pairs_than_another(pair: tuple[Path, Path]) -> None:
    """Else a mean over each process's own pairs would do."""
    labels = [confident_labels(path, (12, 12)) for path in sorted((pair[0].parent / "crf").glob("*.npz"))]
    assert len({int((found == 0).sum()) for found in labels}) > 3


def test_every_image_is_inferred_once(pair: tuple[Path, Path]) -> None:
    one, two = (sorted((out / "val").iterdir()) for out in pair)
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 6
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_a_command_of_two_processes_scores_together_and_speaks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``accelerate launch``, a batch of more images than there are per process, and keys that do not tell them apart."""
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    make_synthetic(tmp_path / "fish", num_train=4, num_val=3, size=48)
    words = f"train cam --profile quick --data {tmp_path}/fish --pretrain null --cam.epochs 1 --cam.batch_size 2 "
    words += "--cam.views.sizes [[48,48]] --threads 1 --inference.scales 1 --out"
    assert cli.main([*words.split(), str(tmp_path / "one")]) == 0
    # with --cpu in place of --multi_gpu it would start one process only
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0 -m wsss_nb.cli"
    answer = start(*launch.split(), *words.split(), str(tmp_path / "two"))
    assert answer.stdout.count("written to") == 1 and answer.stdout.count("protocol:") == 1
    one, two = (json.loads((tmp_path / run / "results.json").read_text())["cam"][0] for run in ("one", "two"))
    assert one["steps"] == two["steps"], "how many processes computed a step is none of its settings"
    confusion = np.array(two["scores"]["confusion"])
    assert confusion.sum() == np.array(one["scores"]["confusion"]).sum(), "no pixel is counted twice or left out"
    assert two["scores"]["miou"] == pytest.approx(one["scores"]["miou"], abs=0.02)
    assert two["scores"]["protocol"] == one["scores"]["protocol"] and one["scores"]["protocol"]["images"] == 3
    names = [sorted(path.name for path in (tmp_path / "two" / two["steps"]["val"]).iterdir())]
    assert len(names[0]) == 7, "three CAMs, three label maps, a manifest"
    assert not list((tmp_path / "two").rglob("started.json"))


# Rows, items and draws, without starting any


class Second(Processes):
    index, count = 1, 3

    def sum(self, values: Tensor) -> Tensor:
        return 3 * values


def test_processes_share_rows_and_items() -> None:
    second = Second()
    assert second.rows(9) == (3, 6) and list(second.shard(range(8))) == [1, 4, 7] and not second.is_main
    for total in (2, 8, 0):
        with pytest.raises(InputError, match=f"^batch_size: expected a multiple of the 3 processes, got {total}$"):
            second.rows(total)
    one = Processes()
    assert one.rows(7) == (0, 7) and list(one.shard(range(3))) == [0, 1, 2] and one.is_main
    assert one.per_process(torch.tensor(4.0)) is None
    divisor = second.per_process(torch.tensor(4.0))
    assert divisor is not None and divisor.item() == 4, "12 items of three processes"


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_synthetic(tmp_path / "fish", num_train=5, num_val=1, size=48)
    monkeypatch.setattr("wsss_nb.stages.views.processes", Second)
    for cached in (True, False):
        views = ViewsConfig(cached=cached, sizes=((48, 48),), crop=40)
        config = CamConfig(epochs=1, batch_size=4, views=views, siamese=False, mu=2.0)
        with pytest.raises(InputError, match=r"^batch_size: expected a multiple of the 3 processes, got 4$"):
            cam.train_cam(VOCFolder(tmp_path / "fish", "train"), "tiny", config, 0, tmp_path / "out")


def test_a_slice_draws_its_rows_of_the_whole_batch() -> None:
    whole = torch.rand(6, 2, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    with slice_of_batch(4, 6):
        part = draw_rows(lambda shape: torch.rand(shape, generator=generator), (2, 2))
    assert torch.equal(part, whole[4:]) and not is_slice()
    maps = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    drawn = draw_pixels(maps, 7, torch.Generator().manual_seed(3))
    with slice_of_batch(1, 4):
        assert torch.equal(draw_pixels(maps[1:3], 7, torch.Generator().manual_seed(3)), drawn[1:3])
    with pytest.raises(RuntimeError), slice_of_batch(0, 2):
        raise RuntimeError
    assert not is_slice(), "also after an error"


@pytest.mark.parametrize("layer", [Dropout(0.4), Dropout2d(0.4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_of_a_slice_is_torchs_of_the_whole(layer: nn.Module, layout: torch.memory_format) -> None:
    plain = nn.Dropout(0.4) if isinstance(layer, Dropout) else nn.Dropout2d(0.4)
    x = torch.randn(5, 8, 6, 7, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    torch.manual_seed(4)
    expected = plain(x)
    torch.manual_seed(4)
    assert torch.equal(layer(x), expected) and (expected == 0).any() and (expected != 0).any()
    for low, high in ((0, 2), (2, 5)):
        torch.manual_seed(4)
        with slice_of_batch(low, 5):
            found = layer(x[low:high].contiguous(memory_format=layout))
        torch.testing.assert_close(found, expected[low:high], rtol=1e-6, atol=0)
    layer.eval()
    with slice_of_batch(0, 9):
        assert torch.equal(layer(x), x)
    layer.train()


def test_batch_norm_over_processes_keeps_names_weights_and_modes() -> None:
    for net, frozen in ((create_deeplab("tiny", 3), True), (create_cam_net("tiny", 3, batch_norm="train"), False)):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        parameters = [id(parameter) for group in net.parameter_groups().values() for parameter in group]
        net.synchronise_batch_norm()
        after = net.state_dict()
        assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
        assert [id(p) for group in net.parameter_groups().values() for p in group] == parameters
        kinds = {name: type(module) for name, module in net.named_modules() if "norm" in name or "bn_" in name}
        for name, kind in kinds.items():
            kept = frozen and name.startswith("backbone.")
            assert kind is (nn.BatchNorm2d if kept else nn.SyncBatchNorm), name
        owner = net.backbone if frozen else net
        blocks = dict(net.backbone.named_children())
        assert all(getattr(owner, name) is block for name, block in blocks.items()), "one set of layers"


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == 1 and type(processes()) is Processes
    code = "import sys; from wsss_nb.system.processes import processes; processes(); print('accelerate' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert answer.stdout == "False\n"


def test_no_precision_and_no_compiling_from_accelerates_configuration() -> None:
    """Both are settings of the profile; `accelerate launch` hands over what `accelerate config` once wrote."""
    code = "from wsss_nb.system.processes import _Launched; a = _Launched()._accelerator; "
    code += "print(a.mixed_precision, a.state.dynamo_plugin.backend.value)"
    configured = environment(ACCELERATE_MIXED_PRECISION="bf16", ACCELERATE_DYNAMO_BACKEND="INDUCTOR")
    answer = subprocess.run([sys.executable, "-c", code], env=configured, capture_output=True, text=True)
    assert answer.stdout == "no NO\n", answer.stderr


def test_several_processes_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"expected Hugging Face Accelerate for several of them \(pip install"):
        module._Launched()


@pytest.mark.parametrize("words", [["sweep"], ["run"]])
def test_commands_of_one_process_say_so(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert cli.main([*words, "--out", str(tmp_path)]) == 2
    assert f"{words[0]}: expected one process, got 4" in capsys.readouterr().err


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), Path(sys.argv[2]))
