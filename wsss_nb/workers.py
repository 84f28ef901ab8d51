"""Worker processes that die with their parent, and computing with a fixed number of threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["WorkerDiedError", "fixed_threads", "follow_parent", "stream_results", "worker_pool"]

Result = TypeVar("Result")


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

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers by itself
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


def stream_results(
    function: Callable[..., Result],
    jobs: Iterable[tuple[Any, ...]],
    workers: int,
    threads: int | None,
    name: str,
) -> Generator[Result, None, None]:
    """``function(*job)`` of many jobs in worker processes, one result per job, in order.

    At most 2 * ``workers`` jobs wait, so jobs of any number stream through. Closing the generator, or killing
    this process, ends the workers after their current job. An interrupt ends this process, which then ends
    the workers.

    Args:
        function: importable by the workers.
        jobs: its arguments.
        workers: number of processes, at least 1.
        threads: of torch in each; None where ``function`` does not use torch, which then is not imported.
        name: of the work, for the error.

    Raises:
        WorkerDiedError: a worker ended without an answer.
    """
    spawn = multiprocessing.get_context("spawn")  # fork is not safe beside torch's and Jupyter's threads
    pool = ProcessPoolExecutor(workers, spawn, _start_streaming, (os.getpid(), threads))
    waiting: deque[Future[Result]] = deque()
    done = 0
    try:
        for job in jobs:
            waiting.append(pool.submit(function, *job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
                done += 1
        while waiting:
            yield waiting.popleft().result()
            done += 1
    except BrokenProcessPool as error:
        place = f"at job {done} or one of the {2 * workers} after it"
        causes = "out of memory, a crash in native code, or a script without `if __name__ == '__main__':`"
        raise WorkerDiedError(f"{name}: a worker process died {place} ({causes})") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_streaming(parent: int, threads: int | None) -> None:
    # An interrupt reaches the whole process group; the parent ends the workers by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent(parent)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
