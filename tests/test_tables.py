"""Tables: the run's numbers beside the paper's, empty where nothing was run, the same bytes each time."""

from __future__ import annotations

import hashlib
import html
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from fake_run import make_fake_run

from wsss_nb.run.run import NotInRun, load_run
from wsss_nb.show.paper import METHODS, TABLE_1, TABLE_2
from wsss_nb.show.tables import TABLES, Column, Table, make_table, table_1, table_2, table_cost, table_sweep
from wsss_nb.system.errors import InputError
from wsss_nb.variants import STAGES


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_fake_run(tmp_path_factory.mktemp("runs") / "quick", num_val=2, lams=(0.0, 1.0), seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def run(run_dir):
    return load_run(run_dir)


@pytest.fixture
def changed(run_dir, tmp_path):
    def change(edit):
        results = json.loads((run_dir / "results.json").read_text())
        edit(results)
        (tmp_path / "results.json").write_text(json.dumps(results))
        return load_run(tmp_path)

    return change


def nothing(results):
    results["stages"], results["cam"] = [], []


def ours_only(results):
    results["stages"] = [s for s in results["stages"] if s["variant"] != "seam" and s["stage"] != "deeplab"]
    results["cam"] = [cam for cam in results["cam"] if cam["lambda"] is not None]


def test_published_numbers_are_those_of_the_paper():
    seam, ours = ([(TABLE_1[stage, who].miou, TABLE_1[stage, who].contour_f) for stage in STAGES] for who in METHODS)
    assert seam == [(52.5, 20.8), (60.1, 35.7), (64.5, 38.2)]
    assert ours == [(54.9, 35.6), (62.2, 44.7), (64.6, 43.8)]
    assert " ".join(f"{row.name} {row.val} {row.test}" for row in TABLE_2) == (
        "CCNN 35.3 35.6 SEC 50.7 51.1 STC 49.8 51.2 MDC 60.4 60.8 MCOF 60.3 61.2 SeeNet 63.1 62.8 "
        "AffinityNet 61.7 63.7 IRNet 63.5 64.8 FickleNet 64.9 65.3 SSDD 64.9 65.5 SEAM 64.5 65.7 "
        "OAA 65.2 66.4 CONTA 66.1 66.7 LIID 66.5 67.5 Ours 64.6 65.2"
    )
    # both tables print the final segmentation of SEAM and ours on val
    final = {row.method: row.val for row in TABLE_2 if row.method}
    assert final == {method: TABLE_1["deeplab", method].miou for method in METHODS}


def test_table_1_numbers(run):
    frame = table_1(run).frame
    assert frame["stage"].tolist() == ["CAMs", "CAMs", "+ AffinityNet", "+ AffinityNet", "+ DeepLab-v1", "+ DeepLab-v1"]
    assert frame["method"].tolist() == ["SEAM", "Ours"] * 3
    for row, (stage, method) in enumerate((s, m) for s in STAGES for m in ("seam", "ours")):
        for metric in ("miou", "contour_f"):
            values = [
                100 * getattr(entry.scores, metric)
                for entry in run.stages(stage, "seam" if method == "seam" else run.ours)
            ]
            assert len(values) == 3
            paper = getattr(TABLE_1[stage, method], metric)
            assert frame[f"paper_{metric}"][row] == paper
            assert frame[f"run_{metric}"][row] == pytest.approx(np.mean(values))
            assert frame[f"run_{metric}_sd"][row] == pytest.approx(np.std(values, ddof=1))
            assert frame[f"difference_{metric}"][row] == pytest.approx(np.mean(values) - paper)
    assert frame["seeds"].tolist() == [3] * 6


def test_cells_that_were_not_run_are_empty(changed):
    table = table_1(changed(ours_only))
    keys = [column.key for column in table.columns]
    for row, cells in enumerate(table.shown().to_numpy()):
        was_run = row in (1, 3)
        for key, cell in zip(keys, cells, strict=True):
            if key.startswith(("run_", "difference_")) or key == "seeds":
                assert bool(cell) == was_run, (row, key)
            else:
                assert cell
    assert "an empty cell was not run" in " ".join(table.notes)
    assert ",,,,\n" not in table.to_csv().splitlines()[0]
    csv = pd.read_csv(io.StringIO(table.to_csv()))
    assert csv.loc[5, "paper_miou"] == 64.6
    assert csv.loc[5, ["run_miou", "run_miou_sd", "difference_miou", "seeds"]].isna().all()


def test_nothing_run_leaves_the_papers_columns_only(changed):
    run = changed(nothing)
    table = table_1(run)
    assert table.frame["run_miou"].isna().all()
    assert "This run: none of the stages was run." in table.notes
    assert table_2(run).frame["run_val"].isna().all()
    assert "This run: the final segmentation was not run." in table_2(run).notes
    for make in (table_sweep, table_cost):
        with pytest.raises(NotInRun):
            make(run)


def test_one_seed_has_no_deviation(changed):
    def one(results):
        results["stages"] = [entry for entry in results["stages"] if entry["seed"] == 1]
        results["cam"] = [cam for cam in results["cam"] if cam["seed"] == 1]

    table = table_1(changed(one))
    assert table.frame["run_miou"].notna().all()
    assert table.frame["run_miou_sd"].isna().all()
    assert "This run: 1 seed; an empty cell was not run." in table.notes


def test_table_1_counts_the_seeds_of_each_row(changed):
    run = changed(lambda r: r.update(stages=[entry for entry in r["stages"] if entry["seed"] == 0]))
    table = table_1(run)
    assert table.frame["seeds"].tolist() == [3, 3, 1, 1, 1, 1]
    assert "This run: mean and s.d. over 1 to 3 seeds; an empty cell was not run." in table.notes


def test_bold_marks_the_better_of_both_only_where_both_were_run(run, changed):
    table = table_1(run)
    better = table.frame["run_miou"][1] > table.frame["run_miou"][0]
    assert ((1, "run_miou") in table.bold) == better
    assert {row for row, key in table.bold if key == "paper_contour_f"} == {1, 3, 5}
    assert not {key for _, key in table_1(changed(ours_only)).bold if key.startswith("run_")}
    assert "**54.9**" in table.to_markdown()
    assert r"\textbf{54.9}" in table.to_latex()
    assert "**52.5**" not in table.to_markdown()


def test_table_2_has_15_rows_and_fills_only_ours(run):
    table = table_2(run)
    assert len(table.frame) == 15
    filled = table.frame["run_val"].notna()
    assert table.frame["method"][filled].tolist() == ["SEAM [5]", "Ours"]
    assert table.frame["run_backbone"].tolist() == ["tiny" if full else "" for full in filled]
    assert table.frame["run_test"].isna().all()
    ours = [100 * entry.scores.miou for entry in run.stages("deeplab")]
    assert table.frame["run_val"][14] == pytest.approx(np.mean(ours))
    assert table.frame["difference_val"][14] == pytest.approx(np.mean(ours) - 64.6)
    assert table.frame["paper_test"].tolist() == [row.test for row in TABLE_2]


def test_table_sweep(run, changed):
    table = table_sweep(run)
    assert table.frame["variant"].tolist() == [
        "average pooling",
        "SEAM",
        "max pooling (λ = 0)",
        "max pooling (λ = 0) + FSL",
        "sampling (λ = 1)",
        "sampling (λ = 1) + FSL",
    ]
    values = [100 * cam.scores.contour_f for cam in run.cams("lambda1_fsl")]
    assert table.frame["run_contour_f"][5] == pytest.approx(np.mean(values))
    assert table.frame["run_contour_f_sd"][5] == pytest.approx(np.std(values, ddof=1))
    body = [cam.parts["body"] for cam in run.cams("lambda1_fsl")]
    assert table.frame["body"][5] == pytest.approx(np.mean(body))
    assert "head" in {column.key for column in table.columns}
    without = table_sweep(changed(lambda r: [cam.update(parts=None) for cam in r["cam"]]))
    assert "head" not in {column.key for column in without.columns}


def test_table_cost(run):
    frame = table_cost(run).frame.set_index("step")
    assert frame.loc["CAMs, SEAM", "seconds"] == pytest.approx(21)
    assert frame.loc["CAMs, SEAM", "seconds_sd"] == pytest.approx(1)
    assert frame.loc["DeepLab-v1 (SEAM)", "peak_memory_mb"] == 700
    assert frame.loc["AffinityNet", "runs"] == 3


def test_every_table_says_what_its_data_are(run, changed):
    for name, make in TABLES.items():
        table = make(run)
        assert "synthetic data, not VOC" in table.caption, name
        assert table.to_csv().splitlines()[1].endswith('"synthetic data, not VOC"')
        assert "synthetic data, not VOC" in table.to_markdown()
        assert "synthetic data, not VOC" in table.to_latex()
        assert "synthetic data, not VOC" in table.styled().to_html()
    assert any("on different data" in note for note in table_1(run).notes)

    def photographs(results):
        results["synthetic"] = False
        results["data"]["root"] = "/data/my-photos"

    table = table_1(changed(photographs))
    assert "my-photos, not VOC 2012" in table.caption
    assert "synthetic" not in table.to_markdown()


def test_a_run_on_voc_has_no_such_note(changed):
    def voc(results):
        nothing(results)
        results["synthetic"] = False
        results["classes"] = ["background", *(f"c{i}" for i in range(1, 21))]
        results["data"]["val"] = 1449

    table = table_1(changed(voc))
    assert table.caption == "Table 1. SEAM and ours at the three training stages, percent."
    assert "run_data" not in table.to_csv()
    assert not any("different data" in note for note in table.notes)


def test_protocol_box_comes_with_every_form(run):
    table = table_1(run)
    assert table.notes[0].startswith("Paper: Jonnarth and Felsberg, ICASSP 2022. VOC 2012 val, ResNet-38")
    assert table.notes[-1].startswith("Protocol: val split, 2 images")
    assert "DeepLab-v1, DeepLab-v1 of SEAM: background rule network, CRF (iterations 1" in table.notes[-1]
    for note in table.notes:
        assert f"> {note}" in table.to_markdown()
        assert note in html.unescape(table.styled().to_html())


SMALL = Table(
    "small",
    "A & B",
    pd.DataFrame({"name": ["a_b", "50 % λ"], "x": [1.25, np.nan], "d": [-0.5, 2.0], "n": [3, np.nan]}),
    (
        Column("name", "Name", "text"),
        Column("x", "x", group="G"),
        Column("d", "d", "signed", "G"),
        Column("n", "n", "count"),
    ),
    ("Box #1", "±1"),
    frozenset({(0, "x")}),
    "toy",
)


def test_forms_of_a_small_table_by_hand():
    assert SMALL.to_csv() == "name,x,d,n,run_data\na_b,1.2500,-0.5000,3,toy\n50 % λ,,2.0000,,toy\n"
    minus = "\N{MINUS SIGN}"
    assert SMALL.to_markdown() == (
        "**A & B**\n\n"
        "| Name   |     G x |   G d |   n |\n"
        "|:-------|--------:|------:|----:|\n"
        rf"| a\_b   | **1.2** |  {minus}0.5 |   3 |"
        "\n"
        "| 50 % λ |         |  +2.0 |     |\n"
        "\n> Box #1\n>\n> ±1\n"
    )
    assert (
        SMALL.to_latex()
        == r"""% needs \usepackage{booktabs}
\begin{table*}
\centering\small
\caption{A \& B}
\label{tab:small}
\begin{tabular}{lrrr}
\toprule
 & \multicolumn{2}{c}{G} &  \\
\cmidrule(lr){2-3}
Name & x & d & n \\
\midrule
a\_b & \textbf{1.2} & $-$0.5 & 3 \\
50 \% $\lambda$ &  & +2.0 &  \\
\bottomrule
\end{tabular}
\par\smallskip
{\footnotesize Box \#1\par}
{\footnotesize $\pm$1\par}
\end{table*}
"""
    )


HOSTILE = ("<img src=x onerror=alert(1)>", "c$$_%", "a|b", "[x](javascript:y)", r"\input{z}", "&lt;", "**")


def test_names_are_text_in_every_form(changed):
    """In a caption, a note and a cell: HTML, Markdown and LaTeX show what the folder and the variants are called."""

    def hostile(results):
        results["synthetic"] = False
        results["data"]["root"] = f"C:\\{HOSTILE[0]}"
        for row, title in zip(results["cam"], HOSTILE, strict=False):
            row["title"] = title
            row["scores"]["protocol"]["background"] = HOSTILE[0]

    table = table_sweep(changed(hostile))
    assert table.note == f"{HOSTILE[0]}, not VOC 2012"
    assert set(table.frame["variant"]) & set(HOSTILE)
    text = table.styled().to_html()
    assert "<img" not in text and text.count("&lt;img src=x onerror=alert(1)&gt;") >= 3
    assert 'class="tex2jax_ignore mathjax_ignore"' in text, "MathJax would typeset what stands between two dollars"
    assert "<img" not in table.to_markdown().replace(r"\<img", "") and r"\<img" in table.to_markdown()


@pytest.mark.parametrize(
    ("text", "markdown", "latex"),
    [
        (HOSTILE[0], r"\<img src=x onerror=alert(1)>", HOSTILE[0]),
        ("c$$_%", r"c\$\$\_%", r"c\$\$\_\%"),
        ("a|b", r"a\|b", "a|b"),
        ("[x](y) [5]", r"[x\](y) [5]", "[x](y) [5]"),
        (r"\input{z}", r"\\input{z}", r"\textbackslash{}input\{z\}"),
        ("&lt; R&D", r"\&lt; R&D", r"\&lt; R\&D"),
        ("**~`^#", r"\*\*\~\`^#", r"**\textasciitilde{}`\textasciicircum{}\#"),
    ],
)
def test_what_is_escaped(text, markdown, latex):
    frame = pd.DataFrame({"name": [text]})
    table = Table("t", text, frame, (Column("name", "Name", "text"),), (text,))
    assert table.to_markdown().count(markdown) == 3 and f"**{markdown}**\n" in table.to_markdown()
    assert table.to_latex().count(latex) == 3 and f"\n{latex} \\\\\n" in table.to_latex()
    cell = re.search("<td[^>]*>(.*)</td>", table.styled().to_html())[1]
    assert html.unescape(cell) == text and "<" not in cell


def test_styled_frame_shows_the_cells_and_the_bold_ones():
    cells = re.findall(r'<td id="T_small_row(\d)_col(\d)"[^>]*>(.*)</td>', SMALL.styled().to_html())
    minus = "\N{MINUS SIGN}0.5"
    assert [text for _, _, text in cells] == ["a_b", "<b>1.2</b>", minus, "3", "50 % λ", "", "+2.0", ""]


@pytest.mark.parametrize("name", TABLES)
def test_latex_is_well_formed(run, name):
    table = TABLES[name](run)
    text = table.to_latex()
    bare = re.sub(r"\\[{}%&#_$]", "", text.split("\n", 1)[1])
    assert bare.count("{") == bare.count("}")
    assert bare.isascii(), [c for c in bare if not c.isascii()]
    assert "%" not in bare
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(table.frame)
    assert {line.replace(r"\&", "").count("&") for line in body} == {len(table.columns) - 1}
    assert len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]) == len(table.columns)


