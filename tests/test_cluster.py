"""A Ray cluster on this machine: the same results as without, whatever is killed, and clear errors."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cluster_tasks
import numpy as np
import pytest
import ray
import torch

from wsss_nb import cli, crf
from wsss_nb.crf import CRFConfig, dense_crf_many, resolved_crf
from wsss_nb.data import VOCFolder
from wsss_nb.data.voc import save_label_map
from wsss_nb.run import pipeline, prepare
from wsss_nb.run.prepare import open_run
from wsss_nb.run.profiles import load_profile
from wsss_nb.run.results import read_results
from wsss_nb.run.run import Run
from wsss_nb.stages import affinitynet, scoring
from wsss_nb.stages.affinitynet import crf_maps
from wsss_nb.stages.loop import TrainingError
from wsss_nb.stages.scoring import score_label_maps
from wsss_nb.system import cluster
from wsss_nb.system.cluster import Cluster
from wsss_nb.system.errors import InputError, WorkerDiedError
from wsss_nb.system.files import read_json
from wsss_nb.system.workers import finished_results

SETTINGS = "data.num_train=8 data.num_val=4 lambdas=1 fsl=true variants=average refine=lambda1_fsl threads=1 workers=1"
SETTINGS += "".join(
    f" {stage}.epochs={epochs} {stage}.batch_size=4 {stage}.views.sizes=[[48,48]]"
    for stage, epochs in (("pretrain", 1), ("cam", 2), ("affinitynet", 1), ("deeplab", 1))
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two CPUs, as the command line's ``--ray-address local`` starts it."""
    with pytest.MonkeyPatch.context() as patch:
        tests, package = Path(__file__).parent, Path(cli.__file__).parents[1]
        patch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{package}")
        patch.setenv(cluster.ADDRESS, "")
        patch.setenv(cluster.GPUS, "1")
        patch.setattr(ray, "init", functools.partial(ray.init, num_cpus=2, log_to_driver=False))
        for attempt in range(4):
            try:
                cluster.use_cluster("local", 0.5)
                break
            except InputError as error:  # Ray gives its own processes 30 seconds, too few on a busy machine
                if "timed out during startup" not in str(error) or attempt == 3:
                    raise
                ray.shutdown()
        try:
            yield os.environ[cluster.ADDRESS]
        finally:
            ray.shutdown()


@pytest.fixture
def here(address: str, tmp_path: Path) -> Cluster:
    return Cluster(address, tmp_path, patience=0)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two points of the grid, one after the other in this process, and the later stages of one."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSSS_NB_HEADLESS", "1")
        patch.delenv(cluster.ADDRESS, raising=False)
        run = open_run(load_profile("quick", SETTINGS), tmp_path_factory.mktemp("sequential") / "run")
        for variant in run.config.grid():
            pipeline.train_cam(run, variant, 0)
        pipeline.train_deeplab(run)
    return run


def same_files(one: Path, other: Path) -> int:
    """How many maps and checkpoints two folders share; they hold the same, bit by bit."""
    kinds = {".pt", ".png", ".npz"}
    names, others = (sorted(p.relative_to(root) for p in root.rglob("*") if p.suffix in kinds) for root in (one, other))
    assert names == others
    for name in names:
        if name.suffix == ".pt":
            a, b = (torch.load(root / name, weights_only=True)["modules"] for root in (one, other))
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    return len(names)


def costless(rows: list[Any]) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"cost"}) for row in rows]


def copied(sequential: Run, out: Path, *parts: str) -> None:
    for part in parts:
        for folder in sequential.folder.glob(part):
            shutil.copytree(folder, out / folder.name)


# The sweep and the stages


