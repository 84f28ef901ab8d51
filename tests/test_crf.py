from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from wsss_nb import crf
from wsss_nb.crf import CRFConfig, dense_crf, dense_crf_many, dense_crf_torch, resolve_backend
from wsss_nb.system.errors import WorkerDiedError

GOLDEN = Path(__file__).parent / "golden"
FAST = CRFConfig(iterations=2)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "crf.npz") as file:
        return {name: file[name] for name in file}


def scene(seed: int = 0, classes: int = 3, height: int = 14, width: int = 18) -> tuple[np.ndarray, np.ndarray]:
    """Two colour regions with noise, and scores that know them only vaguely."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 60.0)
    image[:, width // 2 :] = (150, 120, 90)
    image = (image + rng.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)
    scores = rng.random((classes, height, width)) + 0.1
    scores[1, :, width // 2 :] += 0.5
    return image, (scores / scores.sum(0)).astype(np.float32)


def oracle(image: np.ndarray, probabilities: np.ndarray, config: CRFConfig) -> np.ndarray:
    """Mean-field updates with all pairs of pixels in float64."""
    classes, height, width = probabilities.shape
    y, x = np.mgrid[:height, :width]
    position = np.stack([y.ravel(), x.ravel()], 1).astype(float)
    colour = image.reshape(-1, 3).astype(float)

    def kernel(features):
        return np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(2))

    def softmax(energy):
        energy = np.exp(energy - energy.max(0))
        return energy / energy.sum(0)

    bilateral = np.hstack([position / config.bilateral_sxy, colour / config.bilateral_srgb])
    kernels = []
    for weight, matrix in (
        (config.gaussian_compat, kernel(position / config.gaussian_sxy)),
        (config.bilateral_compat, kernel(bilateral)),
    ):
        root = np.sqrt(matrix.sum(1))
        kernels.append(weight * matrix / root[:, None] / root[None])
    log_scores = np.log(np.clip(probabilities.astype(float), 1e-5, 1)).reshape(classes, -1)
    marginals = softmax(log_scores)
    for _ in range(config.iterations):
        marginals = softmax(log_scores + sum(marginals @ matrix for matrix in kernels))
    return marginals.reshape(classes, height, width)


# ---------------------------------------------------------------- native backend


@pytest.mark.parametrize("exponent", [2, 4, 16])
def test_native_backend_equals_the_golden_output(golden, exponent):
    result = dense_crf(golden["image"], golden[f"probs_alpha{exponent}"], backend="pydensecrf")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, golden[f"crf_alpha{exponent}"], atol=1e-4)
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)


def test_parameters_reach_the_native_code(golden):
    image, probabilities = golden["image"][::2, ::2], golden["probs_alpha4"][:, ::2, ::2]
    base = dense_crf(image, probabilities, iterations=3)
    changes = {
        "iterations": 4,
        "bilateral_sxy": 20,
        "bilateral_srgb": 40,
        "bilateral_compat": 2,
        "gaussian_sxy": 1.5,
        "gaussian_compat": 9,
    }
    for name, value in changes.items():
        changed = dense_crf(image, probabilities, **{"iterations": 3, name: value})
        assert abs(changed - base).max() > 0.01, name
    by_position = dense_crf(image, probabilities, 3, 20, 40, 2, 1.5, 9)
    changes["iterations"] = 3
    config = CRFConfig(**changes)
    np.testing.assert_array_equal(by_position, next(dense_crf_many([(image, probabilities)], config, 0)))


def test_layout_and_dtype_of_the_arrays_do_not_matter():
    image, probabilities = scene()
    expected = dense_crf(image, probabilities, iterations=3)
    wide = np.zeros((14, 36, 3), np.uint8)
    wide[:, ::2] = image
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    for other in (wide[:, ::2], planes.transpose(1, 2, 0), np.asfortranarray(image)):
        assert not other.flags.c_contiguous
        np.testing.assert_array_equal(dense_crf(other, probabilities, iterations=3), expected)
    last = np.ascontiguousarray(probabilities.transpose(1, 2, 0)).transpose(2, 0, 1)
    for other in (last, probabilities.astype(np.float64), np.asfortranarray(probabilities)):
        np.testing.assert_array_equal(dense_crf(image, other, iterations=3), expected)
    fixed = image.copy(), probabilities.copy()
    for array in fixed:
        array.flags.writeable = False  # as np.asarray of a picture of Pillow is; and nothing may be written there
    np.testing.assert_array_equal(dense_crf(*fixed, iterations=3), expected)
    dense_crf(*fixed, iterations=3, backend="torch")
    half = dense_crf(image, probabilities.astype(np.float16), iterations=3)
    np.testing.assert_allclose(half, expected, atol=0.02)


@pytest.mark.parametrize("backend", ["pydensecrf", "torch"])
def test_without_iterations_or_weights_the_scores_are_only_normalised(backend):
    image, probabilities = scene()
    expected = probabilities / probabilities.sum(0)
    for options in ({"iterations": 0}, {"bilateral_compat": 0, "gaussian_compat": 0}):
        result = dense_crf(image, probabilities * 0.7, backend=backend, **options)
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("backend", ["pydensecrf", "torch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_tiny_images_scores_of_zero_and_a_single_label(backend, size):
    image, probabilities = scene(height=size[0], width=size[1])
    probabilities[:, 0, 0] = 0
    result = dense_crf(image, probabilities, backend=backend)
    assert result.shape == (3, *size) and np.isfinite(result).all()
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)
    assert (dense_crf(image, probabilities[:1], backend=backend) == np.ones((1, *size), np.float32)).all()


@pytest.mark.parametrize("backend", ["pydensecrf", "torch"])
def test_scores_below_one_in_100000_count_as_that(backend):
    image, probabilities = scene()
    probabilities[:, 3, 3] = (1 + 1e-6, 0, 0)  # rounding just above one is no error
    results = []
    for lowest in (0, 1e-9, 1e-5, 1e-4):
        probabilities[2, :, :9] = lowest
        results.append(dense_crf(image, probabilities, iterations=1, bilateral_compat=1, backend=backend))
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[2])
    assert results[3][2, :, :9].mean() > 5 * results[2][2, :, :9].mean() > 0


@pytest.mark.parametrize("backend", ["pydensecrf", "torch"])
def test_the_crf_moves_a_soft_border_to_the_edge_of_the_image(backend):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    ramp = 1 / (1 + np.exp(-(np.arange(60) - 24) / 3.0)) * np.ones((40, 1))  # its border is at column 24
    probabilities = np.stack([1 - ramp, ramp])
    result = dense_crf(image, probabilities, backend=backend)
    assert (result.argmax(0) == (image[..., 0] > 0)).mean() > 0.99
    assert (probabilities.argmax(0) == (image[..., 0] > 0)).mean() < 0.92


# ---------------------------------------------------------------- refusals


WIDTHS, WEIGHTS = ("bilateral_sxy", "bilateral_srgb", "gaussian_sxy"), ("bilateral_compat", "gaussian_compat")


@pytest.mark.parametrize(
    ("names", "expected", "values"),
    [
        (WIDTHS, "a number in [0.1, 100000]", (0, -3, 1e-10, 0.05, 1e6, np.nan, np.inf, "3", None, True)),
        (WEIGHTS, "a number in [0, 1e+06]", (-1, 1e7, np.nan, np.inf, True)),
        (("iterations",), "an integer in [0, 1000]", (-1, 2.5, 1001, 10**10, np.nan, True, np.bool_(1), np.float32(3))),
    ],
)
def test_parameters_that_crash_the_native_code_are_refused_in_one_line(names, expected, values):
    for name in names:
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}: expected {re.escape(expected)}, got [^\\n]+$"):
                dense_crf(*scene(), **{name: value})
            with pytest.raises(ValueError, match=name):
                CRFConfig(**{name: value})


def test_numpy_numbers_are_numbers():
    assert CRFConfig(bilateral_sxy=np.float32(32), gaussian_compat=np.int64(4)).bilateral_sxy == 32
    image, probabilities = scene()
    for backend in ("pydensecrf", "torch"):
        found, expected = (dense_crf(image, probabilities, n, backend=backend) for n in (np.int8(3), 3))
        np.testing.assert_array_equal(found, expected)


IMAGE, SCORES = scene()
BAD = [
    (IMAGE.astype(np.float32), SCORES, r"image: expected uint8 \(H, W, 3\), got float32 \(14, 18, 3\)"),
    (IMAGE[..., :2], SCORES, r"image: expected uint8 \(H, W, 3\), got uint8 \(14, 18, 2\)"),
    (IMAGE[..., 0], SCORES, r"image: expected uint8 \(H, W, 3\), got uint8 \(14, 18\)"),
    (IMAGE[:-1], SCORES, r"probabilities: expected \(K, H, W\) = \(1 or more, 13, 18\), .*, got \(3, 14, 18\)"),
    (IMAGE, SCORES.transpose(0, 2, 1), r"probabilities: expected .*14, 18\), not empty, got \(3, 18, 14\)"),
    (IMAGE, SCORES.reshape(3, -1), r"probabilities: expected .*got \(3, 252\)"),
    (IMAGE, SCORES[:0], r"probabilities: expected .*1 or more.*got \(0, 14, 18\)"),
    (IMAGE[:0], SCORES[:, :0], r"probabilities: expected .*not empty, got \(3, 0, 18\)"),
    (IMAGE, (SCORES * 100).astype(np.uint8), r"probabilities: expected a floating dtype, got uint8"),
    (IMAGE, SCORES - 0.5, r"probabilities: expected values in \[0, 1\], got -"),
    (IMAGE, SCORES * 3, r"probabilities: expected values in \[0, 1\], got .* to [12]\."),
    (IMAGE, np.where(SCORES > 0.5, np.nan, SCORES), r"probabilities: expected values in \[0, 1\], got nan to nan"),
    (IMAGE, np.where(SCORES > 0.5, np.inf, SCORES), r"probabilities: expected values in \[0, 1\], got .* to inf"),
    (
        np.zeros((12001, 1, 3), np.uint8),
        np.ones((1, 12001, 1)),
        "image: expected at most 12000 pixels a side, got 12001",
    ),
]


@pytest.mark.parametrize(("image", "probabilities", "message"), BAD)
def test_arrays_that_do_not_fit_are_refused(image, probabilities, message):
    for function in (dense_crf, dense_crf_torch):
        with pytest.raises(ValueError, match=message):
            function(image, probabilities)


def test_other_options_are_refused():
    with pytest.raises(
        ValueError, match=r"backend: expected one of \('auto', 'pydensecrf', 'torch', 'cuda'\), got 'tpu'"
    ):
        dense_crf(IMAGE, SCORES, backend="tpu")
    for cell in (-1, 0.01, 5, float("nan")):
        with pytest.raises(ValueError, match=r"cell: expected 0 or a number in \[0\.05, 4\], got"):
            dense_crf_torch(IMAGE, SCORES, cell=cell)
    for workers in (-1, 1.5):
        with pytest.raises(ValueError, match="workers: expected an integer of at least 0, got"):
            dense_crf_many([], workers=workers)


# ---------------------------------------------------------------- torch backend


@pytest.mark.parametrize(
    "config",
    [
        CRFConfig(),
        CRFConfig(iterations=1, bilateral_sxy=32),
        CRFConfig(iterations=3, bilateral_sxy=4, bilateral_srgb=5, gaussian_sxy=0.5, gaussian_compat=1),
        CRFConfig(iterations=3, gaussian_compat=0),
        CRFConfig(iterations=3, bilateral_compat=0, gaussian_sxy=7),
    ],
)
def test_without_merging_torch_equals_all_pairs_in_float64(config):
    for seed, classes in ((0, 2), (1, 5)):
        image, probabilities = scene(seed, classes)
        expected = oracle(image, probabilities, config)
        np.testing.assert_allclose(dense_crf_torch(image, probabilities, config, cell=0), expected, atol=2e-3)
        assert abs(expected - probabilities / probabilities.sum(0)).max() > 0.1


@pytest.mark.parametrize("kept", [True, False])
def test_tiles_change_nothing(monkeypatch, kept):
    """Small tiles, each with its near cells only, computed once or again at every step."""
    import torch  # here, because every worker of these tests imports this module

    from wsss_nb.fast import messages

    image, probabilities = scene(2, 3)
    config = CRFConfig(iterations=2, bilateral_sxy=4, bilateral_srgb=8)
    monkeypatch.setattr(messages, "TILE", (0.7, 0.7, 1.3, 1.3, 1.3))
    monkeypatch.setattr(messages, "KEPT_WEIGHTS", 10**9 if kept else 0)
    kernel = messages.BilateralKernel(torch.from_numpy(crf.bilateral_features(image, config)), 0)
    assert (kernel.kept is not None) == kept
    assert len(kernel.tiles) > 30
    assert min(len(near) for _, near in kernel.tiles) < 0.5 * len(kernel.mean)
    result = dense_crf_torch(image, probabilities, config, cell=0)
    np.testing.assert_allclose(result, oracle(image, probabilities, config), atol=2e-3)


def test_position_sums_keep_float32_whatever_convolutions_do(monkeypatch):
    """cuDNN's convolutions take TF32 for float32 unless told otherwise, so none may be used."""
    import torch

    from wsss_nb.fast import messages

    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *_, **__: pytest.fail("a convolution"))
    values = torch.rand(2, 23, 17, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    for sxy in (0.1, 3, 1e5):
        y, x = (torch.arange(side, dtype=torch.float64) for side in (23, 17))
        rows, columns = (torch.exp(-0.5 * ((p[:, None] - p) / sxy) ** 2) for p in (y, x))
        sums = messages.position_sum(values, sxy)
        torch.testing.assert_close(sums.double(), rows @ values.double() @ columns, rtol=1e-5, atol=0)
        assert torch.equal(values, before)


def test_merging_converges_to_the_exact_sum(golden):
    image, probabilities = golden["image"][20:70, 30:90], golden["probs_alpha4"][:, 20:70, 30:90]
    config = CRFConfig(iterations=1)
    exact = dense_crf_torch(image, probabilities, config, cell=0)
    errors = [abs(dense_crf_torch(image, probabilities, config, cell) - exact).max() for cell in (0.25, 0.5, 1)]
    assert errors[0] < errors[1] < errors[2] < 0.05
    assert errors[0] < 0.005


def test_the_stated_difference_to_pydensecrf(golden):
    """The numbers in the docstring are the measured ones."""
    number = r"([\d.]+)[,\s]+([\d.]+)[,\s]+([\d.]+)"
    stated = re.search(
        rf"exponents 2, 4, 16\)\s+{number}\s+% of the labels\s+agree,\s+the mean absolute difference is\s+{number}",
        dense_crf_torch.__doc__ or "",
    )
    assert stated, "the docstring states no difference"
    numbers = [float(word.rstrip(".")) for word in stated.groups()]
    for exponent, agree, difference in zip((2, 4, 16), numbers[:3], numbers[3:], strict=True):
        result = dense_crf(golden["image"], golden[f"probs_alpha{exponent}"], backend="torch")
        expected = golden[f"crf_alpha{exponent}"]
        assert result.dtype == np.float32
        assert 100 * (result.argmax(0) == expected.argmax(0)).mean() == pytest.approx(agree, abs=0.1)
        assert abs(result - expected).mean() == pytest.approx(difference, abs=0.0007)
        np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)


