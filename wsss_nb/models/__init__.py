"""Backbones, the networks of the three stages, and their checkpoints."""

from wsss_nb.models.affinity_net import create_affinity_net
from wsss_nb.models.checkpoint import load_checkpoint, read_mxnet_params
from wsss_nb.models.deeplab import create_deeplab
from wsss_nb.models.networks import create_cam_net, create_imagenet_classifier, create_seam_net

__all__ = [
    "create_affinity_net", "create_cam_net", "create_deeplab", "create_imagenet_classifier", "create_seam_net",
    "load_checkpoint", "read_mxnet_params"
]  # fmt: skip
