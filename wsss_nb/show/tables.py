"""Tables 1 and 2 of the paper beside this run's numbers, the sweep over lambda, and the cost.

A cell that was not run is empty. The paper's numbers stand in columns of their own and never fill a gap.
All scores are percent; a difference is this run minus the paper.

    >>> from wsss_nb.run.run import load_run
    >>> from wsss_nb.show.tables import table_1
    >>> print(table_1(load_run("runs/quick")).to_markdown())  # doctest: +SKIP
"""

import html
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from wsss_nb.run.results import CamResult, StageResult
from wsss_nb.run.run import Run
from wsss_nb.show.classes import PARTS, collect_cost
from wsss_nb.show.figures import removing, write_set
from wsss_nb.show.paper import METHODS, SOURCE, TABLE_1, TABLE_1_PROTOCOL, TABLE_2, TABLE_2_PROTOCOL
from wsss_nb.show.protocol import mean_and_spread, required, seeds_text, shared_protocol
from wsss_nb.show.style import Arrays, scalar
from wsss_nb.system.errors import InputError
from wsss_nb.variants import SEAM, STAGE_TITLES

__all__ = ["TABLES", "Column", "Table", "make_table", "table_1", "table_2", "table_cost", "table_sweep"]

Kind = Literal["text", "number", "signed", "count", "whole", "share"]  # a count is whole, "whole" is only shown so
_MINUS = "\N{MINUS SIGN}"
_FORMATS: dict[Kind, str] = {"number": ".1f", "signed": "+.1f", "count": ".0f", "whole": ".0f", "share": ".2f"}
_METRICS = {"miou": "Area mIoU", "contour_f": "Contour F"}


