"""Stage 1: train a CAM network on image-level labels (Eq. 1-8), compute CAMs, make label maps of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.cam import class_activation_map, condition_on_labels, global_max_pool
from wsss_nb.data.transforms import resize, to_tensor
from wsss_nb.data.voc import VOCFolder, save_label_map
from wsss_nb.models.backbone import folded_batch_norm
from wsss_nb.models.networks import create_cam_net, create_seam_net
from wsss_nb.pseudo_labels import add_background, label_map, normalize_maximum, parse_background_rule, winner_take_all
from wsss_nb.sampling import classification_loss, image_level_loss
from wsss_nb.similarity import FeatureSimilarityLoss
from wsss_nb.stages.config import CamConfig, InferenceConfig, PretrainConfig
from wsss_nb.stages.loop import History, NotFiniteError, load_trained, new_network, train
from wsss_nb.stages.views import Batch, BatchSpec, autocast, scaled_size, training_views, unfinished
from wsss_nb.system.errors import expecting, require
from wsss_nb.system.files import atomic_path
from wsss_nb.system.plugins import is_plugin, load_function
from wsss_nb.system.processes import processes
from wsss_nb.system.progress import progress

__all__ = [
    "build_cam_net", "cam_loss", "cam_protocol", "equivariance_loss", "find_posterior", "foreground_cam", "infer_cams",
    "load_cam", "pretrain_classifier", "seam_loss", "train_cam"
]  # fmt: skip

PAIRED_PIXELS = 400_000  # a CPU runs larger views one by one: the activations of two would not fit its caches

OnEpoch = Callable[[History], None]


def find_posterior(name: str) -> Callable[[Tensor], Tensor]:
    """What turns logits into maps: Eq. 1, or the function ``module:function`` in its place."""
    return load_function(name, "posterior") if is_plugin(name) else class_activation_map


def cam_loss(
    net: Any, batch: Batch, config: CamConfig, similarity: FeatureSimilarityLoss, generator: torch.Generator
) -> dict[str, Tensor]:
    """Eq. 5 on the plain maps, max pooling on the revised ones, ER, ECR, Eq. 6 on view 1, and ``config.extra_loss``.

    Without ``config.siamese`` the network shows view 1 alone and neither PCM nor siamese terms enter.

    Returns:
        Named losses, already weighted; their sum is minimised.

    Raises:
        NotFiniteError: the logits are not finite; no pixel can be drawn from such a map.
        ValueError: view 2 is missing where ``config.siamese`` asks for it.
    """
    activation = find_posterior(config.posterior)
    views = [(batch.images, batch.features), *([batch.second_view()] if config.siamese else [])]
    losses: dict[str, Tensor] = {}
    cams, revised = [], []
    for number, (images, features) in enumerate(views, start=1):
        output = net(images, features, revise=config.siamese)
        logits = output.logits.float()
        if not logits.isfinite().all():
            raise NotFiniteError(f"the logits of view {number} are not finite")
        cams.append(activation(logits))  # Eq. 1
        losses[f"classification{number}" if config.siamese else "classification"] = classification_loss(  # Eq. 2-5
            cams[-1],
            batch.labels,
            config.lam,
            num_samples=config.num_samples,
            pooling=config.pooling,
            logits=logits,
            background=config.sample_background,
            generator=generator,
            eps=config.eps,
        )
        if config.siamese:
            revised.append(activation(output.revised.float()))
            losses[f"revised{number}"] = image_level_loss(global_max_pool(revised[-1]), batch.labels, config.eps)
    if config.siamese:
        losses |= equivariance_loss(cams[0], cams[1], revised[0], revised[1])
    if config.fsl_weight > 0:
        losses["similarity"] = config.fsl_weight * similarity(cams[0], batch.images)  # Eq. 6-8
    if config.extra_loss:
        losses[config.extra_loss] = _extra_loss(config.extra_loss, cams[0], batch)
    return losses


def _extra_loss(name: str, cam: Tensor, batch: Batch) -> Tensor:
    """A term of the user's own, checked: (maps, images, labels) -> scalar."""
    with expecting("a term of maps, images and labels", f"extra_loss: {name}", TypeError):
        term: Tensor = load_function(name, "extra_loss")(cam, batch.images, batch.labels)
    scalar = isinstance(term, Tensor) and term.ndim == 0
    require(scalar, f"extra_loss: expected a scalar tensor of {name}, got {type(term).__name__}")
    return term