def test_extreme_weights_and_narrow_kernels_stay_finite():
    image, probabilities = scene(3)
    for config in (
        CRFConfig(bilateral_compat=1e6, gaussian_compat=1e6),
        CRFConfig(bilateral_sxy=0.1, bilateral_srgb=0.1, gaussian_sxy=0.1),
        CRFConfig(bilateral_sxy=1e5, bilateral_srgb=1e5, gaussian_sxy=1e5),
    ):
        result = dense_crf_torch(image, probabilities, config)
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result.sum(0), 1, atol=1e-4)


# ---------------------------------------------------------------- backends


def test_auto_falls_back_to_torch_where_pydensecrf_is_missing(monkeypatch):
    image, probabilities = scene()
    native = dense_crf(image, probabilities, backend="pydensecrf")
    np.testing.assert_array_equal(dense_crf(image, probabilities), native)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pydensecrf" else find_spec(name, *rest)
    )
    fallback = dense_crf(image, probabilities)
    np.testing.assert_array_equal(fallback, dense_crf_torch(image, probabilities))
    assert abs(fallback - native).max() > 0
    with pytest.raises(ImportError, match="expected the package pydensecrf2 to be installed"):
        dense_crf(image, probabilities, backend="pydensecrf")
    with pytest.raises(ImportError, match="pydensecrf2"):
        dense_crf_many([(image, probabilities)], CRFConfig(backend="pydensecrf"))


