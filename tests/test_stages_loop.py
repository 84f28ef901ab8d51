"""The training loop: schedule, groups, half precision, broken losses, and what a kill leaves behind."""

from __future__ import annotations

import functools
import os
import pickle
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss_nb import cli
from wsss_nb.data import VOCFolder, make_synthetic
from wsss_nb.similarity import FeatureSimilarityLoss
from wsss_nb.stages import loop
from wsss_nb.stages.cam import train_cam
from wsss_nb.stages.config import CamConfig, OptimizerConfig, TrainingConfig, ViewsConfig
from wsss_nb.stages.loop import NotFiniteError, TrainingError, epoch_seed, load_trained, train
from wsss_nb.stages.views import Batch, CachedViews
from wsss_nb.system.errors import DiskFullError, InputError
from wsss_nb.system.processes import Processes

STEPS = 3


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.old, self.new = nn.Linear(4, 6), nn.Linear(6, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.new(torch.tanh(self.old(x)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "pretrained_weights": [self.old.weight],
            "pretrained_biases": [self.old.bias],
            "new_weights": [self.new.weight],
            "new_biases": [self.new.bias],
        }


class Noise:
    """Batches drawn from the epoch's seed; ``stop`` is called with the epoch's seed and step before each."""

    steps, batch_size = STEPS, 5

    def __init__(self, stop: Callable[[int, int], None] = lambda seed, step: None) -> None:
        self.stop = stop

    def epoch(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for step in range(self.steps):
            self.stop(seed, step)
            yield torch.randn(5, 4, generator=generator)


def run(out: Path, loader: Any = None, epochs: int = 3, **options: Any) -> loop.History:
    """Train the toy; its loss draws from all generators that a loss may use."""
    net = Toy()
    modules = nn.ModuleDict({"net": net, **options.pop("modules", {})})
    noisy = options.pop("noisy", lambda: 0.0)

    def loss(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(2, generator=generator) + torch.randn(2) + noisy()
        return {"fit": (net(batch) - noise).square().mean(), "size": 0.01 * net(batch).square().mean()}

    config = options.pop("config", TrainingConfig(optimizer=OptimizerConfig(learning_rate=0.05)))
    settings = {"seed": 5, "out": out, "description": "toy", **options}
    chosen = settings.pop("loss", None)
    given = loss if chosen is None else functools.partial(chosen, net)
    return train(modules, loader or Noise(), given, config=config.model_copy(update={"epochs": epochs}), **settings)


def without_seconds(history: loop.History) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def checkpoint(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return found


def assert_same(one: Path, other: Path) -> None:
    a, b = checkpoint(one)["modules"], checkpoint(other)["modules"]
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Schedule, groups, history


def test_schedule_by_hand() -> None:
    plain = OptimizerConfig(power=0.9)
    assert [loop._schedule(step, 10, plain) for step in (0, 5, 9)] == pytest.approx([1, 0.5**0.9, 0.1**0.9])
    warm = OptimizerConfig(power=1.0, warmup=0.4)
    # rises over 4 of 10 steps: 1/4, 2/4, 3/4, 4/4, each times what is left of the decay
    values = [loop._schedule(step, 10, warm) for step in range(6)]
    assert values == pytest.approx([0.25, 0.5 * 0.9, 0.75 * 0.8, 0.7, 0.6, 0.5])


def test_groups_by_their_effect(tmp_path: Path) -> None:
    """One step with gradient 1 everywhere and no momentum: p - lr * multiplier * (1 + decay * p)."""
    before = {name: value.detach().clone() for name, value in Toy().named_parameters()}
    learned = nn.ParameterDict({"mu": nn.Parameter(torch.tensor(3.0))})
    optimizer = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.5, head_multiplier=10)
    run(
        tmp_path,
        modules={"learned": learned},
        loss=lambda net, *_: {"sum": sum(p.sum() for p in [*net.parameters(), learned["mu"]]) + torch.zeros(())},
        config=TrainingConfig(optimizer=optimizer),
        iterations=1,
        extra_groups=[{"params": [learned["mu"]], "lr": 0.025, "weight_decay": 0.0}],
    )
    after = checkpoint(tmp_path)["modules"]
    expected = {"old.weight": (0.1, 0.5), "old.bias": (0.2, 0.0), "new.weight": (1.0, 0.5), "new.bias": (2.0, 0.0)}
    for name, (rate, decay) in expected.items():
        torch.testing.assert_close(after[f"net.{name}"], before[name] - rate * (1 + decay * before[name]))
    assert after["learned.mu"].item() == pytest.approx(3.0 - 0.025)


def test_rates_of_all_groups_follow_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven steps, in the last of three epochs only one."""
    seen: list[list[float]] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any, **options: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    optimizer = OptimizerConfig(learning_rate=0.01, head_multiplier=4, warmup=3 / 7)
    history = run(tmp_path, epochs=99, config=TrainingConfig(optimizer=optimizer), iterations=7)
    rise = [1 / 3, 2 / 3, 1, 1, 1, 1, 1]
    for index, rates in enumerate(seen):
        factor = rise[index] * (1 - index / 7) ** 0.9
        assert rates == pytest.approx([value * factor for value in (0.01, 0.02, 0.04, 0.08)])
    assert len(seen) == 7 and [row["step"] for row in history] == [3, 6, 7]
    assert checkpoint(tmp_path)["epoch"] == 3


def test_a_loss_rises_to_its_weight_step_by_step(tmp_path: Path) -> None:
    def loss(net: Any, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"one": torch.ones((), requires_grad=True), "late": torch.ones((), requires_grad=True)}

    history = run(tmp_path, loss=loss, warmups={"late": 2 / 3})  # 6 of 9 steps: 1/6, 2/6, .. 6/6, then 1
    assert [row["one"] for row in history] == [1, 1, 1]
    assert [row["late"] for row in history] == pytest.approx([2 / 6, 5 / 6, 1])


@pytest.mark.parametrize(("quirk", "momentum"), [(False, 0.8), (True, 0.0005)])
def test_momentum_reaches_every_group_and_empty_groups_are_left_out(quirk: bool, momentum: float) -> None:
    config = OptimizerConfig(momentum=0.8, weight_decay=0.0005, decay_as_momentum=quirk)
    optimizer = loop.build_optimizer(Toy().parameter_groups(), config, [])
    assert [group["momentum"] for group in optimizer.param_groups] == [momentum] * 4
    groups = {"new_weights": [nn.Parameter(torch.zeros(1))], "new_biases": []}
    (only,) = loop.build_optimizer(groups, config, []).param_groups
    assert only["lr"] == pytest.approx(0.1) and only["weight_decay"] == 5e-4


def test_history_holds_means_over_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = iter([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
    calls: list[int] = []
    history = run(
        tmp_path,
        epochs=2,
        loss=lambda net, batch, _: {"a": next(values) + 0 * net(batch).sum(), "b": torch.tensor(2.0)},
        record=lambda: {"mu": 2.5},
        on_epoch=lambda rows: calls.append(len(rows)),
        interval=-1,
    )
    assert without_seconds(history) == [
        {"epoch": 1, "step": 3, "a": 3.0, "b": 2.0, "mu": 2.5},
        {"epoch": 2, "step": 6, "a": 4.0, "b": 2.0, "mu": 2.5},
    ]
    assert calls == [1, 2] and all(row["seconds"] >= 0 for row in history)
    assert capsys.readouterr().out.splitlines() == [
        "toy: epoch 1/2: a 3.0000, b 2.0000",
        "toy: epoch 2/2: a 4.0000, b 2.0000",
    ]


def test_epoch_seeds_differ_between_seeds_and_epochs() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(5) for epoch in range(100)}
    assert len(seeds) == 500 and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("rate", [0.05, 1e4])
def test_learned_mu_and_sigma_are_logged_and_stay_in_range(tmp_path: Path, rate: float) -> None:
    similarity = FeatureSimilarityLoss(2.0, 3.0, learnable=True)
    generator = torch.Generator().manual_seed(0)
    maps, image = torch.rand(1, 2, 6, 6, generator=generator), torch.rand(1, 3, 6, 6, generator=generator)
    history = run(
        tmp_path,
        modules={"similarity": similarity},
        loss=lambda net, batch, _: {"similarity": similarity(maps, image) + 0 * net(batch).sum()},
        extra_groups=[{"params": list(similarity.parameters()), "lr": rate, "weight_decay": 0.0}],
        record=lambda: {"mu": similarity.mu.item(), "sigma": similarity.sigma.item()},
    )
    path = [(row["mu"], row["sigma"]) for row in history]
    assert len(set(path)) > 1 or rate > 1
    assert path[-1] != (2.0, 3.0)
    assert all(-4 <= mu <= 6 and 0.5 <= sigma <= 20 for mu, sigma in path)
    assert {"similarity.raw_mu", "similarity.raw_sigma"} <= checkpoint(tmp_path)["modules"].keys()


# Resuming


@pytest.mark.parametrize("moment", [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_an_interrupted_training_ends_the_same(tmp_path: Path, moment: tuple[int, int]) -> None:
    undisturbed = run(tmp_path / "whole")

    def stop(seed: int, step: int) -> None:
        if (seed, step) == (epoch_seed(5, moment[0]), moment[1]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Noise(stop))
    torch.manual_seed(99)  # the state of the generator that a new process happens to have
    resumed = run(tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    assert without_seconds(resumed) == without_seconds(undisturbed)
    assert run(tmp_path / "stopped") == resumed, "a finished training is not repeated"


def _killed(out: Path, epoch: int, where: str) -> None:
    def stop(seed: int, step: int) -> None:
        if seed == epoch_seed(5, epoch) and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "saving":
        save = torch.save

        def half(state: Any, path: Path) -> None:
            save(state, path)
            if state["epoch"] == epoch + 1:
                os.truncate(path, 100)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        run(out)
    run(out, Noise(stop))


def test_a_killed_training_ends_the_same(tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "whole")
    for epoch, where in ((0, "training"), (0, "saving"), (1, "training"), (1, "saving"), (2, "training")):
        process = os.fork()  # a fresh process would import everything again
        if not process:
            try:
                _killed(tmp_path / "killed", epoch, where)
            finally:
                os._exit(1)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert not epoch or checkpoint(tmp_path / "killed")["epoch"] == epoch
    resumed = run(tmp_path / "killed")
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert without_seconds(resumed) == without_seconds(undisturbed)


def test_a_resumed_training_goes_on_with_every_generator(tmp_path: Path) -> None:
    """A loss that also draws from Python's and NumPy's generators: whatever was drawn before, two epochs at once, and one
    after the other."""

    def noisy() -> float:
        return random.gauss(0, 1) + np.random.standard_normal()

    def seeded(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)

    def stop(history: Any) -> None:
        raise KeyboardInterrupt

    seeded(1)
    run(tmp_path / "whole", noisy=noisy)
    seeded(2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "pieces", noisy=noisy, on_epoch=stop)
    seeded(99)
    run(tmp_path / "pieces", noisy=noisy)
    assert_same(tmp_path / "pieces", tmp_path / "whole")


def _damage_other_model(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["modules"]["net.old.weight"] = torch.zeros(3, 3)
    torch.save(state, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(pickle.dumps({"epoch": Path("x")}, protocol=2)),
        lambda path: torch.save({"epoch": 1}, path),
        lambda path: torch.save([1], path),
        _damage_other_model,
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    run(tmp_path, epochs=1)
    damage(tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt: expected a checkpoint of this model, got .*; remove it"):
        run(tmp_path)


def test_trained_weights_are_put_back_in_eval_mode(tmp_path: Path) -> None:
    run(tmp_path)
    net = load_trained(Toy(), tmp_path / "checkpoint.pt")
    assert not net.training
    assert torch.equal(net.old.weight, checkpoint(tmp_path)["modules"]["net.old.weight"])
    with pytest.raises(InputError, match=r"checkpoint\.pt: expected weights of Linear, got other ones"):
        load_trained(nn.Linear(2, 2), tmp_path / "checkpoint.pt")


class Two(Processes):
    """The first of two processes; the other finds no checkpoint, having a stale view of the folder, or the same one."""

    count = 2

    def __init__(self, stale: bool) -> None:
        super().__init__()
        self.stale = stale

    def sum(self, values: Tensor) -> Tensor:
        return values if self.stale else values + values.flip(0)


def test_processes_that_find_different_checkpoints_do_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wait for each other in different epochs."""
    run(tmp_path, epochs=2)
    monkeypatch.setattr(loop, "processes", lambda: Two(stale=True))
    message = r"to find the same checkpoint\.pt, got those of epochs \[2, 0\]; the same command"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, epochs=2)
    monkeypatch.setattr(loop, "processes", lambda: Two(stale=False))
    assert len(run(tmp_path, epochs=2)) == 2


# Things that go wrong: each is one line, keeps the checkpoint before, and the same command carries on


def failing(call: int, error: Exception) -> Callable[[], float]:
    left = [call]

    def noisy() -> float:
        left[0] -= 1
        if not left[0]:
            raise error
        return 0.0

    return noisy


def _allocation_error() -> RuntimeError:
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("so much memory?")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotFiniteError("the logits of view 1 are not finite"), "the logits of view 1 are not finite at {}, try a sm"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), "the GPU's memory does not suffice at {}, try precision"),
        (_allocation_error(), "the memory does not suffice at {}, try precision bfloat16, a smaller batch or more pro"),
    ],
)
def test_what_cannot_go_on_keeps_the_checkpoint_before(tmp_path: Path, error: Exception, message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        run(tmp_path / "broken", noisy=failing(5, error))
    assert str(caught.value).startswith(
        "toy: " + message.format("epoch 2, step 4; the checkpoint of epoch 1 is kept")
    ) and "\n" not in str(caught.value)
    assert checkpoint(tmp_path / "broken")["epoch"] == 1
    run(tmp_path / "broken")
    run(tmp_path / "whole")
    assert_same(tmp_path / "broken", tmp_path / "whole")
    with pytest.raises(TrainingError, match="at epoch 1, step 0; there is no checkpoint yet, try"):
        run(tmp_path / "first", noisy=failing(1, error))
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        run(tmp_path / "bug", noisy=failing(1, RuntimeError("a bug")))


def test_a_loss_that_is_not_finite_is_shown(tmp_path: Path) -> None:
    losses = iter([1.0, 2.0, 3.0, 4.0, float("nan")])

    def loss(net: Any, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"fit": next(losses) * net(batch).square().mean(), "one": torch.tensor(1.0)}

    message = r"^toy: the loss is not finite \(fit nan, one 1\) at epoch 2, step 4; the checkpoint of epoch 1 is kept"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, loss=loss)
    state = checkpoint(tmp_path)
    assert state["epoch"] == 1 and all(value.isfinite().all() for value in state["modules"].values())


