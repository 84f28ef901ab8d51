"""Where a result comes from: code, settings, data, weights, libraries, machine, time and command."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from wsss_nb.run.run import Run
from wsss_nb.system.code_version import code_version
from wsss_nb.system.files import sha256_file

__all__ = [
    "COMMAND",
    "command_line",
    "describe_run",
    "git_state",
    "hardware",
    "manifest",
    "package_versions",
    "told_command",
]

COMMAND = "WSSS_NB_COMMAND"
"""Environment variable through which notebooks learn the command that runs them, see `told_command`."""

# Files made by a run do not make its code dirty.
_SOURCES = ("wsss_nb", "notebooks", "pyproject.toml", "constraints.txt")


def manifest(
    profile: BaseModel | Mapping[str, Any] | None = None,
    *,
    seeds: Iterable[int] | None = None,
    data_hash: str | None = None,
    weights: Mapping[str, str | os.PathLike[str]] | None = None,
    protocol: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything one needs to know to make a result again, as JSON values.

    Folders outside the working directory are reduced to their last part: a manifest is made to be
    published, and the data's hash says which data it was.

    Args:
        profile: the resolved profile; all its values are kept.
        seeds: seeds of the result; default: the profile's.
        data_hash: hash of the data set, see ``results["data"]["hash"]``.
        weights: name -> hash, or name -> file (whose SHA-256 is taken).
        protocol: how the scores were made.
        extra: further entries, such as the hash of the arrays behind a figure.

    Returns:
        A dict with keys ``schema``, ``created``, ``command``, ``git``, ``profile``, ``seeds``, ``data_hash``,
        ``weights``, ``protocol``, ``python``, ``packages``, ``hardware``, then those of ``extra``.

    Raises:
        ValueError: ``extra`` names an entry that is there already.

    Example:
        >>> manifest(seeds=[0])["seeds"]
        [0]
    """
    values = profile.model_dump(mode="json") if isinstance(profile, BaseModel) else profile
    if seeds is None and values is not None:
        seeds = values.get("seeds")
    made: dict[str, Any] = {
        "schema": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": os.environ.get(COMMAND) or command_line(),
        "git": git_state(),
        "profile": None if values is None else _portable(dict(values)),
        "seeds": None if seeds is None else list(seeds),
        "data_hash": data_hash,
        "weights": {name: _weight_hash(value) for name, value in (weights or {}).items()},
        "protocol": None if protocol is None else dict(protocol),
        "python": platform.python_version(),
        "packages": dict(package_versions()),
        "hardware": hardware(),
    }
    if twice := made.keys() & (extra or {}):
        raise ValueError(f"extra: expected names other than {', '.join(made)}, got {min(twice)!r}")
    return {**made, **(extra or {})}


def describe_run(run: Run) -> dict[str, Any]:
    """The manifest of everything drawn from a finished run.

    The run may come from another machine, so the manifest says twice where things were made: commit, command,
    packages and hardware of the drawing stand at the top, those of the training under ``made_by``, step by step.

    Args:
        run: see ``wsss_nb.run.run.load_run``.

    Returns:
        `manifest` of the run's profile, seeds, data, checkpoints and ImageNet weights, and further ``run`` (its name),
        ``synthetic``, ``code`` (`code_version` behind figures and tables, and behind every training and scoring) and
        ``made_by`` (see ``wsss_nb.run.run.Run.made_by``).

    Raises:
        InputError: a manifest in the run's folder is broken.

    Example:
        >>> describe_run(load_run("runs/quick"))["made_by"]["command"]  # doctest: +SKIP
        'wsss-nb run --profile quick --out runs/quick'
    """
    code = {part: code_version(f"wsss_nb.show.{part}") for part in ("figures", "tables")}
    return manifest(
        run.results.profile,
        seeds=run.seeds,
        data_hash=run.results.data.hash,
        weights={**run.weight_files(), **({"imagenet": run.results.weights} if run.results.weights else {})},
        extra={
            "run": run.results.run,
            "synthetic": run.synthetic,
            "code": code | run.code_versions(),
            "made_by": run.made_by(),
        },
    )


@functools.cache
def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit and whether the sources differ from it; None outside a git checkout.

    Only what determines results counts as dirty (the package, the notebooks, the dependencies): a run writes
    figures into the checkout itself.

    Args:
        folder: the checkout; default: the one this package lies in.
    """
    root = folder or Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    said = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *_SOURCES]):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["git", "-C", str(root), *words]
            said.append(subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip())
    return {"commit": said[0], "dirty": bool(said[1])} if len(said) == 2 else None


@functools.cache
def package_versions() -> tuple[tuple[str, str], ...]:
    """Name and version of this package and of each installed dependency that results depend on."""
    requirements, found = ["wsss-nb"], []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        requirements += importlib.metadata.requires("wsss-nb") or []
    for requirement in requirements:
        needed = "extra ==" not in requirement or re.search("""extra == ['"]crf['"]""", requirement)
        if needed and (match := re.match(r"[A-Za-z0-9._-]+", requirement)):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.append((match[0], importlib.metadata.version(match[0])))
    return tuple(found)


def hardware() -> dict[str, Any]:
    """Processor, cores, memory (GiB), GPUs and threads; GPUs only if torch is loaded already."""
    torch = sys.modules.get("torch")
    gpus: list[str] = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total / 2**30
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpus": gpus,
        "threads": torch.get_num_threads() if torch is not None else None,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command that started this process, or its notebook's, without this machine's folders.

    Example:
        >>> import sys; sys.argv = ["/opt/env/bin/wsss-nb", "run", "--data=/home/me/photos"]
        >>> command_line()
        'wsss-nb run --data=photos'
    """
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if words[0] in {"-c", "__main__.py", "cli.py"}:
        words = _as_typed(sys.orig_argv)
    elif words[0] == "ipykernel_launcher.py":  # whoever started the kernel knows more: papermill, JupyterLab
        import psutil

        with contextlib.suppress(psutil.Error):
            words = _as_typed(psutil.Process(os.getppid()).cmdline()) or words
    said = []
    for word in words:
        flag, equals, value = word.partition("=")
        said.append(f"{flag}={_portable(value)}" if equals else _portable(word))
    return shlex.join(said)


@contextlib.contextmanager
def told_command() -> Iterator[None]:
    """Notebooks executed meanwhile record this process's command as theirs."""
    os.environ[COMMAND] = command_line()
    try:
        yield
    finally:
        os.environ.pop(COMMAND, None)


def _as_typed(words: list[str]) -> list[str]:
    """The words of a process without where its program lies: ``papermill a.ipynb``, ``python -m wsss_nb.cli``."""
    if words and Path(words[0]).name.startswith("python"):
        if len(words) > 1 and not words[1].startswith("-"):
            words = words[1:]
        elif words[1:2] == ["-c"]:
            words = [*words[:2], "...", *words[3:]]
    program = Path(words[0]).name if words else ""
    return [re.sub(r"^python[\d.]*$", "python", program), *words[1:]] if words else []


def _portable(value: Any) -> Any:
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("..")):
        path = Path(value)
        here = Path.cwd()
        return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
    if isinstance(value, Mapping):
        return {name: _portable(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(entry) for entry in value]
    return value


def _weight_hash(value: str | os.PathLike[str]) -> str:
    return value if isinstance(value, str) and not Path(value).is_file() else sha256_file(value)
