"""What the fused kernels are compiled for: the shape of a tile, and the columns of its product."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["TILE", "Variant", "padded_columns"]

TILE = 64  # pixels per tile, also the rows of a tensor-core product


class Variant(NamedTuple):
    """What the fused kernels of the feature similarity are compiled for."""

    colours: int
    tile_h: int  # of TILE pixels, rows ...
    tile_w: int  # ... and columns
    columns: int  # of a product: channels, 1/2 |a|^2 and 1
    with_scalars: bool

    @classmethod
    def of(cls, cam: Tensor, image: Tensor, with_scalars: bool) -> "Variant":
        """Variant for maps (B, K, H, W) and images (B, C, H, W): flat maps have long tiles."""
        _, K, H, W = cam.shape
        tile_w = min(_power_of_2(W), TILE // min(_power_of_2(H), 8))
        return cls(image.shape[1], TILE // tile_w, tile_w, padded_columns(K + 2), with_scalars)


def padded_columns(values: int) -> int:
    """Columns that a product of so many gets: a power of 2 from 16, the least of tensor cores, to 64."""
    return min(max(_power_of_2(values), 16), 64)


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
