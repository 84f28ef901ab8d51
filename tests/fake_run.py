"""A small run folder as the stages write it, with label maps, activations and consistent scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from wsss_nb.counts import confusion_matrix, iou, mean_iou
from wsss_nb.data.voc import read_label_map, save_label_map
from wsss_nb.variants import SEAM, Variant, find_variant, lambda_variant

SUFFIX = "1a2b3c4d"  # of every step's folder


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
    for split in ("val", "train"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")


def make_fake_run(
    folder: Path,
    *,
    data: Path | None = None,
    num_classes: int = 4,
    num_val: int = 6,
    size: tuple[int, int] = (24, 32),
    lams: tuple[float, ...] = (0.0, 0.5, 1.0),
    fsl: tuple[bool, ...] = (False, True),
    baselines: tuple[str, ...] = ("average", "seam"),
    seeds: tuple[int, ...] = (0, 1),
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
    cams, later = [], []
    variants = [lambda_variant(lam, f) for lam in lams for f in fsl] + [find_variant(name) for name in baselines]
    refined = [lambda_variant(max(lams), fsl[-1])] if lams else []
    refined += [find_variant(SEAM)] if SEAM in baselines else []
    for seed in seeds:
        found = {}
        for variant in variants:
            quality = _quality(variant) + 0.02 * seed
            row = _row(folder, "cam", variant, seed, masks, quality, len(classes), 20.0 + seed, 500.0)
            found[variant.name] = row
            cams.append(
                {
                    **row,
                    "lambda": variant.lam,
                    "fsl": variant.fsl,
                    "order": [float(number) for number in variant.order],
                    "parts": {"head": 0.9, "body": round(quality, 4), "background": 0.7} if synthetic else None,
                    "mu_sigma": _path(seed, variant.lam) if variant.fsl else [[10, 2.5, 5.0], [20, 2.5, 5.0]],
                }
            )
        for number, stage in enumerate(stages):
            for variant in refined:
                quality = 0.55 + 0.12 * number + 0.05 * (variant.name != SEAM) + 0.02 * seed
                row = found[variant.name]
                if stage != "cam":
                    row = _row(folder, stage, variant, seed, masks, quality, len(classes), 9.5, 700.0)
                later.append({**row, "stage": stage})
    results = {
        "schema": 2,
        "run": name,
        "profile": {"name": name, "backbone": "tiny", "data": {"root": str(data)}, "cam": {"pooling": "max"}},
        "synthetic": synthetic,
        "classes": classes,
        "data": {"train": 12, "val": len(names), "hash": "0" * 64, "root": str(data), "val_names": names},
        "cam": cams,
        "stages": later,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def _quality(variant: Variant) -> float:
    if variant.lam is None:
        return 0.5 if variant.name == SEAM else 0.42
    return 0.2 + 0.35 * variant.lam + 0.18 * variant.fsl


def _path(seed: int, lam: float | None) -> list[list[float]]:
    steps = np.arange(0, 101, 10)
    return [[float(s), 2.5 + 0.002 * s * (1 + (lam or 0)) + 0.01 * seed, 5 - 0.004 * s] for s in steps]


def _row(
    run: Path,
    stage: str,
    variant: Variant,
    seed: int,
    masks: dict[str, np.ndarray],
    quality: float,
    k: int,
    seconds: float,
    memory: float,
) -> dict:
    """A row whose label maps keep the innermost ``quality`` share of each object, with their scores."""
    steps = {step: f"{stage}/{variant.name}/seed{seed}/{step}-{SUFFIX}" for step in ("model", "val")}
    folder = run / steps["val"]
    folder.mkdir(parents=True)
    confusion = np.zeros((k, k), dtype=np.int64)
    for name, mask in masks.items():
        labels = np.where(mask == 255, 0, mask)
        predicted = np.zeros_like(labels)
        for label in np.unique(labels[labels > 0]):
            depth = ndimage.distance_transform_edt(labels == label)
            predicted[depth > np.quantile(depth[labels == label], 1 - quality)] = label
        save_label_map(folder / f"{name}.png", predicted)
        confusion += confusion_matrix(predicted, mask, k)
        if stage == "cam":
            ids = np.unique(labels[labels > 0])
            soft = [ndimage.gaussian_filter((predicted == i).astype(float), labels.shape[0] / 24) for i in ids]
            cam = np.array(soft).reshape(len(ids), *mask.shape).astype(np.float16)
            np.savez_compressed(folder / f"{name}.npz", classes=ids.astype(np.int64), cam=cam)
    matches = [[int(100 * quality), int(90 * quality), 100, 90 + label] for label in range(1, k)]
    precision, recall = (np.array([row[i] / row[j] for row in matches]) for i, j in ((1, 3), (0, 2)))
    f = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    last = stage == "deeplab"
    protocol = {
        "split": "val",
        "stage": stage,
        "background": "network" if last else "complement",
        "crf": {"iterations": 1, "bilateral_sxy": 20.0} if last else False,
        "scales": [1.0],
        "flips": True,
        "image_labels": not last,
        "seed": seed,
        "void": "background",
        "images": len(masks),
    }
    scores = {
        "protocol": protocol,
        "miou": float(mean_iou(confusion)),
        "contour_f": float(np.mean(f)),
        "iou": [None if np.isnan(value) else float(value) for value in iou(confusion)],
        "f": f.tolist(),
        "confusion": confusion.tolist(),
        "matches": matches,
    }
    cost = {"seconds": seconds, "peak_memory_mb": memory, "device": "cpu", "threads": 1}
    return {
        "variant": variant.name,
        "title": variant.title,
        "seed": seed,
        "steps": steps,
        "scores": scores,
        "cost": cost,
    }
