"""When the fused kernels are chosen, that all works without them, and that they compile for GPUs."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from test_crf import oracle as oracle_crf
from test_crf import scene
from test_similarity import assert_equal, example, oracle, ours

from benchmarks import gpu
from benchmarks.references import all_pairs_crf
from wsss_nb import fast
from wsss_nb.cli import _parser, _profile
from wsss_nb.crf import CRFConfig, dense_crf_torch
from wsss_nb.fast.launch import Variant
from wsss_nb.fast.pairwise import fused_kernels
from wsss_nb.run.profiles import load_profile
from wsss_nb.similarity import feature_similarity_loss
from wsss_nb.system.files import read_json

CPU = torch.device("cpu")


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The answer is kept otherwise; and a kernel module loaded before would be found in spite of all."""
    fused_kernels.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delattr(fast, "kernels", raising=False)
    monkeypatch.delitem(sys.modules, "wsss_nb.fast.kernels", raising=False)
    yield monkeypatch
    monkeypatch.undo()
    fused_kernels.cache_clear()


def test_on_a_cpu_nothing_of_triton_is_even_imported():
    code = """
import sys, numpy as np, torch
from wsss_nb.crf import dense_crf_torch
from wsss_nb.similarity import feature_similarity_loss
feature_similarity_loss(torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4), 2.5, 1.0)
dense_crf_torch(np.zeros((4, 4, 3), np.uint8), np.full((2, 4, 4), 0.5))
sys.exit('triton' in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_without_triton_the_torch_operators_do_the_work(asked_anew):
    asked_anew.setitem(sys.modules, "triton", None)
    assert fused_kernels(CPU) is None
    cam, image = example(0, 1, 3, 6, 7, dtype=torch.float32)
    assert_equal(ours(cam, image, 2.5, 2.0), oracle(cam, image, 2.5, 2.0), rtol=1e-5)
    photograph, scores = scene()
    config = CRFConfig(iterations=1)
    np.testing.assert_array_equal(
        dense_crf_torch(photograph, scores, config), dense_crf_torch(photograph, scores, config, cell=1)
    )


def test_kernels_that_do_not_run_are_named_in_one_warning(asked_anew):
    def probe(device: torch.device, launch: object) -> None:
        raise RuntimeError("no C compiler")

    broken = SimpleNamespace(probe=probe)
    asked_anew.setattr(fast, "kernels", broken, raising=False)
    asked_anew.setitem(sys.modules, "wsss_nb.fast.kernels", broken)
    cam, image = example(0, 1, 2, 3, 3, dtype=torch.float32)
    with pytest.warns(UserWarning, match="Triton kernels do not run on cpu, .*: no C compiler") as caught:
        losses = [feature_similarity_loss(cam, image, 2.5, 2.0) for _ in range(2)]
    assert len(caught) == 1 and torch.equal(*losses)


@pytest.mark.parametrize(
    ("kind", "hip", "capability", "expected"),
    [
        ("cuda", None, (9, 0), True),
        ("cuda", None, (8, 0), True),
        ("cuda", None, (7, 5), False),
        ("cuda", "6.2", (9, 4), False),
        ("cpu", None, (9, 0), False),
    ],
)
def test_which_devices_have_the_tensor_cores(asked_anew, kind, hip, capability, expected):
    asked_anew.delenv("TRITON_INTERPRET")
    asked_anew.setattr(torch.version, "hip", hip)
    asked_anew.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    probed = []
    working = SimpleNamespace(probe=lambda *arguments: probed.append(arguments))
    asked_anew.setattr(fast, "kernels", working, raising=False)
    device = torch.device(kind)
    assert fused_kernels(device) is (working if expected else None)
    assert probed == ([(device, 16)] if expected else [])


def test_a_variant_that_does_not_run_is_replaced_and_the_others_stay(asked_anew):
    """What a GPU refuses (too much shared memory, say) shows at its first launch, long after another one ran."""
    launched = []

    def probe(device: torch.device, launch: Variant | int) -> None:
        if launch == 32 or (isinstance(launch, Variant) and launch.columns == 32):
            raise RuntimeError("out of resource: shared memory")

    def pair_sums(cam: torch.Tensor, *arguments: object) -> tuple[torch.Tensor, ...]:
        launched.append(arguments[-1])
        zero = torch.zeros((), dtype=torch.float64)
        return zero, torch.zeros_like(cam), zero, zero

    kernels = SimpleNamespace(probe=probe, pair_sums=pair_sums, GaussianSum=None)
    asked_anew.setattr(fast, "kernels", kernels, raising=False)
    asked_anew.setitem(sys.modules, "wsss_nb.fast.kernels", kernels)
    assert fused_kernels(CPU) is kernels
    cam, image = example(0, 1, 21, 9, 8, dtype=torch.float32)
    with pytest.warns(UserWarning, match="Triton kernels do not run on cpu, .*: out of resource"):
        result = ours(cam, image, 2.5, 2.0)
    assert_equal(result, oracle(cam, image, 2.5, 2.0), rtol=1e-5)
    assert not launched
    ours(cam[:, :3], image, 2.5, 2.0)
    assert launched == [Variant(colours=3, tile_h=8, tile_w=8, columns=16, with_scalars=True)]
    photograph, scores = scene(classes=21)
    config = CRFConfig(iterations=1)
    with pytest.warns(UserWarning, match="out of resource"):
        result = dense_crf_torch(photograph, scores, config)
    np.testing.assert_array_equal(result, dense_crf_torch(photograph, scores, config, cell=1))


@pytest.mark.parametrize(
    ("K", "H", "W", "expected"),
    [
        (1, 56, 56, (8, 8, 16)),
        (14, 9, 8, (8, 8, 16)),
        (15, 8, 8, (8, 8, 32)),
        (21, 5, 300, (8, 8, 32)),
        (91, 8, 7, (8, 8, 64)),
        (2, 1, 300, (1, 64, 16)),
        (2, 300, 1, (64, 1, 16)),
        (2, 3, 20, (4, 16, 16)),
    ],
)
def test_what_is_compiled_for_a_map(K, H, W, expected):
    variant = Variant.of(torch.empty(2, K, H, W), torch.empty(2, 3, H, W), with_scalars=False)
    assert variant == (3, *expected, False)
    assert variant.tile_h * variant.tile_w == 64
    # What is tried on a map of one tile is what is launched on the whole map.
    tile = torch.empty(1, variant.columns - 2, variant.tile_h, variant.tile_w)
    assert Variant.of(tile, tile[:, :3].expand(1, 3, -1, -1), with_scalars=False) == variant


def probed(launch: Variant | int) -> list[tuple[str, int, bool]]:
    """In the interpreting process: kernel, columns and scalars of all that a trial launches."""
    kernels = fused_kernels(CPU)
    found = []

    def spy(name: str, columns: str) -> Any:
        kernel = getattr(kernels, name)

        class Launcher:
            def __getitem__(self, grid: object) -> Any:
                def launch(*arguments: object, **options: Any) -> None:
                    found.append((name, options[columns], options.get("SCALARS", False)))
                    kernel[grid](*arguments, **options)

                return launch

        return mock.patch.object(kernels, name, Launcher())

    with spy("_similarity_kernel", "KC"), spy("_gaussian_kernel", "C"):
        kernels.probe(CPU, launch)
    return found


@pytest.mark.parametrize("columns", [16, 32, 64])
def test_a_trial_launches_what_it_stands_for(interpreter, columns):
    for learned in (False, True):
        variant = Variant(3, 8, 8, columns, learned)
        assert interpreter.submit(probed, variant).result() == [("_similarity_kernel", columns, learned)]
    tried = interpreter.submit(probed, columns).result()
    assert tried == [("_gaussian_kernel", c, False) for c in (16, 32, 64) if c <= columns]


# --- compilation, which needs no GPU


def compiled(capability: int, columns: int, learned: bool) -> list[tuple[str, int, str]]:
    """Name, bytes of shared memory and assembly of the kernels for a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from wsss_nb.fast import kernels

    sizes = {"C": 3, "TH": 8, "TW": 8, "KC": columns}
    variants = [
        (kernels._similarity_pack, sizes),
        (kernels._similarity_kernel, {**sizes, "PJ": 32 if learned else 64, "SCALARS": learned}),
        (kernels._gaussian_kernel, {"P": 64, "C": columns}),
    ]
    scalars = {"c": "fp32", "narrow": "fp32", "peak": "fp32", "reach": "fp32", "first": "*i64", "near": "*i32"}
    found = []
    for kernel, constants in variants:
        signature = {
            name: "constexpr" if name in constants else scalars.get(name, "i32" if name in "KHWN" else "*fp32")
            for name in kernel.arg_names
        }
        source = ASTSource(kernel, signature=signature, constexprs=constants)
        target = GPUTarget("cuda", capability, 32)
        binary = triton.compile(source, target=target, options=kernels._LAUNCH)
        found.append((kernel.__name__, binary.metadata.shared, binary.asm["ptx"]))
    return found


