"""The stages of a run: each function is a row of steps, of which those that are up to date are skipped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsss_nb.crf import resolved_crf
from wsss_nb.run.prepare import plugin_hashes
from wsss_nb.run.results import CamResult, Cost, Pretraining, StageResult
from wsss_nb.run.run import AUTHOR, Run, load_run
from wsss_nb.run.steps import MANIFEST, Step, run_step, total_cost
from wsss_nb.stages import affinitynet, cam, deeplab
from wsss_nb.stages.loop import CHECKPOINT, History
from wsss_nb.stages.scoring import part_coverage, score_label_maps
from wsss_nb.system.errors import require
from wsss_nb.system.files import read_json, write_json
from wsss_nb.system.processes import processes
from wsss_nb.system.progress import progress
from wsss_nb.system.workers import finished_results, fixed_threads
from wsss_nb.variants import OURS, SEAM, Stage, Variant

__all__ = ["check_refined", "history_of", "pretrain", "train_affinitynet", "train_cam", "train_cams", "train_deeplab",
           "walk_input"]  # fmt: skip

OnEpoch = Callable[[History], None]
Work = Callable[[Path], dict[str, Any] | None]


def _step(run: Run, place: str, name: str, stage: str, work: Work, **inputs: Any) -> Step:
    """A step of a stage; one with something to do makes the run's author that of ``run.json``."""
    author = run.prepared["made_by"]
    facts = {"code": run.prepared["code"][stage], "data": run.prepared["hash"], **inputs}
    made_by = {key: author[key] for key in ("command", "git")}
    return run_step(run.folder / place, name, facts, work, made_by, partial(write_json, run.folder / AUTHOR, author))


def _without(settings: dict[str, Any], *inference: str) -> dict[str, Any]:
    """The settings that training depends on."""
    return {name: value for name, value in settings.items() if name not in inference}


def _folders(run: Run, **steps: Step) -> dict[str, str]:
    return {name: step.folder.relative_to(run.folder).as_posix() for name, step in steps.items()}


def _scores(run: Run, label_maps: Path, protocol: dict[str, Any]) -> dict[str, Any]:
    return score_label_maps(run.val, label_maps, protocol, run.config.data.void, run.workers)


def _scoring(run: Run) -> dict[str, Any]:
    """What a score depends on beside the label maps."""
    return {"scoring": run.prepared["code"]["scoring"], "void": run.config.data.void}


def history_of(run: Run, folder: str) -> History:
    """The epochs of a finished training by its step's folder, such as ``row.steps["model"]``."""
    rows: History = read_json(run.folder / folder / MANIFEST)["result"]["history"]
    return rows


# Stage 1


def pretrain(run: Run, on_epoch: OnEpoch | None = None) -> tuple[Path | None, str]:
    """What every network starts from, a file and its key: ImageNet weights, a classifier trained here, or nothing."""
    given = run.prepared["weights"] or {"path": None, "sha256": ""}
    config, backbone, seed = run.config.pretrain, run.config.backbone, run.config.seeds[0]
    if given["path"] or config is None:
        return Path(given["path"]) if given["path"] else None, given["sha256"]

    def work(out: Path) -> dict[str, Any]:
        return {"history": cam.pretrain_classifier(run.train, backbone, config, seed, out, on_epoch)}

    made = _step(
        run, "", "pretrain", "cam", work,
        config=config.model_dump(mode="json"), backbone=backbone, seed=seed, threads=run.config.threads,
        upstream=given["sha256"],
    )  # fmt: skip
    known = run.results.pretrain
    if (known is None or known.folder != made.folder.name) and processes().is_main:
        start = Pretraining(seed=seed, folder=made.folder.name, cost=Cost(**total_cost(made)))
        run.record("cam", [], start)
    return made.folder / CHECKPOINT, made.key


def train_cam(run: Run, variant: str, seed: int, on_epoch: OnEpoch | None = None) -> CamResult:
    """Train one variant and score its CAMs on the val split; a row of the results."""
    row = _cam_row(run, variant, seed, on_epoch)
    if processes().is_main:
        run.record("cam", [row])
    return row


