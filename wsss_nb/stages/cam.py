"""Stage 1: train a CAM network on image-level labels, compute CAMs, make label maps of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.cam import class_activation_map, condition_on_labels
from wsss_nb.data import VOCFolder, save_label_map, to_tensor
from wsss_nb.files import atomic_path
from wsss_nb.models import create_cam_net, create_seam_net, fixed_weights
from wsss_nb.pseudo_labels import add_background, label_map, normalize_maximum, parse_background_rule
from wsss_nb.similarity import FeatureSimilarityLoss
from wsss_nb.stages.config import CamConfig, InferenceConfig, PretrainConfig
from wsss_nb.stages.engine import prepare_network
from wsss_nb.stages.loaders import training_views
from wsss_nb.stages.loop import History, progress, train
from wsss_nb.stages.objectives import paper_objective, seam_objective
from wsss_nb.stages.processes import processes
from wsss_nb.stages.steps import pick_device
from wsss_nb.stages.views import Wanted, training_precision
from wsss_nb.stages.weights import load_trained, start_from

__all__ = ["build_cam_net", "foreground_cam", "infer_cams", "load_cam", "pretrain_classifier", "train_cam"]

CHECKPOINT = "checkpoint.pt"
PAIRED_PIXELS = 400_000  # a CPU runs larger views one by one: the activations of two would not fit its caches


def build_cam_net(
    backbone: str, num_classes: int, config: CamConfig, seed: int, weights: Path | None = None
) -> Any:
    """A CAM net (or SEAM net) whose new layers are drawn from ``seed``; ``weights`` are an earlier classifier's."""
    torch.manual_seed(seed)
    create = create_seam_net if config.method == "seam" else create_cam_net
    net = create(backbone, num_classes, freeze=config.freeze, dropout=config.dropout)
    if weights is not None:
        start_from(net, weights)
    return net.to(pick_device())