@pytest.mark.parametrize(("capability", "columns", "learned", "shared"), [(90, 32, True, 227), (80, 16, False, 163)])
def test_kernels_compile_for_gpus_and_use_tensor_cores(tmp_path, capability, columns, learned, shared):
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with mock.patch.dict(os.environ, {**without, "TRITON_CACHE_DIR": str(tmp_path)}, clear=True):
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        job = pool.submit(compiled, capability, columns, learned)
    with pool:
        kernels = job.result()
    assert [name for name, _, _ in kernels] == ["_similarity_pack", "_similarity_kernel", "_gaussian_kernel"]
    for name, used, assembly in kernels:
        assert used <= shared * 1024, name
        products = re.findall(r"\b(?:wgmma\.mma_async|mma)\.sync\.aligned\.\S*tf32\S*", assembly)
        assert bool(products) == (name != "_similarity_pack"), name
        assert not re.search(r"\b(atom|red)\.global", assembly), name  # same input, same bits


# --- benchmark


def test_without_a_gpu_the_benchmark_says_so_and_ends_with_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    message = capsys.readouterr()
    assert message.err == f"device: expected a CUDA device, got none (torch {torch.__version__})\n"
    assert not message.out and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        gpu.main(["--repeats", "0"])
    assert end.value.code == 2 and "--repeats: expected at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--steps", "-1"])
    assert "--steps: expected at least 0, got -1" in capsys.readouterr().err


