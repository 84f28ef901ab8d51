"""Every test computes with one thread: sums come out the same everywhere, and the cores are shared."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import pytest
import torch

torch.set_num_threads(1)

# Triton, whose interpreter stands in for a GPU, exists for Linux only.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_triton_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--screenshots``: see test_browser.py."""
    parser.addoption(
        "--screenshots", metavar="DIR", help="where the browser tests put the explorers' portraits"
    )


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