def test_auto_is_the_gpu_where_its_kernels_run(monkeypatch):
    """The GPU is a stand-in: what is computed where is the point, its kernels' numbers are in test_triton_crf."""
    devices = []
    on_cpu = dense_crf_torch

    def on_gpu(image, probabilities, config, device):
        devices.append(device)
        return on_cpu(image, probabilities, config)

    image, probabilities = scene()
    assert resolve_backend("auto") == "pydensecrf"
    with pytest.raises(ImportError, match="backend: expected a GPU on which Triton's kernels run"):
        dense_crf(image, probabilities, backend="cuda")
    monkeypatch.setattr(crf, "_gpu_runs_kernels", lambda: True)
    monkeypatch.setattr(crf, "dense_crf_torch", on_gpu)
    monkeypatch.setattr(crf, "stream_results", lambda *_: pytest.fail("a GPU does not need worker processes"))
    expected = on_cpu(image, probabilities, FAST)
    jobs = [(image, probabilities), (image, probabilities)]
    results = [dense_crf(image, probabilities, **FAST.model_dump()), *dense_crf_many(jobs, FAST, workers=2)]
    assert devices == ["cuda"] * 3
    for result in results:
        np.testing.assert_array_equal(result, expected)
    assert resolve_backend("pydensecrf") == "pydensecrf" and resolve_backend("torch") == "torch"


