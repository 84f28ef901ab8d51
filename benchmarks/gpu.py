"""The fused kernels and the paper's training on a real GPU, in one command: ``python -m benchmarks.gpu``.

Measures the feature similarity loss against all pairs in torch, and the dense CRF with exact messages; checks the
numbers in float64 first. A GPU on which Triton's kernels do not run goes without these rows. Then a training step of
each stage of the paper's profile, at its crop and batch, in float32 and bfloat16 (float16 before Ampere): images per
second, peak memory, the loss's share, hours in all. Prints tables; writes JSON after every row, also after one for which
memory did not suffice. Times are wall-clock medians of whole calls, from Python to the finished result. Without a CUDA
device it says so and ends with exit code 2.

The photographs' part is a run, :data:`FIGURE_2`: it was not made, for want of a GPU. ``figures/photos`` holds lambda 0
and 1 only, and stages 2 and 3 of our method only.

Operations are counted for the pairs that have to be visited, an addition, a multiplication, a root or a power
as one each, a multiply-add as two. There are two limits, both measured on the same GPU. The kernels' matrix products run
threefold on tensor cores: their limit is the rate of a large product in TF32. That of all else is the rate of one in
float32. The two kinds of units work side by side, so no kernel can be faster than the slower of both, which is the limit
whose share is stated.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.crf import smooth_scores
from benchmarks.measure import interleaved
from benchmarks.references import all_pairs_crf, all_pairs_loss
from benchmarks.rows import REACH, SIGMA, _maps, pixels_times_window
from benchmarks.training import STAGES, Precision, out_of_memory, summary, training_row
from wsss_nb.crf import CRFConfig, dense_crf, dense_crf_torch
from wsss_nb.fast.pairwise import fused_kernels, pairwise_form
from wsss_nb.run.profiles import load_profile
from wsss_nb.run.provenance import manifest
from wsss_nb.similarity import feature_similarity_loss
from wsss_nb.system.files import write_json

__all__ = ["FIGURE_2", "Limits", "Operations", "crf_row", "crf_scene", "main", "operations_per_pair", "similarity_row"]

B, K, SIZE, MU = 8, 21, 56, 2.5
HEIGHT, WIDTH = 375, 500
CROP = (60, 80)  # small enough for all pairs in float64
# Against float64: of the largest value, and of the CRF's marginals after all iterations, which add their rounding up.
LARGEST_ERRORS = {"error": 1e-5, "marginal_error": 1e-4}
SPEED_UP, CRF_SECONDS = 20.0, 1.0  # targets on an H200

FIGURE_2 = (
    "wsss-nb run --profile photos --data FOLDER --lambdas 0,0.25,0.5,0.75,1 --seeds 0,1,2 --refine lambda1_fsl,seam "
    "--out runs/photos_full --figures figures/photos"
)
"""All of Figure 2 and Table 1 on photographs: five lambdas with and without the feature-similarity loss, average pooling
and SEAM, three seeds each; all three stages of ours and SEAM (``FOLDER`` as ``wsss-nb data msrc`` makes it)."""


class Operations(NamedTuple):
    """Arithmetic, in matrix products and in all else."""

    products: int
    others: int

    def times(self, number: int) -> Operations:
        """As many, ``number`` times over."""
        return Operations(number * self.products, number * self.others)


class Limits(NamedTuple):
    """Operations per second of large matrix products on this GPU."""

    tf32: float
    float32: float

    def shares(self, operations: Operations, seconds: float) -> dict[str, Any]:
        """Entries of a row: what part of ``seconds`` each limit asks for, and the larger part."""
        tf32 = 3 * operations.products / self.tf32 / seconds
        float32 = operations.others / self.float32 / seconds
        return {
            "operations": operations._asdict(),
            "share_of_tf32_limit": tf32,
            "share_of_float32_limit": float32,
            "share_of_limit": max(tf32, float32),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; see the module's text.

    Returns:
        0; 1 if a result is wrong; 2 if there is no GPU.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure the fused kernels and the steps of the paper's training.",
        epilog=f"All of Figure 2 on photographs, best on a GPU too: {FIGURE_2}",
    )
    parser.add_argument("--repeats", type=int, default=50, help="timed runs of each loss (default: 50)")
    parser.add_argument("--steps", type=int, default=20, help="timed training steps; 0 = none (default: 20)")
    parser.add_argument("--json", default="gpu_benchmark.json", help="where to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats: expected at least 1, got {options.repeats}")
    if options.steps < 0:
        parser.error(f"--steps: expected at least 0, got {options.steps}")
    if not torch.cuda.is_available():
        print(f"device: expected a CUDA device, got none (torch {torch.__version__})", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    limits = Limits(matrix_product_rate(device, "high"), matrix_product_rate(device, "highest"))
    rates = " and ".join(f"{rate / 1e12:.1f} TFLOP/s in {kind}" for kind, rate in limits._asdict().items())
    print(f"{name}, torch {torch.__version__}, matrix product {rates}")
    kernels = fused_kernels(device) is not None
    note = "" if kernels else f"Triton's kernels do not run on {name}: their rows are left out"
    rows: list[dict[str, Any]] = []
    training: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "device": name,
        "matrix_product_flops": limits._asdict(),
        "torch": torch.__version__,
        "note": note,
        "rows": rows,
        "training": training,
        "manifest": manifest(),
    }

    write_json(options.json, report)

    def keep(section: list[dict[str, Any]], row: dict[str, Any]) -> None:
        section.append(row)
        write_json(options.json, report)

    if kernels:
        for learned in (False, True):
            work = partial(similarity_row, device, learned, options.repeats, limits)
            keep(rows, {"work": similarity_title(learned)} | out_of_memory(work))
        scene = crf_scene(HEIGHT, WIDTH, K)
        work = partial(crf_row, device, scene, min(options.repeats, 5), limits)
        keep(rows, {"work": crf_title(scene[1])} | out_of_memory(work))
    print(table(rows) if kernels else note)
    if options.steps:
        profile = load_profile("paper")
        mixed: Precision = "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
        precisions: tuple[Precision, ...] = ("float32", mixed)
        for precision in precisions:
            for stage in STAGES:
                keep(training, training_row(stage, profile, device, precision, repeats=options.steps))
        print(summary(training, profile))
    errors = [(row[name], bound) for row in rows for name, bound in LARGEST_ERRORS.items() if name in row]
    return 0 if all(error is not None and error <= bound for error, bound in errors) else 1


def operations_per_pair(channels: int, colours: int = 3, learned: bool = False) -> Operations:
    """Operations of the feature similarity loss per ordered pair of pixels.

    delta: 2 C - 1; f: 8; w: 7 with its distance; M = w f: 1; its product with (a, 1/2 |a|^2, 1): 2 (K + 2);
    learned mu and sigma: g by another product, 2 (K + 2), and two weighted sums: 8.
    """
    product = 2 * (channels + 2)
    others = 2 * colours - 1 + 8 + 7 + 1
    return Operations(2 * product, others + 8) if learned else Operations(product, others)


def similarity_title(learned: bool) -> str:
    """What :func:`similarity_row` measures."""
    state = "learned" if learned else "fixed"
    return f"feature similarity, forward + backward, B {B}, K {K}, {SIZE}x{SIZE}, mu and sigma {state}"


def similarity_row(device: torch.device, learned: bool, repeats: int, limits: Limits) -> dict[str, Any]:
    """Loss and gradients, B 8, K 21, 56x56, against all pairs in torch."""
    cam, image = (maps.to(device) for maps in _maps(B, K, SIZE))

    def gradients(loss: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        leaf = cam.to(dtype).requires_grad_()
        mu, sigma = (torch.tensor(v, device=device, requires_grad=learned) for v in (MU, SIGMA))
        value = loss(leaf, image.to(dtype), mu, sigma)
        found = torch.autograd.grad(value, (leaf, mu, sigma) if learned else (leaf,))
        _wait(device)
        return [value.detach(), *found]

    ours, right = gradients(feature_similarity_loss), gradients(feature_similarity_loss, torch.float64)
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, right, strict=True))

    def kernel() -> None:
        pairwise_form(cam, image, MU, SIGMA, learned)
        _wait(device)

    works = [lambda: gradients(feature_similarity_loss), lambda: gradients(all_pairs_loss), kernel]
    memory = [_extra_memory(work, device) for work in works]
    seconds = interleaved(works, repeats)
    operations = operations_per_pair(K, learned=learned).times(B * pixels_times_window(SIZE, REACH))
    return {
        "work": similarity_title(learned),
        "seconds": seconds[0],
        "operator_seconds": seconds[2],
        "memory_mb": memory[0],
        "against": "all pairs in torch",
        "against_seconds": seconds[1],
        "against_memory_mb": memory[1],
        "error": _finite(error),
        **limits.shares(operations, seconds[2]),
        "result": f"{seconds[1] / seconds[0]:.3g}x faster",
        "target": f"at least {SPEED_UP:g}x faster",
        "met": seconds[1] / seconds[0] >= SPEED_UP,
    }


def crf_scene(height: int, width: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph of scikit-image, and smooth random scores for it."""
    from skimage import data, transform

    photograph = transform.resize(data.astronaut(), (height, width), anti_aliasing=True, preserve_range=True)
    return photograph.round().astype(np.uint8), smooth_scores(labels, height, width)


