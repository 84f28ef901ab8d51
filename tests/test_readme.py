"""Every score in README and docs is one of the committed tables; every command is one that the command line takes."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.gpu import FIGURE_2
from benchmarks.measure import table
from benchmarks.rows import ROWS
from wsss_nb import cli
from wsss_nb.run.profiles import load_profile
from wsss_nb.system.files import read_json

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VARIANTS = {
    "max pooling (lambda 0)": "max pooling (λ = 0)",
    "max pooling + feature similarity": "max pooling (λ = 0) + FSL",
    "importance sampling (lambda 1)": "sampling (λ = 1)",
    "importance sampling + feature similarity": "sampling (λ = 1) + FSL",
    "average pooling": "average pooling",
    "SEAM (threshold 0.3)": "SEAM",
}
STAGES = {"CAMs": "CAMs", "+ AffinityNet": "+ AffinityNet", "+ DeepLab, CRF": "+ DeepLab-v1"}


def tables(first: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of README and docs whose first column has this title, each row by column title."""
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    found: list[list[dict[str, str]]] = []
    header: list[str] = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = []
        elif not header:
            header = cells
            if cells[0] == first:
                found.append([])
        elif header[0] == first and not set(line) <= set("|- "):
            found[-1].append(dict(zip(header, cells, strict=True)))
    return found


def committed(name: str) -> list[dict[str, str]]:
    with open(ROOT / "figures" / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown(value: str, deviation: str, digits: int, scale: float = 1.0) -> str:
    mean = f"{float(value) * scale:.{digits}f}"
    return f"{mean} ± {float(deviation) * scale:.{digits}f}" if deviation else mean


@pytest.mark.parametrize(
    ("place", "folder"), [(0, "three_seeds"), (1, "."), (2, "photos")], ids=["seeds", "baselines", "photos"]
)
def test_scores_of_trainings_are_those_of_the_tables(place: int, folder: str) -> None:
    rows = {row["variant"]: row for row in committed(f"{folder}/table_sweep.csv")}
    found = tables("training")[place]
    assert found
    for line in found:
        row = rows[VARIANTS[line["training"]]]
        assert line["seeds"] == row["seeds"]
        assert line["mIoU"] == shown(row["run_miou"], row["run_miou_sd"], 1)
        assert line["contour F"] == shown(row["run_contour_f"], row["run_contour_f_sd"], 1)
        for part in {"head", "body", "background"} & line.keys():
            assert line[part].split(" ± ")[0] == shown(row[part], "", 2)


@pytest.mark.parametrize(("place", "folder"), [(0, "."), (1, "photos")], ids=["synthetic", "photos"])
def test_scores_of_stages_are_those_of_table_1(place: int, folder: str) -> None:
    rows = {(row["stage"], row["method"]): row for row in committed(f"{folder}/table_1.csv")}
    found = tables("stage")[place]
    assert [line["stage"] for line in found] == list(STAGES)
    for line in found:
        for title, scores in line.items():
            if title == "stage":
                continue
            method = re.match("SEAM|ours", title)
            assert method is not None
            row = rows[STAGES[line["stage"]], method[0].capitalize() if method[0] == "ours" else "SEAM"]
            miou, contour_f = (shown(row[name], "", 1) for name in ("run_miou", "run_contour_f"))
            assert scores == f"{miou} / {contour_f}"


def test_the_benchmark_table_is_that_of_the_committed_measurement() -> None:
    """``python -m benchmarks --json figures/benchmark.json --readme docs/performance.md`` writes both."""
    report = read_json(ROOT / "figures" / "benchmark.json")
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"\n\n{table(report['rows'])}\n\n" in text
    stated = re.search(r"(\d+) CPU cores, .* medians of (\d+) interleaved runs", text)
    assert stated is not None
    for row in report["rows"]:
        assert (row["threads"], row["repeats"]) == (int(stated[1]), int(stated[2]))


def test_the_committed_measurement_is_of_the_present_rows_and_says_where_it_comes_from() -> None:
    report = read_json(ROOT / "figures" / "benchmark.json")
    assert [row["row"] for row in report["rows"]] == list(ROWS)
    for row in report["rows"]:
        present = ROWS[row["row"]]
        assert (row["work"], row.get("against", "")) == (present.work, present.against)
        assert {name: entry["target"] for name, entry in row["targets"].items()} == present.targets
    manifest = report["manifest"]
    assert re.fullmatch("[0-9a-f]{40}", manifest["git"]["commit"]) and manifest["git"]["dirty"] is False
    assert re.match(r"\d{4}-\d\d-\d\dT", manifest["created"])
    assert {"wsss-nb", "torch", "numpy"} <= manifest["packages"].keys()
    assert manifest["hardware"]["cores"] and manifest["hardware"]["processor"]


def commands(page: Path) -> list[str]:
    """Every command of a page's shell blocks on a line of its own, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := " ".join(shlex.split(line, comments=True)))]


def test_every_command_is_one_that_the_command_line_takes() -> None:
    """Flags, fields and their values; programs are those of the environment that ``make`` sets up."""
    said = [command for page in PAGES for command in commands(page)]
    found = [re.split(r"^\.venv/bin/wsss-nb | -m wsss_nb\.cli ", command, maxsplit=1) for command in said]
    ours = [words[1].split() for words in found if len(words) == 2]
    assert len(ours) > 20
    for words in ours:
        options = cli._parser(words).parse_args(words)
        if getattr(options, "profile", None):
            load_profile(options.profile, options.flags.given(options))
    programs = {command.split()[0] for command in said} - {"make", "V=data/VOCdevkit/VOC2012"}
    assert all(program.startswith(".venv/bin/") for program in programs), programs
    assert f".venv/bin/{FIGURE_2}" in said


def test_the_flags_in_the_text_exist() -> None:
    """``--cam.fsl_weight`` in a sentence is a flag of one of the commands."""
    known: set[str] = set()
    for words in (
        ["run"],
        ["train", "cam"],
        ["evaluate"],
        ["data", "voc"],
        ["data", "check"],
        ["course"],
        ["verify"],
        ["sweep"],
    ):
        parser = cli._parser(words)
        for word in words:
            (choices,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
            parser = choices[word]
            known |= set(parser._option_string_actions)
    others = ("python -m", "pytest", "pip", "conda")
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        code = [words for words in re.findall(r"`([^`]*)`", prose) if not words.startswith(others)]
        said = set(re.findall(r"(?<!\S)--[a-z][\w.-]*", " ".join(code)))
        assert said <= known, f"{page.name}: {sorted(said - known)}"


def test_the_links_between_the_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12_000


def test_no_stage_of_the_paper_is_trained_twice() -> None:
    """Each method goes through the stages once for one GPU, once for eight, in one run folder; that of ``run``."""
    text = (ROOT / "docs" / "voc.md").read_text(encoding="utf-8")
    for title in ("One GPU", "Eight GPUs of one machine"):
        block = re.search(rf"^\*\*{title}.*?```bash\n(.*?)```", text, re.MULTILINE | re.DOTALL)
        assert block is not None
        lines = [line for line in block[1].splitlines() if "--profile paper" in line]
        trained = ["seam" if "--variant seam" in line else "ours" for line in lines if " train deeplab " in line]
        assert trained == ["ours", "seam"] and " run " in lines[-1]
        assert all("--out runs/paper" in line and "--data $V" in line for line in lines)