def test_workers_of_the_native_backend_start_without_torch():
    code = "import sys, wsss_nb.crf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- worker processes


def slow_first(image: np.ndarray, probabilities: np.ndarray, config: CRFConfig) -> np.ndarray:
    """Stands in for the computation: what came first takes longest."""
    time.sleep(0.5 if image[0, 0, 0] == 0 else 0)
    return np.full((1, 1, 1), image[0, 0, 0])


def numbered(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.full((2, 2, 3), i, np.uint8), np.full((2, 2, 2), 0.5)) for i in range(count)]


def children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.name.startswith("Spawn")}


@pytest.fixture(autouse=True)
def no_worker_kept() -> Iterator[None]:
    """Other tests count processes."""
    yield
    if pool := crf._NATIVE._pool:
        crf._NATIVE._pool = None
        pool.shutdown()


def test_workers_give_the_results_of_this_process_in_order():
    jobs = [scene(seed, classes=2 + seed % 3, height=10 + seed) for seed in range(7)]
    expected = [dense_crf(*job, iterations=2) for job in jobs]
    for workers in (0, 2):
        results = list(dense_crf_many(iter(jobs), FAST, workers))
        assert len(results) == 7
        for result, right in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, right)
    assert not children()


def test_order_is_kept_when_the_first_job_is_the_slowest(monkeypatch):
    monkeypatch.setattr(crf, "_infer", slow_first)
    results = [int(result[0, 0, 0]) for result in dense_crf_many(numbered(6), FAST, workers=2)]
    assert results == [0, 1, 2, 3, 4, 5]


