"""What a run's folder says: results.json, the scores while their settings stand, and run.json, who made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsss_nb.data import VOCFolder
from wsss_nb.errors import InputError
from wsss_nb.experiment.grid import grid
from wsss_nb.experiment.profiles import Profile
from wsss_nb.files import write_json
from wsss_nb.results import RESULTS, RUN, read_results
from wsss_nb.stages.processes import processes
from wsss_nb.stages.steps import run_step

__all__ = ["authored_step", "current_results", "total_cost", "with_rows", "write_results"]

_WHICH_POINTS = {"lambdas", "fsl", "baselines", "refine", "workers"}
"""Fields that say which points a run has, and not how a point is trained."""


def current_results(
    out: Path, profile: Profile, prepared: dict[str, Any], train: VOCFolder, val: VOCFolder
) -> dict[str, Any]:
    """The contents of ``out/results.json`` as far as they belong to this profile and these images.

    A row stays when its point is one of the profile's and nothing that trains it changed: data, stage settings,
    ImageNet weights, and the first seed, which a common classifier is trained with. All others are left out.

    Raises:
        InputError: the file is there, but does not hold the results of a run.
    """
    path = out / RESULTS
    try:
        known = read_results(path)[0] if path.exists() else {}
    except InputError as error:
        raise InputError(f"{error}; remove the file: finished steps give their scores again") from error
    values = profile.model_dump(mode="json")
    data = {
        "train": len(train.names), "val": len(val.names), "hash": prepared["hash"], "root": prepared["root"],
        "val_names": list(val.names), "bad": prepared["bad"],
    }  # fmt: skip
    weights = (prepared["weights"] or {}).get("sha256")
    same = (
        known.get("data", {}).get("hash") == data["hash"]
        and known.get("weights") == weights
        and _training(known.get("profile")) == _training(values)
    )
    variants = {point.name for point in grid(profile)}

    def kept(section: str) -> list[dict[str, Any]]:
        return [
            row
            for row in known.get(section, [])
            if same and row["variant"] in variants and row["seed"] in profile.seeds
        ]

    return {
        "schema": 1,
        "run": out.name,
        "profile": values,
        "synthetic": profile.data.kind == "synthetic" and not profile.data.root,
        "classes": list(val.classes),
        "data": data,
        "weights": weights,
        "pretrain": known.get("pretrain") if same else None,
        "cam": kept("cam"),
        "stages": kept("stages"),
    }


def with_rows(results: dict[str, Any], section: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """``results`` with ``rows`` added to a section, in place of earlier rows of the same points."""

    def identity(row: dict[str, Any]) -> tuple[Any, ...]:
        return row.get("stage"), row.get("method"), row["variant"], row["seed"]

    merged = {identity(row): row for row in results[section]} | {identity(row): row for row in rows}
    return {**results, section: list(merged.values())}


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write ``out/results.json``."""
    write_json(out / RESULTS, results)


def authored_step(
    out: Path,
    author: Mapping[str, Any],
    folder: Path,
    inputs: dict[str, Any],
    work: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """``run_step`` in a run's folder ``out``; a step with something to do makes ``author`` that of ``run.json``.

    A command that finds every step done leaves the file alone. Its command and commit are in each step's manifest too.
    """

    def working(folder: Path) -> dict[str, Any]:
        if processes().is_main:
            write_json(out / RUN, author)
        return work(folder)

    return run_step(folder, inputs, working, {name: author[name] for name in ("command", "git")})


def total_cost(**steps: dict[str, Any]) -> dict[str, Any]:
    """What steps cost together: their seconds, the highest peak memory, and their names."""
    costs = [step["cost"] for step in steps.values()]
    return {
        **costs[-1],
        "seconds": round(sum(cost["seconds"] for cost in costs), 3),
        "peak_memory_mb": max(cost["peak_memory_mb"] for cost in costs),
        "steps": list(steps),
    }


def _training(profile: dict[str, Any] | None) -> dict[str, Any] | None:
    if profile is None:
        return None
    seeds = profile.get("seeds")
    return {name: value for name, value in profile.items() if name not in _WHICH_POINTS | {"seeds"}} | {
        "first_seed": seeds[0] if isinstance(seeds, list) and seeds else None
    }
