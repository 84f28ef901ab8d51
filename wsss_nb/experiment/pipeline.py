"""A run: the three stages of one profile in one folder, each step skipping itself when nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsss_nb.cluster import requested_cluster
from wsss_nb.data import VOCFolder, read_label_map
from wsss_nb.errors import InputError
from wsss_nb.experiment.grid import Variant, grid, refined_variant
from wsss_nb.experiment.preparation import prepare, project_root
from wsss_nb.experiment.profiles import Profile, load_profile
from wsss_nb.experiment.record import authored_step, current_results, total_cost, with_rows, write_results
from wsss_nb.files import read_json
from wsss_nb.stages import affinitynet, cam, deeplab
from wsss_nb.stages.config import AffinityNetConfig, CamConfig, InferenceConfig
from wsss_nb.stages.loop import History, progress
from wsss_nb.stages.processes import processes
from wsss_nb.stages.protocols import affinitynet_protocol, cam_protocol, deeplab_protocol
from wsss_nb.stages.scoring import part_coverage, score_label_maps
from wsss_nb.workers import Workers, finished_results, fixed_threads

__all__ = ["Run", "open_notebook_run", "open_run"]

OnEpoch = Callable[[History], None]


class Run:
    """One profile in one folder; made by :func:`open_run`.

    The code version is that of the opening, so that all processes of a run agree on it. Every method is a
    step or a row of steps: what is up to date is skipped, what was killed is resumed.
    """

    def __init__(self, profile: Profile, out: Path, workers: Workers | None = None) -> None:
        self.profile = profile
        self.out = out
        self.workers: Workers = profile.workers if workers is None else workers
        self.prepared = read_json(out / "data" / "prepared.json")
        root = out / self.prepared["root"]
        self.train = self._folder(root, profile.data.train_split)
        self.val = self._folder(root, profile.data.val_split)
        self.variants = {variant.name: variant for variant in grid(profile)}

    def _folder(self, root: Path, split: str) -> VOCFolder:
        folder = VOCFolder(root, split, labels=self.out / "data" / f"{split}.csv")
        return folder.without(self.prepared["bad"])

    def _step(
        self, folder: Path, inputs: dict[str, Any], work: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any]:
        return authored_step(self.out, self.prepared["made_by"], folder, inputs, work)

    def _inputs(self, module: str, **values: Any) -> dict[str, Any]:
        return {"code": self.prepared["code"][module], "data": self.prepared["hash"], **values}

    def _scoring(self) -> dict[str, Any]:
        """What a score depends on beside the label maps."""
        return {"scoring": self.prepared["code"]["scoring"], "void": self.profile.data.void}

    def _scores(self, label_maps: Path, protocol: dict[str, Any]) -> dict[str, Any]:
        return score_label_maps(self.val, label_maps, protocol, self.profile.data.void, self.workers)

    # Stage 1

    def cam_config(self, variant: Variant) -> CamConfig:
        """The profile's CAM settings with this point's lambda, FSL and method."""
        if variant.method == "seam":
            return self.profile.seam
        update: dict[str, Any] = {} if variant.fsl else {"similarity_weight": 0.0}
        if variant.method == "average":
            # the release leaves the background channel out of average pooling
            update |= {"pooling": "average", "weight": 0.0, "sample_background": False}
        else:
            update["weight"] = variant.weight
        return self.profile.cam.model_copy(update=update)

    def inference_config(self, variant: Variant) -> InferenceConfig:
        """How this point's CAMs become label maps."""
        return self.profile.seam_inference if variant.method == "seam" else self.profile.inference

    def pretrain(self, on_epoch: OnEpoch | None = None) -> tuple[Path | None, str]:
        """What every network starts from, a file and its key: ImageNet weights, a classifier trained here, or nothing."""
        given = self.prepared["weights"] or {"path": None, "sha256": ""}
        if given["path"] is not None:
            return Path(given["path"]), given["sha256"]
        config = self.profile.pretrain
        if config is None:
            return None, given["sha256"]
        seed = self.profile.seeds[0]
        inputs = self._inputs(
            "cam",
            config=config.model_dump(mode="json"),
            backbone=self.profile.backbone,
            seed=seed,
            threads=self.profile.threads,
            upstream=given["sha256"],
        )
        folder = self.out / "pretrain"

        def work(out: Path) -> dict[str, Any]:
            return {
                "history": cam.pretrain_classifier(
                    self.train, self.profile.backbone, config, seed, out, on_epoch
                )
            }

        key = self._step(folder, inputs, work)["key"]
        return folder / cam.CHECKPOINT, key

    def train_cam(self, variant: str, seed: int, on_epoch: OnEpoch | None = None) -> dict[str, Any]:
        """Train one point of the grid, score its CAMs on the val split; a row of ``results["cam"]``."""
        row = self.cam_row(variant, seed, on_epoch)
        self._record("cam", [row])
        return row

    def cam_row(self, variant: str, seed: int, on_epoch: OnEpoch | None = None) -> dict[str, Any]:
        """:meth:`train_cam` without writing ``results.json``, for processes side by side; one thread as in those."""
        point = self._variant(variant)
        weights, upstream = self.pretrain()
        config, inference = self.cam_config(point), self.inference_config(point)
        folder = Path("cam") / point.name / f"seed{seed}"
        backbone = self.profile.backbone
        inputs = self._inputs(
            "cam", config=config.model_dump(mode="json"), backbone=backbone, seed=seed, upstream=upstream
        )

        def training(out: Path) -> dict[str, Any]:
            name = f"CAM {point.name} seed {seed}"
            views = self.out / "views"
            history = cam.train_cam(self.train, backbone, config, seed, out, weights, views, on_epoch, name)
            return {"history": history}

        with fixed_threads(1):
            model = self._step(self.out / folder / "model", inputs, training)

        def scoring(out: Path) -> dict[str, Any]:
            net = cam.load_cam(
                backbone, self.val.num_classes, config, self.out / folder / "model" / cam.CHECKPOINT
            )
            cam.infer_cams(net, self.val, config, inference, out)
            protocol = {**cam_protocol(config, inference), "seed": seed}
            scores = self._scores(out, protocol)
            return {"scores": scores, "parts": part_coverage(self.val, out)}

        inputs = self._inputs("scoring", inference=inference.model_dump(mode="json"), void=self.profile.data.void,
                              upstream=model["key"])  # fmt: skip
        with fixed_threads(1):
            scored = self._step(self.out / folder / "val", inputs, scoring)
        history = model["result"]["history"]
        return {
            "variant": point.name, "method": point.method, "lambda": point.weight, "fsl": point.fsl, "seed": seed,
            "folder": folder.as_posix(), **scored["result"],
            "mu_sigma": [[row["step"], row["mu"], row["sigma"]] for row in history],
            "cost": total_cost(model=model, val=scored),
        }  # fmt: skip

    def _variant(self, name: str) -> Variant:
        if name not in self.variants:
            raise InputError(f"variant: expected one of {', '.join(self.variants)}, got {name!r}")
        return self.variants[name]

    def train_cams(self) -> list[dict[str, Any]]:
        """The whole grid, ``workers`` points at a time in processes of one thread each, or each a task of a cluster.

        Raises:
            WorkerDiedError: a process was killed (on a cluster: again and again); finished points are kept.
        """
        self.pretrain()
        points = [(name, seed) for seed in self.profile.seeds for name in self.variants]
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        longest_first = sorted(points, key=lambda point: self.variants[point[0]].method != "seam")
        jobs = {f"{name} seed {seed}": (self.profile, self.out, name, seed) for name, seed in longest_first}
        with closing(
            finished_results(_train_point, jobs, self.workers, "CAM networks", gpu=True)
        ) as finished:
            for label, row in progress(finished, "CAM networks", len(points)):
                rows[row["variant"], row["seed"]] = row
                scores, seconds = row["scores"], row["cost"]["seconds"]
                print(
                    f"{label}: mIoU {100 * scores['miou']:.1f}, "
                    f"contour F {100 * scores['contour_f']:.1f} ({seconds:.0f} s)",
                    flush=True,
                )
        done = [rows[point] for point in points]
        self._record("cam", done)
        return done

    # Stages 2 and 3

    def _refined(self, method: str) -> tuple[Variant, AffinityNetConfig, int]:
        variant = refined_variant(self.profile, method)
        config = self.profile.affinitynet if method == "ours" else self.profile.seam_affinitynet
        return variant, config, self.profile.seeds[0]

    def train_affinitynet(self, method: str = "ours", on_epoch: OnEpoch | None = None) -> dict[str, Any]:
        """CRF maps, AffinityNet and random walk on the CAMs of ``method`` (first seed); a row of ``results["stages"]``."""
        variant, config, seed = self._refined(method)
        crf_parameters = affinitynet.resolved_crf(config.crf, self.workers)
        config = config.model_copy(update={"crf": crf_parameters})
        source = self.train_cam(variant.name, seed)
        cam_config, inference = self.cam_config(variant), self.inference_config(variant)
        backbone, base = self.profile.backbone, self.out / "affinitynet" / method / f"seed{seed}"
        weights, _ = self.pretrain()
        checkpoint = self.out / source["folder"] / "model" / cam.CHECKPOINT
        upstream = read_json(self.out / source["folder"] / "model" / "manifest.json")["key"]
        settings = config.model_dump(mode="json", exclude={"crf": {"backend"}})

        def cams(out: Path) -> dict[str, Any]:
            net = cam.load_cam(backbone, self.train.num_classes, cam_config, checkpoint)
            cam.infer_cams(net, self.train, cam_config, inference, out, label_maps=False)
            return {}

        made = self._step(base / "cams", self._inputs("cam", inference=inference.model_dump(mode="json"), upstream=upstream),
                        cams)  # fmt: skip

        def crf(out: Path) -> dict[str, Any]:
            affinitynet.crf_maps(self.train, base / "cams", config, out, self.workers)
            return {}

        crf_inputs = {key: settings[key] for key in ("crf", "alpha_amplified", "alpha_weakened")}
        maps = self._step(
            base / "crf",
            self._inputs(
                "affinitynet", config=crf_inputs, backend=crf_parameters.backend, upstream=made["key"]
            ),
            crf,
        )

        def training(out: Path) -> dict[str, Any]:
            net = affinitynet.train_affinitynet
            return {"history": net(self.train, backbone, config, seed, base / "crf", out, weights, on_epoch)}

        inputs = self._inputs(
            "affinitynet",
            config=settings,
            backbone=backbone,
            seed=seed,
            threads=self.profile.threads,
            upstream=maps["key"],
        )
        model = self._step(base / "model", inputs, training)

        def walking(split: str) -> Callable[[Path], dict[str, Any]]:
            def work(out: Path) -> dict[str, Any]:
                net = affinitynet.load_affinitynet(backbone, base / "model" / affinitynet.CHECKPOINT)
                folder, source_cams = (
                    (self.train, base / "cams")
                    if split == "train"
                    else (self.val, self.out / source["folder"] / "val")
                )
                affinitynet.write_pseudo_labels(net, folder, source_cams, config, out)
                if split == "train":
                    return {}
                protocol = {**affinitynet_protocol(config, inference), "seed": seed}
                return {"scores": self._scores(out, protocol)}

            return work

        inputs = self._inputs("affinitynet", config=settings, upstream=model["key"])
        labels = self._step(base / "train", {**inputs, "split": "train"}, walking("train"))
        scored = self._step(
            base / "val",
            {**inputs, **self._scoring(), "split": "val", "cams": source["scores"]},
            walking("val"),
        )
        cost = total_cost(cams=made, crf=maps, model=model, train=labels, val=scored)
        stage_cam = {
            "stage": "cam",
            "scores": source["scores"],
            "folder": source["folder"],
            "cost": source["cost"],
        }
        row = {
            "stage": "affinitynet", "scores": scored["result"]["scores"],
            "folder": base.relative_to(self.out).as_posix(), "cost": cost,
        }  # fmt: skip
        common = {"method": method, "variant": variant.name, "seed": seed}
        self._record("stages", [{**stage_cam, **common}, {**row, **common}])
        return {**row, **common}

    def train_deeplab(self, method: str = "ours", on_epoch: OnEpoch | None = None) -> dict[str, Any]:
        """DeepLab on the pseudo-labels of ``method``, scored on the val split after the CRF."""
        variant, _, seed = self._refined(method)
        config, backbone = self.profile.deeplab, self.profile.backbone
        backend = None if config.crf is None else affinitynet.resolved_crf(config.crf).backend
        self.train_affinitynet(method)
        labels = self.out / "affinitynet" / method / f"seed{seed}" / "train"
        upstream = read_json(labels / "manifest.json")["key"]
        base = self.out / "deeplab" / method / f"seed{seed}"
        weights, _ = self.pretrain()

        def training(out: Path) -> dict[str, Any]:
            history = deeplab.train_deeplab(
                self.train, backbone, config, seed, labels, out, weights, on_epoch
            )
            return {"history": history}

        settings = config.model_dump(mode="json", exclude={"crf": {"backend"}})
        inputs = self._inputs(
            "deeplab",
            config=settings,
            backbone=backbone,
            seed=seed,
            threads=self.profile.threads,
            upstream=upstream,
        )
        model = self._step(base / "model", inputs, training)

        def scoring(out: Path) -> dict[str, Any]:
            net = deeplab.load_deeplab(backbone, self.val.num_classes, base / "model" / deeplab.CHECKPOINT)
            deeplab.write_predictions(net, self.val, config, out, self.workers)
            protocol = {**deeplab_protocol(config), "seed": seed}
            return {"scores": self._scores(out, protocol)}

        inputs = self._inputs(
            "deeplab",
            config=settings,
            upstream=model["key"],
            backend=backend,
            **self._scoring(),
        )
        scored = self._step(base / "val", inputs, scoring)
        row = {
            "stage": "deeplab", "method": method, "variant": variant.name, "seed": seed,
            "folder": base.relative_to(self.out).as_posix(), "scores": scored["result"]["scores"],
            "cost": total_cost(model=model, val=scored),
        }  # fmt: skip
        self._record("stages", [row])
        return row

    # What notebooks look at

    def stage_folder(self, stage: str, method: str = "ours") -> Path:
        """The folder of a stage's steps for "ours" or "seam"."""
        variant, _, seed = self._refined(method)
        return (
            self.out
            / ("cam" if stage == "cam" else stage)
            / (variant.name if stage == "cam" else method)
            / f"seed{seed}"
        )

    def history(self, folder: Path | str) -> History:
        """The epochs of a finished training: "pretrain", or the ``folder`` of a row of results.json."""
        base = self.out / folder
        manifest = base / "model" / "manifest.json" if (base / "model").is_dir() else base / "manifest.json"
        rows: History = read_json(manifest)["result"]["history"]
        return rows

    def label_map(self, variant: str, seed: int, name: str) -> np.ndarray:
        """The CAM label map (H, W) of a val image."""
        return read_label_map(
            self.out / "cam" / self._variant(variant).name / f"seed{seed}" / "val" / f"{name}.png"
        )

    def stage_map(self, stage: str, method: str, name: str) -> np.ndarray:
        """The label map (H, W) of a val image after "cam", "affinitynet" or "deeplab"."""
        return read_label_map(self.stage_folder(stage, method) / "val" / f"{name}.png")

    def pseudo_label(self, name: str, method: str = "ours") -> np.ndarray:
        """The pseudo-label (H, W) of a training image, which DeepLab learns from."""
        return read_label_map(self.stage_folder("affinitynet", method) / "train" / f"{name}.png")

    def walk_input(self, name: str, method: str = "ours") -> tuple[np.ndarray, torch.Tensor, tuple[int, int]]:
        """What the random walk of a training image starts from: CAM (n, H, W), affinities (D, m), their map's (h, w)."""
        _, config, _ = self._refined(method)
        base = self.stage_folder("affinitynet", method)
        net = affinitynet.load_affinitynet(self.profile.backbone, base / "model" / affinitynet.CHECKPOINT)
        _, map_ = affinitynet.load_cam_file(base / "cams" / f"{name}.npz")
        affinity, size = affinitynet.image_affinity(net, self.train.image(name), config)
        return map_, affinity.cpu(), size

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds; empty lists where nothing ran yet."""
        return current_results(self.out, self.profile, self.prepared, self.train, self.val)

    def _record(self, section: str, rows: list[dict[str, Any]]) -> None:
        if not processes().is_main:
            return
        results = with_rows(self.results(), section, rows)
        if self.profile.pretrain is not None:
            made = read_json(self.out / "pretrain" / "manifest.json")
            results["pretrain"] = {"seed": self.profile.seeds[0], "cost": total_cost(model=made)}
        write_results(self.out, results)


def _train_point(profile: Profile, out: Path, variant: str, seed: int) -> dict[str, Any]:
    return Run(profile, out, workers=0).cam_row(variant, seed)


def open_notebook_run(profile: str, data_root: str, out_dir: str, seed: int, overrides: str) -> Run:
    """:func:`open_run` from the five parameters that every notebook has.

    A relative folder is meant from the project's root, whether the notebook runs there or in ``notebooks/``. An empty
    ``data_root`` keeps the profile's. ``seed`` replaces the profile's seeds, unless it is the first of them or
    ``overrides`` name some.
    """
    root = project_root()
    chosen = load_profile(profile, overrides)
    values: dict[str, Any] = {}
    if data_root:
        values["data"] = chosen.data.model_copy(update={"root": str(root / data_root)})
    if seed != chosen.seeds[0] and "seeds=" not in overrides:
        values["seeds"] = (seed,)
    return open_run(chosen.model_copy(update=values), root / out_dir)


def open_run(profile: Profile, out_dir: str | Path) -> Run:
    """Prepare the data (see :func:`prepare`) and open the run's folder.

    Raises:
        InputError: as :func:`prepare`, or the folder is not writable.
    """
    out = Path(out_dir).resolve()
    if processes().is_main:
        prepare(profile, out)
    processes().wait()
    torch.set_num_threads(profile.threads)
    run = Run(profile, out)
    run.workers = requested_cluster(out, run.train.root) or profile.workers
    if not isinstance(run.workers, int) and processes().count > 1:
        raise InputError(
            f"--ray-address: expected one process, got {processes().count}: Ray and torchrun do not go together"
        )
    if processes().is_main:
        write_results(out, run.results())
    return run