def _cam_row(run: Run, name: str, seed: int, on_epoch: OnEpoch | None = None) -> CamResult:
    """:func:`train_cam` without writing the results, for processes side by side; with one thread as in those."""
    variant = find(run, name)
    start, upstream = pretrain(run)
    config, inference = run.config.cam_config(variant), run.config.inference_config(variant)
    backbone, seam = run.config.backbone, variant.name == SEAM
    place = f"cam/{variant.name}/seed{seed}"
    settings = config.model_dump(mode="json")

    def training(out: Path) -> dict[str, Any]:
        title, views = f"CAM {variant.name} seed {seed}", run.folder / "views"
        facts = (run.train, backbone, config, seed, out, start, views, on_epoch)
        return {"history": cam.train_cam(*facts, seam=seam, description=title)}

    def scoring(out: Path) -> dict[str, Any]:
        net = cam.load_cam(backbone, run.val.num_classes, config, model.folder / CHECKPOINT, seam=seam)
        cam.infer_cams(net, run.val, config, inference, out, seam=seam)
        extra = {"extra_loss": config.extra_loss} if config.extra_loss and not seam else {}
        protocol = {**cam.cam_protocol(inference, seam=seam), **extra, "seed": seed}
        return {"scores": _scores(run, out, protocol), "parts": part_coverage(run.val, out)}

    with fixed_threads(1):
        model = _step(
            run, place, "model", "cam", training,
            config=settings, backbone=backbone, seam=seam, seed=seed, upstream=upstream, plugins=plugin_hashes(settings),
        )  # fmt: skip
        scored = _step(
            run, place, "val", "cam", scoring,
            inference=inference.model_dump(mode="json"), upstream=model.key, **_scoring(run),
        )  # fmt: skip
    return CamResult(
        variant=variant.name, title=variant.title, lam=variant.lam, fsl=variant.fsl, order=list(variant.order),
        seed=seed, steps=_folders(run, model=model, val=scored), mu_sigma=[[row["step"], row["mu"],
        row["sigma"]] for row in model.result["history"]], cost=Cost(**total_cost(model, scored)), **scored.result
    )  # fmt: skip


def find(run: Run, name: str) -> Variant:
    """A variant of the run's grid.

    Raises:
        InputError: the run does not train it.
    """
    grid: dict[str, Variant] = run.config.grid()
    require(name in grid, f"variant: expected one of {', '.join(grid)}, got {name!r}")
    return grid[name]


def check_refined(config: Any) -> None:
    """Refuse a profile whose later stages start from a variant that it does not train.

    Raises:
        InputError: such a variant.
    """
    names = list(config.grid())
    for name in config.refine:
        require(name in names, f"refine: expected variants of the run ({', '.join(names)}), got {name!r}")


def train_cams(run: Run) -> list[CamResult]:
    """The whole grid, ``workers`` variants at a time in processes of one thread each, or each a task of a cluster.

    Raises:
        WorkerDiedError: a process was killed (on a cluster: again and again); finished ones are kept.
    """
    pretrain(run)
    points = [(name, seed) for seed in run.config.seeds for name in run.config.grid()]
    longest_first = sorted(points, key=lambda point: point[0] != SEAM)
    jobs = {f"{name} seed {seed}": (run.folder, name, seed) for name, seed in longest_first}
    rows: dict[tuple[str, int], CamResult] = {}
    with closing(finished_results(_train_point, jobs, run.workers, "CAM networks", gpu=True)) as finished:
        for label, row in progress(finished, "CAM networks", len(points)):
            rows[row.variant, row.seed] = row
            area, contour = 100 * row.scores.miou, 100 * row.scores.contour_f
            print(f"{label}: mIoU {area:.1f}, contour F {contour:.1f} ({row.cost.seconds:.0f} s)", flush=True)
    done = [rows[point] for point in points]
    run.record("cam", done)
    return done


def _train_point(folder: Path, variant: str, seed: int) -> CamResult:
    return _cam_row(load_run(folder), variant, seed)


# Stages 2 and 3


def _row(run: Run, stage: Stage, before: CamResult | StageResult, **steps: Step) -> StageResult:
    """The row of a stage for the variant and seed of the row before it; its step "val" has the scores."""
    facts = {name: getattr(before, name) for name in ("variant", "title", "seed")}
    cost, scores = Cost(**total_cost(*steps.values())), steps["val"].result["scores"]
    return StageResult(stage=stage, steps=_folders(run, **steps), scores=scores, cost=cost, **facts)