def test_operations_are_counted():
    """K 21, RGB: delta 5, f 8, w 7, M 1, its product with 23 columns 46; g the same again, two sums 8."""
    assert gpu.operations_per_pair(21) == gpu.Operations(products=46, others=21)
    assert gpu.operations_per_pair(21, learned=True) == (92, 29)


def test_shares_of_both_limits_by_hand():
    """30 GFLOP thrice at 300 GFLOP/s take 0.3 s, 20 others at 100 take 0.2 s: of 0.5 s 60 and 40 %."""
    limits = gpu.Limits(tf32=300e9, float32=100e9)
    shares = limits.shares(gpu.Operations(products=3 * 10**9, others=2 * 10**9).times(10), seconds=0.5)
    assert shares.pop("operations") == {"products": 30 * 10**9, "others": 20 * 10**9}
    expected = {"share_of_tf32_limit": 0.6, "share_of_float32_limit": 0.4, "share_of_limit": 0.6}
    assert shares == pytest.approx(expected)


def test_the_reference_of_the_crf_is_the_float64_oracle():
    weights = {"bilateral_compat": 6, "gaussian_compat": 2}
    narrow = CRFConfig(iterations=3, bilateral_sxy=4, bilateral_srgb=5, gaussian_sxy=0.5, **weights)
    for classes, config in ((2, CRFConfig()), (4, narrow)):
        image, probabilities = scene(1, classes)
        expected = oracle_crf(image, probabilities, config)
        np.testing.assert_allclose(all_pairs_crf(image, probabilities, config), expected, rtol=1e-9, atol=1e-12)


