"""Two runs through the runner, notebooks and all, with other numbers of workers: the same scores, CSV files and pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from wsss_nb import cli
from wsss_nb.figures import FIGURES
from wsss_nb.files import read_json
from wsss_nb.tables import TABLES
from wsss_nb.verify import compare_folders

# The profile quick, with every kind of point, stage and figure, on few images and for few epochs.
SMALL: dict[str, Any] = {
    "data.num_train": 8, "data.num_val": 3, "lambdas": [0, 1], "baselines": ["seam"], "refine": ["ours"],
    "cam.learn_similarity": True,
    **{f"{stage}.{name}": value for stage in ("pretrain", "cam", "seam", "affinitynet", "deeplab")
       for name, value in (("epochs", 1), ("batch_size", 4), ("views.sizes", [[48, 48]]))},
    "cam.epochs": 2,
}  # fmt: skip


def made(out: Path) -> dict[str, Any]:
    """What a run's folder holds: scores without what they cost, and the bytes of label maps and CAMs."""
    results = read_json(out / "results.json")
    rows = [{k: v for k, v in row.items() if k != "cost"} for row in [*results["cam"], *results["stages"]]]
    files = sorted(path for path in out.glob("*/*/seed0/*/*") if path.suffix in {".png", ".npz"})
    maps = {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"rows": rows, "maps": maps}


@pytest.mark.timeout(3600)
def test_two_quick_runs_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    settings = [word.replace(" ", "") for word in settings]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, workers in zip(folders, ("2", "1"), strict=True):
        command = ["run", "--profile", "quick", *settings, "--workers", workers, "--only", "04,05,06,07,08"]
        status = cli.main([*command, "--out", str(folder / "run"), "--figures", str(folder / "figures")])
        assert status == 0, capfd.readouterr()
    one, two = (made(folder / "run") for folder in folders)
    assert len(one["rows"]) == 5 + 3 and len(one["maps"]) == 5 * 2 * 3 + (3 * 8 + 3) + 3
    assert one == two

    verdicts = compare_folders(folders[0] / "figures", folders[1] / "figures")
    assert [str(verdict) for verdict in verdicts if verdict.matches is False] == []
    compared = {verdict.path.name for verdict in verdicts if verdict.matches}
    measured = {name for name in FIGURES if FIGURES[name].measured} | {"table_cost"}
    assert {f"{name}.png" for name in {*FIGURES} - measured} <= compared, "every figure"
    assert {f"{name}.csv" for name in {*TABLES} - measured} <= compared, "every table"
    for folder in folders:
        manifest = read_json(folder / "figures" / "figure_1.json")
        authors = manifest["made_by"]["steps"]
        assert sum(len(author["steps"]) for author in authors) == 1 + 5 * 2 + 5 + 2, (
            "every step has an author"
        )
        assert {author["command"] for author in authors} == {manifest["command"]}, "of one command"
