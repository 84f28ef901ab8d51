"""Data: VOC-layout folders, image-level labels, the synthetic data set, augmentation, photographs of MSRC."""

from __future__ import annotations

from wsss_nb.data.labels import VOC_CLASSES, write_labels
from wsss_nb.data.palette import IGNORE, colorize, read_label_map, save_label_map, voc_colormap
from wsss_nb.data.synthetic import make_synthetic, synthetic_sample
from wsss_nb.data.voc import CheckReport, VOCFolder, check_folder

__all__ = [
    "IGNORE",
    "VOC_CLASSES",
    "CheckReport",
    "VOCFolder",
    "check_folder",
    "colorize",
    "make_synthetic",
    "read_label_map",
    "save_label_map",
    "synthetic_sample",
    "voc_colormap",
    "write_labels",
]