def crf_of_a_wrong_kernel(axes: int) -> float:
    """In the interpreting process: the CRF's error where one of the kernels is a hundredth too narrow."""
    kernels = fused_kernels(CPU)
    original = kernels.GaussianSum

    def wrong(features: torch.Tensor) -> Any:
        return original(1.01 * features if features.shape[-1] == axes else features)

    with mock.patch.object(kernels, "GaussianSum", wrong):
        return gpu.marginal_error(gpu.crf_scene(14, 18, 3), CPU)


def test_a_wrong_kernel_shows_in_the_marginals(interpreter):
    position, bilateral, right = (interpreter.submit(crf_of_a_wrong_kernel, axes).result() for axes in (2, 5, 0))
    assert right < 2e-5 and min(position, bilateral) > 5e-3


def test_the_middle_of_a_scene_is_compared(monkeypatch):
    seen = []

    def reference(image, scores, config, device):
        seen.append((image, scores))
        return scores + 0.25

    monkeypatch.setattr(gpu, "dense_crf_torch", lambda image, scores, config, device: scores)
    monkeypatch.setattr(gpu, "all_pairs_crf", reference)
    image, scores = scene(0, 3, 70, 101)
    assert gpu.marginal_error((image, scores), CPU) == pytest.approx(0.25)
    np.testing.assert_array_equal(seen[0][0], image[5:65, 10:90])
    np.testing.assert_array_equal(seen[0][1], scores[:, 5:65, 10:90])
    gpu.marginal_error((image[:9, :8], scores[:, :9, :8]), CPU)
    assert seen[1][0].shape == (9, 8, 3)


@pytest.mark.parametrize(
    ("error", "marginal_error", "code"),
    [(1e-6, 9e-5, 0), (1e-6, 2e-4, 1), (2e-5, 1e-6, 1), (1e-6, None, 1), (None, 1e-6, 1)],
)
def test_a_wrong_result_is_exit_code_1(monkeypatch, tmp_path, error, marginal_error, code):
    stands_in(monkeypatch, "GPU")
    monkeypatch.setattr(gpu, "fused_kernels", lambda device: gpu)
    monkeypatch.setattr(gpu, "table", lambda rows: "")
    monkeypatch.setattr(gpu, "similarity_row", lambda *_: {"error": 1e-6})
    monkeypatch.setattr(gpu, "crf_row", lambda *_: {"error": error, "marginal_error": marginal_error})
    assert gpu.main(["--steps", "0", "--json", str(tmp_path / "gpu.json")]) == code