def test_csv_is_byte_identical_and_reads_back(run_dir):
    for name, make in TABLES.items():
        first, second = make(load_run(run_dir)), make(load_run(run_dir))
        assert first.to_csv() == second.to_csv()
        assert "\r" not in first.to_csv()
        back = pd.read_csv(io.StringIO(first.to_csv()))
        numbers = first.frame[[c.key for c in first.columns if c.kind != "text"]].to_numpy(float)
        read = back[[c.key for c in first.columns if c.kind != "text"]].to_numpy(float)
        np.testing.assert_allclose(read, numbers, atol=5.1e-5, err_msg=name)


def test_make_table_writes_each_form_and_a_manifest(run, tmp_path):
    make_table("table_1", run, tmp_path, {"run": "quick"})
    manifest = json.loads((tmp_path / "table_1.json").read_text())
    assert (manifest["run"], manifest["shows_images"], manifest["measured"]) == ("quick", False, False)
    assert "Protocol: val split" in manifest["protocol"]
    assert sorted(manifest["files"]) == ["table_1.csv", "table_1.md", "table_1.npz", "table_1.tex"]
    for file, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() == digest
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 5
    make_table("table_1", run, tmp_path, {"run": "quick"})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_make_table_removes_what_the_run_no_longer_backs(run, changed, tmp_path):
    folder = tmp_path / "figures"
    assert make_table("table_sweep", run, folder, {}).name == "table_sweep"
    assert len(list(folder.iterdir())) == 5
    with pytest.raises(NotInRun, match="expected CAM variants, got none"):
        make_table("table_sweep", changed(nothing), folder, {})
    assert list(folder.iterdir()) == []


