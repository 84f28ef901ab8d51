"""Every test computes with one thread: sums come out the same everywhere, and the cores are shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Code under test may set the number of threads; the next test starts with one again."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
