"""The messages of the dense CRF in torch, without compiled extras: sums over all pixels of Gaussians times values.

Where fused kernels run, those of :mod:`wsss_nb.fast.kernels` take their place.
"""

import math

import torch
from torch import Tensor

__all__ = ["BilateralKernel", "position_sum"]

# In kernel widths: where exp(-x^2/2) counts as 0, and tile sizes that balance work per tile against their
# number; then how many kernel values (256 MB) are kept between iterations.
REACH = 4.5
TILE = (2.0, 2.0, 4.0, 4.0, 4.0)
KEPT_WEIGHTS = 2**26


def position_sum(values: Tensor, sxy: float) -> Tensor:
    """sum_j exp(-|p_i - p_j|^2 / (2 sxy^2)) v_j for maps v (K, H, W), one axis and one shift after the other.

    A convolution would round its factors to TF32 on a GPU, and takes five times as long on a CPU.
    """
    for axis in (1, 2):
        sums, side = values.clone(), values.shape[axis]
        for step in range(1, min(math.ceil(5 * sxy), side - 1) + 1):
            weight = math.exp(-0.5 * (step / sxy) ** 2)
            for here, there in ((0, step), (step, 0)):
                part = values.narrow(axis, there, side - step)
                sums.narrow(axis, here, side - step).add_(part, alpha=weight)
        values = sums
    return values


class BilateralKernel:
    """sum_j exp(-|f_i - f_j|^2 / 2) v_j for maps v (K, H, W), f (H, W, 5) = position and colour in kernel widths."""

    def __init__(self, features: Tensor, cell: float) -> None:
        features = features.flatten(0, 1)
        self.cell = torch.arange(len(features), device=features.device)
        if cell > 0:
            self.cell = _bins(features, features.new_tensor([0.5, 0.5, 1, 1, 1]) * cell)
        count = self.cell.bincount()[:, None]
        self.mean = features.new_zeros(len(count), 5).index_add_(0, self.cell, features) / count
        self.offset = features - self.mean[self.cell]
        # Cells in tiles, so that a tile needs only the cells near its bounding box.
        size = features.new_tensor(TILE)
        while (tiles := _bins(self.mean, size)).max() >= 4096:  # only for very narrow kernels
            size = 2 * size
        self.tiles: list[tuple[Tensor, Tensor]] = []
        for tile in tiles.argsort(stable=True).split(tiles.bincount().tolist()):
            low, high = self.mean[tile].amin(0), self.mean[tile].amax(0)
            gap = (low - self.mean).clamp_(min=0) + (self.mean - high).clamp_(min=0)
            near = (gap.square_().sum(1) < REACH**2).nonzero()[:, 0]
            self.tiles += [(part, near) for part in tile.split(max(1, 2**18 // len(near)))]
        few = sum(len(tile) * len(near) for tile, near in self.tiles) <= KEPT_WEIGHTS
        self.kept = [self._weights(tile, near) for tile, near in self.tiles] if few else None

    def _weights(self, tile: Tensor, near: Tensor) -> Tensor:
        centre = self.mean[tile[0]]  # keeps the expanded square exact in float32
        x, y = self.mean[tile] - centre, self.mean[near] - centre
        return (x @ y.T).sub_(0.5 * x.square().sum(1, True)).sub_(0.5 * y.square().sum(1)).exp_()

    def __call__(self, values: Tensor) -> Tensor:
        """Sums for maps (K, H, W)."""
        flat = values.flatten(1).T
        source = flat.new_zeros(len(self.mean), len(values)).index_add_(0, self.cell, flat)
        moments = torch.cat([source, *(source * axis[:, None] for axis in self.mean.unbind(1))], 1)
        sums = torch.empty_like(moments)
        for number, (tile, near) in enumerate(self.tiles):
            weights = self.kept[number] if self.kept else self._weights(tile, near)
            sums[tile] = weights @ moments[near]
        total, *firsts = sums.split(len(values), 1)
        exponent = torch.zeros_like(flat)
        for offset, mean, first in zip(self.offset.unbind(1), self.mean.unbind(1), firsts, strict=True):
            shift = torch.where(total > 1e-30, first / total - mean[:, None], 0)
            exponent.addcmul_(offset[:, None], shift[self.cell])
        return exponent.exp_().mul_(total[self.cell]).T.unflatten(1, values.shape[1:])


def _bins(points: Tensor, sizes: Tensor) -> Tensor:
    """Numbers 0.. of the occupied boxes of a grid, one per point."""
    number = points.new_zeros(len(points)).long()
    for axis in (points / sizes).floor().long().unbind(1):
        axis = axis - axis.min()
        number = (number * (axis.max() + 1) + axis).unique(return_inverse=True)[1]
    return number
