"""Backbones, the networks of the three stages, and their checkpoints."""

from __future__ import annotations

from wsss_nb.models.affinity_net import AffinityNet, create_affinity_net
from wsss_nb.models.backbone import Backbone, Taps, fixed_weights
from wsss_nb.models.cam_net import CamNet, CamOutput, SeamNet, create_cam_net, create_seam_net
from wsss_nb.models.checkpoint import LoadReport, load_checkpoint, read_state_dict
from wsss_nb.models.deeplab import DeepLab, create_deeplab
from wsss_nb.models.imagenet import ImageNetClassifier, create_imagenet_classifier
from wsss_nb.models.mxnet_params import read_mxnet_params, resnet38_names
from wsss_nb.models.network import BatchNormMode, Network
from wsss_nb.models.pcm import pixel_correlation, winner_take_all
from wsss_nb.models.registry import BACKBONES, BackboneSpec, create_backbone

__all__ = [
    "BACKBONES",
    "AffinityNet",
    "Backbone",
    "BackboneSpec",
    "BatchNormMode",
    "CamNet",
    "CamOutput",
    "DeepLab",
    "ImageNetClassifier",
    "LoadReport",
    "Network",
    "SeamNet",
    "Taps",
    "create_affinity_net",
    "create_backbone",
    "create_cam_net",
    "create_deeplab",
    "create_imagenet_classifier",
    "create_seam_net",
    "fixed_weights",
    "load_checkpoint",
    "pixel_correlation",
    "read_mxnet_params",
    "read_state_dict",
    "resnet38_names",
    "winner_take_all",
]
