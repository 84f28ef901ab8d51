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
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from wsss_nb.run.run import Run
from wsss_nb.system.code_version import code_version
from wsss_nb.system.files import sha256_file

__all__ = [
    "COMMAND", "command_line", "describe_run", "git_state", "hardware", "manifest", "package_versions", "told_command"
]  # fmt: skip

COMMAND = "WSSS_NB_COMMAND"
"""Environment variable through which notebooks learn the command that runs them, see `told_command`."""

# Files made by a run do not make its code dirty.
_SOURCES = ("wsss_nb", "notebooks", "pyproject.toml", "constraints.txt")


def manifest(
    profile: Mapping[str, Any] | None = None, *, data_hash: str | None = None, weights: Mapping[str, str] | None = None,
    **more: Any
) -> dict[str, Any]:  # fmt: skip
    """Everything one needs to know to make a result again, as JSON values.

    Folders outside the working directory are reduced to their last part: a manifest is made to be
    published, and the data's hash says which data it was.

    Args:
        profile: all values of the resolved profile.
        data_hash: hash of the data set, see ``results["data"]["hash"]``.
        weights: SHA-256 of files of weights, by name.
        more: further entries, such as other seeds than the profile's.

    Returns:
        A dict with keys ``schema``, ``created``, ``command``, ``git``, ``profile``, ``seeds``, ``data_hash``,
        ``weights``, ``python``, ``packages``, ``hardware``, then those of ``more``.

    Example:
        >>> manifest(seeds=[0])["seeds"]
        [0]
    """
    return {
        "schema": 1, "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": os.environ.get(COMMAND) or command_line(), "git": git_state(), "profile": _portable(profile),
        "seeds": (profile or {}).get("seeds"), "data_hash": data_hash, "weights": dict(weights or {}),
        "python": platform.python_version(), "packages": package_versions(), "hardware": hardware(), **more
    }  # fmt: skip


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
    inputs = {folder: made.get("inputs") or {} for folder, made in run.manifests().items()}
    code |= {folder: facts["code"] for folder, facts in inputs.items() if "code" in facts}
    weights = {folder: sha256_file(path) for folder, path in run.weight_files().items()}
    weights |= {"imagenet": run.results.weights} if run.results.weights else {}
    results = run.results
    return manifest(
        results.profile, seeds=list(run.seeds), data_hash=results.data.hash, weights=weights, run=results.run,
        synthetic=results.synthetic, code=code, made_by=run.made_by()
    )  # fmt: skip


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
    questions = ["rev-parse", "HEAD"], ["status", "--porcelain", "--", *_SOURCES]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commands = [["git", "-C", str(root), *words] for words in questions]
        said = [subprocess.run(command, capture_output=True, text=True, timeout=30, check=True) for command in commands]
        return {"commit": said[0].stdout.strip(), "dirty": bool(said[1].stdout)}
    return None


def package_versions() -> dict[str, str]:
    """Name and version of this package and of each installed dependency that results depend on."""
    requirements, found = ["wsss-nb"], {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        requirements += importlib.metadata.requires("wsss-nb") or []
    needed = [text for text in requirements if not re.search("""extra == ['"](?!crf['"])""", text)]
    for name in [re.split(r"[^\w.-]", text)[0] for text in needed]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory (GiB), GPUs and threads; GPUs only if torch is loaded already."""
    torch, processor = sys.modules.get("torch"), platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = found[1].strip() if found else processor
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch else [],
        "threads": torch.get_num_threads() if torch else None,
    }


def command_line() -> str:
    """The command that started this process, or its notebook's, without this machine's folders.

    Example:
        >>> import sys; sys.argv = ["/opt/env/bin/wsss-nb", "run", "--data=/home/me/photos"]
        >>> command_line()
        'wsss-nb run --data=photos'
    """
    words, program = sys.argv, Path(sys.argv[0]).name
    if program in {"-c", "__main__.py", "cli.py"}:
        words = sys.orig_argv
    elif program == "ipykernel_launcher.py":  # whoever started the kernel knows more: papermill, JupyterLab
        with contextlib.suppress(psutil.Error):
            words = psutil.Process(os.getppid()).cmdline() or words
    if len(words) > 1 and Path(words[0]).name.startswith("python"):  # `papermill a.ipynb`, `python -m wsss_nb.cli`
        words = ["python", *words[1:]] if words[1].startswith("-") else words[1:]
        words = [*words[:2], "...", *words[3:]] if words[1:2] == ["-c"] else words
    said = [Path(words[0]).name]
    for word in words[1:]:
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


def _portable(value: Any) -> Any:
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("..")):
        path = Path(value)
        here = Path.cwd()
        return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
    if isinstance(value, (list, tuple)):
        return [_portable(entry) for entry in value]
    return {name: _portable(entry) for name, entry in value.items()} if isinstance(value, Mapping) else value