def test_the_torch_backend_runs_in_workers():
    job = scene()
    (result,) = dense_crf_many([job], CRFConfig(iterations=2, backend="torch"), workers=1)
    np.testing.assert_allclose(result, dense_crf_torch(*job, FAST), atol=1e-5)


def test_jobs_stream_through_and_closing_ends_the_workers(monkeypatch):
    monkeypatch.setattr(crf, "_infer", slow_first)
    taken = []

    def jobs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, job in enumerate(numbered(200)):
            taken.append(number)
            yield job

    results = dense_crf_many(jobs(), FAST, workers=1)
    assert not taken
    for expected in range(20):
        assert next(results)[0, 0, 0] == expected
        assert len(taken) <= expected + 4
    assert children()
    results.close()
    assert not children()
    assert len(taken) < 30


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_job_is_named_and_ends_the_workers(workers):
    jobs = numbered(3)
    jobs[2] = (jobs[2][0], jobs[2][1] * np.nan)
    with pytest.raises(ValueError, match=r"job 2: probabilities: expected values in \[0, 1\], got nan to nan"):
        list(dense_crf_many(jobs, FAST, workers))
    with pytest.raises(ValueError, match=r"job 0: .*unpack"):
        list(dense_crf_many([(1, 2, 3)], FAST, workers))
    assert not children()


