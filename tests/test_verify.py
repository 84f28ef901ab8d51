"""verify: a figure or table that is not what its arrays give is found, and two runs are held side by side."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from fake_run import make_fake_run
from PIL import Image

from wsss_nb import cli
from wsss_nb.run.pipeline import train_cam, train_deeplab
from wsss_nb.run.prepare import open_run
from wsss_nb.run.profiles import load_profile
from wsss_nb.run.run import NotInRun, load_run
from wsss_nb.show import FIGURES, TABLES, Table, compare_folders, make_figure, make_table, verify_folder
from wsss_nb.show.figures import read_arrays, write_arrays
from wsss_nb.show.verify import Verdict
from wsss_nb.system.files import read_json, sha256_file, write_json


def draw(run_dir: Path, folder: Path, names: tuple[str, ...] = (*FIGURES, *TABLES)) -> Path:
    """Figures and tables of a run, without what it has not got."""
    run = load_run(run_dir)
    for name in names:
        make: Any = make_figure if name in FIGURES else make_table
        try:
            make(name, run, folder, {"synthetic": run.results.synthetic})
        except NotInRun:
            continue
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_run(tmp_path_factory.mktemp("runs") / "quick", num_val=4, lams=(0.0, 1.0))


@pytest.fixture(scope="module")
def drawn(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(run_dir, tmp_path_factory.mktemp("drawn"), ("figure_2", "table_1", "table_cost"))


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "figures"))


def wrong(verdicts: list[Verdict]) -> dict[str, str]:
    return {verdict.path.as_posix(): verdict.reason for verdict in verdicts if verdict.matches is False}


def only(folder: Path, *patterns: str) -> None:
    """Leave nothing but what matches a pattern: a redrawing takes time."""
    kept = {path for pattern in patterns for path in folder.glob(pattern)}
    for path in set(folder.iterdir()) - kept:
        path.unlink()


def edit_arrays(path: Path, change: Callable[[dict[str, Any]], Any], *, cover: bool = False) -> None:
    """Change arrays; ``cover`` also writes their new hash into the manifest."""
    arrays = read_arrays(path)
    change(arrays)
    write_arrays(path, arrays)
    if cover:
        manifest = read_json(path.with_suffix(".json"))
        manifest["files"][path.name] = sha256_file(path)
        write_json(path.with_suffix(".json"), manifest)


def test_what_was_just_drawn_matches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos").mkdir()
    for path in list(folder.glob("table_1.*")):
        path.rename(folder / "photos" / path.name)
    (folder / "README.md").write_text("not ours")
    assert cli.main(["verify", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "figure_2_single.png   matches\n" in printed and "photos/table_1.csv    matches\n" in printed
    assert printed.endswith("20 of 20 files match\n")


@pytest.mark.parametrize("cover", [False, True], ids=["manifest as it was", "manifest adapted"])
def test_one_changed_number_in_an_array_is_found(folder: Path, cover: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def one_point(arrays: dict[str, Any]) -> None:
        arrays["miou"][0] += 1

    only(folder, "figure_2.*", "table_1.*")
    edit_arrays(folder / "figure_2.npz", one_point, cover=cover)
    found = wrong(verify_folder(folder))
    assert {"figure_2.png", "figure_2.pdf", "figure_2.svg"} <= set(found)
    assert set(found) <= {f"figure_2.{suffix}" for suffix in ("png", "pdf", "svg", "npz")}
    assert ("figure_2.npz" in found) is not cover
    assert "pixels are not what its arrays give" in found["figure_2.png"]
    if cover:
        assert cli.main(["verify", str(folder)]) == 1
        printed = capsys.readouterr().out
        assert "figure_2.svg   does not match: not what its arrays give" in printed
        assert "table_1.csv    matches" in printed and printed.endswith(f"{folder}: 7 of 10 files match\n")


def test_one_changed_pixel_of_a_picture_is_found(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    make_figure("figure_1", load_run(run_dir), folder, {}, names=["val_0001"])
    for path in folder.glob("figure_1_single.*"):
        path.unlink()
    assert wrong(verify_folder(folder)) == {}

    def one_pixel(arrays: dict[str, Any]) -> None:
        arrays["panel_0_1"][5, 5] = 3 - arrays["panel_0_1"][5, 5]

    edit_arrays(folder / "figure_1.npz", one_pixel, cover=True)
    assert "figure_1.png" in wrong(verify_folder(folder))


def test_one_changed_number_of_a_table_is_found(folder: Path) -> None:
    def one_score(arrays: dict[str, Any]) -> None:
        arrays["column_run_miou"][1] += 0.0002  # under what Markdown shows, not under what the CSV does

    only(folder, "table_*")
    edit_arrays(folder / "table_1.npz", one_score, cover=True)
    assert wrong(verify_folder(folder)) == {"table_1.csv": "not what its arrays give"}
    text = (folder / "table_cost.md").read_text()
    assert " 700 |" in text
    (folder / "table_cost.md").write_text(text.replace(" 700 |", " 701 |", 1))
    assert set(wrong(verify_folder(folder))) == {"table_1.csv", "table_cost.md"}


def test_png_is_compared_by_pixels_and_the_others_by_bytes(folder: Path) -> None:
    for name in ("figure_2", "figure_2_single"):
        with Image.open(folder / f"{name}.png") as image:
            image.save(folder / f"{name}.png", compress_level=0)
    assert wrong(verify_folder(folder)) == {}
    only(folder, "figure_2*")
    with Image.open(folder / "figure_2.png") as image:
        pixels = np.array(image)
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "figure_2.png")
    assert wrong(verify_folder(folder))["figure_2.png"].startswith("1 of ")
    (folder / "figure_2_single.pdf").write_bytes((folder / "figure_2_single.pdf").read_bytes() + b"\n")
    assert wrong(verify_folder(folder))["figure_2_single.pdf"] == "not what its arrays give"


def test_a_pdf_that_another_zlib_packed_counts_as_saved(folder: Path) -> None:
    only(folder, "figure_2.*")
    path = folder / "figure_2.pdf"
    path.write_bytes(path.read_bytes() + b"%\n")  # stands for the same drawing in other bytes
    manifest = read_json(folder / "figure_2.json")
    manifest["files"]["figure_2.pdf"] = sha256_file(path)
    write_json(folder / "figure_2.json", manifest)
    assert wrong(verify_folder(folder)) == {}
    edit_arrays(folder / "figure_2.npz", lambda arrays: arrays["miou"].__iadd__(1), cover=True)
    assert "figure_2.pdf" in wrong(verify_folder(folder)), "not if the arrays give another picture"


def test_missing_broken_and_false_files_are_named(folder: Path) -> None:
    (folder / "figure_2_single.svg").unlink()
    (folder / "figure_2_single.png").write_bytes(b"no picture")
    (folder / "figure_2.npz").write_bytes(b"PK nothing")
    (folder / "extra.json").write_text("{")
    (folder / "extra.npz").write_bytes(b"")
    manifest = read_json(folder / "table_1.json")
    write_json(folder / "table_1.json", {**manifest, "note": ""})
    for path in list(folder.glob("table_cost.*")):
        path.rename(folder / f"table_2{path.suffix}")
    found = wrong(verify_folder(folder))
    assert found["figure_2_single.svg"] == "missing"
    assert found["extra.json"].startswith("expected JSON")
    assert "expected an npz file of numbers and text" in found["figure_2.json"]
    assert found["figure_2.png"] == "cannot be made again"
    assert found["figure_2_single.png"].startswith("not a PNG picture")
    assert found["table_1.json"] == "note: expected 'synthetic data, not VOC', got ''"
    assert found["table_2.json"] == "name: expected 'table_2', got the arrays of 'table_cost'"


def test_files_without_a_manifest_do_not_pass(folder: Path, drawn: Path) -> None:
    only(folder, "figure_2*", "table_1.*")
    (folder / "figure_2.json").unlink()
    Image.new("RGB", (9, 9)).save(folder / "figure_2.png")
    (folder / "screenshots").mkdir()
    (folder / "screenshots" / "cam.png").write_bytes(b"somebody's own")
    (folder / "screenshots" / "table_2.md").write_text("| a |")
    found = wrong(verify_folder(folder))
    names = {f"figure_2.{suffix}" for suffix in ("npz", "pdf", "png", "svg")} | {"screenshots/table_2.md"}
    assert found == dict.fromkeys(names, "no manifest speaks for it")
    (folder / "screenshots" / "table_2.md").unlink()
    assert set(wrong(compare_folders(folder, drawn))) >= {"figure_2.png"}
    for path in folder.glob("*.json"):
        path.unlink()
    assert set(wrong(verify_folder(folder))) == {path.name for path in folder.glob("*.*")}


def test_a_manifest_that_names_missing_files_does_not_pass(folder: Path) -> None:
    only(folder, "table_1.json", "table_cost.*")
    (folder / "table_cost.md").unlink()
    manifest = read_json(folder / "table_cost.json")
    manifest["files"] |= {"table_cost.html": "", "../table_cost.xlsx": "", "table_cost.png": ""}
    write_json(folder / "table_cost.json", manifest)
    (folder / "table_cost.png").write_bytes(b"of no table")
    found = wrong(verify_folder(folder))
    assert {name for name, reason in found.items() if reason == "missing"} == {
        *(f"table_1.{suffix}" for suffix in ("csv", "md", "tex", "npz")),
        *("table_cost.md", "table_cost.html", "table_cost.xlsx"),
    }
    assert found["table_cost.png"] == "cannot be made again"


def test_arrays_of_something_else_are_refused_not_drawn(folder: Path) -> None:
    edit_arrays(folder / "figure_2.npz", lambda arrays: arrays.pop("baseline"))
    edit_arrays(folder / "table_cost.npz", lambda arrays: arrays.update(name=np.array("table_9")))
    edit_arrays(folder / "table_1.npz", lambda arrays: arrays.pop("column_stage"))
    np.savez(folder / "figure_2_single.npz", miou=np.array([{}], dtype=object))
    found = wrong(verify_folder(folder))
    assert found["figure_2.json"] == "its arrays give no figure_2: KeyError: 'baseline'"
    assert found["table_cost.json"].endswith("got 'table_9'")
    assert found["table_1.json"].startswith("its arrays give no table_1: KeyError")
    assert "numbers and text" in found["figure_2_single.json"]


def test_table_comes_back_from_its_arrays(run_dir: Path, tmp_path: Path) -> None:
    run = load_run(run_dir)
    for name, make in TABLES.items():
        table = make(run)
        write_arrays(tmp_path / "table.npz", table.arrays())
        again = Table.from_arrays(read_arrays(tmp_path / "table.npz"))
        assert again.files() == table.files(), name
        assert (again.bold, again.columns, again.notes) == (table.bold, table.columns, table.notes)


# Two runs


def test_differences_between_runs_are_named(folder: Path, drawn: Path, tmp_path: Path) -> None:
    same = compare_folders(folder, drawn)
    assert wrong(same) == {}
    assert {v.path.as_posix() for v in same if v.matches is None} == {"table_cost.csv", "table_cost.npz"}
    edit_arrays(folder / "figure_2.npz", lambda arrays: arrays["seed"].__iadd__(1))
    (folder / "table_1.csv").write_text("other")
    shutil.copy(folder / "figure_2_single.png", folder / "figure_2.png")
    for path in folder.glob("figure_2_single.*"):
        path.unlink()
    found = wrong(compare_folders(folder, drawn))
    assert found["figure_2.npz"] == "array seed differs"
    assert found["table_1.csv"] == "other bytes"
    assert "pixels" in found["figure_2.png"]
    assert found["figure_2_single.png"] == found["figure_2_single.npz"] == f"missing in {folder}"
    assert len(found) == 5


def test_the_order_in_which_a_run_finished_changes_nothing(run_dir: Path, tmp_path: Path) -> None:
    results = read_json(run_dir / "results.json")
    for section in ("cam", "stages"):
        random.Random(5).shuffle(results[section])
    other = tmp_path / "run"
    other.mkdir()
    for name in ("cam", "affinitynet", "deeplab", "data"):
        (other / name).symlink_to(run_dir / name)
    (other / "results.json").write_text(json.dumps(results))
    one, two = load_run(run_dir), load_run(other)
    assert [cam.seed for cam in one.results.cam] != [cam.seed for cam in two.results.cam]
    for spec in FIGURES.values():
        assert_same(spec.collect(one), spec.collect(two), spec.name)
    for name, make in TABLES.items():
        assert make(one).files() == make(two).files(), name


def assert_same(one: dict[str, Any], two: dict[str, Any], name: str) -> None:
    """The same arrays; a figure is drawn from nothing else."""
    assert one.keys() == two.keys(), name
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=f"{name}: {key}", strict=True)


def test_two_runs_with_one_seed_give_the_same_figures_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WSSS_NB_HEADLESS", "1")
    tiny: dict[str, Any] = {"epochs": 1, "batch_size": 4, "views": {"sizes": [[48, 48]]}}
    small = {stage: tiny for stage in ("pretrain", "affinitynet", "deeplab")} | {
        "data": {"num_train": 8, "num_val": 3},
        "cam": {**tiny, "epochs": 2, "learn_fsl": True},
        **{"lambdas": [1.0], "fsl": [True], "variants": [], "refine": ["lambda1_fsl"], "workers": 1, "threads": 1},
    }
    for name in ("one", "two"):
        run = open_run(load_profile("quick", small), tmp_path / name)
        train_cam(run, "lambda1_fsl", 0)
        train_deeplab(run)
        names = ("figure_2", "figure_3", "table_1", "table_2", "table_sweep", "table_cost")
        draw(tmp_path / name, tmp_path / name / "figures", names)
    costs = [read_json(tmp_path / name / "results.json")["cam"][0]["cost"] for name in ("one", "two")]
    assert costs[0] != costs[1], "two runs, not one read twice"
    one, two = (str(tmp_path / name / "figures") for name in ("one", "two"))
    assert cli.main(["verify", one, "--against", two]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"{one}: 14 of 14 files are the same, 2 not compared\n")
    runs = [load_run(tmp_path / name) for name in ("one", "two")]
    for spec in FIGURES.values():
        if not spec.measured:
            assert_same(spec.collect(runs[0]), spec.collect(runs[1]), spec.name)


# A run from elsewhere


def test_a_copied_run_is_drawn_and_verified_without_training_code(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copied"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("data"))
    results = read_json(copy / "results.json")
    results["data"]["root"] = "/nowhere/on/this/machine"
    write_json(copy / "results.json", results)
    notebook = nbformat.read(Path(__file__).parents[1] / "notebooks" / "07_figures.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells[:16] if cell.cell_type == "code"]
    assert cells[-1] == 'show("figure_2")'
    blocked = "import sys\nfor name in ('stages', 'models', 'run.pipeline'):\n"
    blocked += "    sys.modules[f'wsss_nb.{name}'] = None  # importing it is an error\n"
    verify = "from wsss_nb.cli import main\nsys.exit(main(['verify', str(folder)]))"
    script = "\n".join([blocked, cells[0], f"run_dir = {str(copy)!r}", *cells[1:], verify])
    answer = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "WSSS_NB_HEADLESS": "1"},
    )
    assert answer.returncode == 0, answer.stderr
    assert "10 of 10 files match" in answer.stdout
    assert "figure_1: not drawn. data_root: expected the run's data set, got nothing at" in answer.stdout
    made = {path.stem for path in (copy / "figures").glob("*.json")}
    assert made == {"figure_2", "figure_2_single"}
