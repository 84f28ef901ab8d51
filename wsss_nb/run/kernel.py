"""The Jupyter kernel of a headless run: this very Python, and gone as soon as its runner is.

Run as ``python -m wsss_nb.run.kernel`` this module is the kernel's side; :func:`kernel_manager` is the runner's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

from wsss_nb.system.progress import HEADLESS
from wsss_nb.system.workers import follow_parent

__all__ = ["kernel_manager", "kill_tree"]


def kernel_manager(started: list[int]) -> Any:
    """A kernel manager class that starts this interpreter, whatever kernels the user has registered.

    Jupyter finds a kernel by name in a search path that JUPYTER_PATH and older installations can shadow, and
    would then run a notebook with another environment's library. Here the command is fixed instead. Nobody
    watches these kernels, so the library prints plain lines there instead of progress bars.

    Args:
        started: receives the process id of every kernel that starts.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    # Its warnings (an unencrypted connection to itself, for one) would litter the run's log.
    command = [sys.executable, "-m", __name__, "--log-level=ERROR", "-f", "{connection_file}"]

    class ThisPythonManager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=command, display_name="Python 3", language="python")

        async def start_kernel(self, *args: Any, **options: Any) -> None:  # type: ignore[override]
            await super().start_kernel(*args, **{"env": {**os.environ, HEADLESS: "1"}, **options})
            started.append(self.provisioner.process.pid)  # type: ignore[union-attr]

    return ThisPythonManager


def kill_tree(pid: int) -> None:
    """Kill a kernel and every process it started; nothing happens when they are gone already."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        kernel = psutil.Process(pid)
        for process in [*kernel.children(recursive=True), kernel]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    if hasattr(os, "killpg"):  # a kernel leads a group; what it started outlives it there if it has died by itself
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def main() -> None:
    """Be a kernel; its parent is the runner, which may have gone before one could look."""
    follow_parent(int(os.environ.get("JPY_PARENT_PID", os.getppid())), whole_group=True)
    # `python -m` puts the working directory first in the search path; a notebook must not import from there.
    if not getattr(sys.flags, "safe_path", False) and sys.path and sys.path[0] in {"", os.getcwd()}:
        del sys.path[0]
    from ipykernel.kernelapp import IPKernelApp

    class Kernel(IPKernelApp):
        def init_poller(self) -> None:
            """Nothing: ipykernel's own watch of the parent would leave this process's children behind."""

    Kernel.launch_instance()


if __name__ == "__main__":
    main()
