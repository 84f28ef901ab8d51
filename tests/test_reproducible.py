"""A run of the notebooks with two workers and one of the commands with one: the same scores, CSV files and pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from small_run import small_stages

from wsss_nb import cli
from wsss_nb.show.figures import FIGURES
from wsss_nb.show.tables import TABLES
from wsss_nb.show.verify import compare_folders
from wsss_nb.system.files import read_json

# The profile quick, with every kind of point, stage and figure, on few images and for few epochs.
SETTINGS = {
    "data.num_train": "8",
    "data.num_val": "3",
    "lambdas": "0,1",
    "variants": "[seam]",
    "refine": "[lambda1_fsl]",
    "cam.learn_fsl": "true",
    **small_stages(("pretrain", "cam", "seam", "affinitynet", "deeplab"), batch_size=4),
    "cam.epochs": "2",
}


def made(out: Path) -> dict[str, Any]:
    """What a run's folder holds: scores without what they cost, and the bytes of label maps and CAMs."""
    results = read_json(out / "results.json")
    rows = [{k: v for k, v in row.items() if k != "cost"} for row in [*results["cam"], *results["stages"]]]
    files = sorted(path for path in out.glob("*/*/seed0/*/*") if path.suffix in {".png", ".npz"})
    maps = {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"rows": sorted(rows, key=lambda row: (row.get("stage", ""), row["variant"], row["seed"])), "maps": maps}


@pytest.mark.timeout(3600)
def test_two_quick_runs_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    folders = [tmp_path / "one", tmp_path / "two"]

    def command(words: str, workers: int, *more: str) -> None:
        out = str(folders[2 - workers] / "run")
        status = cli.main([*words.split(), *settings, "--workers", str(workers), "--out", out, *more])
        assert status == 0, capfd.readouterr().err

    command("run --only 04,05,06,07,08", 2, "--figures", str(folders[0] / "figures"))
    command("sweep", 1)
    command("train deeplab", 1)
    command("run --only 07,08", 1, "--figures", str(folders[1] / "figures"))
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
        assert sum(len(author["steps"]) for author in authors) == 1 + 5 * 2 + 5 + 2, "every step has an author"
        assert {author["command"] for author in authors} == {manifest["command"]}, "of one command"
