"""Data: VOC-layout folders, image-level labels, the synthetic data set, augmentation, photographs of MSRC."""

from __future__ import annotations

from wsss_nb.data.labels import VOC_CLASSES, write_labels
from wsss_nb.data.msrc import build_msrc
from wsss_nb.data.palette import IGNORE, colorize, read_label_map, save_label_map, voc_colormap
from wsss_nb.data.synthetic import make_synthetic, synthetic_sample
from wsss_nb.data.transforms import CamAugmentation, SegmentationAugmentation, seeded_generator, to_tensor
from wsss_nb.data.voc import CheckReport, VOCFolder, check_folder

__all__ = [
    "IGNORE",
    "VOC_CLASSES",
    "CamAugmentation",
    "CheckReport",
    "SegmentationAugmentation",
    "VOCFolder",
    "build_msrc",
    "check_folder",
    "colorize",
    "make_synthetic",
    "read_label_map",
    "save_label_map",
    "seeded_generator",
    "synthetic_sample",
    "to_tensor",
    "voc_colormap",
    "write_labels",
]
