"""Label maps and scores of a checkpoint, whoever trained it, under the settings of a profile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsss_nb.code_version import code_version
from wsss_nb.data import VOCFolder
from wsss_nb.errors import InputError
from wsss_nb.experiment.profiles import PROFILES, Profile
from wsss_nb.files import sha256_file
from wsss_nb.models import (
    create_affinity_net,
    create_cam_net,
    create_deeplab,
    create_seam_net,
    load_checkpoint,
)
from wsss_nb.models.identify import Identity, identify_checkpoint
from wsss_nb.stages import affinitynet, cam, deeplab
from wsss_nb.stages.config import AffinityNetConfig, CamConfig, InferenceConfig
from wsss_nb.stages.protocols import affinitynet_protocol, cam_protocol, deeplab_protocol
from wsss_nb.stages.scoring import score_label_maps
from wsss_nb.stages.steps import pick_device, run_step, step_key

__all__ = ["Checkpoint", "evaluate_checkpoint", "open_checkpoint", "profile_for"]

Method = Literal["ours", "seam"]


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights: what its names say it is, and which file it is.

    Attributes:
        path: the file.
        identity: network, backbone, classes.
        digest: SHA-256 of the file.
    """

    path: Path
    identity: Identity
    digest: str


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at a file of weights.

    Raises:
        InputError: as ``identify_checkpoint``.
    """
    identity = identify_checkpoint(path)
    return Checkpoint(path, identity, sha256_file(path))


def profile_for(backbone: str) -> str:
    """The name of the profile that trains this backbone, the paper's first.

    Example:
        >>> profile_for("resnet38")
        'paper'
    """
    names = sorted(PROFILES, key=lambda name: name != "paper")
    return next(name for name in names if PROFILES[name]().backbone == backbone)


def load_network(checkpoint: Checkpoint, num_classes: int, method: Method) -> Any:
    """The checkpoint's network in eval mode, on the GPU where there is one.

    Names that the network does not have are left out and printed.

    Raises:
        InputError: weights are missing or misshaped; the names are listed.
    """
    identity = checkpoint.identity
    if identity.network == "cam":
        create = create_seam_net if method == "seam" else create_cam_net
        net: Any = create(identity.backbone, num_classes, pretrained=False)
    elif identity.network == "affinitynet":
        net = create_affinity_net(identity.backbone, pretrained=False)
    else:
        net = create_deeplab(identity.backbone, num_classes, pretrained=False)
    report = load_checkpoint(net, checkpoint.path, strict=False)
    if report.missing or report.misshaped:
        raise InputError(f"{checkpoint.path}: expected the weights of {type(net).__name__}, got {report}")
    if report:
        print(f"{checkpoint.path.name}: left out {report}", flush=True)
    return net.to(pick_device()).eval()


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    folder: VOCFolder,
    profile: Profile,
    out: Path,
    *,
    method: Method = "ours",
    cams: Path | None = None,
    void: Literal["background", "masked"] | None = None,
) -> dict[str, Any] | None:
    """Write the label maps of a split to ``out/maps`` and score them, with the stages' own inference.

    A CAM network uses the split's image-level labels; AffinityNet walks CAMs, which are made here of a CAM
    checkpoint (in ``out/cams``) or taken from a folder; DeepLab uses nothing but the images. A run that was killed
    carries on, another checkpoint or other settings start again.

    Args:
        checkpoint: from :func:`open_checkpoint`.
        folder: the split; without a single mask nothing is scored.
        profile: its inference settings are used, not its data.
        out: the results' folder.
        method: "seam": the CAM network is SEAM's (its names do not tell), with the profile's settings for SEAM.
        cams: for AffinityNet: folder of ``NAME.npz`` of stage 1, or checkpoint of a CAM network.
        void: as in ``score_label_maps``; None = the profile's.

    Returns:
        Scores as ``score_label_maps``, the protocol with all settings and the file's SHA-256; None for a split
        without masks.

    Raises:
        InputError: weights do not fit, files are missing or malformed, ``cams`` is missing or not wanted.
    """
    network = checkpoint.identity.network
    if (network == "affinitynet") != (cams is not None):
        raise InputError(
            "cams: expected for AffinityNet, a folder of CAMs or a checkpoint of a CAM network, got none"
            if cams is None
            else f"cams: expected for AffinityNet only, got them for a network {network}"
        )
    common = {"method": method, "weights": f"{checkpoint.path.name} {checkpoint.digest[:12]}"}
    walk = profile.seam_affinitynet if method == "seam" else profile.affinitynet
    if network == "cam":
        made = _cam_maps(checkpoint, folder, profile, out / "maps", method, label_maps=True)
        protocol = {**cam_protocol(*_cam_settings(profile, method)), **common}
    elif network == "affinitynet":
        assert cams is not None
        source, made = _cams(cams, folder, profile, out / "cams", method)
        inference = None if cams.is_dir() else _cam_settings(profile, method)[1]
        protocol = {**affinitynet_protocol(walk, inference), **common, "cams": made}
        _walks(checkpoint, folder, walk, source, out / "maps", made)
    else:
        _segmentations(checkpoint, folder, profile, out / "maps")
        protocol = {**deeplab_protocol(profile.deeplab), "weights": common["weights"]}
    if not any((folder.root / "SegmentationClass" / f"{name}.png").is_file() for name in folder.names):
        return None
    return score_label_maps(folder, out / "maps", protocol, void or profile.data.void)


def _cam_settings(profile: Profile, method: Method) -> tuple[CamConfig, InferenceConfig]:
    if method == "seam":
        return profile.seam, profile.seam_inference
    return profile.cam, profile.inference


def _inputs(stage: str, checkpoint: Checkpoint, folder: VOCFolder, **values: Any) -> dict[str, Any]:
    """What label maps depend on; image-level labels only where ``labels`` are among it."""
    images = {name: sha256_file(folder.image_path(name)) for name in folder.names}
    return {
        "code": code_version(f"wsss_nb.stages.{stage}"),
        "checkpoint": checkpoint.digest,
        "images": step_key(images),
        "classes": list(folder.classes),
        **values,
    }


def _label_key(folder: VOCFolder) -> str:
    return step_key({name: vector.tolist() for name, vector in folder.labels().items()})


def _cam_maps(
    checkpoint: Checkpoint,
    folder: VOCFolder,
    profile: Profile,
    out: Path,
    method: Method,
    *,
    label_maps: bool,
) -> str:
    """CAMs of a split, with label maps or without; the step's key."""
    config, inference = _cam_settings(profile, method)

    def work(out: Path) -> dict[str, Any]:
        net = load_network(checkpoint, folder.num_classes, method)
        cam.infer_cams(net, folder, config, inference, out, label_maps=label_maps)
        return {}

    settings = {
        "inference": inference.model_dump(mode="json"),
        # the rest of the stage's settings is about training
        "network": config.model_dump(mode="json", include={"method", "siamese", "precision"}),
    }
    inputs = _inputs(
        "cam", checkpoint, folder, labels=_label_key(folder), method=method, label_maps=label_maps, **settings
    )
    key: str = run_step(out, inputs, work)["key"]
    return key


