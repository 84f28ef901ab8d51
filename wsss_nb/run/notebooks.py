"""Run the numbered notebooks headlessly with papermill: only what changed, and on from where a run was killed.

What takes hours are the steps that notebooks call, and these are cached by themselves (``wsss_nb.run.steps``). Of a
notebook the executed copy is kept with a key of what it shows, so that it is not drawn again for nothing.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from wsss_nb.run.kernel import kernel_manager, kill_tree
from wsss_nb.run.results import RESULTS
from wsss_nb.run.run import CONFIG, load_run
from wsss_nb.run.steps import MANIFEST
from wsss_nb.system.code_version import code_version, imported_modules
from wsss_nb.system.errors import InputError, expecting, require
from wsss_nb.system.files import atomic_path, json_hash, read_json, sha256_file
from wsss_nb.system.progress import duration

__all__ = ["KernelDiedError", "Notebook", "NotebookError", "Outcome", "execute", "find_notebooks", "own_cells",
           "parameter_values", "read_notebook", "run_notebooks"]  # fmt: skip

Parameter = str | int | float | bool | None

# 01-03 stand alone; each stage follows the one before; figures and tables read what all three wrote.
_NEEDS = {"05": ("04",), "06": ("05",), "07": ("04", "05", "06"), "08": ("04", "05", "06")}
_STEPS = {"04": ("pretrain-*", "cam/*/*/*"), "05": ("affinitynet/*/*/*",), "06": ("deeplab/*/*/*",)}
_DRAW = frozenset({"07", "08"})
_SET_BY_RUN = frozenset({"profile", "out_dir", "run_dir", "seed", "overrides"})
_PAPERMILL_TAGS = frozenset({"injected-parameters", "papermill-error-cell-tag"})


class NotebookError(RuntimeError):
    """A notebook did not run to its end; the message names the cell and the error."""


class KernelDiedError(NotebookError):
    """The notebook's kernel ended without an error of its own (killed, out of memory, native crash)."""


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook as it is on disk, without what earlier executions left in it.

    Attributes:
        path: the file.
        parameters: names and default values of its parameters cell.
        sources: kind, source and tags of its cells; outputs and execution counts do not count.
    """

    path: Path
    parameters: Mapping[str, Parameter]
    sources: Sequence[tuple[str, str, Sequence[str]]]

    @property
    def name(self) -> str:
        """File name without suffix, such as ``04_train_cam``."""
        return self.path.stem

    @property
    def number(self) -> str:
        """The two digits the name begins with."""
        return self.name[:2]

    @property
    def draws(self) -> bool:
        """Whether it only draws from what the stages wrote."""
        return self.number in _DRAW

    def key(self, values: Mapping[str, Parameter], out_dir: Path) -> str:
        """Hash of all that its executed copy shows: cells, parameters, code, settings, steps or results behind it."""
        from IPython.core.inputtransformer2 import TransformerManager

        if self.draws:
            behind: Any = load_run(out_dir).fingerprint() if (out_dir / RESULTS).is_file() else None
        else:
            steps = sorted(path for part in _STEPS.get(self.number, ()) for path in out_dir.glob(f"{part}/{MANIFEST}"))
            behind = [read_json(path).get("key") for path in steps]
            config = out_dir / CONFIG
            behind += [sha256_file(config)] if self.number in _STEPS and config.is_file() else []
        modules: set[str] = set()
        for source in [source for kind, source, _ in self.sources if kind == "code"]:
            with contextlib.suppress(SyntaxError):  # the cell cannot import anything either: running it reports that
                modules |= imported_modules(TransformerManager().transform_cell(source))
        code = code_version(*sorted(modules)) if modules else ""
        shown = {name: value for name, value in values.items() if name not in _SET_BY_RUN}
        return json_hash([self.sources, shown, code, behind])


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended: ``blocked`` means that one it needs has failed."""

    name: str
    status: Literal["done", "current", "failed", "blocked"]
    message: str = ""

    @property
    def bad(self) -> bool:
        """Whether it has not run to its end."""
        return self.status in {"failed", "blocked"}


def read_notebook(path: Path) -> Any:
    """The content of a notebook's file, as ``nbformat`` has it.

    Raises:
        InputError: there is no such file, or it is no notebook.
    """
    import nbformat

    with expecting("a notebook", path):
        return nbformat.read(path, as_version=4)


def own_cells(content: Any) -> list[Any]:
    """The cells of a notebook without those that papermill puts in."""
    return [cell for cell in content.cells if not _PAPERMILL_TAGS & set(cell.metadata.get("tags", []))]


