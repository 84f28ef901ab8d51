"""A small run folder as the stages write it, with label maps, activations and consistent scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from wsss_nb.data.palette import read_label_map, save_label_map


def make_voc_folder(root: Path, num_classes: int, num_val: int, size: tuple[int, int], seed: int = 0) -> None:
    """Images with one or two ellipses, exact masks with a void ring, in VOC layout."""
    rng = np.random.default_rng(seed)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"val_{index:04d}" for index in range(num_val)]
    classes = ["background", *(f"class{index}" for index in range(1, num_classes))]
    rows, columns = np.mgrid[: size[0], : size[1]]
    for index, name in enumerate(names):
        mask = np.zeros(size, dtype=np.uint8)
        for nth in range(1 + index % 2):
            center = rng.uniform(0.3, 0.7, 2) * size
            radius = rng.uniform(0.15, 0.3, 2) * size
            inside = ((rows - center[0]) / radius[0]) ** 2 + ((columns - center[1]) / radius[1]) ** 2 < 1
            mask[inside] = 1 + (index + nth) % (num_classes - 1)
        image = rng.integers(0, 60, (*size, 3)) + (mask > 0)[..., None] * rng.integers(60, 190, 3)
        Image.fromarray(image.astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        ring = ndimage.morphological_gradient(mask, size=3) > 0
        save_label_map(root / "SegmentationClass" / f"{name}.png", np.where(ring, 255, mask).astype(np.uint8))
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")


def make_fake_run(
    folder: Path,
    *,
    data: Path | None = None,
    num_classes: int = 4,
    num_val: int = 6,
    size: tuple[int, int] = (24, 32),
    weights: tuple[float, ...] = (0.0, 0.5, 1.0),
    fsl: tuple[bool, ...] = (False, True),
    seeds: tuple[int, ...] = (0, 1),
    methods: tuple[str, ...] = ("sampling", "average", "seam"),
    stages: tuple[str, ...] = ("cam", "affinitynet", "deeplab"),
    synthetic: bool = True,
    name: str = "quick",
) -> Path:
    """Write ``results.json`` and the val pictures; ``data`` is an existing VOC folder, else one is made."""
    if data is None:
        data = folder / "data"
        make_voc_folder(data, num_classes, num_val, size)
    classes = (data / "classes.txt").read_text().split("\n")[:-1]
    names = (data / "ImageSets/Segmentation/val.txt").read_text().split()[:num_val]
    masks = {n: read_label_map(data / "SegmentationClass" / f"{n}.png") for n in names}
    results: dict = {
        "schema": 1,
        "run": name,
        "profile": {"name": name, "backbone": "tiny", "data": {"root": str(data)}, "cam": {"pooling": "max"}},
        "synthetic": synthetic,
        "classes": classes,
        "data": {"train": 12, "val": len(names), "hash": "0" * 64, "root": str(data), "val_names": names},
        "cam": [],
        "stages": [],
    }
    kinds = [("sampling", w, f) for w in weights for f in fsl if "sampling" in methods]
    kinds += [("average", None, False)] * ("average" in methods) + [("seam", None, False)] * (
        "seam" in methods
    )
    for seed in seeds:
        for method, weight, with_fsl in kinds:
            variant = method if method != "sampling" else f"lambda{weight:g}" + "_fsl" * with_fsl
            quality = _quality(method, weight, with_fsl) + 0.02 * seed
            entry = {
                "variant": variant,
                "method": method,
                "lambda": weight,
                "fsl": with_fsl,
                "seed": seed,
                "folder": f"cam/{variant}/seed{seed}",
                "scores": _write(
                    folder / f"cam/{variant}/seed{seed}", masks, quality, len(classes), seeds, cams=True
                ),
                "parts": {"head": 0.9, "body": round(quality, 4), "background": 0.7} if synthetic else None,
                "mu_sigma": _path(seed, weight) if with_fsl else [[10, 2.5, 5.0], [20, 2.5, 5.0]],
                "cost": {"seconds": 20.0 + seed, "peak_memory_mb": 500.0, "device": "cpu", "threads": 1},
            }
            results["cam"].append(entry)
        for number, stage in enumerate(stages):
            for method, variant in (("ours", f"lambda{max(weights):g}" + "_fsl" * fsl[-1]), ("seam", "seam")):
                if ("sampling" if method == "ours" else "seam") not in methods:
                    continue
                found = next(c for c in results["cam"] if (c["variant"], c["seed"]) == (variant, seed))
                place = found["folder"] if stage == "cam" else f"{stage}/{method}/seed{seed}"
                quality = 0.55 + 0.12 * number + 0.05 * (method == "ours") + 0.02 * seed
                scores = found["scores"]
                if stage != "cam":
                    scores = _write(folder / place, masks, quality, len(classes), seed, stage=stage)
                results["stages"].append(
                    {
                        "stage": stage,
                        "method": method,
                        "variant": variant,
                        "seed": seed,
                        "folder": place,
                        "scores": scores,
                        "cost": {"seconds": 9.5, "peak_memory_mb": 700.0, "device": "cpu", "threads": 1},
                    }
                )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def _quality(method: str, weight: float | None, with_fsl: bool) -> float:
    if weight is None:
        return 0.42 if method == "average" else 0.5
    return 0.2 + 0.35 * weight + 0.18 * with_fsl


def _path(seed: int, weight: float | None) -> list[list[float]]:
    steps = np.arange(0, 101, 10)
    return [[float(s), 2.5 + 0.002 * s * (1 + (weight or 0)) + 0.01 * seed, 5 - 0.004 * s] for s in steps]


def _write(
    folder: Path,
    masks: dict[str, np.ndarray],
    quality: float,
    k: int,
    seed: int,
    stage: str = "cam",
    cams: bool = False,
) -> dict:
    """Label maps in which each object keeps its innermost ``quality`` share of pixels, and their scores."""
    (folder / "val").mkdir(parents=True)
    confusion = np.zeros((k, k), dtype=np.int64)
    for name, mask in masks.items():
        labels = np.where(mask == 255, 0, mask)
        predicted = np.zeros_like(labels)
        for label in np.unique(labels[labels > 0]):
            depth = ndimage.distance_transform_edt(labels == label)
            predicted[depth > np.quantile(depth[labels == label], 1 - quality)] = label
        save_label_map(folder / "val" / f"{name}.png", predicted)
        kept = mask != 255
        confusion += np.bincount(mask[kept].astype(int) * k + predicted[kept], minlength=k * k).reshape(k, k)
        if cams:
            ids = np.unique(labels[labels > 0])
            soft = [
                ndimage.gaussian_filter((predicted == i).astype(float), labels.shape[0] / 24) for i in ids
            ]
            cam = np.array(soft).reshape(len(ids), *mask.shape).astype(np.float16)
            np.savez_compressed(folder / "val" / f"{name}.npz", classes=ids.astype(np.int64), cam=cam)
    hits, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou = [float(h / u) if u else None for h, u in zip(hits, union, strict=True)]
    matches = [[int(100 * quality), int(90 * quality), 100, 90 + label] for label in range(1, k)]
    f = []
    for a, b, n, m in matches:
        precision, recall = b / m, a / n
        f.append(2 * precision * recall / max(precision + recall, 1e-9))
    return {
        "protocol": {
            "split": "val",
            "stage": stage,
            "background": "network" if stage == "deeplab" else "complement",
            "crf": {"iterations": 1, "bilateral_sxy": 20.0} if stage == "deeplab" else False,
            "scales": [1.0],
            "flips": True,
            "image_labels": stage != "deeplab",
            "seed": seed,
            "void": "background",
            "images": len(masks),
        },
        "miou": float(np.mean([value for value in iou if value is not None])),
        "contour_f": float(np.mean(f)),
        "iou": iou,
        "f": f,
        "confusion": confusion.tolist(),
        "matches": matches,
    }