def crf_title(scores: np.ndarray) -> str:
    """What :func:`crf_row` measures."""
    labels, height, width = scores.shape
    iterations = CRFConfig().iterations
    return f"dense CRF, exact messages, {width}x{height}, {labels} labels, {iterations} iterations"


def crf_row(device: torch.device, scene: tuple[np.ndarray, np.ndarray], repeats: int, limits: Limits) -> dict[str, Any]:
    """The dense CRF with exact messages, against pydensecrf where that is installed."""
    image, scores = scene
    labels, height, width = scores.shape
    config = CRFConfig()
    kernels = fused_kernels(device)
    assert kernels is not None
    error, pairs = message_error(kernels, image, config, device)

    def ours() -> np.ndarray:
        return dense_crf_torch(image, scores, config, device=device)

    result, memory = ours(), _extra_memory(ours, device)
    (seconds,) = interleaved([ours], repeats)
    steps = config.iterations
    per_pair = Operations(2 * labels * steps + 2, 15 * (steps + 1))  # the last for the normaliser
    row = {
        "work": crf_title(scores),
        "seconds": seconds,
        "memory_mb": memory,
        "error": _finite(error),
        "marginal_error": _finite(marginal_error(scene, device)),
        **limits.shares(per_pair.times(pairs), seconds),
        "share_of_all_pairs": pairs / (height * width) ** 2,
        "result": f"{seconds:.3g} s",
        "target": f"at most {CRF_SECONDS:g} s",
        "met": seconds <= CRF_SECONDS,
    }
    try:
        begun = time.perf_counter()
        native = dense_crf(image, scores, backend="pydensecrf")
    except ImportError:
        return row
    return row | {
        "against": "pydensecrf on the CPU",
        "against_seconds": time.perf_counter() - begun,
        "labels_that_agree": float((native.argmax(0) == result.argmax(0)).mean()),
        "mean_difference": float(abs(native - result).mean()),
    }