def pretrain_classifier(
    folder: VOCFolder,
    backbone: str,
    config: PretrainConfig,
    seed: int,
    out: Path,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    r"""Train a network without ImageNet weights as an ordinary classifier, BatchNorm in training mode.

    Sampling from random features starts slowly, and the paper starts from ImageNet; this is the common start of all
    runs on a backbone without pretrained weights. Foreground logits s are pooled by attention,
    \hat s_k = sum_ij softmax_ij(s_k) s_ijk (weights without gradient), between average pooling, which learns
    little from objects that fill a tenth of the image, and max pooling, which leaves features of one spot only.
    """
    torch.manual_seed(seed)
    net = create_cam_net(backbone, folder.num_classes, dropout=0.0, batch_norm="train").to(pick_device())
    prepare_network(net, config)
    device = pick_device()
    loader = training_views(folder, net, config.views, config.batch_size)

    def objective(batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        with training_precision(device, config.precision):
            logits = net.from_frozen(batch.features, batch.images, revise=False).logits.float()
        logits = logits[:, 1:].flatten(2)
        pooled = (logits.softmax(2).detach() * logits).sum(2)
        return {"classification": F.multilabel_soft_margin_loss(pooled, batch.labels[:, 1:])}

    return train(
        nn.ModuleDict({"net": net}), loader, objective, groups=net.parameter_groups(), config=config.optimizer,
        epochs=config.epochs, precision=config.precision, accumulate=config.accumulate, seed=seed,
        checkpoint=out / CHECKPOINT, on_epoch=on_epoch, description="pre-training",
    )  # fmt: skip


def train_cam(
    folder: VOCFolder,
    backbone: str,
    config: CamConfig,
    seed: int,
    out: Path,
    weights: Path | None = None,
    cache: Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
    description: str = "CAM",
) -> History:
    """Train the CAM network of one variant and seed; resumes from ``out/checkpoint.pt``.

    Reads images and image-level labels only. mu and sigma are logged every epoch, fixed or learned.
    """
    net = build_cam_net(backbone, folder.num_classes, config, seed, weights)
    prepare_network(net, config)
    similarity = FeatureSimilarityLoss(
        config.mu, config.sigma, config.learn_similarity, config.similarity_normalization
    ).to(pick_device())
    modules = nn.ModuleDict({"net": net, "similarity": similarity})
    paired = config.siamese or config.method == "seam"
    loader = training_views(
        folder, net, config.views, config.batch_size,
        Wanted(config.precision, small_scale=config.siamese_scale if paired else None), cache=cache,
    )  # fmt: skip
    device = pick_device()

    def objective(batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        with training_precision(device, config.precision):
            if config.method == "seam":
                return seam_objective(net, batch, generator)
            return paper_objective(net, batch, config, similarity, generator)

    learned = [
        {
            "params": list(similarity.parameters()),
            "lr": config.optimizer.learning_rate * config.similarity_learning_rate,
            "weight_decay": 0.0,
        }
    ]
    return train(
        modules, loader, objective, groups=net.parameter_groups(), config=config.optimizer, epochs=config.epochs,
        precision=config.precision, accumulate=config.accumulate, seed=seed,
        checkpoint=out / CHECKPOINT, extra_groups=learned if config.learn_similarity else None,
        warmups={"similarity": config.similarity_warmup} if config.method == "paper" and config.similarity_weight else {},
        record=lambda: {"mu": similarity.mu.item(), "sigma": similarity.sigma.item()},
        on_epoch=on_epoch, description=description,
    )  # fmt: skip


def load_cam(backbone: str, num_classes: int, config: CamConfig, checkpoint: Path) -> Any:
    """The trained network of a ``train_cam`` folder, in eval mode."""
    net = build_cam_net(backbone, num_classes, config, seed=0)
    return load_trained(net, checkpoint)


def _view_cam(net: Any, images: Tensor, labels: Tensor, config: CamConfig) -> Tensor:
    """Label-conditioned foreground maps (B, K - 1, h, w) of views, at map size."""
    if config.method == "seam":
        maps = F.relu(net(images).revised.float())[:, 1:] * labels[:, 1:, None, None]
        return maps
    output = net.from_frozen(net.frozen(images), images, revise=config.siamese)
    cam = class_activation_map(output.logits.float())
    if config.siamese:
        cam = (cam + class_activation_map(output.revised.float())) / 2
    return condition_on_labels(cam, labels)[:, 1:]


@torch.inference_mode()
def foreground_cam(
    net: Any, image: np.ndarray, labels: np.ndarray, config: CamConfig, inference: InferenceConfig
) -> np.ndarray:
    """Foreground CAM of one image, mean over scales and flips: float32 (K - 1, H, W) in [0, 1].

    Per view: softmax (mean of plain and revised with the siamese branch), times the image labels, renormalised over
    classes, background dropped, resized to the image (bilinear, align_corners false). Then, with
    ``inference.max_normalize``, winner-take-all across classes and division by each class's maximum. SEAM's maps are always
    divided by their maximum, being no probabilities.
    """
    device = next(net.parameters()).device
    tensor = to_tensor(image)[None].to(device)
    size = image.shape[:2]
    present = torch.from_numpy(labels).float().to(device)
    kept = present[1:].nonzero()[:, 0]  # the maps of all other classes are zero
    if not len(kept):
        return np.zeros((len(labels) - 1, *size), np.float32)
    total = torch.zeros(len(kept), *size, device=device)
    count = 0
    with fixed_weights(), training_precision(device, config.precision):
        for scale in inference.scales:
            scaled = tensor
            if scale != 1:
                wanted = (max(16, round(size[0] * scale)), max(16, round(size[1] * scale)))
                scaled = F.interpolate(
                    tensor, wanted, mode="bicubic", align_corners=False, antialias=scale < 1
                ).clamp(0, 1)
            views = torch.cat([scaled, scaled.flip(-1)]) if inference.flip else scaled
            together = 1 if device.type == "cpu" and scaled[0, 0].numel() > PAIRED_PIXELS else 2
            parts = [
                _view_cam(net, part, present.expand(len(part), -1), config)[:, kept]
                for part in views.split(together)
            ]
            cam = torch.cat(parts)
            if inference.flip:
                cam = torch.cat([cam[:1], cam[1:].flip(-1)])
            total += F.interpolate(cam, size, mode="bilinear", align_corners=False).sum(0)
            count += len(views)
    cam = torch.zeros(len(labels) - 1, *size, device=device).index_copy(0, kept, total / count)
    if inference.max_normalize or config.method == "seam":
        cam = normalize_maximum(cam, winner_take_all=inference.max_normalize)
    return cam.cpu().numpy()


def infer_cams(
    net: Any,
    folder: VOCFolder,
    config: CamConfig,
    inference: InferenceConfig,
    out: Path,
    *,
    label_maps: bool = True,
) -> None:
    """Write each image's CAM (``NAME.npz``: classes, cam float16 (n, H, W)) and its label map (``NAME.png``).

    Image-level labels of the split are used, as everywhere in the paper's CAM scores. Files that exist are kept. Several
    processes share the images.
    """
    rule = parse_background_rule(inference.background)
    labels = folder.labels()
    with fixed_weights():
        for name in progress(processes().share(folder.names), f"CAMs {folder.split}"):
            target = out / f"{name}.npz"
            if target.exists():
                continue
            cam = foreground_cam(net, folder.image(name), labels[name], config, inference)
            if label_maps:
                save_label_map(
                    out / f"{name}.png", label_map(add_background(torch.from_numpy(cam), rule)).numpy()
                )
            present = np.flatnonzero(labels[name][1:])
            with atomic_path(target) as temporary:
                np.savez_compressed(temporary, classes=present + 1, cam=cam[present].astype(np.float16))
    processes().wait()