@pytest.mark.parametrize("limited", [True, False])
def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    """Of the file system, or of torch's own writer, which gives no OSError."""
    save, calls = torch.save, [0]

    def full(state: Any, path: Path) -> None:
        calls[0] += 1
        if calls[0] != 2:
            save(state, path)
        elif limited:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            try:
                save(state, path)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        else:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskFullError, match=r"checkpoint\.pt: expected room ") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert checkpoint(tmp_path)["epoch"] == 1
    run(tmp_path)
    assert checkpoint(tmp_path)["epoch"] == 3


# With the networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> VOCFolder:
    root = tmp_path_factory.mktemp("data") / "fish"
    make_synthetic(root, num_train=8, num_val=1, size=48)
    return VOCFolder(root, "train")


CAM = CamConfig(
    epochs=2,
    batch_size=4,
    optimizer=OptimizerConfig(learning_rate=0.01),
    views=ViewsConfig(cached=True, sizes=((48, 48),)),
    siamese_scale=0.5,
    mu=2.0,
    sigma=2.0,
)


@pytest.mark.parametrize("seam", [False, True])
def test_stage_1_that_breaks_and_is_started_again_ends_the_same(
    folder: VOCFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seam: bool
) -> None:
    """Dropout and draws included."""
    epoch = CachedViews.epoch

    def broken(self: CachedViews, seed: int) -> Iterator[Batch]:
        for step, batch in enumerate(epoch(self, seed)):
            last = seed == epoch_seed(0, 1) and step == 1
            yield batch._replace(features=batch.features * float("nan")) if last else batch

    what = r"loss is not finite \(classification nan.*\)" if seam else "logits of view 1 are not finite"
    message = f"^CAM: the {what} at epoch 2, step 3; the checkpoint of epoch 1 is kept"
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=message):
        patch.setattr(CachedViews, "epoch", broken)
        train_cam(folder, "tiny", CAM, 0, tmp_path / "broken", seam=seam)
    assert checkpoint(tmp_path / "broken")["epoch"] == 1
    train_cam(folder, "tiny", CAM, 0, tmp_path / "broken", seam=seam)
    history = train_cam(folder, "tiny", CAM, 0, tmp_path / "whole", seam=seam)
    assert_same(tmp_path / "broken", tmp_path / "whole")
    assert history[0]["classification" if seam else "classification1"] > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_like_float32(
    folder: VOCFolder, tmp_path: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the scaler would begin too high and leave out the first steps, of which there are four here
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=256.0))
    config = CAM.model_copy(update={"num_samples": None, "dropout": 0.0})
    full = train_cam(folder, "tiny", config, 0, tmp_path / "full")
    half = train_cam(folder, "tiny", config.model_copy(update={"precision": precision}), 0, tmp_path / "half")
    rows, others = without_seconds(full), without_seconds(half)
    assert others == [pytest.approx(row, rel=0.1, abs=0.03) for row in rows] and others != rows
    state = checkpoint(tmp_path / "half")
    assert ("scale" in state["scaler"]) == (precision == "float16")
    assert all(value.dtype != torch.float16 for value in state["modules"].values())


