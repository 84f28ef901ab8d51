"""What the four networks share: normalised images, frozen parts, BatchNorm modes, parameter groups."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from wsss_nb.models.backbone import Backbone, Taps

__all__ = ["BatchNormMode", "Network", "ParameterGroups", "channels_last"]

BatchNormMode = Literal["frozen", "statistics", "train"]
ParameterGroups = dict[str, list[nn.Parameter]]
Self = TypeVar("Self", bound="Network")


class Network(nn.Module):
    """A backbone and a head; images are (B, 3, H, W) in [0, 1] and normalised inside.

    ``from_frozen(frozen(x), x)`` equals ``forward(x)``, so the output of ``frozen`` may be computed once per
    image and kept.

    Args:
        backbone: the feature extractor.
        prefixed: whether the backbone's names in the state dict begin with "backbone.", else they stand
            at the root.
        batch_norm: see :attr:`batch_norm`.
    """

    backbone: Backbone
    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Backbone, *, prefixed: bool = False, batch_norm: BatchNormMode = "frozen"
    ) -> None:
        super().__init__()
        self.prefixed = prefixed
        if prefixed:
            self.backbone = backbone
        else:
            for name, block in backbone.named_children():
                self.add_module(name, block)
            # the blocks above are the registered ones; registering their owner too would double every name
            object.__setattr__(self, "backbone", backbone)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)
        self.batch_norm = batch_norm
        self._layout = torch.channels_last

    @property
    def stride(self) -> int:
        """Pixels of the image per pixel of the map."""
        return self.backbone.stride

    @property
    def channels(self) -> Taps[int]:
        """Channels of the backbone's taps."""
        return self.backbone.channels

    @property
    def pretrained(self) -> bool:
        """Whether the backbone's weights come from ImageNet."""
        return self.backbone.pretrained

    @property
    def batch_norm(self) -> BatchNormMode:
        """What the backbone's BatchNorm does in training; heads and the frozen part are not concerned.

        "frozen": eval mode, affine parameters fixed. "statistics": normalises by the batch and updates the
        running statistics, affine parameters fixed. "train": the usual, affine parameters learned.
        Assigning sets both the mode and which affine parameters require gradients.
        """
        return self._batch_norm

    @batch_norm.setter
    def batch_norm(self, value: BatchNormMode) -> None:
        if value not in get_args(BatchNormMode):
            raise ValueError(f"batch_norm: expected one of {get_args(BatchNormMode)}, got {value!r}")
        self._batch_norm: BatchNormMode = value
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(value == "train")
        for module in self.backbone.frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self: Self, mode: bool = True) -> Self:
        """Training mode, except for what stays frozen (see :attr:`batch_norm`)."""
        super().train(mode)
        if mode:
            if self.batch_norm == "frozen":
                for module in self.backbone.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
            for module in self.backbone.frozen_modules():
                module.eval()
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """(images - mean) / std, per channel.

        Raises:
            ValueError: the images are not (B, 3, H, W) floating point.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images: expected floating point (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        return (images - self.mean) / self.std

    def frozen(self, images: Tensor) -> Tensor:
        """Features of the part that is never trained: (B, 3, H, W) -> (B, C, h, w), may be cached."""
        return self.backbone.frozen(self.normalize(images))

    def taps(self, features: Tensor) -> Taps[Tensor]:
        """The backbone's tapped maps for the output of :meth:`frozen`, whatever layout it was kept in."""
        return self.backbone.taps(features.contiguous(memory_format=self._layout))

    def use_memory_format(self, layout: torch.memory_format) -> None:
        """Lay the convolutions' weights and the features out as ``torch.channels_last`` (default) or contiguous."""
        self._layout = layout
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=layout)

    def synchronise_batch_norm(self) -> None:
        """Let BatchNorm that is trained see the rows of all processes; on GPUs only. Names and weights stay."""
        parts: list[tuple[nn.Module, str, nn.Module]] = []
        blocks = dict(self.backbone.named_children())
        if self.batch_norm != "frozen":
            parts += [(self.backbone, name, block) for name, block in blocks.items()]
            if not self.prefixed:
                parts += [(self, name, block) for name, block in blocks.items()]
        heads = {name: part for name, part in self.named_children() if name not in {"backbone", *blocks}}
        parts += [(self, name, head) for name, head in heads.items()]
        made: dict[nn.Module, nn.Module] = {}
        for owner, name, module in parts:
            if module not in made:
                made[module] = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            setattr(owner, name, made[module])

    def parameter_groups(self) -> ParameterGroups:
        """The trained parameters in the four groups that get different learning rates.

        Returns:
            ``pretrained_weights`` (learning rate x1) and ``pretrained_biases`` (x2, no decay): the backbone;
            ``new_weights`` (x10) and ``new_biases`` (x20, no decay): the head. Weights are the parameters
            named ``weight``, BatchNorm scales included where they are trained; frozen ones are in no group.
            The backbone counts as pretrained also where it started at random.
        """
        groups: ParameterGroups = {
            f"{part}_{kind}": [] for part in ("pretrained", "new") for kind in ("weights", "biases")
        }
        backbone = {id(parameter) for parameter in self.backbone.parameters()}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = "pretrained" if id(parameter) in backbone else "new"
                groups[f"{part}_{'weights' if name.endswith('weight') else 'biases'}"].append(parameter)
        return groups


def channels_last(net: Self) -> Self:
    """Lay the convolutions' weights out channels-last, which makes every convolution run that way."""
    net.use_memory_format(torch.channels_last)
    return net
