"""Explorers for Jupyter: pure functions that draw (`render_*`), and thin ipywidgets shells over them.

Example:
    >>> from wsss_nb.widgets import SimilarityExplorer
    >>> SimilarityExplorer("coffee")
"""

from __future__ import annotations

from wsss_nb.widgets.canvas import Canvas, Picture
from wsss_nb.widgets.chart import chart
from wsss_nb.widgets.compute import (
    Descent,
    activation,
    class_logits,
    cross_over,
    descend,
    enlarge,
    image_score,
    loss_gradient,
    photo_logits,
    refine_map,
    score_map,
    similarity_field,
    snap_example,
    to_tensor,
)
from wsss_nb.widgets.explorers import (
    CamExplorer,
    Explorer,
    SamplingExample,
    SamplingExplorer,
    imitated_example,
)
from wsss_nb.widgets.film import Film, make_film
from wsss_nb.widgets.lessons import FishBatch, draw_fish, fish_cams, frozen_features, score_cams, train_head
from wsss_nb.widgets.loss_plot import LossPlot, render_history
from wsss_nb.widgets.maps import (
    boundary,
    color_labels,
    color_signed,
    color_unit,
    draw_boundary,
    label_key,
    outlined,
    overlay,
)
from wsss_nb.widgets.photos import PHOTOS, Photo, class_name, load_photo, read_photo
from wsss_nb.widgets.render import Panel, render_cam, render_panels, render_sampling
from wsss_nb.widgets.similarity import SimilarityExplorer, render_similarity
from wsss_nb.widgets.threads import single_thread
from wsss_nb.widgets.walk import WalkExample, WalkExplorer, imitated_walk, render_walk

__all__ = [
    "PHOTOS",
    "CamExplorer",
    "Canvas",
    "Descent",
    "Explorer",
    "Film",
    "FishBatch",
    "LossPlot",
    "Panel",
    "Photo",
    "Picture",
    "SamplingExample",
    "SamplingExplorer",
    "SimilarityExplorer",
    "WalkExample",
    "WalkExplorer",
    "activation",
    "boundary",
    "chart",
    "class_logits",
    "class_name",
    "color_labels",
    "color_signed",
    "color_unit",
    "cross_over",
    "descend",
    "draw_boundary",
    "draw_fish",
    "enlarge",
    "fish_cams",
    "frozen_features",
    "image_score",
    "imitated_example",
    "imitated_walk",
    "label_key",
    "load_photo",
    "loss_gradient",
    "make_film",
    "outlined",
    "overlay",
    "photo_logits",
    "read_photo",
    "refine_map",
    "render_cam",
    "render_history",
    "render_panels",
    "render_sampling",
    "render_similarity",
    "render_walk",
    "score_cams",
    "score_map",
    "similarity_field",
    "single_thread",
    "snap_example",
    "to_tensor",
    "train_head",
]