def test_compiling_on_a_cpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run(tmp_path / "plain", epochs=1)
    assert capsys.readouterr().out == ""
    optimizer = OptimizerConfig(learning_rate=0.05)
    compiled = run(tmp_path / "c", epochs=1, config=TrainingConfig(compile=True, optimizer=optimizer))
    assert capsys.readouterr().out == "toy: compile is for GPUs, goes on without\n"
    assert without_seconds(compiled) == without_seconds(plain)
    assert_same(tmp_path / "c", tmp_path / "plain")


def test_compiling_on_a_gpu_keeps_names_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracer itself runs, without making machine code."""
    compiled: list[Any] = []
    compile_ = torch.compile

    def eager(function: Any, **options: Any) -> Any:
        compiled.append(function)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    net, x = Toy(), torch.rand(3, 4)
    expected, names = net(x), list(net.state_dict())
    net.compile()
    torch.testing.assert_close(net(x), expected)
    assert len(compiled) == 1 and list(net.state_dict()) == names


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_rate_that_is_too_high_ends_in_one_line(
    folder: VOCFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    words = f"train cam --profile quick --data {folder.root} --out {tmp_path}/run --pretrain null --cam.epochs 3 "
    words += f"--cam.views.sizes [[48,48]] --cam.batch_size 4 --cam.precision {precision} "
    assert cli.main([*words.split(), "--cam.optimizer.learning_rate", "1e20"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "wsss-nb: error: CAM lambda1_fsl seed 0: the logits of view 1 are not finite at epoch 1, step 1; "
    )
