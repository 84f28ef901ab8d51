"""What a score was made with, in the words that every score carries."""

from __future__ import annotations

from typing import Any

from wsss_nb.stages.affinitynet import resolved_crf
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


def affinitynet_protocol(config: AffinityNetConfig, inference: InferenceConfig | None) -> dict[str, Any]:
    """Of the label maps of ``stages.affinitynet.write_pseudo_labels``.

    ``inference`` is what made the CAMs that are walked, None where it is not known.
    """
    views = {} if inference is None else {"scales": list(inference.scales), "flips": inference.flip}
    return {
        "stage": "affinitynet",
        "background": f"power:{config.alpha_walk:g}",
        "crf": False,
        **views,
        "max_normalized": True,
        "image_labels": True,
        "beta": config.beta,
        "log_t": config.log_t,
    }


def deeplab_protocol(config: DeepLabConfig) -> dict[str, Any]:
    """Of the label maps of ``stages.deeplab.write_predictions``."""
    crf = None if config.crf is None else resolved_crf(config.crf).model_dump(mode="json")
    return {
        "stage": "deeplab",
        "background": "network",
        "crf": crf,
        "scales": list(config.scales),
        "flips": config.flip,
        "image_labels": False,
    }
