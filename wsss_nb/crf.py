"""Dense CRF (Krähenbühl and Koltun, NIPS 2011): scores pulled to the edges of the image.

Three backends share one definition: the native ``pydensecrf`` (permutohedral lattice), a torch version that
needs no compiler (Gaussian sums over merged source pixels), and fused kernels on a GPU (exact sums). The native
code ends the whole process on some parameters; they are refused here first. It also runs in processes of its own,
always in :func:`dense_crf_many` and in notebooks in :func:`dense_crf`, so that no crash ends the caller's.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections.abc import Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError

from wsss_nb.system.config import Config
from wsss_nb.system.errors import InputError, require
from wsss_nb.system.workers import KeptWorker, Workers, finished_results, stream_results

if TYPE_CHECKING:  # worker processes of the native backend start without torch
    import torch

__all__ = ["Backend", "CRFConfig", "dense_crf", "dense_crf_many", "dense_crf_torch", "resolve_backend", "resolved_crf"]

Backend: TypeAlias = Literal["auto", "pydensecrf", "torch", "cuda"]
"""Which code computes: native, torch on the CPU, Triton's kernels on a GPU, or "auto", see :func:`resolve_backend`."""

LOWEST_PROBABILITY = 1e-5  # scores are clipped here, as in pydensecrf.utils.unary_from_softmax
LARGEST_COORDINATE = 4000  # image side / sxy from which the native code's 16-bit lattice overflows
Job: TypeAlias = tuple[np.ndarray, np.ndarray]  # image, probabilities
_NATIVE = KeptWorker("dense CRF")  # of dense_crf, so that a slider's next picture needs no new process

_NUMBER = BeforeValidator(lambda value: value.item() if isinstance(value, np.generic) else value)
Width: TypeAlias = Annotated[float, _NUMBER, Field(ge=0.1, le=1e5)]
Compatibility: TypeAlias = Annotated[float, _NUMBER, Field(ge=0, le=1e6)]


class CRFConfig(Config):
    """Parameters of the dense CRF; the defaults are those of the release's CAM stage.

    The pairwise energy of two pixels with different labels is

        gaussian_compat * exp(-|p_i - p_j|^2 / (2 gaussian_sxy^2))
        + bilateral_compat * exp(-|p_i - p_j|^2 / (2 bilateral_sxy^2) - |I_i - I_j|^2 / (2 bilateral_srgb^2))

    with p in pixels and I in grey levels 0..255 (Krähenbühl and Koltun 2011, Eq. 3). The paper names no
    values. The release uses these for CAMs, and iterations=1, bilateral_sxy=32 for DeepLab's results.

    Args:
        backend: which code computes, see :data:`Backend`.
        iterations: mean-field steps.
        bilateral_sxy: width of the kernel over position and colour, in pixels.
        bilateral_srgb: its width in colour, in grey levels.
        bilateral_compat: its weight.
        gaussian_sxy: width of the kernel over position only, in pixels.
        gaussian_compat: its weight.

    Raises:
        ValueError: a width outside [0.1, 10^5] (0, NaN and tiny ones crash the native code, below 0.1 no
            pixel has a neighbour), a weight outside [0, 10^6], iterations not an integer in [0, 1000].

    Example:
        >>> CRFConfig(iterations=1, bilateral_sxy=32).bilateral_srgb
        13.0
    """

    backend: Backend = Field(
        "auto",
        description="what computes it: pydensecrf as in the paper, torch, cuda; auto = cuda, pydensecrf or torch, the "
        "first that can be had",
    )
    iterations: Annotated[int, _NUMBER, Field(ge=0, le=1000)] = 10
    bilateral_sxy: Width = 80
    bilateral_srgb: Width = 13
    bilateral_compat: Compatibility = 10
    gaussian_sxy: Width = 3
    gaussian_compat: Compatibility = 3