def stands_in(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A GPU of this name that nothing runs on."""
    for attribute, value in {"is_available": True, "current_device": 0, "get_device_name": name}.items():
        monkeypatch.setattr(torch.cuda, attribute, lambda *_, value=value: value)
    monkeypatch.setattr(gpu, "matrix_product_rate", lambda *_: 1e12)
    monkeypatch.setattr(gpu, "manifest", lambda: {})


def small_run(path: Path) -> tuple[int, str]:
    """The whole command in the interpreting process, which stands in for a GPU."""
    import contextlib
    import io

    text = io.StringIO()
    small = {"B": 1, "K": 3, "SIZE": 16, "HEIGHT": 6, "WIDTH": 9}
    with (
        mock.patch.multiple(gpu, **small, matrix_product_rate=lambda *_: 1e12),
        mock.patch.multiple(
            torch.cuda, is_available=lambda: True, current_device=lambda: 0, get_device_name=lambda device: "GPU"
        ),
        mock.patch.object(torch, "device", lambda *arguments: CPU),
        contextlib.redirect_stdout(text),
    ):
        return gpu.main(["--repeats", "1", "--steps", "0", "--json", str(path)]), text.getvalue()


def test_the_benchmark_checks_its_numbers_and_reports(interpreter, tmp_path):
    code, text = interpreter.submit(small_run, tmp_path / "gpu.json").result()
    assert code == 0
    report = read_json(tmp_path / "gpu.json")
    fixed, learned, crf = report["rows"]
    for row in report["rows"]:
        assert 0 < row["error"] < 1e-5
        assert row["share_of_limit"] == max(row["share_of_tf32_limit"], row["share_of_float32_limit"]) > 0
    assert "manifest" in report and report["matrix_product_flops"] == {"tf32": 1e12, "float32": 1e12}
    pairs = 256**2  # all of a 16x16 map lie within the window
    assert fixed["operations"] == gpu.operations_per_pair(3).times(pairs)._asdict()
    assert learned["operations"] == gpu.operations_per_pair(3, learned=True).times(pairs)._asdict()
    assert crf["operations"] == {"products": 64**2 * (10 * 6 + 2), "others": 64**2 * 11 * 15}
    assert 0 < crf["marginal_error"] < 1e-5
    assert crf["labels_that_agree"] > 0.5 and crf["met"] == (crf["seconds"] <= 1)
    lines = text.splitlines()
    assert lines[0].startswith("GPU, torch") and {line.count("|") for line in lines[1:]} == {12}


def test_a_gpu_without_the_kernels_is_measured_and_no_row_is_lost(monkeypatch, tmp_path, capsys):
    """A GPU of capability 7.0 that breaks down at the last but one of six rows."""
    path = tmp_path / "gpu.json"
    stands_in(monkeypatch, "V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    monkeypatch.setattr(gpu, "fused_kernels", lambda device: None)
    wanted = [(stage, precision) for precision in ("float32", "float16") for stage in gpu.STAGES]
    written = []

    def row(stage, profile, device, precision, repeats):
        written.append(len(read_json(path)["training"]))
        if len(written) == broken:
            raise RuntimeError("the GPU is lost")
        return {"stage": stage, "precision": precision, "batch_size": 8, "size": 448, "out_of_memory": "GPU"}

    monkeypatch.setattr(gpu, "training_row", row)
    broken = 5
    with pytest.raises(RuntimeError, match="the GPU is lost"):
        gpu.main(["--json", str(path)])
    assert written == [0, 1, 2, 3, 4]
    report = read_json(path)
    assert [(found["stage"], found["precision"]) for found in report["training"]] == wanted[:4]
    assert report["rows"] == [] and report["note"] in capsys.readouterr().out
    assert report["note"] == "Triton's kernels do not run on V100: their rows are left out"
    broken = 0
    assert gpu.main(["--json", str(path)]) == 0
    assert len(read_json(path)["training"]) == 6


def test_kernel_rows_out_of_memory_are_rows(monkeypatch, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    stands_in(monkeypatch, "GPU")
    monkeypatch.setattr(gpu, "fused_kernels", lambda device: gpu)

    def fails(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for name in ("similarity_row", "crf_row"):
        monkeypatch.setattr(gpu, name, fails)
    assert gpu.main(["--steps", "0", "--json", str(path)]) == 0
    rows = read_json(path)["rows"]
    assert [row["out_of_memory"] for row in rows] == ["CUDA out of memory"] * 3
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {12}
    assert sum("| out of memory |" in line for line in table) == 3
    assert "mu and sigma learned" in table[3] and "dense CRF" in table[4]


def test_the_command_for_figure_2_on_photographs_is_the_whole_of_it():
    """lambda 0, .25, .5, .75, 1 x FSL x 3 seeds, average pooling and SEAM; ours and SEAM through all stages."""
    program, *words = gpu.FIGURE_2.split()
    options = _parser(words).parse_args(words)
    profile = _profile(options)
    assert program == "wsss-nb" and options.figures == "figures/photos" and options.only == ()
    grid = profile.grid()
    lams = {(point.lam, point.fsl) for point in grid.values() if point.lam is not None}
    assert lams == {(lam, fsl) for lam in (0, 0.25, 0.5, 0.75, 1) for fsl in (False, True)}
    assert len(grid) == 12 and profile.seeds == (0, 1, 2) and profile.refine == ("lambda1_fsl", "seam")
    assert profile.cam == load_profile("photos").cam


def test_the_rate_of_a_matrix_product():
    before = torch.get_float32_matmul_precision()
    for precision in ("high", "highest"):
        assert 1e6 < gpu.matrix_product_rate(CPU, precision, size=64) < 1e16
    assert torch.get_float32_matmul_precision() == before