# ---------------------------------------------------------------- crashes and kills


CRASHING = CRFConfig.model_construct(backend="pydensecrf", gaussian_sxy=float("nan"))
"""What the checks refuse, because the native code ends its process on it."""


def test_a_real_crash_of_the_native_code_is_an_error_here():
    jobs = [scene(height=20, width=20)] * 2
    with pytest.raises(WorkerDiedError, match="dense CRF: a worker process died at job 0"):
        list(dense_crf_many(jobs, CRASHING, workers=1))
    assert not children()
    assert len(list(dense_crf_many(jobs, FAST, workers=1))) == 2


def where(*arguments: object) -> np.ndarray:
    """Stands in for the computation: the process that does it."""
    return np.array(os.getpid())


def test_isolated_gives_the_same_from_one_process_that_is_kept(monkeypatch):
    image, probabilities = scene()
    here = dense_crf(image, probabilities, 2, isolated=False)
    np.testing.assert_array_equal(dense_crf(image, probabilities, 2, isolated=True), here)
    with monkeypatch.context() as patch:
        patch.setattr(crf, "_infer", where)
        places = {int(dense_crf(image, probabilities, isolated=True)) for _ in range(3)}
    assert len(places) == 1 and os.getpid() not in places
    np.testing.assert_array_equal(dense_crf(image, probabilities, 2, isolated=True), here)
    assert places <= children()


