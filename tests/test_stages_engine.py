"""Parts of a batch, precision, layout and compiling: what they change, and what they must not."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss_nb import cli
from wsss_nb.cli import experiment
from wsss_nb.data import VOCFolder, make_synthetic, save_label_map
from wsss_nb.errors import DiskFullError
from wsss_nb.models import create_cam_net, create_deeplab
from wsss_nb.models.dropout import Dropout, Dropout2d
from wsss_nb.models.pcm import pixel_correlation
from wsss_nb.placement import draw_rows, is_placed, placed
from wsss_nb.sampling import draw_pixels
from wsss_nb.stages import affinitynet, cam, deeplab
from wsss_nb.stages.checkpoints import random_states, restore_random_states
from wsss_nb.stages.config import (
    AffinityNetConfig,
    CamConfig,
    DeepLabConfig,
    OptimizerConfig,
    TrainingConfig,
    ViewsConfig,
)
from wsss_nb.stages.engine import parts_of, prepare_network
from wsss_nb.stages.loaders import AugmentedViews
from wsss_nb.stages.loop import TrainingError, epoch_seed, train
from wsss_nb.stages.processes import Processes
from wsss_nb.stages.views import Batch, CachedViews, training_precision
from wsss_nb.workers import WorkerDiedError

RATE = OptimizerConfig(learning_rate=0.01)
VIEWS = ViewsConfig(cached=True, sizes=((48, 48),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> VOCFolder:
    root = tmp_path_factory.mktemp("data") / "fish"
    make_synthetic(root, num_train=8, num_val=1, size=48)
    return VOCFolder(root, "train")


# ---------------------------------------------------------------- places in a batch


class Second(Processes):
    """The second of three processes, the other two of which found the same."""

    index, count = 1, 3

    def sum(self, values: Tensor) -> Tensor:
        return 3 * values


def test_a_part_draws_its_rows_of_the_whole_batch() -> None:
    whole = torch.rand(6, 2, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    with placed(4, 6):
        part = draw_rows(lambda shape: torch.rand(shape, generator=generator), (2, 2))
    assert torch.equal(part, whole[4:]) and not is_placed()
    maps = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    drawn = draw_pixels(maps, 7, torch.Generator().manual_seed(3))
    with placed(1, 4):
        assert torch.equal(draw_pixels(maps[1:3], 7, torch.Generator().manual_seed(3)), drawn[1:3])
    with pytest.raises(RuntimeError), placed(0, 2):
        raise RuntimeError
    assert not is_placed(), "also after an error"


@pytest.mark.parametrize("layer", [Dropout(0.4), Dropout2d(0.4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_of_a_part_is_torchs_of_the_whole(layer: nn.Module, layout: torch.memory_format) -> None:
    plain = nn.Dropout(0.4) if isinstance(layer, Dropout) else nn.Dropout2d(0.4)
    x = torch.randn(5, 8, 6, 7, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    torch.manual_seed(4)
    expected = plain(x)
    torch.manual_seed(4)
    assert torch.equal(layer(x), expected) and (expected == 0).any() and (expected != 0).any()
    for low, high in ((0, 2), (2, 5)):
        torch.manual_seed(4)
        with placed(low, 5):
            found = layer(x[low:high].contiguous(memory_format=layout))
        torch.testing.assert_close(found, expected[low:high], rtol=1e-6, atol=0)
    layer.eval()
    with placed(0, 9):
        assert layer(x) is x or torch.equal(layer(x), x)
    layer.train()


def test_parts_by_hand() -> None:
    batch = Batch(torch.arange(6.0), torch.zeros(6), torch.ones(6), target=torch.tensor([1, 1, 0, 0, 0, 0]))
    (whole,) = parts_of(batch, 1, None, Processes(), None)
    assert whole.batch is batch and whole.share == 1 and whole.is_last
    parts = parts_of(batch, 4, None, Processes(), None)
    assert [part.batch.images.tolist() for part in parts] == [[0], [1, 2], [3], [4, 5]]
    assert [(part.start, part.share, part.is_last) for part in parts] == [
        (0, 1 / 6, False), (1, 2 / 6, False), (3, 1 / 6, False), (4, 2 / 6, True)
    ]  # fmt: skip
    assert len(parts_of(batch, 9, None, Processes(), None)) == 6, "no part is empty"

    def ones(piece: Batch) -> Tensor:
        assert piece.target is not None
        return piece.target.sum()[None]

    corrected = parts_of(batch, 2, None, Processes(), ones)
    # the mean over the two items of part 1 is the whole one: 1/2 * 2; part 2 has none
    assert [part.batch.correction.tolist() for part in corrected] == [[2.0], [0.0]]
    # rows 6..11 of 18, computed in two parts; all three processes have two items each
    spread = parts_of(batch, 2, 18, Second(), ones)
    assert [(part.start, part.rows, part.total) for part in spread] == [(6, 3, 18), (9, 3, 18)]
    assert spread[0].batch.correction.item() == pytest.approx((2 / 6) / (3 / 18))


@pytest.mark.parametrize(("total", "processes", "count"), [(10, 8, 2), (7, 3, 3), (5, 2, 9), (9, 3, 2)])
def test_all_processes_have_as_many_parts(total: int, processes: int, count: int) -> None:
    """BatchNorm over processes waits for all of them in every part; every row is in one part."""
    sizes, rows = set(), []
    for index in range(processes):
        crew = Processes()
        crew.index, crew.count = index, processes
        first, last = crew.rows(total)
        parts = parts_of(torch.arange(first, last), count, total, crew, None)
        sizes.add(len(parts))
        assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(len(part.batch) == part.rows > 0 for part in parts)
        rows += [number for part in parts for number in part.batch.tolist()]
    assert sizes == {min(count, total // processes)} and rows == list(range(total))


def test_processes_share_rows_and_items() -> None:
    rows = []
    for index in range(3):
        crew = Processes()
        crew.index, crew.count = index, 3
        rows.append(crew.rows(8))
        assert list(crew.share(range(8))) == list(range(index, 8, 3))
    assert rows == [(0, 2), (2, 5), (5, 8)]
    with pytest.raises(
        ValueError, match="batch_size: expected at least one image for each of 3 processes, got 2"
    ):
        crew.rows(2)


# ---------------------------------------------------------------- parts of a batch change nothing


def curves(history: list[dict[str, float]]) -> list[list[float]]:
    return [[value for name, value in row.items() if name != "seconds"] for row in history]


def weights(out: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(out / "checkpoint.pt", weights_only=True)["modules"]
    return found


def crf_files(folder: VOCFolder, out: Path) -> None:
    """Sure background left, sure class 1 in a band of another width each, open right."""
    out.mkdir()
    for number, name in enumerate(folder.names):
        amplified, weakened = np.zeros((2, 48, 48)), np.zeros((2, 48, 48))
        amplified[0], weakened[1] = 1, 1
        weakened[:, :, : 12 + number], amplified[:, :, 20 : 24 + 2 * number] = [[[1]], [[0]]], [[[0]], [[1]]]
        np.savez(out / f"{name}.npz", classes=np.array([0, 1]), amplified=amplified, weakened=weakened)


def masks(folder: VOCFolder, out: Path) -> None:
    """Labels of which each image has another number."""
    out.mkdir()
    for number, name in enumerate(folder.names):
        labels = np.full((48, 48), 255, np.uint8)
        labels[: 6 * number] = number % 3
        save_label_map(out / f"{name}.png", labels)


def trainings(folder: VOCFolder, base: Path) -> dict[str, Callable[[Path, dict[str, Any]], Any]]:
    common = {"epochs": 1, "batch_size": 4, "optimizer": RATE, "views": VIEWS}
    crf_files(folder, base / "crf")
    masks(folder, base / "labels")
    first = CamConfig(**common, siamese_scale=0.5, num_samples=3, mu=2.0, sigma=2.0)
    second, third = AffinityNetConfig(**common), DeepLabConfig(**common)
    return {
        "cam": lambda out, more: cam.train_cam(folder, "tiny", first.model_copy(update=more), 0, out),
        "affinitynet": lambda out, more: affinitynet.train_affinitynet(
            folder, "tiny", second.model_copy(update=more), 0, base / "crf", out
        ),
        "deeplab": lambda out, more: deeplab.train_deeplab(
            folder, "tiny", third.model_copy(update=more), 0, base / "labels", out
        ),
    }


def test_a_batch_in_parts_gives_the_same_training(
    folder: VOCFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, draws, and means over pairs and labelled pixels included; BatchNorm of DeepLab's head is put aside."""
    work = trainings(folder, tmp_path)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x)
    for stage, run in work.items():
        whole = curves(run(tmp_path / stage / "whole", {}))
        parts = curves(run(tmp_path / stage / "parts", {"accumulate": 3}))
        assert parts == [pytest.approx(row, rel=2e-5, abs=1e-6) for row in whole], stage
        one, other = weights(tmp_path / stage / "whole"), weights(tmp_path / stage / "parts")
        for name, value in one.items():
            torch.testing.assert_close(
                other[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


# ---------------------------------------------------------------- precision, layout, compiling


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_like_float32(
    folder: VOCFolder, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the scaler would begin too high and leave out the first steps, of which there are four here
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=256.0))
    common = {"epochs": 2, "batch_size": 4, "optimizer": RATE, "views": VIEWS, "siamese_scale": 0.5}
    config = CamConfig(**common, num_samples=None, mu=2.0, sigma=2.0, dropout=0.0)
    full = cam.train_cam(folder, "tiny", config, 0, tmp_path / "full")
    half = cam.train_cam(
        folder, "tiny", config.model_copy(update={"precision": precision}), 0, tmp_path / "half"
    )
    assert curves(half) == [pytest.approx(row, rel=0.1, abs=0.03) for row in curves(full)]
    assert curves(half) != curves(full)
    scaler = torch.load(tmp_path / "half/checkpoint.pt", weights_only=True)["scaler"]
    assert ("scale" in scaler) == (precision == "float16")
    assert all(value.dtype != torch.float16 for value in weights(tmp_path / "half").values())


def test_precisions_by_their_result() -> None:
    a = torch.ones(2, 2)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        with training_precision(torch.device("cpu"), name):
            assert (a @ a).dtype == dtype


def test_the_pcm_does_not_leave_float16() -> None:
    """64 x 64 equal pixels with logit 40: sums of 163,840, beyond 65,504."""
    logits, features = torch.full((1, 2, 64, 64), 40.0), torch.ones(1, 8, 64, 64)
    found = pixel_correlation(logits.half(), features.half())
    torch.testing.assert_close(found, pixel_correlation(logits, features))


def test_layout_is_a_setting() -> None:
    torch.manual_seed(0)
    net = create_cam_net("tiny", 4).eval()
    x = torch.rand(1, 3, 48, 48)
    expected = net(x).logits
    last = net.stage1.conv1.weight
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    prepare_network(net, TrainingConfig())
    assert not net.stage1.conv1.weight.is_contiguous(), "as it was"
    prepare_network(net, TrainingConfig(channels_last=False))
    assert all(parameter.is_contiguous() for parameter in net.parameters())
    assert net.taps(net.frozen(x)).conv4.is_contiguous()
    torch.testing.assert_close(net(x).logits, expected)


def test_compiling_keeps_names_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile traces is the trained part; the tracer itself runs, without making machine code."""
    compiled: list[Any] = []
    compile_ = torch.compile

    def eager(function: Any) -> Any:
        compiled.append(function)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    torch.manual_seed(0)
    net = create_deeplab("tiny", 3).eval()
    x = torch.rand(1, 3, 48, 48)
    expected, names = net(x), list(net.state_dict())
    prepare_network(net, TrainingConfig(compile=True))
    assert [function.__name__ for function in compiled] == ["from_frozen"]
    torch.testing.assert_close(net.from_frozen(net.frozen(x), x), expected)
    assert list(net.state_dict()) == names


def test_batch_norm_over_processes_keeps_names_weights_and_modes() -> None:
    for net, frozen in (
        (create_deeplab("tiny", 3), True),
        (create_cam_net("tiny", 3, batch_norm="train"), False),
    ):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        parameters = [id(parameter) for group in net.parameter_groups().values() for parameter in group]
        net.synchronise_batch_norm()
        after = net.state_dict()
        assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
        assert [id(p) for group in net.parameter_groups().values() for p in group] == parameters
        kinds = {
            name: type(module) for name, module in net.named_modules() if "norm" in name or "bn_" in name
        }
        for name, kind in kinds.items():
            kept = frozen and name.startswith("backbone.")
            assert kind is (nn.BatchNorm2d if kept else nn.SyncBatchNorm), name
        blocks = dict(net.backbone.named_children())
        owner = net.backbone if frozen else net
        assert all(getattr(owner, name) is block for name, block in blocks.items()), "one set of layers"


# ---------------------------------------------------------------- random states


def test_all_random_states_come_back(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    random.gauss(0, 1), np.random.standard_normal()
    torch.save(random_states(), tmp_path / "s.pt")

    def draws() -> list[Any]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.random(),
            np.random.standard_normal(),
            torch.rand(3).tolist(),
        ]

    expected = draws()
    draws()
    restore_random_states(torch.load(tmp_path / "s.pt", weights_only=True))
    assert draws() == expected


class Three:
    steps = batch_size = 3

    def epoch(self, seed: int) -> Iterator[Tensor]:
        yield from torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed))


def linear(out: Path, epochs: int, noise: Callable[[], float] = lambda: 0.0, **more: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    return train(
        nn.ModuleDict({"net": net}), Three(), lambda batch, generator: {"fit": (net(batch) - noise()).square().mean()},
        groups={"new_weights": [net.weight], "new_biases": [net.bias]}, config=RATE, epochs=epochs, seed=0,
        checkpoint=out / "checkpoint.pt", iterations=more.pop("iterations", None), **more,
    )  # fmt: skip


def test_a_resumed_training_goes_on_with_every_generator(tmp_path: Path) -> None:
    """An objective that draws from Python's and NumPy's generators: two epochs at once, and one after the other."""

    def noise() -> float:
        return random.random() + np.random.random()

    def seeded(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)

    seeded(1)
    linear(tmp_path / "whole", 2, noise)
    seeded(1)
    with pytest.raises(KeyboardInterrupt):
        linear(tmp_path / "pieces", 2, noise, on_epoch=_stop)
    seeded(99)
    linear(tmp_path / "pieces", 2, noise)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "pieces")
    assert all(torch.equal(one[key], other[key]) for key in one)


def _stop(history: Any) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_says_where_it_is(tmp_path: Path) -> None:
    linear(tmp_path, 2, iterations=4)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(state) == {"modules", "optimizer", "scaler", "random", "epoch", "step", "history"}
    assert set(state["random"]) == {"python", "numpy", "torch", "cuda"}
    assert state["epoch"] == 2 and state["step"] == 4 == state["history"][-1]["step"]


# ---------------------------------------------------------------- things that go wrong


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_logits_that_are_not_finite_keep_the_checkpoint_before(
    folder: VOCFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float, precision: str
) -> None:
    """The paper's own objective, at every lambda: from such maps no pixel can be drawn, and no loss is needed to know."""
    config = CamConfig(
        epochs=2, batch_size=4, optimizer=RATE, views=VIEWS, precision=precision, weight=weight, siamese_scale=0.5,
        mu=2.0, sigma=2.0,
    )  # fmt: skip
    epoch = CachedViews.epoch

    def broken(self: CachedViews, seed: int) -> Iterator[Batch]:
        for step, batch in enumerate(epoch(self, seed)):
            last = seed == epoch_seed(0, 1) and step == 1
            yield batch._replace(features=batch.features * float("nan")) if last else batch

    message = (
        r"CAM: the logits of view 1 are not finite at epoch 2, step 3; the checkpoint of epoch 1 is kept"
    )
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=message):
        patch.setattr(CachedViews, "epoch", broken)
        cam.train_cam(folder, "tiny", config, 0, tmp_path / "broken")
    assert torch.load(tmp_path / "broken/checkpoint.pt", weights_only=True)["epoch"] == 1
    cam.train_cam(folder, "tiny", config, 0, tmp_path / "broken")
    cam.train_cam(folder, "tiny", config, 0, tmp_path / "whole")
    one, other = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(torch.equal(one[key], other[key]) and value.isfinite().all() for key, value in other.items())


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_rate_that_is_too_high_ends_in_one_line(
    folder: VOCFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    words = (
        f"train cam --profile quick --data {folder.root} --out {tmp_path}/run --pretrain null --cam.epochs 3 "
    )
    words += f"--cam.views.sizes [[48,48]] --cam.batch_size 4 --cam.precision {precision} "
    assert cli.main([*words.split(), "--cam.optimizer.learning_rate", "1e20"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "wsss-nb: error: CAM lambda1_fsl seed 0: the logits of view 1 are not finite at epoch 1, step 1; "
    )


def failing(calls: int, error: Exception) -> Callable[[], float]:
    left = [calls]

    def noise() -> float:
        left[0] -= 1
        if not left[0]:
            raise error
        return 0.0

    return noise


def test_gpu_memory_that_does_not_suffice(tmp_path: Path) -> None:
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    message = "memory does not suffice at epoch 2, step 4; the checkpoint of epoch 1 is kept, try a larger accumulate"
    with pytest.raises(TrainingError, match=message):
        linear(tmp_path / "broken", 3, failing(5, error))
    linear(tmp_path / "broken", 3)
    linear(tmp_path / "whole", 3)
    one, other = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(TrainingError, match="step 0; there is no checkpoint yet"):
        linear(tmp_path / "first", 3, failing(1, error))


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0")],
)
def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save, calls = torch.save, [0]

    def full(state: Any, path: Path) -> None:
        calls[0] += 1
        if calls[0] == 2:
            Path(path).write_bytes(b"half")
            raise error
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskFullError, match=r"checkpoint\.pt: expected room "):
        linear(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 1
    linear(tmp_path, 3)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 3


def test_a_loader_process_that_dies(folder: VOCFolder) -> None:
    import os
    import signal

    torch.manual_seed(0)
    net = create_cam_net("tiny", 6).eval()
    views = AugmentedViews(
        folder, net, ViewsConfig(crop=32, long_side=(48, 48), jitter=None, loader_workers=1), 2
    )
    image = folder.image

    class Deadly:
        names = folder.names

        def image(self, name: str) -> np.ndarray:
            if name == views.data.folder.names[3]:
                os.kill(os.getpid(), signal.SIGKILL)
            return image(name)

    views.data.folder = Deadly()  # type: ignore[assignment]
    with pytest.raises(
        WorkerDiedError, match=r"loading images: a worker process died .* the last checkpoint is kept"
    ):
        list(views.epoch(0))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "the GPU's memory does not suffice (CUDA out of"),
        (DiskFullError("a: expected room"), "a: expected room"),
        (TrainingError("CAM: the loss is not finite"), "CAM: the loss is not finite"),
        (WorkerDiedError("loading images: a worker"), "loading images: a worker"),
    ],
)  # fmt: skip
def test_each_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    def broken(options: Any) -> Any:
        raise error

    monkeypatch.setattr(experiment, "_profile", broken)
    assert cli.main(["train", "cam"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"wsss-nb: error: {words}")