def train_affinitynet(run: Run, variant: str = OURS, on_epoch: OnEpoch | None = None) -> StageResult:
    """CRF maps, AffinityNet and random walk on the CAMs of a variant (first seed); a row of the results."""
    point, seed, backbone = find(run, variant), run.config.seeds[0], run.config.backbone
    config = run.config.affinitynet_config(point)
    config = config.model_copy(update={"crf": resolved_crf(config.crf, run.workers)})
    source = train_cam(run, variant, seed)
    cam_config, inference = run.config.cam_config(point), run.config.inference_config(point)
    start, _ = pretrain(run)
    place, seam = f"affinitynet/{variant}/seed{seed}", variant == SEAM
    settings = config.model_dump(mode="json", exclude={"crf": {"backend"}})
    source_model = run.folder / source.steps["model"]

    def inferring(out: Path) -> None:
        net = cam.load_cam(backbone, run.train.num_classes, cam_config, source_model / CHECKPOINT, seam=seam)
        cam.infer_cams(net, run.train, cam_config, inference, out, seam=seam, label_maps=False)

    def smoothing(out: Path) -> None:
        affinitynet.crf_maps(run.train, cams.folder, config, out, run.workers)

    def training(out: Path) -> dict[str, Any]:
        train = affinitynet.train_affinitynet
        return {"history": train(run.train, backbone, config, seed, crf.folder, out, start, on_epoch)}

    def walking(out: Path) -> None:
        net = affinitynet.load_affinitynet(backbone, model.folder / CHECKPOINT)
        affinitynet.write_pseudo_labels(net, run.train, cams.folder, config, out)

    def scoring(out: Path) -> dict[str, Any]:
        net = affinitynet.load_affinitynet(backbone, model.folder / CHECKPOINT)
        affinitynet.write_pseudo_labels(net, run.val, run.folder / source.folder, config, out)
        return {"scores": _scores(run, out, {**affinitynet.affinitynet_protocol(config, inference), "seed": seed})}

    upstream = read_json(source_model / MANIFEST)["key"]
    cams = _step(run, place, "cams", "cam", inferring, inference=inference.model_dump(mode="json"), upstream=upstream)
    crf_settings = {key: settings[key] for key in ("crf", "alpha_amplified", "alpha_weakened")}
    crf = _step(
        run, place, "crf", "affinitynet", smoothing,
        config=crf_settings, backend=config.crf.backend, upstream=cams.key,
    )  # fmt: skip
    model = _step(
        run, place, "model", "affinitynet", training,
        config=_without(settings, "alpha_walk", "beta", "log_t"), backbone=backbone, seed=seed,
        threads=run.config.threads, upstream=crf.key,
    )  # fmt: skip
    labels = _step(run, place, "train", "affinitynet", walking, config=settings, upstream=model.key)
    scored = _step(
        run, place, "val", "affinitynet", scoring,
        config=settings, upstream=model.key, cams=source.scores.model_dump(), **_scoring(run),
    )  # fmt: skip
    row = _row(run, "affinitynet", source, cams=cams, crf=crf, model=model, train=labels, val=scored)
    if processes().is_main:
        run.record("stages", [StageResult.of_cam(source), row])
    return row


def train_deeplab(run: Run, variant: str = OURS, on_epoch: OnEpoch | None = None) -> StageResult:
    """DeepLab on the pseudo-labels of a variant, scored on the val split after the CRF; a row of the results."""
    config, backbone, seed = run.config.deeplab, run.config.backbone, run.config.seeds[0]
    backend = None if config.crf is None else resolved_crf(config.crf).backend
    before = train_affinitynet(run, variant)
    labels = run.folder / before.steps["train"]
    start, _ = pretrain(run)
    place = f"deeplab/{variant}/seed{seed}"
    settings = config.model_dump(mode="json", exclude={"crf": {"backend"}})

    def training(out: Path) -> dict[str, Any]:
        return {"history": deeplab.train_deeplab(run.train, backbone, config, seed, labels, out, start, on_epoch)}

    def scoring(out: Path) -> dict[str, Any]:
        net = deeplab.load_deeplab(backbone, run.val.num_classes, model.folder / CHECKPOINT)
        deeplab.write_predictions(net, run.val, config, out, run.workers)
        return {"scores": _scores(run, out, {**deeplab.deeplab_protocol(config), "seed": seed})}

    model = _step(
        run, place, "model", "deeplab", training,
        config=_without(settings, "crf", "scales", "flip", "interpolation"), backbone=backbone, seed=seed,
        threads=run.config.threads,
        upstream=read_json(labels / MANIFEST)["key"],
    )  # fmt: skip
    scored = _step(
        run, place, "val", "deeplab", scoring, config=settings, upstream=model.key, backend=backend, **_scoring(run)
    )
    row = _row(run, "deeplab", before, model=model, val=scored)
    if processes().is_main:
        run.record("stages", [row])
    return row


def walk_input(run: Run, row: StageResult, name: str) -> tuple[np.ndarray, torch.Tensor, tuple[int, int]]:
    """What the random walk of a training image starts from: CAM (n, H, W), affinities (D, m), their map's (h, w)."""
    config = run.config.affinitynet_config(find(run, row.variant))
    net = affinitynet.load_affinitynet(run.config.backbone, run.folder / row.steps["model"] / CHECKPOINT)
    _, maps = affinitynet.load_cam_file(run.folder / row.steps["cams"] / f"{name}.npz")
    affinity, size = affinitynet.image_affinity(net, run.train.image(name), config)
    return maps, affinity.cpu(), size
