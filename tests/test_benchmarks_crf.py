"""The stated difference of the CRF in torch to pydensecrf: measured on photographs, committed, quoted as measured."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import crf
from benchmarks.crf import LABELS, NOISES, difference, main, smooth_scores, table
from wsss_nb.crf import CRFConfig, dense_crf, dense_crf_torch
from wsss_nb.teach import PHOTOS, load_photo

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "figures/crf_difference.json").read_text())["rows"]
    return found


def test_every_photograph_size_and_number_of_labels_is_committed(rows: list[dict[str, Any]]) -> None:
    found = [(row["photograph"], min(row["height"], row["width"]), row["labels"], row["seed"]) for row in rows]
    sizes = [(side, seed) for side, noises in NOISES.items() for seed in range(noises)]
    assert sorted(found) == sorted((a, b, c, d) for a, (b, d), c in product(PHOTOS, sizes, LABELS))
    assert {row["iterations"] for row in rows} == {10}


@pytest.mark.parametrize("labels", LABELS)
def test_a_committed_row_is_what_is_measured_here(rows: list[dict[str, Any]], labels: int) -> None:
    wanted = {"photograph": "cat", "height": 120, "labels": labels, "seed": 1}
    (row,) = [row for row in rows if row.items() >= wanted.items()]
    found = difference("cat", 120, labels, seed=1)
    assert found.keys() == row.keys()
    assert found["agree"] == pytest.approx(row["agree"], abs=0.002)
    assert found["moved"] == pytest.approx(row["moved"], abs=0.002)
    assert found["largest"] == pytest.approx(row["largest"], abs=0.05)


def test_a_difference_counts_pixels_and_marginals() -> None:
    image = load_photo("coffee", 40).image.copy()
    scores = smooth_scores(3, *image.shape[:2])
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-5)
    native = dense_crf(image, scores, 2, backend="pydensecrf")
    ours = dense_crf_torch(image, scores, CRFConfig(iterations=2))
    found = difference("coffee", 40, 3, config=CRFConfig(iterations=2))
    same = sum(a == b for a, b in zip(native.argmax(0).flat, ours.argmax(0).flat, strict=True))
    assert found["agree"] == same / image[..., 0].size and 0.5 < found["agree"] < 1
    assert found["moved"] == pytest.approx(np.maximum(native - ours, 0).sum() / image[..., 0].size, rel=1e-3)
    assert found["largest"] == pytest.approx(abs(native - ours).max())
    assert f"| coffee | {image.shape[1]}x40 | 3 | 0 | {100 * found['agree']:.1f} % |" in table([found])


def test_docstring_and_readme_state_the_committed_range(rows: list[dict[str, Any]]) -> None:
    agreeing, moved, longer = [], [], []
    for labels in LABELS:
        some = [row for row in rows if row["labels"] == labels]
        agree = [100 * row["agree"] for row in some]
        large = [row for row in some if min(row["height"], row["width"]) == max(NOISES)]
        agreeing.append(
            (f"with {labels} labels {min(agree):.0f} to {max(agree):.0f} %", f"(mean {np.mean(agree):.0f} %)")
        )
        moved.append(f"{100 * np.mean([row['moved'] for row in some]):.1f} %")
        longer.append(f"{np.median([row['seconds'] / row['native_seconds'] for row in large]):.0f}")
    stated = (
        f"{agreeing[0][0]} of the labels agree {agreeing[0][1]} and {moved[0]} of the probability goes to other labels, "
        f"{agreeing[1][0]} {agreeing[1][1]} and {moved[1]}; the larger ones take {longer[0]} and {longer[1]} times "
        "as long as in pydensecrf"
    )
    for text in (dense_crf_torch.__doc__ or "", (ROOT / "README.md").read_text()):
        assert stated in " ".join(text.split())


def test_one_command_writes_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crf, "NOISES", {24: 2})
    assert main(["--json", str(tmp_path / "found.json")]) == 0
    written = json.loads((tmp_path / "found.json").read_text())
    assert len(written["rows"]) == 4 * len(PHOTOS) and "packages" in written["manifest"]
    assert len(re.findall(r"^\| (?:cat|coffee) ", capsys.readouterr().out, re.MULTILINE)) == 8


def test_without_pydensecrf_there_is_nothing_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert main(["--json", str(tmp_path / "found.json")]) == 2
    assert "pydensecrf2" in capsys.readouterr().err and not (tmp_path / "found.json").exists()