def _cams(given: Path, folder: VOCFolder, profile: Profile, out: Path, method: Method) -> tuple[Path, str]:
    """The folder of CAMs that AffinityNet walks, and what they are."""
    if given.is_dir():
        missing = [name for name in folder.names if not (given / f"{name}.npz").is_file()]
        if missing:
            raise InputError(f"{given}: expected a CAM of every image, got none of {missing[0]!r}")
        return given, step_key({name: sha256_file(given / f"{name}.npz") for name in folder.names})[:12]
    checkpoint = open_checkpoint(given)
    if checkpoint.identity.network != "cam":
        raise InputError(f"{given}: expected a CAM network, got {checkpoint.identity.network}")
    _cam_maps(checkpoint, folder, profile, out, method, label_maps=False)
    return out, f"{given.name} {checkpoint.digest[:12]}"


def _walks(
    checkpoint: Checkpoint, folder: VOCFolder, config: AffinityNetConfig, cams: Path, out: Path, made: str
) -> None:
    def work(out: Path) -> dict[str, Any]:
        net = load_network(checkpoint, folder.num_classes, "ours")
        affinitynet.write_pseudo_labels(net, folder, cams, config, out)
        return {}

    settings = config.model_dump(mode="json", include={"alpha_walk", "radius", "beta", "log_t", "precision"})
    run_step(out, _inputs("affinitynet", checkpoint, folder, config=settings, cams=made), work)


def _segmentations(checkpoint: Checkpoint, folder: VOCFolder, profile: Profile, out: Path) -> None:
    config = profile.deeplab
    backend = None if config.crf is None else affinitynet.resolved_crf(config.crf).backend

    def work(out: Path) -> dict[str, Any]:
        net = load_network(checkpoint, folder.num_classes, "ours")
        deeplab.write_predictions(net, folder, config, out, profile.workers)
        return {}

    settings = config.model_dump(
        mode="json", include={"scales", "flip", "crf", "precision"}, exclude={"crf": {"backend"}}
    )
    run_step(out, _inputs("deeplab", checkpoint, folder, config=settings, backend=backend), work)
