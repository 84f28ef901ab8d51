"""results.json: the scores of a run, kept while the settings they were made with stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsss_nb.data import VOCFolder
from wsss_nb.experiment.grid import grid
from wsss_nb.experiment.profiles import Profile
from wsss_nb.files import read_json, write_json

__all__ = ["current_results", "with_rows", "write_results"]

_RESULTS = "results.json"
_WHICH_POINTS = {"lambdas", "fsl", "baselines", "refine", "workers"}
"""Fields that say which points a run has, and not how a point is trained."""


def current_results(
    out: Path, profile: Profile, prepared: dict[str, Any], train: VOCFolder, val: VOCFolder
) -> dict[str, Any]:
    """The contents of ``out/results.json`` as far as they belong to this profile and these images.

    A row stays when its point is one of the profile's and nothing that trains it changed: data, stage settings,
    and the first seed, which a common classifier is trained with. All others are left out.
    """
    path = out / _RESULTS
    known = read_json(path) if path.exists() else {}
    values = profile.model_dump(mode="json")
    data = {
        "train": len(train.names), "val": len(val.names), "hash": prepared["hash"], "root": prepared["root"],
        "val_names": list(val.names), "bad": prepared["bad"],
    }  # fmt: skip
    same = known.get("data", {}).get("hash") == data["hash"] and _training(known.get("profile")) == _training(
        values
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
    write_json(out / _RESULTS, results)


def _training(profile: dict[str, Any] | None) -> dict[str, Any] | None:
    if profile is None:
        return None
    return {name: value for name, value in profile.items() if name not in _WHICH_POINTS | {"seeds"}} | {
        "first_seed": profile["seeds"][0]
    }