class Column(NamedTuple):
    """A column: key in the frame and the CSV, what readers see, and how its values are written."""

    key: str
    header: str
    kind: Kind = "number"
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table with everything that must be said about it.

    Attributes:
        name: file name without suffix.
        caption: what it shows, and whether the data are synthetic.
        frame: the numbers at full precision, NaN where nothing was run.
        columns: order and look of the frame's columns.
        notes: the protocol box.
        bold: (row, key) of the best values of each comparison.
        note: what is said about the run's data, such as "synthetic data, not VOC".
    """

    name: str
    caption: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    notes: Sequence[str]
    bold: frozenset[tuple[int, str]] = frozenset()
    note: str = ""

    def arrays(self) -> Arrays:
        """Everything the table is made of, numbers at full precision; `from_arrays` undoes it."""
        made: Arrays = {name: np.array(getattr(self, name)) for name in ("name", "caption", "note")}
        made |= {name: np.array([getattr(column, name) for column in self.columns]) for name in Column._fields}
        rows, keys = zip(*sorted(self.bold), strict=True) if self.bold else ((), ())
        made |= {"bold_row": np.array(rows, dtype=np.int64), "bold_key": np.array(keys, dtype=np.str_)}
        made["notes"] = np.array(self.notes, dtype=np.str_)
        texts = {column.key: np.str_ if column.kind == "text" else None for column in self.columns}
        return made | {f"column_{key}": self.frame[key].to_numpy(dtype=dtype) for key, dtype in texts.items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Table":
        """The table of `arrays`.

        Raises:
            KeyError, ValueError: the arrays are not those of a table.
        """
        lists = {name: array.tolist() for name, array in arrays.items()}
        columns = [Column(*values) for values in zip(*(lists[name] for name in Column._fields), strict=True)]
        frame = pd.DataFrame({column.key: arrays[f"column_{column.key}"] for column in columns})
        bold = frozenset(zip(lists["bold_row"], lists["bold_key"], strict=True))
        return cls(lists["name"], lists["caption"], frame, columns, lists["notes"], bold, lists["note"])

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the table; times and memory are measured, no two runs share them."""
        said = {"table": self.name, "name": self.name, "title": self.caption, "note": self.note}
        return {**said, "protocol": " ".join(self.notes), "shows_images": False, "measured": self.name == "table_cost"}

    def files(self) -> dict[str, bytes]:
        """The table as CSV, Markdown and LaTeX, by suffix."""
        return {"csv": self.to_csv().encode(), "md": self.to_markdown().encode(), "tex": self.to_latex().encode()}

    def shown(self, escape: Callable[[str], str] = str, bold: str = "{}") -> pd.DataFrame:
        """The table as readers see it: cells as escaped text, empty where nothing was run, columns by (group, header)."""
        cells = {c.key: [escape(_text(value, c.kind)) for value in self.frame[c.key]] for c in self.columns}
        for row, key in self.bold:
            cells[key][row] = bold.format(cells[key][row])
        frame = pd.DataFrame(cells)
        heads = [(escape(column.group), escape(column.header)) for column in self.columns]
        grouped = any(group for group, _ in heads)
        frame.columns = pd.MultiIndex.from_tuples(heads) if grouped else pd.Index([header for _, header in heads])
        return frame

    def to_csv(self) -> str:
        """Comma-separated values with four decimals, counts with none; the same table gives the same bytes."""
        counts = {column.key: "Int64" for column in self.columns if column.kind == "count"}
        frame = self.frame[[column.key for column in self.columns]].astype(counts)
        if self.note:
            frame["run_data"] = self.note
        return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")

    def to_markdown(self) -> str:
        """A pipe table between its caption and its protocol box."""
        head = [_markdown(f"{column.group} {column.header}".strip()) for column in self.columns]
        sides = ["left" if column.kind == "text" else "right" for column in self.columns]
        frame = self.shown(_markdown, "**{}**")
        table = frame.to_markdown(index=False, headers=head, colalign=sides, disable_numparse=True)
        box = "\n>\n".join(f"> {_markdown(note)}" for note in self.notes)
        return f"**{_markdown(self.caption)}**\n\n{table}\n\n{box}\n"

    def to_latex(self) -> str:
        """A ``table*`` for the booktabs package, with caption, label and protocol box."""
        sides = "".join("l" if column.kind == "text" else "r" for column in self.columns)
        frame = self.shown(_latex, r"\textbf{{{}}}")
        table = frame.to_latex(index=False, escape=False, column_format=sides, multicolumn_format="c")
        groups = [column.group for column in self.columns]
        spans = [(groups.index(g) + 1, groups.index(g) + groups.count(g)) for g in dict.fromkeys(groups) if g]
        rules = "".join(rf"\cmidrule(lr){{{first}-{last}}}" for first, last in spans)  # under the groups' names
        table = table.replace("\\\\\n", f"\\\\\n{rules}\n", 1) if rules else table
        box = "\n".join(rf"{{\footnotesize {_latex(note)}\par}}" for note in self.notes)
        return (
            "% needs \\usepackage{booktabs}\n\\begin{table*}\n\\centering\\small\n"
            f"\\caption{{{_latex(self.caption)}}}\n\\label{{tab:{self.name.replace('_', '-')}}}\n"
            f"{table}\\par\\smallskip\n{box}\n\\end{{table*}}\n"
        )

    def styled(self) -> Styler:
        """The frame as readers see it, for a notebook."""
        frame = self.shown(html.escape, "<b>{}</b>")
        props = {"caption": "caption-side: bottom; text-align: left"}
        props["th, td"] = "padding: 0.15em 0.6em; text-align: center"
        for number, column in enumerate(self.columns):
            cells = f"td.col{number}, th.col_heading.level{frame.columns.nlevels - 1}.col{number}"
            props[cells] = f"text-align: {'left' if column.kind == 'text' else 'right'}"
        styles: list[Any] = [{"selector": cells, "props": props[cells]} for cells in props]
        caption = "<br>".join([f"<b>{html.escape(self.caption)}</b>", *map(html.escape, self.notes)])
        styler = frame.style.hide(axis="index").set_uuid(self.name).set_table_styles(styles).set_caption(caption)
        return styler.set_table_attributes('class="tex2jax_ignore mathjax_ignore"')  # a dollar is a dollar


def _text(value: Any, kind: Kind) -> str:
    if kind == "text":
        return str(value)
    return "" if value is None or math.isnan(value) else format(value, _FORMATS[kind]).replace("-", _MINUS)


def _markdown(text: str) -> str:
    return re.sub(r"[\\`*_<|~$]|&(?=[#\w]+;)|\](?=[(\[])", r"\\\g<0>", text)


