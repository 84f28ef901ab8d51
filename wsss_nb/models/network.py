"""What the four networks share: normalised images, frozen parts, BatchNorm modes, parameter groups."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Taps

__all__ = ["BatchNormMode", "Network", "channels_last", "check_head"]

BatchNormMode = Literal["frozen", "statistics", "train"]
Self = TypeVar("Self", bound="Network")


class Network(nn.Module):
    """A backbone and a head; images are (B, 3, H, W) in [0, 1] and normalised inside.

    ``net(x, net.frozen(x))`` equals ``net(x)``, so the output of ``frozen`` may be computed once per image and kept.

    Args:
        backbone: the feature extractor.
        prefixed: whether the backbone's names in the state dict begin with "backbone.", else they stand
            at the root.
        batch_norm: what the backbone's BatchNorm does in training; heads and the frozen part are not concerned.
            "frozen": eval mode, affine parameters fixed. "statistics": normalises by the batch and updates the
            running statistics, affine parameters fixed. "train": the usual, affine parameters learned.

    Attributes:
        stride: pixels of the image per pixel of the map.

    Raises:
        ValueError: another ``batch_norm``.
    """

    backbone: Backbone
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, *, prefixed: bool = False, batch_norm: BatchNormMode = "frozen") -> None:
        super().__init__()
        if batch_norm not in get_args(BatchNormMode):
            raise ValueError(f"batch_norm: expected one of {get_args(BatchNormMode)}, got {batch_norm!r}")
        self.prefixed, self.batch_norm, self.stride = prefixed, batch_norm, backbone.stride
        if prefixed:
            self.backbone = backbone
        else:
            for name, block in backbone.named_children():
                self.add_module(name, block)
            # the blocks above are the registered ones; registering their owner too would double every name
            object.__setattr__(self, "backbone", backbone)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)
        for norm in self._norms():
            norm.requires_grad_(batch_norm == "train")
        for module in backbone.frozen_modules():
            module.requires_grad_(False)
        self.train()

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self: Self, mode: bool = True) -> Self:
        """Training mode, except for what stays frozen (see ``batch_norm``)."""
        super().train(mode)
        if mode:
            norms = self._norms() if self.batch_norm == "frozen" else []
            for module in (*norms, *self.backbone.frozen_modules()):
                module.eval()
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """(images - mean) / std, per channel.

        Raises:
            ValueError: the images are not (B, 3, H, W) floating point.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images: expected floating point (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        return (images - self.mean) / self.std

    def frozen(self, images: Tensor) -> Tensor:
        """Features of the part that is never trained: (B, 3, H, W) -> (B, C, h, w), may be cached."""
        return self.backbone.frozen(self.normalize(images))

    def taps(self, images: Tensor, features: Tensor | None = None) -> Taps[Tensor]:
        """The backbone's tapped maps; ``features`` is the output of :meth:`frozen` where it is known, in any layout."""
        features = self.frozen(images) if features is None else features
        return self.backbone.taps(features.contiguous(memory_format=torch.channels_last))

    def synchronise_batch_norm(self) -> None:
        """Let BatchNorm that is trained see the rows of all processes; on GPUs only. Names and weights stay."""
        kept = set(self._norms()) if self.batch_norm == "frozen" else set()
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d) and module not in kept]
        made = {norm: nn.SyncBatchNorm.convert_sync_batchnorm(norm) for norm in norms}
        for owner in [*self.modules(), self.backbone]:  # the backbone is no module of the network where not prefixed
            for name, module in list(owner.named_children()):
                if module in made:
                    setattr(owner, name, made[module])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters in the four groups that get different learning rates.

        Returns:
            ``pretrained_weights`` (learning rate x1) and ``pretrained_biases`` (x2, no decay): the backbone;
            ``new_weights`` (x10) and ``new_biases`` (x20, no decay): the head. Weights are the parameters
            named ``weight``, BatchNorm scales included where they are trained; frozen ones are in no group.
            The backbone counts as pretrained also where it started at random.
        """
        names = ("pretrained_weights", "pretrained_biases", "new_weights", "new_biases")
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in names}
        backbone = {id(parameter) for parameter in self.backbone.parameters()}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = "pretrained" if id(parameter) in backbone else "new"
                groups[f"{part}_{'weights' if name.endswith('weight') else 'biases'}"].append(parameter)
        return groups


def channels_last(net: Self) -> Self:
    """Lay the convolutions' weights out channels-last, which makes every convolution run that way."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


def check_head(num_classes: int, dropout: float = 0.0) -> None:
    """Refuse a head without classes and a dropout of everything.

    Raises:
        ValueError: fewer than two classes, or a dropout outside [0, 1).
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected background and at least one class, got {num_classes}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
