"""Backbones, the networks of the three stages, and their checkpoints."""

from __future__ import annotations

from wsss_nb.models.affinity_net import create_affinity_net
from wsss_nb.models.cam_net import create_cam_net, create_seam_net
from wsss_nb.models.checkpoint import load_checkpoint
from wsss_nb.models.deeplab import create_deeplab
from wsss_nb.models.efficientnet import create_imagenet_classifier
from wsss_nb.models.mxnet_params import read_mxnet_params

__all__ = [
    "create_affinity_net",
    "create_cam_net",
    "create_deeplab",
    "create_imagenet_classifier",
    "create_seam_net",
    "load_checkpoint",
    "read_mxnet_params",
]
