"""Worker processes that die with their parent and compute with a fixed number of threads."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

__all__ = ["WorkerDiedError", "in_order", "worker_pool"]


class WorkerDiedError(RuntimeError):
    """A worker process ended without an answer (killed, out of memory, crash in native code)."""


def _follow_parent(parent: int, threads: int) -> None:
    """Set the thread count and leave as soon as the parent is gone, even if it was killed."""
    import torch

    os.environ["WSSS_NB_HEADLESS"] = "1"
    torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
        initializer=_follow_parent,
        initargs=(os.getpid(), threads),
    )


def in_order(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """Yield ``function(*job)`` for every job, in order, computed by ``workers`` processes.

    At most ``2 * workers`` jobs are under way, so that a long stream of images never sits in memory.

    Raises:
        WorkerDiedError: a worker crashed; the caller's process is unharmed.
    """
    pool = worker_pool(workers)
    try:
        waiting: dict[int, Any] = {}
        finished: dict[int, Any] = {}
        following = 0
        for number, job in enumerate(jobs):
            waiting[number] = pool.submit(function, *job)
            while len(waiting) >= 2 * workers:
                wait(waiting.values(), return_when=FIRST_COMPLETED)
                for done in [key for key, future in waiting.items() if future.done()]:
                    finished[done] = waiting.pop(done).result()
            while following in finished:
                yield finished.pop(following)
                following += 1
        for key in sorted(waiting):
            finished[key] = waiting.pop(key).result()
        for key in sorted(finished):
            yield finished[key]
    except BrokenProcessPool as error:
        raise WorkerDiedError(
            f"{function.__name__}: a worker process died without an answer (killed, out of memory or a crash in "
            "native code); finished work is kept, run the same command again"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
