"""Work in processes that die with their parent, or on a cluster; and computing with a fixed number of threads."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from wsss_nb.system.cluster import Cluster
from wsss_nb.system.errors import WorkerDiedError
from wsss_nb.system.progress import HEADLESS

__all__ = ["KeptWorker", "Workers", "finished_results", "fixed_threads", "follow_parent", "stream_results"]

Result = TypeVar("Result")


Workers: TypeAlias = int | Cluster
"""Where work is spread to: a number of processes of this machine (0 = this process), or a cluster."""

_CAUSES = "out of memory, a crash in native code, or a script without `if __name__ == '__main__':`"


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Compute with ``threads`` threads in this block or decorated function, as a worker would.

    On maps of a few thousand pixels several threads only wait for each other: two have been seen to take forty times as
    long as one on a busy machine.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def follow_parent(parent: int, *, whole_group: bool = False) -> None:
    """Make this process leave as soon as ``parent`` (a process id) is gone, even if that was killed.

    Args:
        parent: process id.
        whole_group: also kill the processes that this one started, where it leads a group of its own.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        if whole_group and hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start(parent: int, threads: int | None, started: Any) -> None:
    """Of a pool's workers that compute on GPUs the i-th takes GPU i, or i modulo their number."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the whole group; the parent ends its workers by itself
    os.environ[HEADLESS] = "1"
    follow_parent(parent)
    if threads is None:
        return
    import torch

    torch.set_num_threads(threads)
    if started is not None and (count := torch.cuda.device_count()):
        with started.get_lock():
            number, started.value = started.value, started.value + 1
        torch.cuda.set_device(number % count)


def _pool(workers: int, threads: int | None, gpu: bool = False) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")  # fork is not safe beside torch's and Jupyter's threads
    started = spawn.Value("i", 0) if gpu else None
    return ProcessPoolExecutor(workers, spawn, _start, (os.getpid(), threads, started))


def finished_results(
    function: Callable[..., Result], jobs: Mapping[str, tuple[Any, ...]], workers: Workers, name: str, *,
    gpu: bool = False
) -> Generator[tuple[str, Result], None, None]:  # fmt: skip
    """``function(*job)`` of every job, ``workers`` at a time in fresh processes: (key, result) as they finish.

    Each computes with one thread, because the number of threads changes the order of floating-point sums: the
    same seed gives the same weights however many workers there are, on this machine or on a cluster's.

    Args:
        function: importable by the workers.
        jobs: its arguments; the keys name the jobs.
        workers: number of processes; 0 computes in this process, a cluster makes each job a task.
        name: of the work, for the error.
        gpu: whether a job wants a GPU: on a cluster one of its own, where there are any; in processes the
            machine's GPUs are dealt out in turn.

    Raises:
        WorkerDiedError: a worker ended without an answer.
    """
    if not isinstance(workers, int):
        yield from workers.finished(function, jobs, name, gpu=gpu)
        return
    if workers == 0:
        with fixed_threads(1):
            yield from ((key, function(*job)) for key, job in jobs.items())
        return
    pool = _pool(min(workers, len(jobs) or 1), 1, gpu)
    try:
        keys = {pool.submit(function, *job): key for key, job in jobs.items()}
        for future in as_completed(keys):
            yield keys[future], future.result()
    except BrokenProcessPool as error:
        died = f"{name}: a worker process was killed (out of memory?)"
        raise WorkerDiedError(f"{died}; what is finished is kept, the same command carries on") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def stream_results(
    function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], workers: Workers, threads: int | None, name: str
) -> Generator[Result, None, None]:
    """``function(*job)`` of many jobs in worker processes, one result per job, in order.

    At most 2 * ``workers`` jobs wait, so jobs of any number stream through. Closing the generator, or killing
    this process, ends the workers after their current job. An interrupt ends this process, which then ends
    the workers.

    Args:
        function: importable by the workers.
        jobs: its arguments.
        workers: number of processes, at least 1, or a cluster, whose tasks have one thread.
        threads: of torch in each; None where ``function`` does not use torch, which then is not imported.
        name: of the work, for the error.

    Raises:
        WorkerDiedError: a worker ended without an answer.
    """
    if not isinstance(workers, int):
        yield from workers.stream(function, jobs, name)
        return
    pool = _pool(workers, threads)
    done = 0
    try:
        submitted = (pool.submit(function, *job) for job in jobs)
        waiting = deque(islice(submitted, 2 * workers + 1))
        while waiting:
            yield waiting.popleft().result()
            done += 1
            waiting.extend(islice(submitted, 1))
    except BrokenProcessPool as error:
        place = f"at job {done} or one of the {2 * workers} after it"
        raise WorkerDiedError(f"{name}: a worker process died {place} ({_CAUSES})") from error
    finally:
        pool.shutdown(cancel_futures=True)


class KeptWorker:
    """A worker process that is kept from one call to the next, where starting it would take longer than the job.

    It starts with the first call and ends with this process, however that ends. One that died is replaced at the
    next call. An interrupt leaves it to finish its job alone; the next call starts another.

    Args:
        name: of the work, for the error.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: ProcessPoolExecutor | None = None
        self._owner = 0

    def result(self, function: Callable[..., Result], *job: Any) -> Result:
        """``function(*job)``, computed by the worker; the function has to be importable by it.

        Raises:
            WorkerDiedError: the worker ended without an answer.
        """
        if self._pool is None or self._owner != os.getpid():  # a forked child has no use for its parent's worker
            self._pool, self._owner = _pool(1, None), os.getpid()
        pool = self._pool
        try:
            return pool.submit(function, *job).result()
        except (BrokenProcessPool, KeyboardInterrupt) as error:
            broken = isinstance(error, BrokenProcessPool)
            pool.shutdown(wait=broken, cancel_futures=True)
            self._pool = None if self._pool is pool else self._pool
            if broken:
                raise WorkerDiedError(f"{self._name}: a worker process died ({_CAUSES})") from error
            raise
