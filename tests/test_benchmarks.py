"""``wsss-nb benchmark``: its rows and targets, fair references, honest verdicts. Nothing here depends on speed."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import measure as measuring
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.measure import Row, Setup, extra_memory, interleaved, measure, table
from benchmarks.references import all_pairs_loss, contour_by_dilation, dense_random_walk, one_view_at_a_time
from benchmarks.rows import ROWS, _close, pixels_times_window
from wsss_nb import teach as widgets
from wsss_nb.affinity import pair_indices, random_walk
from wsss_nb.counts import contour_matches
from wsss_nb.similarity import feature_similarity_loss

TARGETS = {
    "similarity": {"speed_up": 12, "memory_share": 1 / 20},
    "similarity-learned": {"speed_up": 8, "memory_share": 1 / 20},
    "similarity-112": {"memory_mb": 1000, "time_per_growth": 1.5},
    "similarity-224": {"memory_mb": 1000, "time_per_growth": 1.5},
    "similarity-window": {"time_per_growth": 3},
    "contour": {"speed_up": 20},
    "walk": {"speed_up": 50, "memory_share": 1 / 20},
    "inference": {"speed_up": 2},
    "inference-float32": {"speed_up": 1},
    "slider-similarity": {"milliseconds": 150},
    "slider-threshold": {"milliseconds": 150},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- rows


def test_every_row_has_its_targets() -> None:
    assert {name: dict(row.targets) for name, row in ROWS.items()} == TARGETS
    for row in ROWS.values():
        assert row.targets and bool(row.against) != ("milliseconds" in row.targets)
        assert ("time_per_growth" in row.targets) == (row.growth is not None)


@pytest.mark.parametrize(("size", "reach"), [(4, 1.5), (7, 3.0), (5, 100.0)])
def test_pixels_times_window_counts_pairs(size: int, reach: float) -> None:
    y, x = np.divmod(np.arange(size**2), size)
    near = np.hypot(y[:, None] - y, x[:, None] - x) <= reach
    assert pixels_times_window(size, reach) == near.sum()


def test_growth_tells_the_window_from_all_pairs() -> None:
    for name, times in (("similarity-112", 2**4), ("similarity-224", 4**4)):
        row = ROWS[name]
        assert row.growth is not None
        # An implementation over all pairs could not meet the target.
        assert times > 1.5 * row.growth
        assert row.facts["pixels_times_window"] < row.facts["all_pairs"]


def test_growth_tells_a_window_that_follows_sigma_from_a_fixed_one() -> None:
    row = ROWS["similarity-window"]
    assert row.growth == pixels_times_window(112, 13.75) / pixels_times_window(112, 55)
    # An implementation with the same window for any sigma would take the same time.
    assert row.targets["time_per_growth"] * row.growth < 1 / 3
    assert "window of 13.75 pixels" in row.work and "window of 55 pixels" in row.against


# ---------------------------------------------------------------- references


@pytest.mark.parametrize("learned", [False, True])
def test_all_pairs_agree_with_ours(learned: bool) -> None:
    cam = torch.rand(2, 4, 9, 7, generator=seeded(1), dtype=torch.float64).softmax(1)
    image = torch.rand(2, 3, 9, 7, generator=seeded(2), dtype=torch.float64)
    gradients = []
    for loss in (feature_similarity_loss, all_pairs_loss):
        leaf = cam.clone().requires_grad_()
        scalars = [torch.tensor(v, dtype=torch.float64, requires_grad=learned) for v in (1.5, 3.0)]
        value = loss(leaf, image, *scalars)
        wanted = [leaf, *scalars] if learned else [leaf]
        gradients.append([value, *torch.autograd.grad(value, wanted)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-6)


def test_the_other_references_agree_with_ours() -> None:
    rng = np.random.default_rng(0)
    prediction, target = rng.integers(0, 4, (2, 30, 40)).astype(np.uint8)
    np.testing.assert_array_equal(contour_by_dilation(prediction, target, 6), contour_matches(prediction, target, 6))
    scores = torch.rand(3, 12, 14, generator=seeded(0), dtype=torch.float64)
    affinity = torch.rand(*pair_indices(5, 12, 14)[1].shape, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(
        dense_random_walk(scores, affinity, beta=8, log_t=6), random_walk(scores, affinity, beta=8, log_t=6)
    )


def test_one_view_at_a_time_agrees_with_ours() -> None:
    from wsss_nb.models import create_cam_net
    from wsss_nb.stages.cam import foreground_cam
    from wsss_nb.stages.config import CamConfig, InferenceConfig

    torch.manual_seed(0)
    net = create_cam_net("tiny", 4).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3)).astype(np.uint8)
    labels, inference = np.array([1, 0, 1, 1], np.uint8), InferenceConfig(max_normalize=False)
    ours = foreground_cam(net, image, labels, CamConfig(siamese=False), inference)
    theirs = one_view_at_a_time(net, image, labels, inference.scales)
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * theirs.max())


# ---------------------------------------------------------------- measuring


def test_contestants_that_disagree_are_refused() -> None:
    row = Row("", lambda: Setup(lambda: [1.0], lambda: [2.0], _close))
    with pytest.raises(AssertionError, match=r"results differ by 0.5 of the largest value"):
        measure(row, repeats=1)


def test_contestants_take_turns_until_their_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    interleaved([lambda: turns.append("a"), lambda: turns.append("b")], repeats=3)
    assert "".join(turns) == "ababab"
    clock = iter([0.0, 1.0, 0.0, 50.0, 0.0, 3.0, 0.0, 2.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    turns.clear()
    medians = interleaved([lambda: turns.append("a"), lambda: turns.append("b")], repeats=3)
    assert "".join(turns) == "abaa"  # b took 50 s, which is enough of it
    assert medians == [2.0, 50.0]


def test_extra_memory_sees_what_a_call_takes_for_a_while() -> None:
    def work() -> float:
        return float(np.ones(40 * 2**17).sum())  # 40 MB of float64, gone when it returns

    def nothing() -> float:
        return 1.0

    work()
    large, small = extra_memory(work), extra_memory(nothing)
    assert large is not None and small is not None
    assert 38 < large < 60
    assert small < 10


def judged(monkeypatch: pytest.MonkeyPatch, row: Row, seconds: list[float], memory: list[Any]) -> Any:
    """A row with made-up measurements."""
    values = iter(memory)
    monkeypatch.setattr(measuring, "interleaved", lambda contestants, repeats: seconds)
    monkeypatch.setattr(measuring, "extra_memory", lambda work: next(values))
    return measure(row, repeats=1)


PAIR = Setup(lambda: [1.0], lambda: [1.0], _close)


def test_verdicts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("work", lambda: PAIR, "other", {"speed_up": 10, "memory_share": 1 / 20})
    met = judged(monkeypatch, row, [0.1, 1.0], [10.0, 200.0])
    assert met["targets"] == {
        "speed_up": {"target": 10, "measured": 10, "met": True},
        "memory_share": {"target": 1 / 20, "measured": 1 / 20, "met": True},
    }
    missed = judged(monkeypatch, row, [0.11, 1.0], [11.0, 200.0])
    assert [entry["met"] for entry in missed["targets"].values()] == [False, False]
    unknown = judged(monkeypatch, row, [0.1, 1.0], [None, None])
    assert [entry["met"] for entry in unknown["targets"].values()] == [True, None]
    lines = table([met, missed, unknown]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].endswith("| 10x faster, 1/20 memory | at least 10x faster, at most 1/20 memory | yes, yes |")
    assert lines[3].endswith("| NO, NO |")
    assert lines[4].endswith("| yes, ? |")


def test_growth_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {"memory_mb": 1000, "time_per_growth": 1.5}
    row = Row("work", lambda: PAIR, "small", targets, growth=4.0, facts={"pairs": 7})
    met = judged(monkeypatch, row, [6.0, 1.0], [999.0, 1.0])
    assert met["pairs"] == 7 and met["growth"] == 4
    assert [(e["measured"], e["met"]) for e in met["targets"].values()] == [(999, True), (1.5, True)]
    missed = judged(monkeypatch, row, [6.4, 1.0], [1001.0, 1.0])
    assert [entry["met"] for entry in missed["targets"].values()] == [False, False]
    assert "| 6.4x as long for 4x the work, 1001 MB, 1.6x the time per pixel x window |" in table([missed])


def test_a_bound_on_the_time_itself_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("drag", lambda: Setup(lambda: 1), targets={"milliseconds": 150})
    met = judged(monkeypatch, row, [0.149], [3.0])
    assert met["targets"] == {"milliseconds": {"target": 150, "measured": pytest.approx(149), "met": True}}
    missed = judged(monkeypatch, row, [0.151], [3.0])
    assert missed["targets"]["milliseconds"]["met"] is False
    lines = table([met, missed]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].endswith("| 149 ms | at most 150 ms | yes |")


@pytest.mark.parametrize("name", ["slider-similarity", "slider-threshold"])
def test_a_dragged_slider_gives_a_new_whole_picture_each_time(name: str) -> None:
    work = ROWS[name].setup().ours
    pictures = [work() for _ in range(4)]
    assert len(set(pictures)) == 4
    sizes = {Image.open(io.BytesIO(picture)).size for picture in pictures}
    assert len(sizes) == 1 and min(sizes.pop()) > 250


def test_the_threshold_is_dragged_on_a_photograph_of_the_stated_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    render = widgets.cam.render_cam

    def spy(image: np.ndarray, *args: Any, **settings: Any) -> Any:
        picture = render(image, *args, **settings)
        seen.append((image.shape, settings["rule"], set(picture.values)))
        return picture

    monkeypatch.setattr(widgets.cam, "render_cam", spy)
    work = ROWS["slider-threshold"].setup().ours
    seen.clear()
    work()
    work()
    assert [shape for shape, _, _ in seen] == [(375, 500, 3)] * 2 and seen[0][1] != seen[1][1]
    assert seen[0][2] == {"covered", "iou", "contour_f"}


# ---------------------------------------------------------------- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.json"
    command = ["--only", "contour", "--repeats", "1", "--threads", "1", "--json", str(out)]
    assert benchmarks_main(command) == 0
    written = json.loads(out.read_text())
    (row,) = written["rows"]
    assert row["row"] == "contour" and row["threads"] == 1 and row["repeats"] == 1
    assert row["speed_up"] == pytest.approx(row["against_seconds"] / row["seconds"])
    target = row["targets"]["speed_up"]
    assert target["target"] == 20 and target["met"] == (row["speed_up"] >= 20)
    assert "hardware" in written["manifest"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("| contour matches, 500x375")
    assert ("| yes |" if target["met"] else "| NO |") in lines[-1]


def test_the_table_takes_the_place_of_the_one_in_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    old = table([]) + "\n| old | 1 |\n"
    readme.write_text(f"| other | table |\n|---|---|\n\nBefore é.\n\n{old}\nAfter.\n\n| third |\n", encoding="utf-8")
    monkeypatch.setattr("benchmarks.rows.ROWS", {"one": Row("work", lambda: PAIR, "it", {"speed_up": 1e-9})})
    assert benchmarks_main(["--repeats", "1", "--readme", str(readme), "--json", str(tmp_path / "b.json")]) == 0
    new = table(json.loads((tmp_path / "b.json").read_text())["rows"])
    assert new.count("\n") == 2 and "| work |" in new
    expected = f"| other | table |\n|---|---|\n\nBefore é.\n\n{new}\n\nAfter.\n\n| third |\n"
    assert readme.read_text(encoding="utf-8") == expected


def test_a_text_without_the_table_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.md").write_text("no table\n")
    for name, message in (("empty.md", "expected a line '| work | ms |"), ("none.md", "No such file")):
        assert benchmarks_main(["--readme", str(tmp_path / name)]) == 2
        output = capsys.readouterr()
        assert message in output.err and "measuring" not in output.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "walk", "--readme", "x"], "readme: expected all rows to be measured for it, got only walk"),
        (["--only", "nothing"], "only: expected rows of similarity, "),
        (["--repeats", "0"], "repeats: expected at least 1, got 0"),
        (["--threads", "0"], "threads: expected at least 1, got 0"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks_main([*flags]) == 2
    assert message in capsys.readouterr().err
