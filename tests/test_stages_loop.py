"""The training loop and the steps around it: schedule, groups, broken losses, and what a kill leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsss_nb.errors import InputError
from wsss_nb.files import read_json, write_json
from wsss_nb.similarity import FeatureSimilarityLoss
from wsss_nb.stages import loop, steps
from wsss_nb.stages.config import OptimizerConfig
from wsss_nb.stages.loop import TrainingError, epoch_seed, train
from wsss_nb.stages.processes import Processes
from wsss_nb.stages.steps import run_step, step_key

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

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "pretrained_weights": [self.old.weight], "pretrained_biases": [self.old.bias],
            "new_weights": [self.new.weight], "new_biases": [self.new.bias],
        }  # fmt: skip


class Noise:
    """Batches drawn from the epoch's seed; ``stop`` is called with the epoch's seed and step before each."""

    steps = STEPS

    def __init__(self, stop: Callable[[int, int], None] = lambda seed, step: None) -> None:
        self.stop = stop

    def epoch(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for step in range(STEPS):
            self.stop(seed, step)
            yield torch.randn(5, 4, generator=generator)


def run(out: Path, loader: Any = None, epochs: int = 3, **options: Any) -> tuple[nn.ModuleDict, loop.History]:
    net = Toy()
    modules = nn.ModuleDict({"net": net})

    def objective(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        # Both sources of randomness that an objective may use.
        noise = torch.randn(2, generator=generator) + torch.randn(2)
        return {"fit": (net(batch) - noise).square().mean(), "size": 0.01 * net(batch).square().mean()}

    settings: dict[str, Any] = {
        "groups": net.groups(), "config": OptimizerConfig(learning_rate=0.05), "epochs": epochs, "seed": 5,
        "checkpoint": out / "checkpoint.pt", **options,
    }  # fmt: skip
    history = train(modules, loader or Noise(), settings.pop("objective", objective), **settings)
    return modules, history


def without_seconds(history: loop.History) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def weights(out: Path) -> dict[str, Tensor]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["modules"]


def read_history(out: Path) -> loop.History:
    return torch.load(out / "checkpoint.pt", weights_only=True)["history"]


def assert_same(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Schedule and groups


def test_schedule_by_hand() -> None:
    plain = OptimizerConfig(power=0.9)
    assert loop._schedule(0, 10, plain) == 1
    assert loop._schedule(5, 10, plain) == pytest.approx(0.5**0.9)
    assert loop._schedule(9, 10, plain) == pytest.approx(0.1**0.9)
    warm = OptimizerConfig(power=1.0, warmup=0.4)
    # Rises over 4 of 10 steps: 1/4, 2/4, 3/4, 4/4, each times what is left of the decay.
    values = [loop._schedule(step, 10, warm) for step in range(6)]
    assert values == pytest.approx([0.25, 0.5 * 0.9, 0.75 * 0.8, 0.7, 0.6, 0.5])


def test_groups_by_their_effect(tmp_path: Path) -> None:
    """One step with gradient 1 everywhere and no momentum: p - lr * multiplier * (1 + decay * p)."""
    net = Toy()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    modules = nn.ModuleDict({"net": net})

    class One:
        steps = 1

        def epoch(self, seed: int) -> Iterator[None]:
            yield None

    learned = nn.Parameter(torch.tensor(3.0))
    modules.register_parameter("learned", learned)
    config = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.5, head_multiplier=10)
    train(
        modules, One(), lambda batch, generator: {"sum": sum((p.sum() for p in modules.parameters()), torch.zeros(()))},
        groups=net.groups(), config=config, epochs=1, seed=0, checkpoint=tmp_path / "c.pt",
        extra_groups=[{"params": [learned], "lr": 0.025, "weight_decay": 0.0}],
    )  # fmt: skip
    expected = {
        "old.weight": (0.1, 0.5),
        "old.bias": (0.2, 0.0),
        "new.weight": (1.0, 0.5),
        "new.bias": (2.0, 0.0),
    }
    for name, (rate, decay) in expected.items():
        value = dict(net.named_parameters())[name]
        torch.testing.assert_close(value.detach(), before[name] - rate * (1 + decay * before[name]))
    assert learned.item() == pytest.approx(3.0 - 0.025)


def test_rates_of_all_groups_follow_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any, **options: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    run(tmp_path, epochs=2, config=OptimizerConfig(learning_rate=0.01, head_multiplier=4, warmup=0.5))
    rise = [1 / 3, 2 / 3, 1, 1, 1, 1]
    for index, rates in enumerate(seen):
        factor = rise[index] * (1 - index / 6) ** 0.9
        assert rates == pytest.approx([value * factor for value in (0.01, 0.02, 0.04, 0.08)])
    assert len(seen) == 6


def test_a_loss_rises_to_its_weight_step_by_step(tmp_path: Path) -> None:
    def objective(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"one": torch.ones((), requires_grad=True), "late": torch.ones((), requires_grad=True)}

    share = {"late": 2 / 3}  # 6 of 9 steps: 1/6, 2/6, .. 6/6, then 1
    run(tmp_path, epochs=3, objective=objective, warmups=share)
    history = read_history(tmp_path)
    assert [row["one"] for row in history] == [1, 1, 1]
    assert [row["late"] for row in history] == pytest.approx([2 / 6, 5 / 6, 1])


def test_momentum_reaches_every_group_and_empty_groups_are_left_out() -> None:
    optimizer = loop.build_optimizer(Toy().groups(), OptimizerConfig(momentum=0.0005), [])
    assert [group["momentum"] for group in optimizer.param_groups] == [0.0005] * 4
    groups = {"new_weights": [nn.Parameter(torch.zeros(1))], "new_biases": []}
    (only,) = loop.build_optimizer(groups, OptimizerConfig(), []).param_groups
    assert only["lr"] == pytest.approx(0.1) and only["weight_decay"] == 5e-4


def test_history_holds_means_over_the_steps(tmp_path: Path) -> None:
    values = iter([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
    net = Toy()

    def objective(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"a": next(values) + 0 * net(batch).sum(), "b": torch.tensor(2.0)}

    calls: list[int] = []
    history = train(
        nn.ModuleDict({"net": net}), Noise(), objective, groups=net.groups(), config=OptimizerConfig(), epochs=2,
        seed=0, checkpoint=tmp_path / "c.pt", record=lambda: {"mu": 2.5}, on_epoch=lambda rows: calls.append(len(rows)),
    )  # fmt: skip
    assert without_seconds(history) == [
        {"epoch": 1, "step": 3, "a": 3.0, "b": 2.0, "mu": 2.5}, {"epoch": 2, "step": 6, "a": 4.0, "b": 2.0, "mu": 2.5},
    ]  # fmt: skip
    assert calls == [1, 2] and all(row["seconds"] >= 0 for row in history)


def test_progress_is_lines_in_a_log_and_nothing_for_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = iter(range(0, 1000, 25))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(ticks))
    monkeypatch.delenv("WSSS_NB_HEADLESS", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert list(loop.progress("abcdefg", "CAMs")) == list("abcdefg")
    assert capsys.readouterr().out == "CAMs: 2 of 7\nCAMs: 5 of 7\n"
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    assert list(loop.progress("abcdefg", "CAMs")) == list("abcdefg")
    assert capsys.readouterr().out == ""


def test_epoch_seeds_differ_between_seeds_and_epochs() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(5) for epoch in range(100)}
    assert len(seeds) == 500 and all(0 <= seed < 2**31 for seed in seeds)


# Things that go wrong


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "whole", epochs=3)

    class Broken(Noise):
        def epoch(self, seed: int) -> Iterator[Tensor]:
            for step, batch in enumerate(super().epoch(seed)):
                yield batch * float("nan") if seed == epoch_seed(5, 1) and step == 1 else batch

    with pytest.raises(
        TrainingError, match=r"not finite \(fit nan.* at epoch 2, step 4; the checkpoint of epoch 1 is kept"
    ):
        run(tmp_path / "broken", Broken())
    assert torch.load(tmp_path / "broken/checkpoint.pt", weights_only=True)["epoch"] == 1
    assert all(value.isfinite().all() for value in weights(tmp_path / "broken").values())
    run(tmp_path / "broken")
    assert_same(tmp_path / "broken", tmp_path / "whole")


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
    with pytest.raises(
        InputError, match=r"checkpoint\.pt: expected a checkpoint of this model, got .*; remove it"
    ):
        run(tmp_path)


# Resuming


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
    loader = Noise()
    loader.batch_size = 5  # type: ignore[attr-defined]
    monkeypatch.setattr("wsss_nb.stages.engine.processes", lambda: Two(stale=True))
    with pytest.raises(
        TrainingError,
        match=r"to find the same checkpoint\.pt, got those of epochs \[2, 0\]; the same command",
    ):
        run(tmp_path, loader, epochs=2)
    monkeypatch.setattr("wsss_nb.stages.engine.processes", lambda: Two(stale=False))
    _, history = run(tmp_path, loader, epochs=2)
    assert len(history) == 2


@pytest.mark.parametrize("moment", [(1, 0), (1, 2), (2, 1)])
def test_an_interrupted_training_ends_the_same(tmp_path: Path, moment: tuple[int, int]) -> None:
    _, undisturbed = run(tmp_path / "whole")

    def stop(seed: int, step: int) -> None:
        if (seed, step) == (epoch_seed(5, moment[0]), moment[1]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Noise(stop))
    torch.manual_seed(99)  # the state of the generator that a new process happens to have
    _, resumed = run(tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    assert without_seconds(resumed) == without_seconds(undisturbed)
    _, again = run(tmp_path / "stopped")
    assert again == resumed, "a finished training is not repeated"


def _killed(out: Path, epoch: int, where: str) -> None:
    torch.set_num_threads(1)

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
    _, undisturbed = run(tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wsss_nb.stages.loop"])
    for epoch, where in ((1, "training"), (1, "saving"), (2, "training")):
        process = context.Process(target=_killed, args=(tmp_path / "killed", epoch, where))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert torch.load(tmp_path / "killed/checkpoint.pt", weights_only=True)["epoch"] == epoch
    _, resumed = run(tmp_path / "killed")
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert without_seconds(resumed) == without_seconds(undisturbed)


@pytest.mark.parametrize("rate", [0.05, 1e4])
def test_learned_mu_and_sigma_are_logged_and_stay_in_range(tmp_path: Path, rate: float) -> None:
    similarity = FeatureSimilarityLoss(2.0, 3.0, learnable=True)
    net = Toy()
    maps = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    image = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))

    def objective(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"similarity": similarity(maps, image) + 0 * net(batch).sum()}

    modules = nn.ModuleDict({"net": net, "similarity": similarity})
    history = train(
        modules, Noise(), objective, groups=net.groups(), config=OptimizerConfig(), epochs=3, seed=0,
        checkpoint=tmp_path / "c.pt",
        extra_groups=[{"params": list(similarity.parameters()), "lr": rate, "weight_decay": 0.0}],
        record=lambda: {"mu": similarity.mu.item(), "sigma": similarity.sigma.item()},
    )  # fmt: skip
    path = [(row["mu"], row["sigma"]) for row in history]
    assert len(set(path)) > 1 or rate > 1
    assert path[-1] != (2.0, 3.0)
    assert all(-4 <= mu <= 6 and 0.5 <= sigma <= 20 for mu, sigma in path)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)["modules"]
    assert {"similarity.raw_mu", "similarity.raw_sigma"} <= saved.keys()


# Steps


def working(calls: list[Path], value: int = 1) -> Callable[[Path], dict[str, Any]]:
    def work(out: Path) -> dict[str, Any]:
        calls.append(out)
        (out / "made.txt").write_text(str(value))
        return {"value": value}

    return work


def test_a_step_runs_once(tmp_path: Path) -> None:
    calls: list[Path] = []
    made = run_step(tmp_path / "s", {"a": 1}, working(calls))
    assert made["result"] == {"value": 1} and made["key"] == step_key({"a": 1}) and made["inputs"] == {"a": 1}
    assert made["cost"].keys() == {"seconds", "peak_memory_mb", "device", "threads"}
    assert made["cost"]["peak_memory_mb"] > 10 and made["cost"]["threads"] == 1
    assert run_step(tmp_path / "s", {"a": 1}, working(calls, 2)) == made and len(calls) == 1
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["made.txt", "manifest.json"]


def test_key_depends_on_values_not_on_their_order() -> None:
    assert step_key({"a": 1, "b": [1, 2]}) == step_key({"b": [1, 2], "a": 1})
    assert len({step_key({"a": value}) for value in (1, 2, "1", None, [1])}) == 5


def test_a_step_that_failed_is_resumed_with_the_same_inputs_only(tmp_path: Path) -> None:
    folder = tmp_path / "s"

    def fail(out: Path) -> dict[str, Any]:
        (out / "part.txt").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run_step(folder, {"a": 1}, fail)
    assert not (folder / "manifest.json").exists()
    run_step(folder, {"a": 1}, working([]))
    assert (folder / "part.txt").exists(), "the same step finds its files again"
    made = run_step(folder, {"a": 2}, working([], 2))
    assert made["result"] == {"value": 2} and not (folder / "part.txt").exists()
    with pytest.raises(RuntimeError, match="stopped"):
        run_step(folder, {"a": 3}, fail)
    assert run_step(folder, {"a": 2}, working([], 4))["result"] == {"value": 4}, "cleared, so made again"
    assert not (folder / "part.txt").exists()


def test_a_step_leaves_other_peoples_files_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match=r"expected an empty folder or an earlier result of this step"):
        run_step(tmp_path, {"a": 1}, working([]))
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_what_an_interrupted_write_left_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / ".started.0a1b2c3d.json").write_text("{")
    assert run_step(tmp_path, {"a": 1}, working([]))["result"] == {"value": 1}


def test_a_step_killed_while_it_clears_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    folder = tmp_path / "s"
    run_step(folder, {"a": 1}, working(calls))
    for name in ("b.txt", "c.txt"):
        (folder / name).write_text("")
    (folder / "sub").mkdir()
    unlink = Path.unlink
    killed: list[Path] = []

    def interrupted(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".txt":
            if killed:
                raise KeyboardInterrupt
            killed.append(self)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_step(folder, {"a": 2}, working(calls))
    monkeypatch.undo()
    # Whichever command comes next, what is half cleared counts for nothing.
    run_step(folder, {"a": 1}, working(calls))
    assert len(calls) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["made.txt", "manifest.json"]


def test_a_manifest_beside_a_forgotten_start_counts(tmp_path: Path) -> None:
    """Killed between the last two writes: the result is complete."""
    calls: list[Path] = []
    made = run_step(tmp_path / "s", {"a": 1}, working(calls))
    write_json(tmp_path / "s/started.json", {"key": made["key"]})
    assert run_step(tmp_path / "s", {"a": 1}, working(calls)) == made and len(calls) == 1
    run_step(tmp_path / "s", {"a": 2}, working(calls))
    assert len(calls) == 2 and read_json(tmp_path / "s/manifest.json")["inputs"] == {"a": 2}


def test_costs_are_those_of_the_work() -> None:
    import time

    result, cost = steps.cost_of(lambda: time.sleep(0.2) or 7)
    assert result == 7 and 0.2 <= cost["seconds"] < 2
    assert json.dumps(cost)
