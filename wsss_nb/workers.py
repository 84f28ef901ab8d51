"""Worker processes that die with their parent, and computing with a fixed number of threads."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

__all__ = ["WorkerDiedError", "fixed_threads", "follow_parent", "worker_pool"]


class WorkerDiedError(RuntimeError):
    """A worker process ended without an answer (killed, out of memory, crash in native code)."""


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Compute with ``threads`` threads in this block, as a worker of :func:`worker_pool` would."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def follow_parent(parent: int) -> None:
    """Make this process leave as soon as ``parent`` (a process id) is gone, even if that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start(parent: int, threads: int) -> None:
    import torch

    os.environ["WSSS_NB_HEADLESS"] = "1"
    torch.set_num_threads(threads)
    follow_parent(parent)


def worker_pool(workers: int, threads: int = 1) -> ProcessPoolExecutor:
    """A pool of fresh (spawned) processes, each computing with ``threads`` threads.

    The number of threads is fixed because it changes the order of floating-point sums: the same seed gives
    the same weights however many workers there are.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(), threads),
    )
