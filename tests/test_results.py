"""Reading runs: the schema, clear errors, copied runs, and where notebooks look."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from fake_run import make_fake_run

from wsss_nb.data.voc import save_label_map
from wsss_nb.run.run import NotInRun, NotOnThisMachine, find_run, load_run
from wsss_nb.run.steps import MANIFEST
from wsss_nb.system.errors import InputError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_fake_run(tmp_path_factory.mktemp("runs") / "quick", num_val=3, lams=(0.0, 1.0))


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
    assert run.results.synthetic
    assert run.note == "synthetic data, not VOC"
    assert run.classes == ("background", "class1", "class2", "class3")
    assert run.val_names == ("val_0000", "val_0001", "val_0002")
    assert run.seeds == (0, 1)
    assert run.backbone == "tiny"
    assert [(cam.seed, cam.lam, cam.fsl) for cam in run.cams("lambda1_fsl")] == [(0, 1.0, True), (1, 1.0, True)]
    assert [cam.variant for cam in run.cams(on_curve=False)] == ["average", "average", "seam", "seam"]
    points = ["lambda0", "lambda0_fsl", "lambda1", "lambda1_fsl"]
    assert [cam.variant for cam in run.cams(on_curve=True)] == [name for name in points for _ in range(2)]
    assert run.cams("lambda0.25") == []
    assert run.cams("seam")[1].folder == "cam/seam/seed1/val-1a2b3c4d"


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


def test_ours_is_the_variant_that_went_furthest_or_was_to(editable):
    def other(results):
        for row in results["stages"]:
            if row["variant"] == "lambda1_fsl" and row["stage"] == "deeplab":
                row["variant"] = "lambda0_fsl"

    def planned(results):
        results["stages"] = []
        results["profile"]["refine"] = ["seam", "lambda0"]

    def not_run(results):
        planned(results)
        results["cam"] = [cam for cam in results["cam"] if cam["variant"] in ("lambda0_fsl", "lambda1", "seam")]

    assert load_run(editable(other)).ours == "lambda0_fsl"
    assert load_run(editable(planned)).ours == "lambda0"
    assert load_run(editable(not_run)).ours == "lambda1", "the largest lambda"
    assert load_run(editable(lambda r: r.update(stages=[], cam=[]))).ours == "lambda1_fsl", "the paper's"


def test_stage_cam_holds_the_seeds_of_the_sweep_too(editable):
    def first_seed_only(results):
        results["stages"] = [row for row in results["stages"] if row["seed"] == 0]

    run = load_run(editable(first_seed_only))
    assert [row.seed for row in run.stages("cam")] == [0, 1]
    assert [row.seed for row in run.stages("deeplab")] == [row.seed for row in run.stages("deeplab", "seam")] == [0]
    assert [row.scores.miou for row in run.stages("cam")] == [cam.scores.miou for cam in run.cams("lambda1_fsl")]
    alone = load_run(editable(lambda r: r.update(stages=[])))
    assert [row.seed for row in alone.stages("cam", "seam")] == [0, 1]
    assert alone.stages("deeplab") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("synthetic"), "synthetic: expected this field, got none"),
        (lambda r: r.update(schema=3), "schema: Input should be 2, got 3"),
        (lambda r: r.update(schema=1), "expected a run of this version, got one of an earlier layout"),
        (lambda r: r.update(classes=["background"]), "classes: List should have at least 2 items"),
        (lambda r: r["cam"][1]["scores"].pop("miou"), "cam.1.scores.miou: expected this field, got none"),
        (lambda r: r["cam"][0]["scores"].update(miou=54.9), "cam.0.scores.miou: .*less than or equal to 1, got 54.9"),
        (lambda r: r["cam"][0]["scores"].update(miou="0.5"), "cam.0.scores.miou: .*valid number, got '0.5'"),
        (lambda r: r["cam"][0].update(seed=True), "cam.0.seed: .*valid integer, got True"),
        (lambda r: r["cam"][0].update({"lambda": 1.5}), "cam.0.lambda: .*less than or equal to 1, got 1.5"),
        (lambda r: r["cam"][0]["scores"]["iou"].pop(), r"cam.0.scores.iou: expected shape \(4,\), got another"),
        (lambda r: r["cam"][2]["scores"]["f"].append(0.5), r"cam.2.scores.f: expected shape \(3,\), got another"),
        (lambda r: r["stages"][0]["scores"]["confusion"].pop(), r"stages.0.scores.confusion: expected shape \(4, 4\)"),
        (lambda r: r["stages"][0]["scores"]["matches"][1].pop(), r"stages.0.scores.matches: expected shape \(3, 4\)"),
        (lambda r: r["cam"][0]["steps"].update(val="../other"), "cam.0: steps.val: expected a folder inside the run"),
        (lambda r: r["cam"][0]["steps"].update(model="/etc"), "cam.0: steps.model: expected a folder inside the run"),
        (lambda r: r["cam"][0]["steps"].pop("val"), "cam.0: steps.val: expected a folder inside the run, got ''"),
        (lambda r: r["cam"].append(r["cam"][0]), r"expected one entry each, got 2 of \('CAM', 'lambda0', 0\)"),
        (lambda r: r["cam"][0]["cost"].update(seconds=-1), "cam.0.cost.seconds: .*greater than or equal to 0"),
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

    run = load_run(editable(later))
    assert run.results.cam[0].scores.iou[1] is None


def test_label_map_and_activations(run_dir):
    run = load_run(run_dir)
    cam = run.cams("lambda1_fsl")[0]
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
    place = folder / cam.folder
    (place / "val_0000.png").unlink()
    with pytest.raises(NotOnThisMachine, match=r"val_0000\.png: expected a file of the run, got none"):
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
    np.savez(folder / cam.folder / "val_0000.npz", classes=np.array([{}], dtype=object), cam=np.zeros(1))
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
    with pytest.raises(NotOnThisMachine, match="data_root: expected the run's data set, got nothing at /nowhere/voc"):
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


def test_weight_files_are_those_of_finished_steps(run_dir, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    assert load_run(folder).weight_files() == {}
    step = "cam/lambda1_fsl/seed0/model-1a2b3c4d"
    (folder / step).mkdir()
    (folder / step / "checkpoint.pt").write_bytes(b"weights")
    (folder / step / MANIFEST).write_text("{}")
    assert load_run(folder).weight_files() == {step: folder / step / "checkpoint.pt"}
