"""What a score was made with, in the words that every score carries."""

from __future__ import annotations

from typing import Any

from wsss_nb.stages.config import AffinityNetConfig, CamConfig, DeepLabConfig, InferenceConfig

__all__ = ["affinitynet_protocol", "cam_protocol", "deeplab_protocol"]


def cam_protocol(config: CamConfig, inference: InferenceConfig) -> dict[str, Any]:
    """Of the label maps of ``stages.cam.infer_cams``."""
    return {
        "stage": "cam",
        "background": inference.background,
        "crf": False,
        "scales": list(inference.scales),
        "flips": inference.flip,
        "max_normalized": inference.max_normalize or config.method == "seam",
        "image_labels": True,
    }


def affinitynet_protocol(config: AffinityNetConfig) -> dict[str, Any]:
    """Of the label maps of ``stages.affinitynet.write_pseudo_labels``."""
    return {
        "stage": "affinitynet",
        "background": f"power:{config.alpha_walk:g}",
        "crf": False,
        "scales": [1.0],
        "flips": False,
        "image_labels": True,
        "beta": config.beta,
        "log_t": config.log_t,
    }


def deeplab_protocol(config: DeepLabConfig) -> dict[str, Any]:
    """Of the label maps of ``stages.deeplab.write_predictions``."""
    return {
        "stage": "deeplab",
        "background": "network",
        "crf": None if config.crf is None else config.crf.model_dump(mode="json"),
        "scales": list(config.scales),
        "flips": config.flip,
        "image_labels": False,
    }
