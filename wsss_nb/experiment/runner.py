"""Run the numbered notebooks of an experiment: only what changed, and on from where a run was killed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wsss_nb.code_version import code_version
from wsss_nb.errors import InputError
from wsss_nb.experiment.execute import KernelDiedError, NotebookError, execute
from wsss_nb.experiment.notebooks import (
    Notebook,
    Parameter,
    check_parameters,
    find_notebooks,
    parse_parameter,
)
from wsss_nb.experiment.progress import Progress, duration
from wsss_nb.experiment.state import NotebookRecord, RunState, count_rows, folder_stamp, written_files
from wsss_nb.results import RESULTS, load_run

if TYPE_CHECKING:
    from wsss_nb.experiment.profiles import Profile

__all__ = ["Outcome", "Plan", "RunRequest", "notebook_key", "plan_run", "run_notebooks"]

# They say where a run works, not what it computes.
_PLACES = frozenset({"out_dir", "run_dir", "data_root"})
_SET_BY_RUN = _PLACES | {"profile", "overrides", "seed"}
# What is drawn depends on where the data set is: without it there are no pictures.
_NOT_DRAWN = _SET_BY_RUN - {"data_root"}


@dataclass(frozen=True)
class RunRequest:
    """What a run was asked to do.

    Attributes:
        profile: the resolved profile.
        out_dir: the run's folder.
        overrides: the profile's overrides, as the notebooks' parameter of that name.
        data_root: the data set's folder given for this run, or empty.
        parameters: further notebook parameters, for the notebooks that declare them, in the type declared.
        only: numbers or names of the notebooks wanted; empty means all.
        timeouts: seconds by number or name of a notebook; the key "" stands for all others.
    """

    profile: Profile
    out_dir: Path
    overrides: str = ""
    data_root: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    only: Sequence[str] = ()
    timeouts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A checked request: all notebooks, the values each runs with, the names of those wanted, and time limits."""

    request: RunRequest
    notebooks: Sequence[Notebook]
    values: Mapping[str, Mapping[str, Parameter]]
    chosen: frozenset[str]
    timeouts: Mapping[str, float | None]

    @property
    def needs_data(self) -> bool:
        """Whether anything wanted does more than draw from results."""
        return any(notebook.name in self.chosen and not notebook.reads_results for notebook in self.notebooks)


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended: ``waits`` means that one it needs has failed."""

    name: str
    status: Literal["done", "current", "failed", "waits"]
    seconds: float = 0.0
    message: str = ""


def plan_run(folder: Path, request: RunRequest) -> Plan:
    """Check a request before anything runs.

    Args:
        folder: where the notebooks are.
        request: what to do.

    Raises:
        InputError: a notebook is not as it should be, or a parameter is unknown or of another type.
    """
    notebooks = find_notebooks(folder)
    known = sorted({name for notebook in notebooks for name in notebook.parameters} - _SET_BY_RUN)
    for name in request.parameters:
        if name in _SET_BY_RUN:
            raise InputError(
                f"{name}: expected to be set by the run's own flags (--seeds, --data, --set, ...)"
            )
        if name not in known:
            raise InputError(
                f"{name}: expected a parameter of a notebook ({', '.join(known)}), got another name"
            )
    by_word = {word: notebook.name for notebook in notebooks for word in (notebook.number, notebook.name)}
    names = [notebook.name for notebook in notebooks]
    for option, words in (("only", request.only), ("timeout", [word for word in request.timeouts if word])):
        for word in words:
            if word not in by_word:
                raise InputError(f"{option}: expected notebooks of {', '.join(names)}, got {word!r}")
    wanted = frozenset(by_word[word] for word in request.only or by_word)
    limits = {by_word[word]: seconds for word, seconds in request.timeouts.items() if word}
    values = {notebook.name: _values(notebook, request) for notebook in notebooks}
    rest = request.timeouts.get("")
    return Plan(request, notebooks, values, wanted, {name: limits.get(name, rest) for name in names})


def run_notebooks(plan: Plan, *, progress: Progress | None = None) -> list[Outcome]:
    """Execute the notebooks of a plan into ``out_dir/notebooks``, in order.

    A notebook is up to date, and skipped, while these are unchanged: its cells (not their outputs), its
    parameters, the code of wsss_nb it imports, and the resolved profile, the data set, the ImageNet weights and the
    notebooks it needs. Those that only draw depend on the run's results instead of the latter four; by themselves
    they draw any run that has some, whatever settings, data and code made it. A notebook that fails stops those that
    need it, not the others. One whose kernel dies is tried once more.

    Args:
        plan: from `plan_run`.
        progress: where to report.

    Returns:
        One outcome per wanted notebook.

    Raises:
        InputError: ``results.json`` or ``state.json`` of the run is broken.

    Example:
        >>> request = RunRequest(load_profile("quick"), Path("runs/quick"))  # doctest: +SKIP
        >>> outcomes = run_notebooks(plan_run(Path("notebooks"), request))  # doctest: +SKIP
    """
    request, out_dir = plan.request, plan.request.out_dir
    progress = progress or Progress()
    state = RunState(out_dir / "notebooks" / "state.json")
    data = _input_stamp(request.profile) if plan.needs_data else ""
    keys: dict[str, str] = {}
    outcomes: dict[str, Outcome] = {}
    for notebook in plan.notebooks:
        name, values = notebook.name, plan.values[notebook.name]
        if notebook.reads_results and name not in plan.chosen:
            continue
        needed = () if notebook.reads_results else [keys[need] for need in notebook.needs]
        keys[name] = notebook_key(notebook, values, request, data, needed)
        if name not in plan.chosen:
            continue
        obstacle = _obstacle(notebook, keys, outcomes, state, out_dir)
        if obstacle:
            outcomes[name] = Outcome(name, "waits", message=f"not run: {obstacle}")
            progress.line(f"{name}: not run: {obstacle}")
        elif state.is_current(name, keys[name], out_dir):
            outcomes[name] = Outcome(name, "current")
            progress.line(f"{name}: up to date")
        else:
            limit = plan.timeouts[name]
            outcomes[name] = _run_one(notebook, values, keys[name], out_dir, state, progress, limit)
    return list(outcomes.values())


def notebook_key(
    notebook: Notebook, values: Mapping[str, Parameter], request: RunRequest, data: str, needed: Sequence[str]
) -> str:
    """SHA-256 of everything a notebook's result depends on; see `run_notebooks`."""
    parts: dict[str, Any] = {
        "schema": 2,
        "source": notebook.source_hash,
        "code": code_version(*sorted(notebook.modules)),
        "needs": list(needed),
    }
    said_otherwise = _PLACES
    if notebook.reads_results:
        drawn = (request.out_dir / RESULTS).is_file()
        parts["results"] = load_run(request.out_dir).fingerprint() if drawn else None
        said_otherwise = _NOT_DRAWN
    elif "profile" in values:
        parts |= {"profile": request.profile.model_dump(mode="json"), "data": data}
        said_otherwise = _SET_BY_RUN
    parts["parameters"] = {name: value for name, value in values.items() if name not in said_otherwise}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _run_one(
    notebook: Notebook,
    values: Mapping[str, Parameter],
    key: str,
    out_dir: Path,
    state: RunState,
    progress: Progress,
    timeout: float | None,
) -> Outcome:
    name = notebook.name
    target = out_dir / "notebooks" / f"{name}.ipynb"
    before = state.records.get(name)
    carries_on = before is not None and before.key == key and before.status != "done"
    record = NotebookRecord(key, "running", before.begun if before and carries_on else time.time())
    state.put(name, record)
    started = time.monotonic()
    progress.start(f"{name} (carries on)" if carries_on else name, notebook.cells)
    try:
        try:
            execute(notebook, values, target, progress, timeout)
        except KernelDiedError as error:
            progress.line(f"{error}; once more")
            execute(notebook, values, target, progress, timeout)
    except NotebookError as error:
        seconds = time.monotonic() - started
        message = (
            f"{error} twice; most often memory ran out" if isinstance(error, KernelDiedError) else str(error)
        )
        state.put(name, replace(record, status="failed", seconds=round(seconds, 1), message=message))
        progress.end(f"failed after {duration(seconds)}: {message}; see {target}")
        return Outcome(name, "failed", seconds, message)
    except BaseException:
        progress.end("interrupted")
        raise
    seconds = time.monotonic() - started
    kept = {path for path in (before.outputs if before else ()) if (out_dir / path).exists()}
    done = replace(record, status="done", seconds=round(seconds, 1), rows=count_rows(out_dir))
    state.put(name, replace(done, outputs=tuple(sorted(written_files(out_dir, record.begun) | kept))))
    progress.end(f"done in {duration(seconds)}")
    return Outcome(name, "done", seconds)