def find_notebooks(folder: Path) -> list[Notebook]:
    """The notebooks ``NN_name.ipynb`` of a folder, in the order of their numbers.

    Raises:
        InputError: there are none, two share a number, one cannot be read, or its parameters are not flat literals.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    require(bool(paths), f"{folder}: expected numbered notebooks such as 01_name.ipynb, got none")
    once = len({path.name[:2] for path in paths}) == len(paths)
    require(once, f"{folder}: expected one notebook per number, got {', '.join(path.name for path in paths)}")
    found = []
    for path in paths:
        content = read_notebook(path)
        tagged = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
        require(len(tagged) == 1, f"{path}: expected one cell tagged 'parameters', got {len(tagged)}")
        cells = [(cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))) for cell in own_cells(content)]
        found.append(Notebook(path, _literals(path, tagged[0].source), cells))
    return found


def _literals(path: Path, source: str) -> dict[str, Parameter]:
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{path}: parameters: expected Python, got {(error.text or source).strip()!r}") from error
    found: dict[str, Any] = {}
    for line in lines:
        value: Any = ()
        match line:
            case ast.Assign(targets=[ast.Name(id=name)]):
                with contextlib.suppress(ValueError):
                    found[name] = value = ast.literal_eval(line.value)
        flat = value is None or isinstance(value, (str, int, float))
        require(flat, f"{path}: parameters: expected lines like name = literal, got {ast.unparse(line)!r}")
    return found


def parameter_values(notebook: Notebook, given: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The values a notebook will run with: its defaults, replaced by what is given; text is read as the default's type.

    Papermill itself only warns of a name the notebook does not have, and never compares types.

    Raises:
        InputError: an unknown name, or a value of another type than the default's.

    Example:
        >>> notebook = Notebook(Path("04_x.ipynb"), {"seed": 0}, [])
        >>> parameter_values(notebook, {"seed": "3"})
        {'seed': 3}
    """
    values = dict(notebook.parameters)
    for name, value in given.items():
        place, known = f"{notebook.path.name}: {name}", ", ".join(values)
        require(name in values, f"{place}: expected one of {known}, got an unknown parameter")
        default, wanted = values[name], type(values[name])
        if isinstance(value, str) and wanted in (bool, int, float):
            with contextlib.suppress(yaml.YAMLError, ValueError):  # YAML takes 1e-3 for text
                value = yaml.safe_load(value) if wanted is bool else wanted(value)
        if wanted is float and type(value) is int:
            value = float(value)
        fits = default is None or type(value) is wanted
        require(fits, f"{place}: expected {wanted.__name__}, got {given[name]!r}")
        values[name] = value
    return values


def run_notebooks(
    notebooks: Sequence[Notebook], values: Mapping[str, Mapping[str, Parameter]], out_dir: Path, *,
    chosen: Sequence[str], timeouts: Mapping[str, float | None], say: Callable[[str], None] = lambda text: print(text,
    flush=True)
) -> list[Outcome]:  # fmt: skip
    """Execute notebooks into ``out_dir/notebooks``, in order.

    A notebook is up to date, and skipped, while its :meth:`Notebook.key` is that of the copy executed last. One that fails
    stops those that need it, not the others. One whose kernel dies is tried once more.

    Args:
        notebooks: all of them.
        values: the parameters of each, see :func:`parameter_values`.
        out_dir: the run's folder.
        chosen: names of those wanted.
        timeouts: seconds for each.
        say: takes a line of what goes on.

    Returns:
        One outcome per wanted notebook.

    Raises:
        InputError: ``results.json`` of the run is broken.
    """
    outcomes: dict[str, Outcome] = {}
    by_number = {notebook.number: notebook.name for notebook in notebooks}
    for notebook in notebooks:
        name, target = notebook.name, out_dir / "notebooks" / notebook.path.name
        if name not in chosen:
            continue
        needs = [by_number[number] for number in _NEEDS.get(notebook.number, ()) if number in by_number]
        why = [
            f"needs {need}, which has not run to its end" for need in needs if need in outcomes and outcomes[need].bad
        ]
        if notebook.draws and not (out_dir / RESULTS).is_file():
            why.append(f"draws from {RESULTS} of {out_dir}, and there is none")
        if why:
            outcomes[name] = Outcome(name, "blocked", f"not run: it {why[0]}")
            say(f"{name}: {outcomes[name].message}")
        elif _key_of(target) == notebook.key(values[name], out_dir):
            outcomes[name] = Outcome(name, "current")
            say(f"{name}: up to date")
        else:
            outcomes[name] = _run_one(notebook, values[name], target, say, timeouts.get(name))
            if outcomes[name].status == "done":
                _note(target, "wsss_nb", key=notebook.key(values[name], out_dir))
    return list(outcomes.values())


def _key_of(executed: Path) -> str | None:
    with contextlib.suppress(InputError, KeyError):
        return str(read_notebook(executed).metadata["wsss_nb"]["key"])
    return None


def _note(executed: Path, section: str, **facts: str) -> None:
    """Add to a section of an executed notebook's metadata."""
    import nbformat

    content = read_notebook(executed)
    content.metadata.setdefault(section, {}).update(facts)
    with atomic_path(executed) as temporary:
        nbformat.write(content, temporary)