def dense_crf(
    image: np.ndarray, probabilities: np.ndarray, iterations: int = 10, bilateral_sxy: float = 80,
    bilateral_srgb: float = 13, bilateral_compat: float = 10, gaussian_sxy: float = 3, gaussian_compat: float = 3,
    backend: Backend = "auto", isolated: bool | None = None
) -> np.ndarray:  # fmt: skip
    """Mean-field inference of a dense CRF (Krähenbühl and Koltun 2011, Algorithm 1).

    ``Q_i(k) <- softmax_k( log s_i(k) + sum_m compat_m n_mi sum_j K_m(i, j) n_mj Q_j(k) )``, starting from
    ``Q = softmax(log s)``, with the two Gaussian kernels K_m of :class:`CRFConfig` and the symmetric
    normalisation ``n_mi = (sum_j K_m(i, j))^(-1/2)``. Scores s are clipped to [1e-5, 1].

    Args:
        image: (H, W, 3), uint8.
        probabilities: (K, H, W), floating, in [0, 1]; they need not add up to 1. One label alone gets 1 everywhere.
        iterations: mean-field steps; 0 gives the normalised scores.
        bilateral_sxy: width in pixels of the kernel over position and colour.
        bilateral_srgb: its width in grey levels.
        bilateral_compat: its weight.
        gaussian_sxy: width in pixels of the kernel over position only.
        gaussian_compat: its weight.
        backend: "pydensecrf", "torch" or "cuda" (:func:`dense_crf_torch` on the CPU or a GPU), or "auto"
            (:func:`resolve_backend`).
        isolated: run the native code in a process of its own, so that a crash in it is a ``RuntimeError``
            here. That process is started once, by the first such call (a quarter of a second), and again after
            a crash. None: in notebooks and consoles; a script would need the guard of :func:`dense_crf_many`.

    Returns:
        (K, H, W), float32, sums to 1 over K.

    Raises:
        RuntimeError: the process of its own died.
        ValueError: parameters outside the ranges of :class:`CRFConfig`, shapes, dtypes or scores not as
            above, NaN, or an image side above 4000 times the smaller sxy.
        ImportError: backend "pydensecrf" and the package is not installed, or "cuda" and no GPU runs the kernels.

    Example:
        >>> scores = np.stack([np.full((8, 8), 0.4), np.full((8, 8), 0.6)])
        >>> dense_crf(np.zeros((8, 8, 3), np.uint8), scores).argmax(0).min().item()
        1

    Paper and release call pydensecrf, the "pydensecrf" backend here; how far the others differ from it is
    measured in :func:`dense_crf_torch`.
    """
    kernels = {"bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb, "bilateral_compat": bilateral_compat}
    kernels |= {"gaussian_sxy": gaussian_sxy, "gaussian_compat": gaussian_compat}
    config = _config(backend=resolve_backend(backend), iterations=iterations, **kernels)
    job = *_checked(image, probabilities, config), config
    if config.backend == "pydensecrf" and (_in_a_session() if isolated is None else isolated):
        return _NATIVE.result(_infer, *job)
    return _infer(*job)


def _config(**settings: Any) -> CRFConfig:
    """The settings checked; what is wrong with the first wrong one is said in one line."""
    try:
        return CRFConfig(**settings)
    except ValidationError as error:
        name, given = error.errors()[0]["loc"][0], error.errors()[0]["input"]
        low, high = CRFConfig.model_fields[str(name)].metadata[-2:]
        kind = "an integer" if name == "iterations" else "a number"
        raise InputError(f"{name}: expected {kind} in [{low.ge:g}, {high.le:g}], got {given!r}") from None


def dense_crf_many(
    jobs: Iterable[Job], config: CRFConfig | None = None, workers: Workers = 1
) -> Generator[np.ndarray, None, None]:
    """``Q_n = dense_crf(image_n, probabilities_n)`` of many images in worker processes, in order.

    Jobs are taken from the iterable as results are used (at most 2 * workers wait), so a whole split
    streams through without being held. Closing the generator, leaving a ``for`` loop over it, or killing this
    process ends the workers after their current image. If a worker dies, this process goes on with a
    ``RuntimeError``.
    Scripts must guard their entry point with ``if __name__ == "__main__":``, because workers are spawned.

    Args:
        jobs: (image, probabilities) as in :func:`dense_crf`.
        config: backend and parameters; the default ones if None.
        workers: number of processes, or a cluster whose tasks are an image each; 0 computes in this process, as
            the backend "cuda" always does.

    Yields:
        (K, H, W), float32.

    Raises:
        ValueError: ``workers`` below 0, or a job that is not valid; the message gives its number from 0.
        RuntimeError: a worker process died.
        ImportError: as :func:`dense_crf`.

    Example:
        >>> jobs = [(np.zeros((4, 4, 3), np.uint8), np.full((2, 4, 4), 0.5))]
        >>> [q.shape for q in dense_crf_many(jobs, workers=0)]
        [(2, 4, 4)]

    Paper (Section 4.1, without settings) and release agree with the result; how the work is spread is ours.
    """
    if not (hasattr(workers, "stream") or (isinstance(workers, int) and workers >= 0)):
        raise InputError(f"workers: expected an integer of at least 0, got {workers!r}")
    config = config or CRFConfig()
    config = config.model_copy(update={"backend": resolve_backend(config.backend)})
    checked, threads = _checked_jobs(jobs, config), None
    if workers == 0 or config.backend == "cuda":
        return (_infer(*job) for job in checked)
    if config.backend == "torch" and isinstance(workers, int):
        threads = max(1, multiprocessing.cpu_count() // workers)
    return stream_results(_infer, checked, workers, threads, "dense CRF")


def _checked_jobs(
    jobs: Iterable[Job], config: CRFConfig
) -> Generator[tuple[np.ndarray, np.ndarray, CRFConfig], None, None]:
    for number, job in enumerate(jobs):
        try:
            image, probabilities = job
            checked = _checked(image, probabilities, config)
        except (TypeError, ValueError) as error:
            raise InputError(f"job {number}: {error}") from error
        yield *checked, config


def _in_a_session() -> bool:
    """Whether this is a notebook's kernel or a console: a process without a script that is worth keeping."""
    return not hasattr(sys.modules["__main__"], "__file__") and multiprocessing.parent_process() is None


def _infer(image: np.ndarray, probabilities: np.ndarray, config: CRFConfig) -> np.ndarray:
    if config.backend != "pydensecrf":
        return dense_crf_torch(image, probabilities, config, device="cuda" if config.backend == "cuda" else "cpu")
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(-np.log(probabilities.clip(LOWEST_PROBABILITY, 1)).reshape(classes, -1))
    crf.addPairwiseGaussian(sxy=config.gaussian_sxy, compat=config.gaussian_compat)
    widths = {"sxy": config.bilateral_sxy, "srgb": config.bilateral_srgb}
    crf.addPairwiseBilateral(**widths, rgbim=image, compat=config.bilateral_compat)
    return np.asarray(crf.inference(config.iterations), np.float32).reshape(classes, height, width)


def dense_crf_torch(
    image: np.ndarray, probabilities: np.ndarray, config: CRFConfig | None = None, cell: float | None = None,
    device: str | torch.device = "cpu"
) -> np.ndarray:  # fmt: skip
    """The dense CRF of :func:`dense_crf` in torch, without compiled extras.

    The position kernel is summed exactly (axis by axis, cut at 5 widths). For the bilateral kernel
    pixels alike in position and colour f (in kernel widths) are merged: those in one box of
    ``cell`` * (sxy/2, sxy/2, srgb, srgb, srgb) become one cell with their mean m and summed values. Between
    cells the sum is the plain Gaussian one (cells further than 4.5 widths left out), and inside a cell it
    follows its own slope, S(f) = S(m) exp((f - m) . (mean shift at m)). With ``cell = 0`` nothing is merged.

    Difference to pydensecrf, which approximates both kernels on a lattice, after ten iterations. On a 120 x
    90 test image with uncertain scores (background exponents 2, 4, 16) 98.7, 99.1, 99.8 % of the labels
    agree, the mean absolute difference is 0.013, 0.010, 0.003. With ``cell = 0`` it is 98.9, 97.9, 99.9 % and
    0.011, 0.022, 0.001: most of it is the lattice's. On four photographs, each in two sizes, with smooth
    noise as scores, where the kernels alone decide, with 2 labels 93 to 100 % of the labels agree (mean 98 %)
    and 2.2 % of the probability goes to other labels, with 21 labels 86 to 99 % (mean 95 %) and 5.2 %; the
    larger ones take 6 and 11 times as long as in pydensecrf (``python -m benchmarks.crf``,
    figures/crf_difference.json).

    Args:
        image: (H, W, 3), uint8.
        probabilities: (K, H, W), as in :func:`dense_crf`.
        config: parameters; the default ones if None.
        cell: size of the merged cells, 0 or 0.05 to 4; time and memory grow as it shrinks. None: 1, or 0
            on a GPU where Triton works, whose fused kernel leaves out only what is beyond 6 widths.
        device: where to compute.

    Returns:
        (K, H, W), float32, sums to 1 over K.

    Raises:
        ValueError: as :func:`dense_crf`, or ``cell`` out of range.

    Example:
        >>> scores = np.stack([np.full((8, 8), 0.4), np.full((8, 8), 0.6)])
        >>> dense_crf_torch(np.zeros((8, 8, 3), np.uint8), scores).argmax(0).min().item()
        1

    In neither the paper nor the release.
    """
    import torch

    from wsss_nb.fast.launch import padded_columns
    from wsss_nb.fast.messages import BilateralKernel, position_sum
    from wsss_nb.fast.pairwise import fused_kernels

    config = config or CRFConfig()
    require(not cell or 0.05 <= cell <= 4, f"cell: expected 0 or a number in [0.05, 4], got {cell!r}")
    image, probabilities = _checked(image, probabilities, config)
    with torch.inference_mode():
        scores = torch.from_numpy(probabilities).to(device).clamp(LOWEST_PROBABILITY, 1).log()
        features = torch.from_numpy(bilateral_features(image, config)).to(device)
        kernels: tuple[Any, Any]
        if not cell and (fused := fused_kernels(scores.device, padded_columns(len(scores)))):
            position = features[..., :2] * (config.bilateral_sxy / config.gaussian_sxy)
            kernels = fused.GaussianSum(position), fused.GaussianSum(features)
        else:
            bilateral = BilateralKernel(features, 1.0 if cell is None else cell)
            kernels = partial(position_sum, sxy=config.gaussian_sxy), bilateral
        active = []
        for compat, kernel in zip((config.gaussian_compat, config.bilateral_compat), kernels, strict=True):
            normalizer = kernel(torch.ones_like(scores[:1])).rsqrt()
            active.append((compat * normalizer, normalizer, kernel))
        marginals = scores.softmax(0)
        for _ in range(config.iterations):
            messages = [outer * kernel(inner * marginals) for outer, inner, kernel in active]
            marginals = torch.stack([scores, *messages]).sum(0).softmax(0)
    return np.asarray(marginals.cpu())


def bilateral_features(image: np.ndarray, config: CRFConfig) -> np.ndarray:
    """Position and colour in widths of the bilateral kernel, (H, W, 5), float32."""
    position = np.indices(image.shape[:2]).transpose(1, 2, 0) / config.bilateral_sxy
    return np.concatenate([position, image / config.bilateral_srgb], -1, dtype=np.float32)


def resolve_backend(backend: Backend) -> Backend:
    """Which code a backend stands for here.

    "auto" is "cuda" where Triton's kernels run on a GPU, else "pydensecrf" if installed, else "torch".

    Args:
        backend: see :data:`Backend`.

    Returns:
        "pydensecrf", "torch" or "cuda".

    Raises:
        ValueError: no such backend.
        ImportError: the backend cannot be had here.

    Example:
        >>> resolve_backend("torch")
        'torch'

    In neither the paper nor the release, which knows pydensecrf only.
    """
    require(backend in get_args(Backend), f"backend: expected one of {get_args(Backend)}, got {backend!r}")
    installed = importlib.util.find_spec("pydensecrf") is not None
    if backend == "pydensecrf" and not installed:
        needed = "the package pydensecrf2 to be installed (pip install 'wsss-nb[crf]')"
        raise ImportError(f"backend: expected {needed}, or backend='torch'")
    if backend in ("auto", "cuda") and _gpu_runs_kernels():
        return "cuda"
    if backend == "cuda":
        raise ImportError("backend: expected a GPU on which Triton's kernels run, or backend='pydensecrf'")
    return backend if backend != "auto" else "pydensecrf" if installed else "torch"


def resolved_crf(config: CRFConfig, workers: Workers = 0) -> CRFConfig:
    """``config`` with the backend that it stands for where the CRF is computed.

    For "auto" a cluster is asked by a task: the machine that starts a run may have a GPU where the cluster has none.
    What is named is found, or missed, by the tasks themselves.

    Args:
        config: settings of the CRF.
        workers: where it is computed.

    Raises:
        InputError: the backend cannot be had.

    Example:
        >>> resolved_crf(CRFConfig(backend="torch")).backend
        'torch'

    In neither the paper nor the release, which need pydensecrf.
    """
    name = config.backend
    try:
        if isinstance(workers, int):
            return config.model_copy(update={"backend": resolve_backend(name)})
    except ImportError as error:
        raise InputError(f"crf.{error}") from error
    if name == "auto":
        ((_, name),) = finished_results(resolve_backend, {"backend": (name,)}, workers, "CRF", gpu=True)
    return config.model_copy(update={"backend": name})


def _gpu_runs_kernels() -> bool:
    import torch

    from wsss_nb.fast.pairwise import fused_kernels

    return torch.cuda.is_available() and fused_kernels(torch.device("cuda")) is not None


def _checked(image: Any, probabilities: Any, config: CRFConfig) -> tuple[np.ndarray, np.ndarray]:
    """Contiguous uint8 image and float32 probabilities, writeable for the native code's sake, or ValueError."""
    pixels, scores = np.asarray(image), np.asarray(probabilities)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"image: expected uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
    if scores.ndim != 3 or scores.shape[1:] != pixels.shape[:2] or scores.size == 0:
        expected = f"(K, H, W) = (1 or more, {pixels.shape[0]}, {pixels.shape[1]})"
        raise InputError(f"probabilities: expected {expected}, not empty, got {scores.shape}")
    require(scores.dtype.kind == "f", f"probabilities: expected a floating dtype, got {scores.dtype}")
    low, high = float(scores.min()), float(scores.max())
    require(0 <= low <= high <= 1 + 1e-3, f"probabilities: expected values in [0, 1], got {low:g} to {high:g}")
    side, longest = max(pixels.shape[:2]), LARGEST_COORDINATE * min(config.gaussian_sxy, config.bilateral_sxy)
    require(not side > longest, f"image: expected at most {longest:g} pixels a side, got {side}")
    return np.require(pixels, None, ("C", "W")), np.require(scores, np.float32, ("C", "W"))
