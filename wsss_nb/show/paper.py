"""The numbers the paper prints, from ``published.yaml``; nothing there was computed by this library.

A. Jonnarth and M. Felsberg, "Importance Sampling CAMs for Weakly-Supervised Segmentation", ICASSP 2022.
All scores are percent on PASCAL VOC 2012. Figure 2 is printed as a plot only, so there are no numbers of it
here: only what the text says about it, and the one point of it that Table 1 repeats (lambda 1 with FSL).
"""

from pathlib import Path
from typing import NamedTuple

import yaml

from wsss_nb.variants import Stage

__all__ = ["FIGURE_2_POINT", "FIGURE_2_READING", "METHODS", "SOURCE", "TABLE_1", "TABLE_1_PROTOCOL", "TABLE_2",
           "TABLE_2_PROTOCOL", "PublishedMethod", "PublishedScore"]  # fmt: skip


class PublishedScore(NamedTuple):
    """Area mIoU and contour F-score in percent, as printed."""

    miou: float
    contour_f: float


class PublishedMethod(NamedTuple):
    """A row of Table 2: area mIoU in percent on VOC 2012 val and test.

    ``cite`` is the paper's reference, ``method`` which of our methods reproduces the row, if one does.
    """

    name: str
    cite: str
    backbone: str
    val: float
    test: float
    method: str = ""


_PRINTED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text("utf-8"))
METHODS = {"seam": "SEAM", "ours": "Ours"}
SOURCE, TABLE_1_PROTOCOL, TABLE_2_PROTOCOL, FIGURE_2_READING = (
    str(_PRINTED[name]) for name in ("source", "table_1_protocol", "table_2_protocol", "figure_2_reading")
)
# Table 1 by stage and method, Table 2 row by row, and the only point of Figure 2 known as numbers
TABLE_1: dict[tuple[Stage, str], PublishedScore] = {
    (stage, method): PublishedScore(*scores) for stage, method, *scores in _PRINTED["table_1"]
}
TABLE_2 = tuple(PublishedMethod(*row) for row in _PRINTED["table_2"])
FIGURE_2_POINT = (1.0, TABLE_1["cam", "ours"])