def test_counts_are_whole_numbers_in_every_csv(run, changed):
    for some in (run, changed(ours_only)):
        for name, make in TABLES.items():
            table = make(some)
            read = pd.read_csv(io.StringIO(table.to_csv()), dtype=str)
            counts = [column.key for column in table.columns if column.kind == "count"]
            assert counts == ["runs" if name == "table_cost" else "seeds"]
            found = set(read[counts[0]].dropna())
            assert found == {"3"} or (not found and name == "table_2"), name  # ours_only has no final stage
    costs = table_cost(changed(lambda r: r["cam"][0]["cost"].update(peak_memory_mb=700.25)))
    assert "566.7500" in costs.to_csv(), "a measured number keeps its digits"
    assert " 567 |" in costs.to_markdown()


def test_wrong_name_and_unwritable_folder(run, tmp_path):
    with pytest.raises(InputError, match=r"table: expected one of table_1, .*, got 'table_3'"):
        make_table("table_3", run, tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a writable place"):
        make_table("table_1", run, tmp_path / "file", {})


@pytest.mark.parametrize(("classes", "seeds"), [(2, (0,)), (51, (0, 1))])
def test_few_and_many_classes(tmp_path, classes, seeds):
    run = load_run(make_fake_run(tmp_path / "run", num_classes=classes, num_val=2, lams=(1.0,), seeds=seeds))
    for make in TABLES.values():
        assert make(run).shown().shape == (len(make(run).frame), len(make(run).columns))
