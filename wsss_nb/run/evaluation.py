"""Label maps and scores of a checkpoint, whoever trained it, under the settings of a profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wsss_nb.crf import resolved_crf
from wsss_nb.data.voc import VOCFolder
from wsss_nb.models.affinity_net import create_affinity_net
from wsss_nb.models.checkpoint import Identity, identify_network, load_checkpoint, read_state_dict
from wsss_nb.models.deeplab import create_deeplab
from wsss_nb.models.networks import create_cam_net, create_seam_net
from wsss_nb.run.profiles import PROFILES, Profile, load_profile
from wsss_nb.run.steps import run_step
from wsss_nb.stages import affinitynet, cam, deeplab
from wsss_nb.stages.scoring import score_label_maps
from wsss_nb.system.code_version import code_version
from wsss_nb.system.errors import require
from wsss_nb.system.files import json_hash, sha256_file
from wsss_nb.system.processes import processes
from wsss_nb.variants import OURS, SEAM, find_variant

__all__ = ["Checkpoint", "evaluate_checkpoint", "load_network", "open_checkpoint", "profile_for"]


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
        InputError: as ``read_state_dict`` and ``identify_network``.
    """
    return Checkpoint(path, identify_network(read_state_dict(path), str(path)), sha256_file(path))


def profile_for(backbone: str) -> str:
    """The name of the profile that trains this backbone, the paper's first; "photos" where none does.

    Example:
        >>> profile_for("resnet38")
        'paper'
    """
    names = sorted(PROFILES, key=lambda name: name != "paper")
    return next((name for name in names if load_profile(name).backbone == backbone), "photos")


def load_network(checkpoint: Checkpoint, num_classes: int, *, seam: bool = False) -> Any:
    """The checkpoint's network in eval mode, on the GPU where there is one.

    Names that the network does not have are left out and printed.

    Raises:
        InputError: weights are missing or misshaped; the names are listed.
    """
    identity = checkpoint.identity
    of_classes = {"cam": create_seam_net if seam else create_cam_net, "deeplab": create_deeplab}
    if identity.network in of_classes:
        net: Any = of_classes[identity.network](identity.backbone, num_classes, pretrained=False)
    else:
        net = create_affinity_net(identity.backbone, pretrained=False)
    report = load_checkpoint(net, checkpoint.path, strict=False)
    fits = not report.missing and not report.misshaped
    require(fits, f"{checkpoint.path}: expected the weights of {type(net).__name__}, got {report}")
    if report:
        print(f"{checkpoint.path.name}: left out {report}", flush=True)
    return net.to(processes().device).eval()