def _obstacle(
    notebook: Notebook,
    keys: Mapping[str, str],
    outcomes: Mapping[str, Outcome],
    state: RunState,
    out_dir: Path,
) -> str:
    """Why a notebook cannot run now; empty if it can."""
    for need in notebook.needs:
        if need in outcomes:
            if outcomes[need].status not in {"done", "current"}:
                return f"it needs {need}, which has not run to its end"
        elif not notebook.reads_results and not state.is_current(need, keys[need], out_dir):
            return f"it needs {need}, {state.shortcoming(need, keys[need])}"
    by_itself = notebook.reads_results and notebook.needs and not outcomes.keys() & set(notebook.needs)
    if by_itself and not count_rows(out_dir):
        return f"it draws from {RESULTS} of {out_dir}, which holds no scores"
    return ""


def _values(notebook: Notebook, request: RunRequest) -> dict[str, Parameter]:
    """The parameters one notebook runs with: of those a run sets, the ones it declares."""
    given: dict[str, Parameter] = {
        "profile": request.profile.name,
        "data_root": request.data_root,
        "out_dir": str(request.out_dir),
        "run_dir": str(request.out_dir),
        "seed": request.profile.seeds[0],
        "overrides": request.overrides,
    }
    declared = notebook.parameters
    for name, value in request.parameters.items():
        if name in declared:
            given[name] = parse_parameter(name, value, declared[name]) if isinstance(value, str) else value
    return check_parameters(notebook, {name: value for name, value in given.items() if name in declared})


def _input_stamp(profile: Profile) -> str:
    """What a run takes from outside: images and ImageNet weights."""
    from wsss_nb.experiment.preparation import initial_weights  # which loads torch; drawing does without it

    weights = initial_weights(profile)
    return f"{_data_stamp(profile)} {'' if weights is None else weights['sha256']}"


def _data_stamp(profile: Profile) -> str:
    """What the images are: the synthetic set follows from the profile, a folder has to be looked at."""
    if profile.data.kind == "synthetic" and not profile.data.root:
        return "synthetic"
    return folder_stamp(Path(profile.data.root))
