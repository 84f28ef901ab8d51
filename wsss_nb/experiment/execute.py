"""Execute one notebook in a kernel of its own, and say in one line what went wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wsss_nb.experiment.kernel import kernel_manager, kill_group
from wsss_nb.experiment.notebooks import Notebook, Parameter, own_cells
from wsss_nb.experiment.progress import Progress, duration

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["KernelDiedError", "NotebookError", "execute"]


class NotebookError(RuntimeError):
    """A notebook did not run to its end; the message names the cell and the error."""


class KernelDiedError(NotebookError):
    """The notebook's kernel ended without an error of its own (killed, out of memory, native crash)."""


def execute(
    notebook: Notebook,
    values: Mapping[str, Parameter],
    target: Path,
    progress: Progress,
    timeout: float | None = None,
) -> None:
    """Run a notebook with papermill and put the executed copy at ``target``, also when it failed.

    While it runs, the copy is a hidden file beside ``target``, saved after every cell. Kernel and all
    its processes are gone when this returns or raises, whatever the reason.

    Args:
        notebook: what to run.
        values: its parameters, see `check_parameters`.
        target: where the executed notebook goes.
        progress: told about cells and printed lines.
        timeout: seconds for the whole notebook, or None.

    Raises:
        NotebookError: a cell raised, or the time was up.
        KernelDiedError: the kernel died.
    """
    import papermill
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what matters is raised and reported below
    running = target.with_name(f".{target.stem}.running.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    running.unlink(missing_ok=True)
    groups: list[int] = []
    failure: NotebookError | None = None
    with _watch(groups, progress, timeout) as late:
        try:
            papermill.execute_notebook(
                notebook.path,
                running,
                parameters=dict(values),
                kernel_name=NATIVE_KERNEL_NAME,
                language="python",
                progress_bar=False,
                start_timeout=120,
                stdout_file=progress,
                stderr_file=progress,
                iopub_timeout=120,  # the default of 4 s fails notebooks on a busy machine
                shutdown_kernel="immediate",
                on_cell_start=progress.on_cell_start,
                kernel_manager_class=kernel_manager(groups),
            )
        except PapermillExecutionError as error:
            failure = NotebookError(f"{_where(notebook, running)}{_line(error.traceback)}: {_first(error)}")
        except (DeadKernelError, CellTimeoutError, RuntimeError) as error:
            if not (isinstance(error, (DeadKernelError, CellTimeoutError)) or "Kernel" in str(error)):
                raise
            if late.is_set():
                failure = NotebookError(
                    f"{_where(notebook, running)}: stopped after {duration(timeout or 0)}"
                )
            else:
                failure = KernelDiedError(f"{_where(notebook, running)}: the kernel died")
        finally:
            for group in groups:
                kill_group(group)
    if running.exists():
        _portable(running, notebook, target)
        os.replace(running, target)
    if failure is not None:
        raise failure


@contextmanager
def _watch(groups: list[int], progress: Progress, timeout: float | None) -> Iterator[threading.Event]:
    """Beat the drum of ``progress`` and kill the kernels in ``groups`` once the time is up."""
    late, over = threading.Event(), threading.Event()
    begun = time.monotonic()

    def watch() -> None:
        while not over.wait(0.5):
            progress.tick()
            if timeout is not None and time.monotonic() - begun > timeout:
                late.set()
                for group in groups:
                    kill_group(group)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield late
    finally:
        over.set()
        thread.join()


def _where(notebook: Notebook, executed: Path) -> str:
    """``04_train_cam.ipynb: cell 7 (In [5])``: the cell begun last, counted as in the notebook's source."""
    import nbformat

    with contextlib.suppress(OSError, nbformat.reader.NotJSONError):
        content = nbformat.read(executed, as_version=4)
        own = own_cells(content)
        begun = [
            number for number, cell in enumerate(own) if cell.metadata.get("papermill", {}).get("start_time")
        ]
        if begun:
            count = own[begun[-1]].get("execution_count")
            return f"{notebook.path.name}: cell {begun[-1] + 1}{f' (In [{count}])' if count else ''}"
    return f"{notebook.path.name}: before the first cell"


def _line(traceback: list[str]) -> str:
    match = re.search(r"Cell In\[\d+\], line (\d+)", re.sub("\x1b\\[[0-9;]*m", "", "\n".join(traceback)))
    return f", line {match[1]}" if match else ""


def _first(error: object) -> str:
    name, value = getattr(error, "ename", "Error"), str(getattr(error, "evalue", ""))
    return f"{name}: {value.splitlines()[0]}" if value.strip() else str(name)


def _portable(executed: Path, notebook: Notebook, target: Path) -> None:
    """Take this machine's paths out of the executed notebook's metadata."""
    import nbformat

    content: NotebookNode = nbformat.read(executed, as_version=4)
    noted = content.metadata.get("papermill", {})
    noted["input_path"], noted["output_path"] = notebook.path.name, target.name
    nbformat.write(content, executed)