_LATEX = {letter: rf"\{letter}" for letter in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"λ": r"$\lambda$", "±": r"$\pm$", _MINUS: "$-$"}


def _latex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found.group()], text)


# Which numbers of a run stand where


def table_1(run: Run) -> Table:
    """Table 1: SEAM and ours after each of the three stages, published and of this run.

    Example:
        >>> print(table_1(load_run("runs/quick")).to_markdown())  # doctest: +SKIP
    """
    rows: list[dict[str, Any]] = []
    used: list[StageResult] = []
    for (stage, method), published in TABLE_1.items():
        entries = run.stages(stage, SEAM if method == "seam" else run.ours)
        used += entries
        row: dict[str, Any] = {"stage": STAGE_TITLES[stage], "method": METHODS[method], "seeds": len(entries) or np.nan}
        for metric in _METRICS:
            row |= _statistics(metric, metric, entries, getattr(published, metric))
        rows.append(row)
    frame = pd.DataFrame(rows)
    columns = [Column("stage", "Stage", "text"), Column("method", "Method", "text")]
    bold = set()
    for metric, group in _METRICS.items():
        columns += [Column(f"paper_{metric}", "paper", group=group), Column(f"run_{metric}", "this run", group=group)]
        columns += [Column(f"run_{metric}_sd", "s.d.", group=group)]
        columns += [Column(f"difference_{metric}", "difference", "signed", group)]
        for first, key in itertools.product(range(0, len(frame), 2), (f"paper_{metric}", f"run_{metric}")):
            pair = frame[key][first : first + 2]
            bold |= {(int(pair.idxmax()), key)} if pair.notna().all() else set()
    columns.append(Column("seeds", "seeds", "count"))
    caption = _caption("Table 1. SEAM and ours at the three training stages, percent", run)
    notes = _notes(run, TABLE_1_PROTOCOL, used, "This run: none of the stages was run.")
    return Table("table_1", caption, frame, columns, notes, frozenset(bold), run.note)


def table_2(run: Run) -> Table:
    """Table 2: all 15 methods as published, and this run's final segmentation where it was run.

    The test split's labels are not public, so this run's test column stays empty.
    """
    rows: list[dict[str, Any]] = []
    used: list[StageResult] = []
    for published in TABLE_2:
        variant = SEAM if published.method == "seam" else run.ours
        entries = run.stages("deeplab", variant) if published.method else []
        used += entries
        row: dict[str, Any] = {"method": f"{published.name} {published.cite}".strip(), "backbone": published.backbone}
        row |= {"run_backbone": run.backbone if entries else "", "paper_test": published.test, "run_test": np.nan}
        rows.append({**row, "seeds": len(entries) or np.nan, **_statistics("val", "miou", entries, published.val)})
    ours = "This run"
    columns = [Column("method", "Method", "text"), Column("backbone", "Backbone", "text")]
    columns += [Column(f"paper_{split}", split, group="Paper, VOC 2012") for split in ("val", "test")]
    columns += [Column("run_backbone", "backbone", "text", ours), Column("run_val", "val", group=ours)]
    columns += [Column("run_val_sd", "s.d.", group=ours), Column("difference_val", "difference", "signed", ours)]
    columns += [Column("run_test", "test", group=ours), Column("seeds", "seeds", "count", ours)]
    caption = _caption("Table 2. Area mIoU of weakly-supervised methods, percent", run)
    notes = _notes(run, TABLE_2_PROTOCOL, used, "This run: the final segmentation was not run.")
    return Table("table_2", caption, pd.DataFrame(rows), columns, notes, note=run.note)


