"""What a table is, and how it is written: CSV, Markdown, LaTeX, and a styled frame for notebooks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.io.formats.style import Styler

__all__ = ["Column", "Table"]

Kind = Literal[
    "text", "number", "signed", "count", "whole", "share"
]  # a count is whole, "whole" is only shown so
_FIELDS = ("key", "header", "kind", "group")  # of a column
_MINUS = "\N{MINUS SIGN}"
_FORMATS: dict[Kind, str] = {
    "number": "{:.1f}",
    "signed": "{:+.1f}",
    "count": "{:.0f}",
    "whole": "{:.0f}",
    "share": "{:.2f}",
}


@dataclass(frozen=True)
class Column:
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
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    bold: frozenset[tuple[int, str]] = frozenset()
    note: str = ""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything the table is made of, numbers at full precision; `from_arrays` undoes it."""
        texts = {
            **{name: [getattr(column, name) for column in self.columns] for name in _FIELDS},
            "notes": list(self.notes),
            "bold_key": [key for _, key in sorted(self.bold)],
        }
        made: dict[str, npt.NDArray[Any]] = {
            **{name: np.array(getattr(self, name)) for name in ("name", "caption", "note")},
            **{name: np.array(values, dtype=np.str_) for name, values in texts.items()},
            "bold_row": np.array([row for row, _ in sorted(self.bold)], dtype=np.int64),
        }
        for column in self.columns:
            values = self.frame[column.key]
            text = column.kind == "text"
            made[f"column_{column.key}"] = values.to_numpy(dtype=np.str_) if text else values.to_numpy()
        return made

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Table:
        """The table of `arrays`.

        Raises:
            KeyError, ValueError: the arrays are not those of a table.
        """
        fields = zip(*(arrays[name].tolist() for name in _FIELDS), strict=True)
        columns = tuple(Column(*values) for values in fields)
        bold = zip(arrays["bold_row"].tolist(), arrays["bold_key"].tolist(), strict=True)
        return cls(
            name=str(arrays["name"][()]),
            caption=str(arrays["caption"][()]),
            frame=pd.DataFrame({column.key: arrays[f"column_{column.key}"] for column in columns}),
            columns=columns,
            notes=tuple(arrays["notes"].tolist()),
            bold=frozenset(bold),
            note=str(arrays["note"][()]),
        )

    def files(self) -> dict[str, bytes]:
        """The table as CSV, Markdown and LaTeX, by suffix."""
        texts = {"csv": self.to_csv(), "md": self.to_markdown(), "tex": self.to_latex()}
        return {suffix: text.encode() for suffix, text in texts.items()}

    def cells(self) -> list[list[str]]:
        """The table as text, row by row; empty where nothing was run."""
        return [
            [_text(self.frame[column.key].iloc[row], column.kind) for column in self.columns]
            for row in range(len(self.frame))
        ]

    def to_csv(self) -> str:
        """Comma-separated values with four decimals, counts with none; the same table gives the same bytes."""
        frame = self.frame[[column.key for column in self.columns]].astype(
            {column.key: "Int64" for column in self.columns if column.kind == "count"}
        )
        if self.note:
            frame["run_data"] = self.note
        return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")

    def to_markdown(self) -> str:
        """A pipe table between its caption and its protocol box."""
        head = [f"{column.group} {column.header}".strip() for column in self.columns]
        rule = [":--" if column.kind == "text" else "--:" for column in self.columns]
        body = [
            [f"**{cell}**" if (row, column.key) in self.bold else cell for column, cell in self._row(cells)]
            for row, cells in enumerate(self.cells())
        ]
        lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
        box = [f"> {line}" for line in self.notes]
        return "\n".join([f"**{self.caption}**", "", *lines, "", *"\n>\n".join(box).split("\n"), ""])

    def to_latex(self) -> str:
        """A ``table*`` for the booktabs package, with caption, label and protocol box."""
        spec = "".join("l" if column.kind == "text" else "r" for column in self.columns)
        body = []
        for row, cells in enumerate(self.cells()):
            written = [
                rf"\textbf{{{_latex(cell)}}}" if (row, column.key) in self.bold else _latex(cell)
                for column, cell in self._row(cells)
            ]
            body.append("  " + " & ".join(written) + r" \\")
        lines = [
            "% needs \\usepackage{booktabs}",
            r"\begin{table*}",
            r"  \centering\small",
            rf"  \caption{{{_latex(self.caption)}}}",
            rf"  \label{{tab:{self.name.replace('_', '-')}}}",
            rf"  \begin{{tabular}}{{{spec}}}",
            r"  \toprule",
            *self._latex_groups(),
            "  " + " & ".join(_latex(column.header) for column in self.columns) + r" \\",
            r"  \midrule",
            *body,
            r"  \bottomrule",
            r"  \end{tabular}",
            r"  \par\smallskip",
            *(rf"  {{\footnotesize {_latex(line)}\par}}" for line in self.notes),
            r"\end{table*}",
            "",
        ]
        return "\n".join(lines)

    def styled(self) -> Styler:
        """The frame as readers see it, for a notebook."""
        labels = [(column.group, column.header) for column in self.columns]
        frame = pd.DataFrame(
            self.cells(),
            columns=pd.MultiIndex.from_tuples(labels) if self._grouped else [h for _, h in labels],
        )
        weights = pd.DataFrame("", index=frame.index, columns=frame.columns)
        for row, key in self.bold:
            weights.iloc[row, [column.key for column in self.columns].index(key)] = "font-weight: bold"
        sides = ["left" if column.kind == "text" else "right" for column in self.columns]
        styles: list[Any] = [
            {"selector": "caption", "props": "caption-side: bottom; text-align: left"},
            {"selector": "th, td", "props": "padding: 0.15em 0.6em; text-align: center"},
            *(
                {
                    "selector": f"td.col{number}, th.col_heading.level{int(self._grouped)}.col{number}",
                    "props": f"text-align: {side}",
                }
                for number, side in enumerate(sides)
            ),
        ]
        styler = frame.style.hide(axis="index").set_uuid(self.name).set_table_styles(styles)
        styler = styler.apply(lambda _: weights, axis=None)
        return styler.set_caption("<br>".join([f"<b>{self.caption}</b>", *self.notes]))

    @property
    def _grouped(self) -> bool:
        return any(column.group for column in self.columns)

    def _row(self, cells: Sequence[str]) -> Iterable[tuple[Column, str]]:
        return zip(self.columns, cells, strict=True)

    def _latex_groups(self) -> list[str]:
        if not self._grouped:
            return []
        spans: list[list[Any]] = []  # group, first column, last column
        for number, column in enumerate(self.columns, start=1):
            if spans and spans[-1][0] == column.group:
                spans[-1][2] = number
            else:
                spans.append([column.group, number, number])
        heads = [
            rf"\multicolumn{{{last - first + 1}}}{{c}}{{{_latex(group)}}}" for group, first, last in spans
        ]
        rules = [rf"\cmidrule(lr){{{first}-{last}}}" for group, first, last in spans if group]
        return ["  " + " & ".join(heads) + r" \\", "  " + "".join(rules)]


def _text(value: Any, kind: Kind) -> str:
    if kind == "text":
        return str(value)
    return "" if value is None or math.isnan(value) else _FORMATS[kind].format(value).replace("-", _MINUS)


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "λ": r"$\lambda$",
    "±": r"$\pm$",
    _MINUS: r"$-$",
}


def _latex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found.group()], text)
