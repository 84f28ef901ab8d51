"""Tasks on a Ray cluster: a task whose worker dies is tried again, results come as they finish or in order.

A cluster stands wherever a number of worker processes may stand (``wsss_nb.system.workers.Workers``). Its machines
must see the run's folder and the data under the same paths and have the same code installed; every task looks
first, so a machine that joins later is checked as well.
"""

import functools
import logging
import os
import re
import socket
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wsss_nb.system.code_version import code_version
from wsss_nb.system.errors import WorkerDiedError, expecting, require
from wsss_nb.system.files import atomic_path

__all__ = ["ADDRESS", "GPUS", "RETRIES", "Cluster", "connect", "requested_cluster", "use_cluster"]

Result = TypeVar("Result")

ADDRESS = "WSSS_NB_RAY_ADDRESS"
"""Environment variable with the cluster's address, so that notebooks' kernels know it too."""
GPUS = "WSSS_NB_RAY_GPUS"
"""Environment variable with the GPUs of one training."""
RETRIES = 3
"""How often a task is tried again after its worker died."""

_MARKER = ".cluster"
_TOKEN = uuid.uuid4().hex


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that is connected to when the first task is given to it.

    Attributes:
        address: as for :func:`connect`.
        shared: folder that all machines must see; a marker file in it tells.
        needed: further folders that must be there on every machine.
        gpus: GPUs of a task that trains, where the cluster has any: a share below 1, or a whole number.
        patience: seconds until a folder that is not seen is an error; network file systems take a moment.
    """

    address: str
    shared: Path
    needed: tuple[Path, ...] = ()
    gpus: float = 1.0
    patience: float = 20.0

    def finished(
        self, function: Callable[..., Result], jobs: Mapping[str, tuple[Any, ...]], name: str, *, gpu: bool = False
    ) -> Generator[tuple[str, Result], None, None]:
        """``function(*job)`` of every job as a task: (key, result) as they finish.

        Args:
            function: importable on every machine.
            jobs: its arguments; the keys name the tasks.
            name: of the work, for errors and Ray's own displays.
            gpu: whether the tasks want a GPU.

        Raises:
            WorkerDiedError: a task's worker died ``RETRIES`` + 1 times; the message names the task.
            InputError: no cluster there, or a machine without the folders or with other code.
            Exception: what ``function`` raised, which is not tried again.
        """
        with self._tasks(function, name, gpu) as (submit, answer):
            waiting = {submit(key, job): key for key, job in jobs.items()}
            while waiting:
                (reference,), _ = connect(self.address).wait(list(waiting), num_returns=1)
                yield waiting.pop(reference), answer(reference)

    def stream(
        self, function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], name: str
    ) -> Generator[Result, None, None]:
        """:meth:`finished` in the order of the jobs, which are taken as results are used.

        At most two jobs per CPU of the cluster wait, so jobs of any number and size stream through.
        """
        with self._tasks(function, name, gpu=False) as (submit, answer):
            most = 2 * max(1, int(connect(self.address).cluster_resources().get("CPU", 1)))
            submitted = (submit(f"job {number}", job) for number, job in enumerate(jobs))
            waiting = deque(islice(submitted, most + 1))
            while waiting:
                yield answer(waiting.popleft())
                waiting.extend(islice(submitted, 1))

    @contextmanager
    def _tasks(
        self, function: Callable[..., Any], name: str, gpu: bool
    ) -> Iterator[tuple[Callable[[str, tuple[Any, ...]], Any], Callable[[Any], Any]]]:
        """Functions that submit a task and that wait for its result; what is unfinished at the end is cancelled."""
        ray = connect(self.address)
        share = self._share(ray) if gpu else 0
        place = (_mark(self.shared), _TOKEN, _module_code(function.__module__))
        task = ray.remote(num_cpus=1, num_gpus=share, max_retries=RETRIES)(_call)
        keys: dict[Any, str] = {}

        def submit(key: str, job: tuple[Any, ...]) -> Any:
            reference = task.options(name=f"{name}: {key}").remote(self, place, function, *job)
            keys[reference] = key
            return reference

        def answer(reference: Any) -> Any:
            try:
                value = _writable(ray.get(reference))
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except ray.exceptions.RayError as error:
                reason = f"{type(error).__name__}; out of memory, or a crash in native code?"
                died = f"{name}: {keys[reference]}: its worker died and so did {RETRIES} more ({reason})"
                raise WorkerDiedError(f"{died}; what is finished is kept, the same command carries on") from error
            del keys[reference]  # and with it the value that Ray keeps
            return value

        try:
            yield submit, answer
        finally:
            # Only what runs or waits: to cancel a task that has just answered can crash this process (Ray 2.60).
            unfinished = ray.wait(list(keys), num_returns=len(keys), timeout=0)[1] if keys else []
            for reference in unfinished:
                ray.cancel(reference, force=True)

    def _share(self, ray: Any) -> float:
        most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        fits = f"at most the {most:g} of one machine of the cluster, got {self.gpus:g}"
        require(most == 0 or self.gpus <= most, f"--ray-gpus: expected {fits}")
        return self.gpus if most else 0

    def check_machine(self, marker: Path, token: str, code: tuple[str, str] | None) -> None:
        """Look for what a task must find where it runs: the folders, and the run's code."""
        node = f"machine {socket.gethostname()}"
        deadline = time.monotonic() + self.patience
        while missing := self._missing(marker, token):
            expected = "a folder that all machines of the Ray cluster share, got another or none"
            require(time.monotonic() < deadline, f"{missing[0]}: expected {expected} on {node}")
            time.sleep(0.5)
        expected = "the same code of wsss-nb as the run's, got another; install one version on all machines"
        require(code is None or _module_code(code[0]) == code, f"{node}: expected {expected}")

    def _missing(self, marker: Path, token: str) -> list[Path]:
        with suppress(OSError):
            if marker.read_text() == token:
                return [folder for folder in self.needed if not folder.is_dir()]
        return [self.shared]


