"""The numbers the paper prints, each with its source; nothing here was computed by this library.

A. Jonnarth and M. Felsberg, "Importance Sampling CAMs for Weakly-Supervised Segmentation", ICASSP 2022.
All scores are percent on PASCAL VOC 2012. Figure 2 is printed as a plot only, so there are no numbers of it
here: only what the text says about it, and the one point of it that Table 1 repeats (lambda 1 with FSL).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from wsss_nb.variants import Stage

__all__ = ["FIGURE_2_POINT", "FIGURE_2_READING", "METHODS", "SOURCE", "TABLE_1", "TABLE_1_PROTOCOL", "TABLE_2",
           "TABLE_2_PROTOCOL", "Method", "PublishedMethod", "PublishedScore"]  # fmt: skip

Method = Literal["seam", "ours"]

SOURCE = "Jonnarth and Felsberg, ICASSP 2022"
METHODS: dict[Method, str] = {"seam": "SEAM", "ours": "Ours"}


class PublishedScore(NamedTuple):
    """Area mIoU and contour F-score in percent, as printed."""

    miou: float
    contour_f: float


class PublishedMethod(NamedTuple):
    """A row of Table 2: area mIoU in percent on VOC 2012 val and test; ``cite`` is the paper's reference."""

    name: str
    cite: str
    backbone: str
    val: float
    test: float
    method: Method | None = None  # which of our methods reproduces the row


TABLE_1: dict[tuple[Stage, Method], PublishedScore] = {
    ("cam", "seam"): PublishedScore(52.5, 20.8),
    ("cam", "ours"): PublishedScore(54.9, 35.6),
    ("affinitynet", "seam"): PublishedScore(60.1, 35.7),
    ("affinitynet", "ours"): PublishedScore(62.2, 44.7),
    ("deeplab", "seam"): PublishedScore(64.5, 38.2),
    ("deeplab", "ours"): PublishedScore(64.6, 43.8),
}
"""Table 1 of the paper. The contour F-scores of SEAM were computed by the paper's authors."""

TABLE_1_PROTOCOL = (
    "VOC 2012 val, ResNet-38; CAMs and + AffinityNet: pseudo-labels without CRF; + DeepLab-v1: final "
    "segmentation with CRF; void counts as background in contour F"
)

TABLE_2: tuple[PublishedMethod, ...] = (
    PublishedMethod("CCNN", "[14]", "VGG-16", 35.3, 35.6),
    PublishedMethod("SEC", "[15]", "VGG-16", 50.7, 51.1),
    PublishedMethod("STC", "[16]", "VGG-16", 49.8, 51.2),
    PublishedMethod("MDC", "[32]", "VGG-16", 60.4, 60.8),
    PublishedMethod("MCOF", "[33]", "ResNet-101", 60.3, 61.2),
    PublishedMethod("SeeNet", "[35]", "ResNet-101", 63.1, 62.8),
    PublishedMethod("AffinityNet", "[6]", "ResNet-38", 61.7, 63.7),
    PublishedMethod("IRNet", "[36]", "ResNet-50", 63.5, 64.8),
    PublishedMethod("FickleNet", "[7]", "ResNet-101", 64.9, 65.3),
    PublishedMethod("SSDD", "[37]", "ResNet-38", 64.9, 65.5),
    PublishedMethod("SEAM", "[5]", "ResNet-38", 64.5, 65.7, "seam"),
    PublishedMethod("OAA", "[38]", "ResNet-101", 65.2, 66.4),
    PublishedMethod("CONTA", "[39]", "ResNet-38", 66.1, 66.7),
    PublishedMethod("LIID", "[21]", "ResNet-101", 66.5, 67.5),
    PublishedMethod("Ours", "", "ResNet-38", 64.6, 65.2, "ours"),
)
"""Table 2 of the paper; citation numbers are those of its reference list."""

TABLE_2_PROTOCOL = "area mIoU of the final segmentation, VOC 2012 val and test (evaluation server)"

FIGURE_2_POINT: tuple[float, PublishedScore] = (1.0, TABLE_1["cam", "ours"])
"""The only point of Figure 2 known as numbers: lambda 1 with FSL, which Table 1 repeats in its row CAMs."""

FIGURE_2_READING = (
    "The paper's reading of its own Fig. 2 (VOC 2012 val; a trend, no numbers were printed): both scores "
    "rise clearly with λ; FSL helps at every λ, most for contour F at large λ."
)
