"""Data: VOC-layout folders, image-level labels, label maps, the synthetic data set.

Nothing here needs torch; augmentation, which does, is in `wsss_nb.data.transforms`.
"""

from wsss_nb.data.layout import write_labels
from wsss_nb.data.synthetic import make_synthetic
from wsss_nb.data.voc import VOCFolder, check_folder, read_label_map, save_label_map

__all__ = ["VOCFolder", "check_folder", "make_synthetic", "read_label_map", "save_label_map", "write_labels"]