def table_sweep(run: Run) -> Table:
    """The numbers of Figure 2: every CAM variant, mean and deviation over its seeds.

    Raises:
        NotInRun: no CAMs were made.
    """
    required(run.results.cam, "cam: expected CAM variants")
    rows = []
    for name in dict.fromkeys(cam.variant for cam in run.cams()):
        cams = run.cams(name)
        lam, fsl = cams[0].lam, "yes" if cams[0].fsl else "no"
        row = {"variant": cams[0].title, "lambda": np.nan if lam is None else lam, "fsl": fsl, "seeds": len(cams)}
        for metric in _METRICS:
            row |= _statistics(metric, metric, cams)
        for part in PARTS:
            values = [(cam.parts or {}).get(part) for cam in cams]
            row[part] = float(mean_and_spread(np.array(values, dtype=float))[0])
        rows.append(row)
    frame = pd.DataFrame(rows)
    columns = [Column("variant", "CAMs", "text"), Column("lambda", "λ", "share"), Column("fsl", "FSL", "text")]
    for metric, group in _METRICS.items():
        columns += [Column(f"run_{metric}", "mean", group=group), Column(f"run_{metric}_sd", "s.d.", group=group)]
    if frame[[*PARTS]].notna().to_numpy().any():
        columns += [Column(part, part, "share", "Share right") for part in PARTS]
    columns.append(Column("seeds", "seeds", "count"))
    caption = _caption("CAM pseudo-labels by pooling, λ and feature similarity loss (FSL), percent", run)
    return Table("table_sweep", caption, frame, columns, [shared_protocol(run.results.cam, run)], note=run.note)


def table_cost(run: Run) -> Table:
    """What each step took: seconds and peak memory, mean over the runs of it.

    Raises:
        NotInRun: the run recorded no cost.
    """
    arrays = collect_cost(run)
    steps = pd.DataFrame({name: arrays[name] for name in ("step", "seconds", "peak_memory_mb")})
    means: dict[str, Any] = {name: (name, "mean") for name in ("seconds", "peak_memory_mb")}
    means |= {"seconds_sd": ("seconds", "std"), "runs": ("step", "size")}
    frame = steps.groupby("step", sort=False).agg(**means).reset_index()
    columns = [Column("step", "Step", "text"), Column("seconds", "seconds"), Column("seconds_sd", "s.d.")]
    columns += [Column("peak_memory_mb", "peak memory [MB]", "whole"), Column("runs", "runs", "count")]
    caption = _caption("Time and memory of each step", run)
    return Table("table_cost", caption, frame, columns, [scalar(arrays, "protocol")], note=run.note)


def _statistics(
    key: str, metric: str, entries: Sequence[CamResult | StageResult], paper: float = math.nan
) -> dict[str, float]:
    """Mean and deviation of a score in percent, and what the paper has for it."""
    mean, spread = map(
        float, mean_and_spread(100 * np.array([getattr(e.scores, metric) for e in entries], dtype=float))
    )
    return {f"paper_{key}": paper, f"run_{key}": mean, f"run_{key}_sd": spread, f"difference_{key}": mean - paper}


def _caption(text: str, run: Run) -> str:
    return f"{text}. This run: {run.note}." if run.note else f"{text}."


def _notes(run: Run, paper: str, used: Sequence[StageResult], missing: str) -> list[str]:
    notes = [f"Paper: {SOURCE}. {paper[0].upper()}{paper[1:]}."]
    if run.note:
        apart = "The difference is this run minus the paper on different data, so it does not say how well"
        notes.append(f"This run: {run.note}. {apart} the paper's numbers are reproduced.")
    if not used:
        return [*notes, missing]
    seeds = Counter((entry.stage, entry.variant) for entry in used).values()
    many = "mean and s.d. over " if max(seeds) > 1 else ""
    notes.append(f"This run: {many}{seeds_text(seeds)}; an empty cell was not run.")
    return [*notes, shared_protocol(used, run)]


TABLES = {make.__name__: make for make in (table_1, table_2, table_sweep, table_cost)}
"""Every table by name, in the order of notebook 08."""


def make_table(name: str, run: Run, folder: str | Path, manifest: Mapping[str, Any]) -> Table:
    """Make a table of the registry and save it as CSV, Markdown and LaTeX, with its numbers (npz) and a manifest.

    An earlier one is removed where the run no longer backs it.

    Raises:
        NotInRun: the run does not hold what the table shows.
        InputError: the folder is not writable, or the name is unknown.
    """
    if name not in TABLES:
        raise InputError(f"table: expected one of {', '.join(TABLES)}, got {name!r}")
    with removing(Path(folder), [name], ("csv", "md", "tex")):
        table = TABLES[name](run)
    facts = {**manifest, "results_hash": run.results_hash, **table.facts()}
    write_set(folder, name, table.files(), table.arrays(), facts)
    return table