def equivariance_loss(cam1: Tensor, cam2: Tensor, revised1: Tensor, revised2: Tensor) -> dict[str, Tensor]:
    r"""Siamese terms of the release, equally weighted; view 1 is resized to view 2's map (bilinear, align_corners).

    ER = mean|a1 - a2| + mean|r1 - r2| + mean|a1 - r1| + mean|a2 - r2|, ECR = mean|a1 - r2| + mean|a2 - r1|.

    Args:
        cam1, cam2: softmax maps of both views, (B, K, h1, w1) and (B, K, h2, w2).
        revised1, revised2: the same of the PCM's revised logits.

    Returns:
        ``er`` and ``ecr``, scalars.
    """
    cam1, revised1 = _to_size(cam1, cam2), _to_size(revised1, cam2)
    pairs = [(cam1, cam2), (revised1, revised2), (cam1, revised1), (cam2, revised2)]
    er = sum((a - b).abs().mean() for a, b in pairs)
    ecr = (cam1 - revised2).abs().mean() + (cam2 - revised1).abs().mean()
    return {"er": torch.as_tensor(er), "ecr": ecr}


def _to_size(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=True)


def _max_normalized(maps: Tensor, like: Tensor, labels: Tensor) -> Tensor:
    """Non-negative maps at the size of others, divided by their maximum, absent classes 0."""
    maps = F.relu(_to_size(maps.float(), like))
    return maps / (maps.amax((2, 3), keepdim=True) + 1e-5) * labels[:, :, None, None]


def _one_class(maps: Tensor) -> Tensor:
    """Each pixel's largest foreground class, and 1 - max over the foreground as channel 0."""
    foreground = maps[:, 1:]
    return torch.cat([1 - foreground.amax(1, keepdim=True), winner_take_all(foreground, 1)], 1)