def test_a_sweep_whose_worker_is_killed_ends_as_the_sequential_one(
    sequential: Run, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_train_point", cluster_tasks.point)
    monkeypatch.setenv(cluster.ADDRESS, address)
    monkeypatch.setenv(cluster.GPUS, "0.5")
    out = tmp_path / "run"
    copied(sequential, out, "pretrain-*")
    run = open_run(load_profile("quick", SETTINGS), out)
    assert isinstance(run.workers, Cluster) and run.workers.gpus == 0.5
    rows = pipeline.train_cams(run)
    expected = costless(sequential.results.cam)
    expected.sort(key=lambda row: [row.variant for row in rows].index(row["variant"]))
    assert costless(rows) == expected == costless(read_results(out / "results.json").cam)
    assert same_files(sequential.folder / "cam", out / "cam") == 2 * (1 + 4 + 4)
    epochs = {name: (out / f"epochs-{name}").read_text().splitlines() for name in run.config.grid()}
    assert epochs == {name: ["epoch 1", "epoch 2"] for name in epochs}, "killed after epoch 1, resumed from it"
    again = pipeline.train_cams(open_run(load_profile("quick", SETTINGS), out))
    assert again == rows, "with what the finished points cost"
    assert all(len((out / f"epochs-{name}").read_text().splitlines()) == 2 for name in epochs)


def test_later_stages_on_a_cluster_are_those_of_one_process(
    sequential: Run, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRF maps in tasks of three images, scores in tasks of two; this process computes neither."""
    monkeypatch.setattr(affinitynet, "CRF_TASK", 3)
    monkeypatch.setattr(scoring, "SHARD", 2)
    for owner, name in ((affinitynet, "dense_crf_many"), (scoring.ContourFScore, "update")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("computed in this process"))
    monkeypatch.setenv(cluster.ADDRESS, "")
    monkeypatch.setenv(cluster.GPUS, "1")
    out = tmp_path / "run"
    copied(sequential, out, "pretrain-*", "cam")
    flags = [word for field in SETTINGS.split() for word in ("--" + field).split("=")]
    assert cli.main(["train", "deeplab", "--ray-address", "local", "--out", str(out), *flags]) == 0
    for stage in ("affinitynet", "deeplab"):
        assert same_files(sequential.folder / stage, out / stage) > 4
    assert costless(read_results(out / "results.json").stages) == costless(sequential.results.stages)
    assert os.environ[cluster.ADDRESS] == address, "an address that other processes can use"


# Tasks


def test_results_come_in_order_from_other_processes(here: Cluster) -> None:
    jobs = [(number, np.zeros(2**17)) for number in range(7)]
    answers = list(here.stream(cluster_tasks.where, iter(jobs), "numbers"))
    assert [number for number, *_ in answers] == list(range(7))
    assert os.getpid() not in {process for _, process, *_ in answers}
    assert {answer[2:] for answer in answers} == {(True, "none")}, "may write; makes no tasks itself"


def test_jobs_are_taken_as_results_are_used(here: Cluster) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[tuple[int, np.ndarray]]:
        for number in range(100):
            taken.append(number)
            yield number, np.zeros(1)

    answers = here.stream(cluster_tasks.where, jobs(), "numbers")
    assert [next(answers)[0] for _ in range(3)] == [0, 1, 2]
    assert len(taken) == 3 + 2 * 2
    answers.close()
    assert list(finished_results(max, {"a": (1, 2), "b": (4, 3)}, here, "numbers"))


def test_a_task_that_dies_again_and_again_is_named(
    here: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "RETRIES", 1)
    with pytest.raises(WorkerDiedError, match=r"^the sweep: lambda0 seed 3: its worker died .* carries on$"):
        list(here.finished(cluster_tasks.die, {"lambda0 seed 3": (tmp_path / "log",)}, "the sweep"))
    assert (tmp_path / "log").read_text() == "died\n" * 2


@pytest.mark.parametrize(("kind", "error"), [("input", InputError), ("training", TrainingError), ("bug", KeyError)])
def test_errors_are_those_of_this_process_and_not_tried_again(
    here: Cluster, tmp_path: Path, kind: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        list(here.finished(cluster_tasks.fail, {"a": (tmp_path / "log", kind)}, "the sweep"))
    assert type(caught.value) is error and caught.value.args == ("what is wrong",)
    assert (tmp_path / "log").read_text() == "failed\n"


def test_crf_of_many_images_on_a_cluster(here: Cluster) -> None:
    rng = np.random.default_rng(0)
    jobs = [(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8), rng.random((3, 20, 24))) for _ in range(5)]
    config = CRFConfig(iterations=2)
    ours = list(dense_crf_many(jobs, config, here))
    for one, other in zip(ours, dense_crf_many(jobs, config, 0), strict=True):
        assert np.array_equal(one, other) and one.flags.writeable
    with pytest.raises(ValueError, match="job 1: image: expected uint8"):
        list(dense_crf_many([jobs[0], (jobs[0][1], jobs[0][1])], config, here))


def test_the_crf_is_looked_for_where_the_tasks_run(
    sequential: Run, here: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process has a GPU, it seems; the cluster has none."""
    monkeypatch.setattr(crf, "_gpu_runs_kernels", lambda: True)
    config = sequential.config.affinitynet
    assert resolved_crf(config.crf).backend == "cuda"
    assert resolved_crf(config.crf, here).backend == "pydensecrf"
    steps = sequential.stages("affinitynet")[0].steps
    cams = sequential.folder / steps["cams"]
    crf_maps(sequential.train, cams, config, tmp_path / "crf", here)
    assert same_files(sequential.folder / steps["crf"], tmp_path / "crf") == 8
    named = config.model_copy(update={"crf": config.crf.model_copy(update={"backend": "cuda"})})
    with pytest.raises(InputError, match=r"^crf\.backend: expected a GPU on which Triton's kernels run"):
        crf_maps(sequential.train, cams, named, tmp_path / "other", here)


# Scores in parts


@pytest.mark.parametrize("void", ["background", "masked"])
def test_scores_in_parts_are_those_of_the_whole(
    sequential: Run, here: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, void: Any
) -> None:
    folder = VOCFolder(sequential.train.root, "train")
    rng = np.random.default_rng(0)
    for name in folder.names:
        guess = np.where(rng.random((96, 96)) < 0.2, 0, folder.mask(name)) % folder.num_classes
        save_label_map(tmp_path / f"{name}.png", np.roll(guess, rng.integers(0, 3)).astype(np.uint8))
    whole = score_label_maps(folder, tmp_path, {"stage": "x"}, void)
    assert 0 < whole["contour_f"] < 1 and whole["protocol"]["images"] == 8
    monkeypatch.setattr(scoring, "SHARD", 3)
    for workers in (0, 1, here) if void == "masked" else (2, here):
        assert score_label_maps(folder, tmp_path, {"stage": "x"}, void, workers) == whole
    (tmp_path / f"{folder.names[5]}.png").unlink()
    with pytest.raises(InputError, match=folder.names[5]):
        score_label_maps(folder, tmp_path, {}, void, here)


# What does not fit


def test_machines_must_share_the_folders(here: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(where: Cluster) -> str:
        with pytest.raises(InputError) as caught:
            list(where.finished(max, {"a": (1, 2)}, "numbers"))
        return str(caught.value)

    machine = f"machine {socket.gethostname()}"
    elsewhere = here.shared / "elsewhere"
    text = ": expected a folder that all machines of the Ray cluster share, got another or none on " + machine
    assert error(Cluster(here.address, here.shared, (elsewhere,), patience=0)) == f"{elsewhere}{text}"
    monkeypatch.setattr(cluster, "_mark", lambda folder: folder / ".cluster")  # as if written on another disk
    (here.shared / ".cluster").unlink()
    assert error(here) == f"{here.shared}{text}"
    (here.shared / ".cluster").write_text("of an earlier run")
    assert error(here) == f"{here.shared}{text}"


def test_machines_must_have_the_same_code(here: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here.shared / "a.json"
    path.write_text("[1]")
    assert list(here.finished(read_json, {"a": (path,)}, "files")) == [("a", [1])]
    monkeypatch.setattr(cluster, "_module_code", lambda module: (module, "another"))
    with pytest.raises(InputError, match=r"^machine .*: expected the same code of wsss-nb as the run's, got another"):
        list(here.finished(read_json, {"a": (path,)}, "files"))


def test_gpus_of_a_task() -> None:
    def share(gpus: float, *present: float) -> float:
        nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": number}} for number in present]
        gone = {"Alive": False, "Resources": {"GPU": 16.0}}
        return Cluster("auto", Path(), gpus=gpus)._share(SimpleNamespace(nodes=lambda: [*nodes, gone]))

    assert share(1) == 0 and share(1, 0, 2) == 1 and share(0.25, 1) == 0.25 and share(0, 8) == 0
    with pytest.raises(InputError, match=r"--ray-gpus: expected at most the 1 of one machine .*, got 2"):
        share(2, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--ray-address nowhere", "expected auto, local, HOST:PORT or ray://HOST:PORT, got 'nowhere'"),
        ("--ray-address http://a:1", "expected auto, local, HOST:PORT or ray://HOST:PORT, got 'http://a:1'"),
        ("--ray-address a:b", "expected auto, local, HOST:PORT or ray://HOST:PORT, got 'a:b'"),
        ("--ray-address 127.0.0.1:1", "expected a Ray cluster at '127.0.0.1:1', got Connection refused"),
        ("--ray-address ray://127.0.0.1:1", "expected a Ray cluster at 'ray://127.0.0.1:1', got Connection"),
        ("--ray-address local --ray-gpus 1.5", "expected a share from 0 to 1 or a whole number of GPUs, got 1.5"),
        ("--ray-gpus 1", "--ray-gpus: expected together with --ray-address, got it alone"),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "train affinitynet", "run"])
def test_wrong_addresses_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(prepare, "open_run", lambda *_: pytest.fail("a run was opened"))
    assert cli.main([*command.split(), *arguments.split(), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wsss-nb: error: --ray-") and message in line


def test_without_ray_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["sweep", "--ray-address", "auto", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--ray-address: expected Ray to be installed (pip install 'wsss-nb[cluster]'), got" in line


def test_without_an_address_there_is_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    assert cluster.requested_cluster(tmp_path) is None
    monkeypatch.setenv(cluster.ADDRESS, "auto")
    monkeypatch.setenv(cluster.GPUS, "0.5")
    assert cluster.requested_cluster(tmp_path, tmp_path) == Cluster("auto", tmp_path, (tmp_path,), 0.5)
    monkeypatch.setenv(cluster.GPUS, "many")
    with pytest.raises(InputError, match="whole number of GPUs, got many"):
        cluster.requested_cluster(tmp_path)