def test_a_crashed_process_is_an_error_and_replaced(monkeypatch):
    image, probabilities = scene()
    before = worker_of_calls(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(crf, "_config", CRFConfig.model_construct)
        with pytest.raises(WorkerDiedError, match=r"dense CRF: a worker process died \(out of memory, a crash"):
            dense_crf(image, probabilities, gaussian_sxy=float("nan"), backend="pydensecrf", isolated=True)
    assert before not in children()
    np.testing.assert_array_equal(
        dense_crf(image, probabilities, 2, isolated=True), dense_crf(image, probabilities, 2, isolated=False)
    )
    assert worker_of_calls(monkeypatch) != before


def test_an_error_of_the_computation_ends_no_process(monkeypatch):
    before = worker_of_calls(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(crf, "_infer", divmod)
        with pytest.raises(TypeError, match="divmod"):
            dense_crf(*scene(), isolated=True)
    assert worker_of_calls(monkeypatch) == before


def test_an_interrupted_call_does_not_hold_up_the_next(monkeypatch):
    before = worker_of_calls(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(crf, "_infer", sleeping)
        alarm = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(KeyboardInterrupt):
                dense_crf(*scene(), isolated=True)
        finally:
            signal.signal(signal.SIGALRM, alarm)
    begun = time.monotonic()
    assert worker_of_calls(monkeypatch) != before
    assert time.monotonic() - begun < 15  # the job goes on for 20 s


def sleeping(*arguments: object) -> None:
    time.sleep(20)


def worker_of_calls(monkeypatch: pytest.MonkeyPatch) -> int:
    """Which process computes."""
    with monkeypatch.context() as patch:
        patch.setattr(crf, "_infer", where)
        return int(dense_crf(*scene(), isolated=True))


FORKED = """
import os, sys
import numpy as np
from wsss_nb import crf

def call():
    return crf.dense_crf(np.zeros((8, 8, 3), np.uint8), np.full((2, 8, 8), 0.5), 1, isolated=True)[0, 0, 0]

if __name__ == "__main__":
    call()
    child = os.fork()
    value = call()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        (worker,) = crf._NATIVE._pool._processes
        print(worker, value)
"""


def test_the_process_ends_with_its_owner_and_is_not_a_forks(tmp_path):
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    answer = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    worker, value = answer.stdout.split()
    assert value == "0.5" and gone(int(worker))


def test_a_script_computes_in_its_own_process(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(crf._NATIVE, "result", refuse)
    dense_crf(*scene(), 1)
    dense_crf(*scene(), 1, backend="torch", isolated=True)  # no native code, nothing to guard against
    with pytest.raises(AssertionError, match="a process was started"):
        dense_crf(*scene(), 1, isolated=True)


CELL = """
import numpy as np
from wsss_nb import crf
from wsss_nb.crf import dense_crf
crf._config = crf.CRFConfig.model_construct  # lets through what is refused
image, scores = np.zeros((20, 20, 3), np.uint8), np.full((2, 20, 20), 0.5)
try:
    dense_crf(image, scores, gaussian_sxy=float("nan"), backend="pydensecrf")
except RuntimeError as error:
    print(str(error)[:32])
"""
AFTER = """
print(image.shape, dense_crf(image, scores, backend="pydensecrf")[0, 0, 0])
"""


def test_a_crash_cannot_kill_a_notebooks_kernel():
    import nbclient  # here, because every worker of these tests imports this module
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in (CELL, AFTER)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    first, second = ("".join(output.text for output in cell.outputs) for cell in notebook.cells)
    assert first == "dense CRF: a worker process died\n"
    assert second == "(20, 20, 3) 0.5\n"  # the same kernel, its variables still there, its CRF at work again


ENDLESS = """
import multiprocessing, sys
import numpy as np
from wsss_nb.crf import dense_crf_many

def jobs():
    while True:
        yield np.zeros((8, 8, 3), np.uint8), np.full((2, 8, 8), 0.5)

if __name__ == "__main__":
    for number, _ in enumerate(dense_crf_many(jobs(), workers=2)):
        if number == 5:
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            sys.stdin.read()  # both workers wait for their next image, which never comes
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2 and not any(gone(pid) for pid in workers)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 60
    while time.monotonic() < end and not all(gone(pid) for pid in workers):
        time.sleep(0.1)
    left = [pid for pid in workers if not gone(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    process.stdout.close()


def test_auto_is_what_the_cluster_can() -> None:
    """A task is asked; what is named is not, the tasks find it or miss it themselves."""
    asked = []

    class Pool:
        def finished(self, function, jobs, name, *, gpu=False):
            asked.append((function, dict(jobs), gpu))
            yield "backend", "cuda"

    assert crf.resolved_crf(CRFConfig(backend="auto"), Pool()).backend == "cuda"
    assert asked == [(crf.resolve_backend, {"backend": ("auto",)}, True)]
    assert crf.resolved_crf(CRFConfig(backend="torch"), Pool()).backend == "torch" and len(asked) == 1


def test_messages_of_very_narrow_kernels() -> None:
    """Pixels thousands of kernel widths apart: tiles grow until they can be numbered, and no pixel meets another."""
    import torch

    from wsss_nb.fast import messages

    features = torch.zeros(2, 3, 5)
    features[..., 0] = torch.arange(6.0).view(2, 3) * 3000
    values = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(messages.BilateralKernel(features, 0)(values), values)