def _call(cluster: Cluster, place: tuple[Any, ...], function: Callable[..., Any], *arguments: Any) -> Any:
    """The task: look around, then work as a worker process of this machine would, with one thread."""
    os.environ.pop(ADDRESS, None)  # a task makes no tasks
    os.environ["WSSS_NB_HEADLESS"] = "1"
    cluster.check_machine(*place)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return function(*(_writable(argument) for argument in arguments))


def _writable(value: Any) -> Any:
    """Ray's arrays lie in memory it shares between processes and cannot be written to."""
    return np.array(value) if isinstance(value, np.ndarray) else value


def _mark(folder: Path) -> Path:
    with atomic_path(folder / _MARKER) as temporary:
        temporary.write_text(_TOKEN)
    return folder / _MARKER


@functools.cache
def _module_code(module: str) -> tuple[str, str] | None:
    return (module, code_version(module)) if module.startswith("wsss_nb.") else None


def connect(address: str) -> Any:
    """Ray, connected to a cluster; the connection there is stays.

    Args:
        address: "auto" (the cluster this machine belongs to), "local" (a cluster of this machine alone, which ends
            with this process), HOST:PORT, or ray://HOST:PORT for a cluster this machine does not belong to.

    Raises:
        InputError: Ray is not installed, the address is none of these, or no cluster answers there.
    """
    with expecting("Ray to be installed (pip install 'wsss-nb[cluster]')", "--ray-address", ImportError):
        import ray
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"logging_level": logging.WARNING}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        # memory that runs out is a death like any other; Ray alone would try again for ever
        options |= {"include_dashboard": False, "_system_config": {"task_oom_retries": RETRIES}}
    elif address != "auto":
        _check_answer(address)
    with expecting(f"a Ray cluster at {address!r}", "--ray-address"):
        ray.init(address, **options)
    return ray


def _check_answer(address: str) -> None:
    """Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    is_place = host.strip("[]") != "" and "/" not in host and port.isdecimal()
    require(is_place, f"--ray-address: expected auto, local, HOST:PORT or ray://HOST:PORT, got {address!r}")
    with expecting(f"a Ray cluster at {address!r}", "--ray-address"):
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def use_cluster(address: str, gpus: float | None = None) -> None:
    """Connect, and let the runs that this process and its children open use the cluster.

    Raises:
        InputError: as :func:`connect`, or ``gpus`` is neither a share nor a whole number.
    """
    if gpus is not None:
        os.environ[GPUS] = str(_gpus(str(gpus)))
    ray = connect(address)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address if address == "local" else address


def requested_cluster(shared: Path, *needed: Path) -> Cluster | None:
    """The cluster that :func:`use_cluster` or the environment names, or None.

    Raises:
        InputError: the number of GPUs is none.
    """
    address = os.environ.get(ADDRESS)
    if not address:
        return None
    return Cluster(address, shared, needed, _gpus(os.environ.get(GPUS, "1")))


def _gpus(text: str) -> float:
    fits = re.fullmatch(r"\d*\.?\d+", text) is not None and (float(text) <= 1 or float(text).is_integer())
    require(fits, f"--ray-gpus: expected a share from 0 to 1 or a whole number of GPUs, got {text}")
    return float(text)
