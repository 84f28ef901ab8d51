"""Reading runs: the schema, clear errors, copied runs, and where notebooks look."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from fake_run import make_fake_run

from wsss_nb.data.palette import save_label_map
from wsss_nb.errors import InputError
from wsss_nb.results import NotHere, NotInRun, find_run, load_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_fake_run(tmp_path_factory.mktemp("runs") / "quick", num_val=3, weights=(0.0, 1.0))


@pytest.fixture
def editable(run_dir, tmp_path):
    """A function that writes a copy of results.json with one change and returns its folder."""

    def edit(change):
        results = json.loads((run_dir / "results.json").read_text())
        change(results)
        (tmp_path / "results.json").write_text(json.dumps(results))
        return tmp_path

    return edit


def test_load_run_reads_what_the_stages_wrote(run_dir):
    run = load_run(run_dir)
    assert run.synthetic
    assert run.note == "synthetic data, not VOC"
    assert run.classes == ("background", "class1", "class2", "class3")
    assert run.val_names == ("val_0000", "val_0001", "val_0002")
    assert run.seeds == (0, 1)
    assert run.backbone == "tiny"
    assert run.pooling == "max"
    assert [cam.variant for cam in run.cams("sampling", 1.0, fsl=True)] == ["lambda1_fsl", "lambda1_fsl"]
    assert [cam.seed for cam in run.cams("sampling", 1.0, fsl=True)] == [0, 1]
    assert {cam.weight for cam in run.cams("sampling")} == {0.0, 1.0}
    assert len(run.cams("average")) == 2
    assert run.cams("sampling", 0.25) == []


def test_note_tells_voc_from_other_data(editable):
    def voc(results, val):
        results["synthetic"] = False
        results["classes"] = ["background", *(f"c{i}" for i in range(1, 21))]
        results["data"] |= {"val": val, "root": "/data/VOC2012"}
        results["cam"], results["stages"] = [], []

    assert load_run(editable(lambda r: voc(r, 1449))).note == ""
    assert load_run(editable(lambda r: voc(r, 1400))).note == "VOC 2012 val, 1400 of 1449 images"

    def train(results):
        cam, _ = results["cam"][0], voc(results, 1464)
        cam["scores"] |= {"iou": [0.5] * 21, "f": [0.5] * 20}
        cam["scores"] |= {"confusion": [[1] * 21] * 21, "matches": [[1] * 4] * 20}
        cam["scores"]["protocol"]["split"] = "train"
        results["cam"] = [cam]

    assert load_run(editable(train)).note == "VOC 2012 train, not val"

    def photographs(results):
        voc(results, 160)
        results["data"]["root"] = "/data/msrc"

    assert load_run(editable(photographs)).note == "msrc, not VOC 2012"


def test_results_hash_is_that_of_the_file(run_dir, editable):
    path = run_dir / "results.json"
    assert load_run(run_dir).results_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_run(editable(lambda r: r.update(run="x"))).results_hash != load_run(run_dir).results_hash


def test_final_variant_is_that_of_the_stages(editable):
    def other(results):
        for entry in results["stages"]:
            if entry["method"] == "ours":
                entry["variant"] = "lambda0_fsl"

    assert load_run(editable(other)).final_variant("ours") == "lambda0_fsl"


def test_final_variant_without_stages_is_the_largest_lambda_with_fsl(editable):
    run = load_run(editable(lambda r: r.update(stages=[])))
    assert run.final_variant("ours") == "lambda1_fsl"
    assert run.final_variant("seam") == "seam"
    assert [entry.seed for entry in run.stages("cam", "ours")] == [0, 1]
    assert run.stages("deeplab", "ours") == []


def test_stage_cam_holds_the_seeds_of_the_sweep_too(editable):
    def first_seed_only(results):
        results["stages"] = [entry for entry in results["stages"] if entry["seed"] == 0]

    run = load_run(editable(first_seed_only))
    assert [entry.seed for entry in run.stages("cam", "ours")] == [0, 1]
    assert [entry.seed for entry in run.stages("deeplab", "ours")] == [0]
    miou = [cam.scores.miou for cam in run.cams("sampling", 1.0, fsl=True)]
    assert [entry.scores.miou for entry in run.stages("cam", "ours")] == miou


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("synthetic"), "synthetic: expected this field, got none"),
        (lambda r: r.update(schema=2), "schema: input should be 1, got 2"),
        (lambda r: r.update(classes=["background"]), "classes: list should have at least 2 items"),
        (lambda r: r["cam"][1]["scores"].pop("miou"), "cam.1.scores.miou: expected this field, got none"),
        (
            lambda r: r["cam"][0]["scores"].update(miou=54.9),
            "cam.0.scores.miou: .*less than or equal to 1, got 54.9",
        ),
        (lambda r: r["cam"][0]["scores"].update(miou="0.5"), "cam.0.scores.miou: .*valid number, got '0.5'"),
        (lambda r: r["cam"][0].update(seed=True), "cam.0.seed: .*valid integer, got True"),
        (
            lambda r: r["cam"][0].update(method="gmp"),
            "cam.0.method: .*'sampling', 'average' or 'seam', got 'gmp'",
        ),
        (lambda r: r["cam"][0].update({"lambda": None}), "lambda: expected a number for method 'sampling'"),
        (lambda r: r["cam"][0]["scores"]["iou"].pop(), "cam.0.scores.iou: expected 4 values, got 3"),
        (lambda r: r["cam"][2]["scores"]["f"].append(0.5), "cam.2.scores.f: expected 3 values, got 4"),
        (
            lambda r: r["stages"][0]["scores"]["confusion"].pop(),
            r"stages.0.scores.confusion: expected shape \(4, 4\)",
        ),
        (
            lambda r: r["stages"][0]["scores"]["matches"][1].pop(),
            r"stages.0.scores.matches: expected shape \(3, 4\)",
        ),
        (lambda r: r["cam"][0].update(folder="../other"), "cam.0.folder: expected a folder inside the run"),
        (lambda r: r["cam"][0].update(folder="/etc"), "cam.0.folder: expected a folder inside the run"),
        (lambda r: r["cam"].append(r["cam"][0]), r"cam: expected one entry each, got 2 of \('lambda0', 0\)"),
        (
            lambda r: r["cam"][0]["cost"].update(seconds=-1),
            "cam.0.cost.seconds: .*greater than or equal to 0",
        ),
    ],
)
def test_wrong_field_is_named(editable, change, message):
    folder = editable(change)
    with pytest.raises(InputError, match=message) as caught:
        load_run(folder)
    assert str(folder / "results.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[1, 2]", '"text"', "null"])
def test_broken_file_is_an_input_error(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "results.json"))):
        load_run(tmp_path)


def test_half_written_file_is_an_input_error(run_dir, tmp_path):
    text = (run_dir / "results.json").read_text()
    (tmp_path / "results.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="expected JSON"):
        load_run(tmp_path)


def test_unknown_fields_and_nulls_are_accepted(editable):
    def later(results):
        results["new"] = 1
        results["cam"][0]["new"] = {"a": 2}
        results["cam"][0]["scores"]["iou"][1] = None
        results["cam"][0]["cost"] = None

    run = load_run(editable(later))
    assert run.results.cam[0].scores.iou[1] is None
    assert run.results.cam[0].cost is None


def test_label_map_and_activations(run_dir):
    run = load_run(run_dir)
    cam = run.cams("sampling", 1.0, fsl=True)[0]
    label_map = run.label_map(cam, "val_0001")
    assert label_map.shape == (24, 32)
    assert label_map.dtype == np.uint8
    classes, maps = run.activations(cam, "val_0001")
    assert maps.shape == (len(classes), 24, 32)
    assert maps.dtype == np.float32
    assert set(classes) <= {1, 2, 3}


def test_missing_and_broken_pictures(run_dir, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    run = load_run(folder)
    cam = run.results.cam[0]
    place = folder / cam.folder / "val"
    (place / "val_0000.png").unlink()
    with pytest.raises(NotHere, match=r"val_0000\.png: expected a file of the run, got none"):
        run.label_map(cam, "val_0000")
    save_label_map(place / "val_0001.png", np.full((24, 32), 4, dtype=np.uint8))
    with pytest.raises(InputError, match=r"val_0001\.png: expected class ids 0\.\.3, got 4"):
        run.label_map(cam, "val_0001")
    (place / "val_0000.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match=r"val_0000\.npz: expected arrays classes and cam"):
        run.activations(cam, "val_0000")
    np.savez(place / "val_0001.npz", classes=np.array([1, 2]), cam=np.zeros((1, 24, 32), np.float16))
    with pytest.raises(InputError, match=r"expected classes \(n,\) and cam \(n, H, W\), got \(2,\)"):
        run.activations(cam, "val_0001")
    np.savez(place / "val_0002.npz", classes=np.array([9]), cam=np.zeros((1, 24, 32), np.float16))
    with pytest.raises(InputError, match=r"expected class ids 1\.\.3, got \[9\]"):
        run.activations(cam, "val_0002")


def test_pickled_activations_are_refused(run_dir, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    run = load_run(folder)
    cam = run.results.cam[0]
    np.savez(folder / cam.folder / "val/val_0000.npz", classes=np.array([{}], dtype=object), cam=np.zeros(1))
    with pytest.raises(InputError, match="expected arrays classes and cam"):
        run.activations(cam, "val_0000")


def test_copied_run_finds_data_inside_it_or_says_data_root(editable, run_dir, tmp_path):
    inside = tmp_path / "copied"
    shutil.copytree(run_dir, inside)
    results = json.loads((inside / "results.json").read_text())
    results["data"]["root"] = "data"
    (inside / "results.json").write_text(json.dumps(results))
    assert load_run(inside).dataset.root == inside / "data"

    gone = editable(lambda r: r["data"].update(root="/nowhere/voc"))
    with pytest.raises(NotHere, match="data_root: expected the run's data set, got nothing at /nowhere/voc"):
        _ = load_run(gone).dataset
    assert load_run(gone, str(run_dir / "data")).dataset.image("val_0000").shape == (24, 32, 3)
    with pytest.raises(InputError, match="data_root: expected a folder with JPEGImages") as caught:
        _ = load_run(gone, str(tmp_path)).dataset
    assert not isinstance(caught.value, NotInRun)


def test_data_set_of_other_classes_is_refused(run_dir, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(run_dir / "data", other)
    (other / "classes.txt").write_text("background\ncat\ndog\nsheep\n")
    with pytest.raises(InputError, match="data_root: expected the run's 4 classes"):
        _ = load_run(run_dir, str(other)).dataset


def test_find_run(run_dir, tmp_path, monkeypatch):
    project = tmp_path / "project"
    shutil.copytree(run_dir, project / "runs" / "quick", ignore=shutil.ignore_patterns("cam", "data"))
    (project / "notebooks").mkdir()
    monkeypatch.chdir(project)
    assert find_run("runs/quick").samefile(project / "runs/quick")
    monkeypatch.chdir(project / "notebooks")
    assert find_run("runs/quick").samefile(project / "runs/quick")
    assert find_run("../runs/quick").samefile(project / "runs/quick")
    assert find_run(project / "runs/quick").samefile(project / "runs/quick")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"run_dir or out_dir: expected a run folder with results\.json, got runs/quick"
    ):
        find_run("runs/quick")


def test_weight_files(run_dir, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    assert load_run(folder).weight_files() == {}
    path = folder / "cam/lambda1_fsl/seed0/model/checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    assert load_run(folder).weight_files() == {"cam/lambda1_fsl/seed0": path}
