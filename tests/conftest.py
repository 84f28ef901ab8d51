"""Every test computes with one thread: sums come out the same everywhere, and the cores are shared."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import pytest
import torch

torch.set_num_threads(1)

# Triton, whose interpreter stands in for a GPU, exists for Linux only.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_triton_*.py"]


# Files that take longer than a few seconds; `make test-fast` leaves them out.
SLOW = {
    "benchmarks", "benchmarks_crf", "benchmarks_training", "browser", "checks", "cli", "cluster", "course", "data_download",
    "data_msrc", "data_voc2012", "evaluate", "evaluate_published", "figures", "models_golden", "notebooks", "paper_profile",
    "pipeline", "profiles_paper", "reproducible", "run_manifest", "runner", "stages_loop", "stages_processes", "teach",
    "teach_explorers", "triton_crf", "triton_dispatch", "triton_similarity", "verify", "workers",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--screenshots``: see test_browser.py."""
    parser.addoption("--screenshots", metavar="DIR", help="where the browser tests put the explorers' portraits")


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process of its own in which Triton's kernels run on the CPU: no other test shall meet them."""
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1"):
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(int).result()  # starts the process
    yield pool
    pool.shutdown()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Code under test may set the number of threads; the next test starts with one again."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls that would wait for a GPU, were the tensors there."""
    called: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def method(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            called.append(name)
            return original(tensor, *arguments, **options)

        return method

    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    return called