def message_error(kernels: ModuleType, image: np.ndarray, config: CRFConfig, device: torch.device) -> tuple[float, int]:
    """Largest relative error of bilateral messages at 64 pixels against float64, and pairs visited by a message."""
    from wsss_nb.crf import bilateral_features

    features = torch.from_numpy(bilateral_features(image, config)).to(device)
    values = torch.rand(3, *image.shape[:2], device=device)
    kernel = kernels.GaussianSum(features)
    flat = features.flatten(0, 1).double()
    some = torch.arange(0, len(flat), max(1, len(flat) // 64), device=device)
    weights = torch.exp(-0.5 * torch.cdist(flat[some], flat).square())
    right = values.flatten(1).double() @ weights.T
    return ((kernel(values).flatten(1)[:, some] - right) / right).abs().max().item(), kernel.pairs


def marginal_error(scene: tuple[np.ndarray, np.ndarray], device: torch.device) -> float:
    """Largest error of the CRF's result on the middle of a scene, against all pairs in float64."""
    (height, width), config = CROP, CRFConfig()
    image, scores = scene
    y, x = max(0, (len(image) - height) // 2), max(0, (image.shape[1] - width) // 2)
    image = np.ascontiguousarray(image[y : y + height, x : x + width])
    scores = np.ascontiguousarray(scores[:, y : y + height, x : x + width])
    ours = dense_crf_torch(image, scores, config, device=device)
    return float(abs(ours - all_pairs_crf(image, scores, config, device)).max())


def matrix_product_rate(device: torch.device, precision: Literal["high", "highest"], size: int = 8192) -> float:
    """Floating-point operations per second of a matrix product, in TF32 ("high") or float32 ("highest")."""
    a = torch.rand(size, size, device=device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)

    def work() -> None:
        torch.mm(a, a)
        _wait(device)

    work()
    (seconds,) = interleaved([work], 10)
    torch.set_float32_matmul_precision(before)
    return 2 * size**3 / seconds


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| work | ms | extra MB | against | ms | extra MB | largest error | of the limits | result | target | met |",
        "|---|---:|---:|---|---:|---:|---:|---:|---|---|---|",
    ]
    for row in rows:
        if "out_of_memory" in row:
            lines.append(f"| {row['work']} | out of memory |{' |' * 9}")
            continue
        result = row["result"]
        if "labels_that_agree" in row:
            agree, difference = row["labels_that_agree"], row["mean_difference"]
            result += f", {agree:.2%} of the labels agree, mean difference {difference:.2g}"
        cells = [row["work"], f"{1e3 * row['seconds']:.3g}", f"{row['memory_mb']:.0f}", row.get("against", "")]
        for name, factor in (("against_seconds", 1e3), ("against_memory_mb", 1.0)):
            cells.append(f"{factor * row[name]:.3g}" if name in row else "")
        error, *marginals = ("not finite" if row[e] is None else f"{row[e]:.1e}" for e in LARGEST_ERRORS if e in row)
        if marginals:
            error += f", marginals {marginals[0]}"
        shares = f"TF32 {row['share_of_tf32_limit']:.1%}, float32 {row['share_of_float32_limit']:.1%}"
        cells += [error, shares, result, row["target"]]
        lines.append(f"| {' | '.join([*cells, 'yes' if row['met'] else 'NO'])} |")
    return "\n".join(lines)


def _extra_memory(work: Callable[[], Any], device: torch.device) -> float:
    """Peak of a call above what was allocated before, in MB."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _finite(error: float) -> float | None:
    """None for NaN and infinity, which JSON does not know."""
    return error if math.isfinite(error) else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