def evaluate_checkpoint(
    checkpoint: Checkpoint, folder: VOCFolder, profile: Profile, out: Path, *, variant: str = "",
    cams: Path | None = None
) -> tuple[Path, dict[str, Any] | None]:  # fmt: skip
    """Write the label maps of a split and score them, with the stages' own inference.

    A CAM network uses the split's image-level labels; AffinityNet walks CAMs, which are made here of a CAM
    checkpoint or taken from a folder; DeepLab uses nothing but the images. A run that was killed carries on; another
    checkpoint or other settings get another folder.

    Args:
        checkpoint: from :func:`open_checkpoint`.
        folder: the split; without a single mask nothing is scored.
        profile: its inference settings are used, not its data; of the data, how void is scored.
        out: the results' folder.
        variant: what the CAM network was trained as, where its names do not tell and its settings are of its own: "seam",
            "binomial"; stated in the protocol.
        cams: for AffinityNet: folder of ``NAME.npz`` of stage 1, or checkpoint of a CAM network.

    Returns:
        The folder of label maps, and scores as ``score_label_maps``, the protocol with all settings and the file's
        SHA-256; None for a split without masks.

    Raises:
        InputError: weights do not fit, files are missing or malformed, ``cams`` is missing or not wanted.
    """
    network = checkpoint.identity.network
    where = "a folder of CAMs or a checkpoint of a CAM network"
    require(network != "affinitynet" or cams is not None, f"cams: expected for AffinityNet, {where}, got none")
    wanted = network == "affinitynet" or cams is None
    require(wanted, f"cams: expected for AffinityNet only, got them for a network {network}")
    point = find_variant(variant or OURS)
    inference, walk = profile.inference_config(point), profile.affinitynet_config(point)
    common = {"variant": variant or None, "weights": f"{checkpoint.path.name} {checkpoint.digest[:12]}"}
    if network == "cam":
        maps = _cam_maps(checkpoint, folder, profile, out, variant, label_maps=True)
        protocol = {**cam.cam_protocol(inference, seam=variant == SEAM), **common}
    elif cams is not None:
        source, made = _cams(cams, folder, profile, out, variant)
        settings = walk.model_dump(mode="json", include={"alpha_walk", "radius", "beta", "log_t", "precision"})
        write = partial(affinitynet.write_pseudo_labels, folder=folder, cams=source, config=walk)
        maps = _written(out / "maps", "affinitynet", checkpoint, folder, write, config=settings, cams=made)
        protocol = affinitynet.affinitynet_protocol(walk, None if cams.is_dir() else inference)
        protocol = {**protocol, **common, "cams": made}
    else:
        config = profile.deeplab
        backend = None if config.crf is None else resolved_crf(config.crf).backend
        included = {"scales", "flip", "interpolation", "crf", "precision"}
        settings = config.model_dump(mode="json", include=included, exclude={"crf": {"backend"}})
        write = partial(deeplab.write_predictions, folder=folder, config=config, workers=profile.workers)
        maps = _written(out / "maps", "deeplab", checkpoint, folder, write, config=settings, backend=backend)
        protocol = {**deeplab.deeplab_protocol(profile.deeplab), "weights": common["weights"]}
    if not any((folder.root / "SegmentationClass" / f"{name}.png").is_file() for name in folder.names):
        return maps, None
    return maps, score_label_maps(folder, maps, protocol, profile.data.void)


def _written(
    place: Path, stage: str, checkpoint: Checkpoint, folder: VOCFolder, write: Callable[..., None],
    seam: bool = False, **inputs: Any,
) -> Path:  # fmt: skip
    """The folder ``place-KEY`` in which ``write(net, out=...)`` has put its files; ``inputs`` are what these depend on."""
    images = json_hash({name: sha256_file(folder.image_path(name)) for name in folder.names})
    facts = {"checkpoint": checkpoint.digest, "images": images, "classes": list(folder.classes)}
    facts["code"] = code_version(f"wsss_nb.stages.{stage}")

    def work(out: Path) -> None:
        write(load_network(checkpoint, folder.num_classes, seam=seam), out=out)

    return run_step(place.parent, place.name, {**facts, "seam": seam, **inputs}, work).folder


def _cam_maps(
    checkpoint: Checkpoint, folder: VOCFolder, profile: Profile, out: Path, variant: str, *, label_maps: bool
) -> Path:
    """Folder of the CAMs of a split, with label maps or without."""
    point, seam = find_variant(variant or OURS), variant == SEAM
    config, inference = profile.cam_config(point), profile.inference_config(point)
    write = partial(cam.infer_cams, folder=folder, config=config, inference=inference, seam=seam, label_maps=label_maps)
    return _written(
        out / ("maps" if label_maps else "cams"), "cam", checkpoint, folder, write, seam,
        labels=json_hash({name: vector.tolist() for name, vector in folder.labels().items()}),
        label_maps=label_maps, inference=inference.model_dump(mode="json"),
        # the rest of the stage's settings is about training
        network=config.model_dump(mode="json", include={"posterior", "siamese", "precision"}),
    )  # fmt: skip


def _cams(given: Path, folder: VOCFolder, profile: Profile, out: Path, variant: str) -> tuple[Path, str]:
    """The folder of CAMs that AffinityNet walks, and what they are."""
    if given.is_dir():
        files = {name: given / f"{name}.npz" for name in folder.names}
        for name, path in files.items():
            require(path.is_file(), f"{given}: expected a CAM of every image, got none of {name!r}")
        return given, json_hash({name: sha256_file(path) for name, path in files.items()})[:12]
    checkpoint = open_checkpoint(given)
    network = checkpoint.identity.network
    require(network == "cam", f"{given}: expected a CAM network, got {network}")
    cams = _cam_maps(checkpoint, folder, profile, out, variant, label_maps=False)
    return cams, f"{given.name} {checkpoint.digest[:12]}"