def _adaptive_min_pool(revised: Tensor, labels: Tensor) -> Tensor:
    """relu of the smallest quarter of the pixelwise maxima over the labelled foreground, averaged."""
    largest = (revised[:, 1:] * labels[:, 1:, None, None]).amax(1).flatten(1)
    quarter = max(1, largest.shape[1] // 4)
    return F.relu(largest.topk(quarter, largest=False).values).mean()


def _hardest(difference: Tensor, share: float = 0.2) -> Tensor:
    flat = difference.flatten(1)
    return flat.topk(max(1, int(share * flat.shape[1]))).values.mean()


def seam_loss(net: Any, batch: Batch) -> dict[str, Tensor]:
    """SEAM (Wang et al., CVPR 2020; Fig. 1e and Table 1): classification, adaptive min pooling, equivariance (ER), ECR.

    Average pooling of the foreground logits with the multilabel soft margin, mean over both views; ER on the foreground
    maps; cross regularisation (ECR) on the hardest 20 %; adaptive min pooling of the revised maps. Maps are compared at
    the size of view 2's map.

    Returns:
        Named losses whose sum is minimised.

    Raises:
        ValueError: the batch has no view 2.
    """
    labels = batch.labels
    outputs = _, two = net(batch.images, batch.features), net(*batch.second_view())
    pooled = [output.logits.float()[:, 1:].mean((2, 3)) for output in outputs]
    classification = [F.multilabel_soft_margin_loss(logits, labels[:, 1:]) for logits in pooled]
    minimum = [_adaptive_min_pool(output.revised.float(), labels) for output in outputs]
    maps = [_max_normalized(output.logits, two.logits, labels) for output in outputs]
    refined = [_max_normalized(output.revised, two.revised, labels) for output in outputs]
    er = (maps[0][:, 1:] - maps[1][:, 1:]).abs().mean()
    pairs = [(maps[0], refined[1]), (maps[1], refined[0])]
    ecr = sum(_hardest((_one_class(other).detach() - rv).abs()) for other, rv in pairs)
    return {
        "classification": torch.stack(classification).mean(), "minimum": torch.stack(minimum).mean(), "er": er,
        "ecr": torch.as_tensor(ecr)
    }  # fmt: skip


def build_cam_net(
    backbone: str, num_classes: int, config: CamConfig, seed: int, init_checkpoint: Path | None = None, *,
    seam: bool = False
) -> Any:  # fmt: skip
    """A CAM net (or SEAM's) whose new layers are drawn from ``seed``; ``init_checkpoint`` is an earlier classifier's."""
    create = partial(create_seam_net if seam else create_cam_net, backbone, num_classes)
    return new_network(partial(create, freeze=config.freeze, dropout=config.dropout), seed, init_checkpoint)


def pretrain_classifier(
    folder: VOCFolder, backbone: str, config: PretrainConfig, seed: int, out: Path, on_epoch: OnEpoch | None = None
) -> History:
    r"""Train a network without ImageNet weights as an ordinary classifier, BatchNorm in training mode.

    Sampling from random features starts slowly, and the paper starts from ImageNet; this is the common start of all
    runs on a backbone without pretrained weights. Foreground logits s are pooled by attention,
    \hat s_k = sum_ij softmax_ij(s_k) s_ijk (weights without gradient), between average pooling, which learns
    little from objects that fill a tenth of the image, and max pooling, which leaves features of one spot only.
    """
    net = new_network(partial(create_cam_net, backbone, folder.num_classes, dropout=0.0, batch_norm="train"), seed)

    def loss(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        with autocast(processes().device, config.precision):
            logits = net(batch.images, batch.features, revise=False).logits.float()
        logits = logits[:, 1:].flatten(2)
        pooled = (logits.softmax(2).detach() * logits).sum(2)
        return {"classification": F.multilabel_soft_margin_loss(pooled, batch.labels[:, 1:])}

    loader = training_views(folder, net, config.views, config.batch_size)
    modules, name = nn.ModuleDict({"net": net}), "pre-training"
    return train(modules, loader, loss, config=config, seed=seed, out=out, on_epoch=on_epoch, description=name)


def train_cam(
    folder: VOCFolder, backbone: str, config: CamConfig, seed: int, out: Path, init_checkpoint: Path | None = None,
    cache: Path | None = None, on_epoch: OnEpoch | None = None, *, seam: bool = False, description: str = "CAM"
) -> History:  # fmt: skip
    """Train the CAM network of one variant and seed; resumes from ``out/checkpoint.pt``.

    Reads images and image-level labels only. mu and sigma are logged every epoch, fixed or learned.
    """
    device = processes().device
    net = build_cam_net(backbone, folder.num_classes, config, seed, init_checkpoint, seam=seam)
    similarity = FeatureSimilarityLoss(config.mu, config.sigma, config.learn_fsl, config.fsl_normalization).to(device)
    spec = BatchSpec(config.precision, small_scale=config.siamese_scale if config.siamese or seam else None)
    loader = training_views(folder, net, config.views, config.batch_size, spec, cache=cache)

    def loss(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        with autocast(device, config.precision):
            return seam_loss(net, batch) if seam else cam_loss(net, batch, config, similarity, generator)

    rate = config.optimizer.learning_rate * config.fsl_learning_rate
    learned = [{"params": list(similarity.parameters()), "lr": rate, "weight_decay": 0.0}]
    return train(
        nn.ModuleDict({"net": net, "similarity": similarity}), loader, loss, config=config, seed=seed, out=out,
        description=description, extra_groups=learned if config.learn_fsl else None,
        warmups={"similarity": config.fsl_warmup} if config.fsl_weight and not seam else {},
        record=lambda: {"mu": similarity.mu.item(), "sigma": similarity.sigma.item()}, on_epoch=on_epoch
    )  # fmt: skip


def load_cam(backbone: str, num_classes: int, config: CamConfig, checkpoint: Path, *, seam: bool = False) -> Any:
    """The trained network of a :func:`train_cam` folder, in eval mode."""
    return load_trained(build_cam_net(backbone, num_classes, config, seed=0, seam=seam), checkpoint)


def _view_cam(net: Any, images: Tensor, labels: Tensor, config: CamConfig, seam: bool) -> Tensor:
    """Label-conditioned foreground maps (B, K - 1, h, w) of views, at map size."""
    if seam:
        return F.relu(net(images).revised.float())[:, 1:] * labels[1:, None, None]
    activation = find_posterior(config.posterior)
    output = net(images, revise=config.siamese)
    cam = activation(output.logits.float())
    if config.siamese:
        cam = (cam + activation(output.revised.float())) / 2
    if config.posterior != "softmax":  # maps that do not compete have no share to pass on
        return cam[:, 1:] * labels[1:, None, None]
    return condition_on_labels(cam, labels.expand(len(cam), -1))[:, 1:]


@torch.inference_mode()
def foreground_cam(
    net: Any, image: np.ndarray, labels: np.ndarray, config: CamConfig, inference: InferenceConfig, *,
    seam: bool = False
) -> np.ndarray:  # fmt: skip
    """Foreground CAM of one image, mean over scales and flips: float32 (K - 1, H, W) in [0, 1].

    Per view: softmax (mean of plain and revised with the siamese branch), times the image labels, renormalised over
    classes (another posterior's maps do not compete and are not renormalised), background dropped, resized to the image
    (bilinear, align_corners false). Then, with ``inference.max_normalize``, winner-take-all across classes and division by
    each class's maximum. SEAM's maps are always divided by their maximum, being no probabilities.
    """
    device = next(net.parameters()).device
    tensor = to_tensor(image).to(device)
    size = image.shape[:2]
    present = torch.from_numpy(labels).float().to(device)
    kept = present[1:].nonzero()[:, 0]  # the maps of all other classes are zero
    if not len(kept):
        return np.zeros((len(labels) - 1, *size), np.float32)
    total = torch.zeros(len(kept), *size, device=device)
    with folded_batch_norm(), autocast(device, config.precision):
        for scale in inference.scales:
            scaled = tensor if scale == 1 else resize(tensor, scaled_size(size, scale, 16), antialias=scale < 1)
            views = torch.stack([scaled, scaled.flip(-1)]) if inference.flip else scaled[None]
            together = 1 if device.type == "cpu" and scaled[0].numel() > PAIRED_PIXELS else 2
            parts = [_view_cam(net, part, present, config, seam)[:, kept] for part in views.split(together)]
            cam = torch.cat(parts)
            if inference.flip:
                cam = torch.cat([cam[:1], cam[1:].flip(-1)])
            total += F.interpolate(cam, size, mode="bilinear", align_corners=False).sum(0)
    mean = total / (len(inference.scales) * len(views))
    cam = torch.zeros(len(labels) - 1, *size, device=device).index_copy(0, kept, mean)
    if inference.max_normalize or seam:
        cam = normalize_maximum(cam, winners_only=inference.max_normalize)
    return cam.cpu().numpy()


def infer_cams(
    net: Any, folder: VOCFolder, config: CamConfig, inference: InferenceConfig, out: Path, *, seam: bool = False,
    label_maps: bool = True
) -> None:  # fmt: skip
    """Write each image's CAM (``NAME.npz``: classes, cam float16 (n, H, W)) and its label map (``NAME.png``).

    Image-level labels of the split are used, as everywhere in the paper's CAM scores. Files that exist are kept. Several
    processes share the images.
    """
    rule = parse_background_rule(inference.background)
    labels = folder.labels()
    with folded_batch_norm():
        for name in progress(unfinished(folder, out, ".npz"), f"CAMs {folder.split}"):
            cam = foreground_cam(net, folder.image(name), labels[name], config, inference, seam=seam)
            if label_maps:
                save_label_map(out / f"{name}.png", label_map(add_background(torch.from_numpy(cam), rule)).numpy())
            present = np.flatnonzero(labels[name][1:])
            with atomic_path(out / f"{name}.npz") as temporary:
                np.savez_compressed(temporary, classes=present + 1, cam=cam[present].astype(np.float16))
    processes().barrier()


def cam_protocol(inference: InferenceConfig, *, seam: bool = False) -> dict[str, Any]:
    """What label maps of :func:`infer_cams` were made with, in the words that every score carries."""
    return {
        "stage": "cam", "background": inference.background, "crf": False, "scales": list(inference.scales),
        "flips": inference.flip, "max_normalized": inference.max_normalize or seam, "image_labels": True
    }  # fmt: skip