def _run_one(
    notebook: Notebook, values: Mapping[str, Parameter], target: Path, say: Callable[[str], None], timeout: float | None
) -> Outcome:
    """Execute a notebook, once more if its kernel dies."""
    say(f"{notebook.name}: started")
    begun = time.monotonic()
    try:
        try:
            execute(notebook, values, target, say, timeout)
        except KernelDiedError as error:
            say(f"{error}; once more")
            execute(notebook, values, target, say, timeout)
    except NotebookError as error:
        why = f"{error}{' twice; most often memory ran out' if isinstance(error, KernelDiedError) else ''}"
        say(f"{notebook.name}: failed after {duration(time.monotonic() - begun)}: {why}; see {target}")
        return Outcome(notebook.name, "failed", why)
    say(f"{notebook.name}: done in {duration(time.monotonic() - begun)}")
    return Outcome(notebook.name, "done")


def execute(
    notebook: Notebook, values: Mapping[str, Parameter], target: Path, say: Callable[[str], None] = lambda text: None,
    timeout: float | None = None
) -> None:  # fmt: skip
    """Run a notebook with papermill and put the executed copy at ``target``, also when it failed.

    While it runs, the copy is a hidden file beside ``target``, saved after every cell. Kernel and all
    its processes are gone when this returns or raises, whatever the reason.

    Raises:
        NotebookError: a cell raised, or the time was up.
        KernelDiedError: the kernel died.
    """
    import papermill
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what matters is raised and reported below
    running = target.with_name(f".{target.stem}.running.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    running.unlink(missing_ok=True)
    kernels: list[int] = []
    failure: NotebookError | None = None
    log = _Log(notebook, say)
    with _watched(kernels, log, timeout) as late:
        try:
            papermill.execute_notebook(
                notebook.path,
                running,
                parameters=dict(values),
                kernel_name=NATIVE_KERNEL_NAME,
                language="python",
                progress_bar=False,
                start_timeout=120,
                stdout_file=log,
                stderr_file=log,
                iopub_timeout=120,  # the default of 4 s fails notebooks on a busy machine
                shutdown_kernel="immediate",
                on_cell_start=log.on_cell_start,
                kernel_manager_class=kernel_manager(kernels),
            )
        except PapermillExecutionError as error:
            said = re.sub("\x1b\\[[0-9;]*m", "", "\n".join(error.traceback))
            line = re.search(r"Cell In\[\d+\], (line \d+)", said)
            reason = f"{error.ename}: {error.evalue}".strip(": \n").splitlines()[0]
            failure = NotebookError(f"{_where(notebook, running)}{f', {line[1]}' if line else ''}: {reason}")
        except RuntimeError as error:
            if "Kernel" not in str(error):  # "Kernel died", "Kernel didn't respond"
                raise
            where = _where(notebook, running)
            failure = KernelDiedError(f"{where}: the kernel died")
            if late.is_set():
                failure = NotebookError(f"{where}: stopped after {duration(timeout or 0)}")
        finally:
            for kernel in kernels:
                kill_tree(kernel)
    if running.exists():
        # without this machine's paths
        _note(running, "papermill", input_path=notebook.path.name, output_path=target.name)
        os.replace(running, target)
    if failure is not None:
        raise failure


class _Log:
    """What a notebook prints (a file for papermill), and a line of where it is, once a minute."""

    def __init__(self, notebook: Notebook, say: Callable[[str], None], interval: float = 60.0) -> None:
        self._notebook, self._say, self._interval = notebook, say, interval
        self._cell, self._said = 0, ""
        self._begun = self._reported = time.monotonic()

    def on_cell_start(self, cell: Any, cell_index: int) -> None:
        """A cell begins (the hook that nbclient calls); the one papermill puts in is not counted."""
        self._cell += "injected-parameters" not in cell.get("metadata", {}).get("tags", [])

    def write(self, text: str) -> int:
        """Keep the last line."""
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        self._said = lines[-1][:100] if lines else self._said
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def tick(self) -> None:
        """Called every now and then while the notebook runs, from another thread."""
        if time.monotonic() - self._reported >= self._interval:
            self._reported = time.monotonic()
            where = f"cell {self._cell} of {len(self._notebook.sources)}, {duration(self._reported - self._begun)}"
            self._say(f"{self._notebook.name}: {where}{': ' if self._said else ''}{self._said}")


@contextmanager
def _watched(kernels: list[int], log: _Log, timeout: float | None) -> Iterator[threading.Event]:
    """Let the log speak, and kill the kernels once the time is up."""
    late, over = threading.Event(), threading.Event()
    begun = time.monotonic()

    def watch() -> None:
        while not over.wait(0.5):
            log.tick()
            if timeout is not None and time.monotonic() - begun > timeout:
                late.set()
                for kernel in kernels:
                    kill_tree(kernel)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield late
    finally:
        over.set()
        thread.join()


def _where(notebook: Notebook, executed: Path) -> str:
    """``04_train_cam.ipynb: cell 7 (In [5])``: the cell begun last, counted as in the notebook's source."""
    with contextlib.suppress(InputError):
        own = own_cells(read_notebook(executed))
        begun = [number for number, cell in enumerate(own) if cell.metadata.get("papermill", {}).get("start_time")]
        if begun:
            count = own[begun[-1]].get("execution_count")
            return f"{notebook.path.name}: cell {begun[-1] + 1}{f' (In [{count}])' if count else ''}"
    return f"{notebook.path.name}: before the first cell"
