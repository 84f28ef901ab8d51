"""The sum over pixel pairs behind the feature similarity loss, as a tiled graph-Laplacian form.

With ``M = w f`` (symmetric) the sum is a quadratic form,

``sum_ij M_ij 1/2 |a_i - a_j|^2 = sum_k a_k^T (D - M) a_k``,  D = diag(row sums of M).

One pass over tiles of M gives ``M [a, 1]`` and with it the value and its gradient ``2 (D - M) a`` together;
the derivatives for mu and sigma are the same form with ``w (1 - f^2)`` and ``M (r^2 / sigma^3 - 2 / sigma)``
in place of M. Each tile is made, used and overwritten: time grows with pixels x window, memory with pixels.

On a GPU where Triton works, float32 goes through the kernel of :mod:`wsss_nb.fast.kernels`, which computes the same.
"""

import functools
import math
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.fast.launch import Variant

__all__ = ["LONGEST_REACH", "MU_LIMIT", "fused_kernels", "pairwise_form"]

# Beyond it f differs from its limits by less than 1e-17 for any delta between two colours of a 16-bit image.
MU_LIMIT = 40.0
LONGEST_REACH = 1900  # pixels: coordinates relative to a tile have to be integers that TF32 holds, up to 2048
_CPU_PAIRS = 2**19


@functools.cache
def fused_kernels(device: torch.device, launch: Variant | int = 16) -> ModuleType | None:
    """:mod:`wsss_nb.fast.kernels` where its kernels run, else None: then the torch operators do the work.

    They run on NVIDIA GPUs of compute capability 8.0 or higher if triton can be imported, and on any device,
    slowly, in a process started with ``TRITON_INTERPRET=1``. Where they should run and do not (for want of a C
    compiler or of shared memory, say), a warning says so. The answer holds for the life of the process.

    Args:
        device: where.
        launch: what is to be launched and therefore tried first, once: the feature similarity's variant, or the
            :func:`~wsss_nb.fast.launch.padded_columns` of a Gaussian sum, with fewer columns tried as well.
    """
    tf32 = device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 0)
    if not tf32 and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    try:
        from wsss_nb.fast import kernels
    except ImportError:
        return None
    try:
        kernels.probe(device, launch)
    except Exception as error:
        problem = f"Triton kernels do not run on {device}, slower torch operators are used: {error}"
        warnings.warn(problem, stacklevel=2)
        return None
    return kernels


def pairwise_form(
    cam: Tensor, image: Tensor, mu: float, sigma: float, with_scalars: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evaluate ``sum_b sum_ij w_ij f_ij 1/2 |a_i - a_j|^2`` with w of Eq. 7 and f of Eq. 8.

    Args:
        cam: a, (B, K, H, W), float32 or float64.
        image: x, (B, C, H, W) in [0, 1], dtype and device of ``cam``.
        mu: bias of f.
        sigma: standard deviation of w in pixels.
        with_scalars: also compute the derivatives for mu and sigma.

    Returns:
        The value, d_cam (B, K, H, W), d_mu and d_sigma; the scalars are float64, the last two zero if not asked
        for. Tiles that lie wholly beyond ``sqrt(1 + (8 sigma)^2)`` pixels of each other, 5.5 instead of 8 in
        float32, are left out: their weights are below exp(-32), or exp(-15), times the weight of direct neighbours.
    """
    B, K, H, W = cam.shape
    reach = math.hypot(1, sigma * (8 if cam.dtype == torch.float64 else 5.5))
    c = math.exp(2 * min(max(mu, -MU_LIMIT), MU_LIMIT))
    # The form does not change with a constant added to a class; without it less is lost to rounding.
    cam, image = cam - cam.mean(dim=(2, 3), keepdim=True), image / image.shape[1]
    if cam.dtype == torch.float32 and min(reach, max(H, W)) <= LONGEST_REACH:
        variant = Variant.of(cam, image, with_scalars)
        if kernels := fused_kernels(cam.device, variant):
            return kernels.pair_sums(cam, image, c, sigma, reach, variant)

    tiling = _Tiling.of(H, W, reach)
    P = tiling.h * tiling.w
    x = tiling.split(image)
    a = tiling.split(torch.cat([cam, torch.ones_like(cam[:, :1])], dim=1))
    product = torch.zeros_like(a)  # M [a, 1]
    left = right = a
    d_mu = d_sigma = torch.zeros((), dtype=torch.float64, device=cam.device)
    if with_scalars:
        half = a[..., :K, :].square().sum(dim=-2, keepdim=True) / 2
        left = torch.cat([-a[..., :K, :], half, a[..., K:, :]], dim=-2)
        right = torch.cat([a, half], dim=-2)  # 1/2 |a_i - a_j|^2 = left_i . right_j

    pairs_at_once = _CPU_PAIRS if cam.device.type == "cpu" else 2**25
    chunk = min(max(1, pairs_at_once // P**2), tiling.columns * B)
    buffers = torch.empty(3, chunk, P, P, dtype=cam.dtype, device=cam.device)

    for dy, dx in tiling.offsets(reach):
        w, r2 = _gaussian(tiling, dy, dx, sigma, cam)
        same = dy == 0 and dx == 0
        sums = torch.zeros(3, P, P, dtype=cam.dtype, device=cam.device)
        for here, there in tiling.runs(dy, dx):
            tiles_i = (maps[here].flatten(0, 1).split(chunk) for maps in (x, a, product, left))
            tiles_j = (maps[there].flatten(0, 1).split(chunk) for maps in (x, a, product, right))
            for x_i, a_i, product_i, l_i, x_j, a_j, product_j, r_j in zip(*tiles_i, *tiles_j, strict=True):
                m, p, g = buffers[:, : len(x_i)]
                _pair_weights(x_i, x_j, w, c, out=m, p=p)
                product_j.baddbmm_(a_i, m)
                if not same:
                    product_i.baddbmm_(a_j, m.mT)
                if with_scalars:
                    torch.bmm(l_i.mT, r_j, out=g)
                    for power in range(3):
                        sums[power] += (g.mul_(p) if power else g).sum(dim=0)
        if with_scalars:
            moments = torch.stack([w, w * r2]).double().flatten(1) @ sums.double().flatten(1).mT
            (g, gp, gpp), (r2g, r2gp, _) = (1 if same else 2) * moments
            d_mu = d_mu + 4 * (gp - gpp)
            d_sigma = d_sigma + (r2g - 2 * r2gp) / sigma**3 - (g - 2 * gp) * 2 / sigma

    rows = tiling.join(product, H, W)
    half_gradient = rows[:, K:] * cam - rows[:, :K]
    value = torch.dot(half_gradient.flatten().double(), cam.flatten().double())
    return value, 2 * half_gradient, d_mu, d_sigma


def _pair_weights(x_i: Tensor, x_j: Tensor, w: Tensor, c: float, out: Tensor, p: Tensor) -> None:
    """Write w f into ``out`` and p into ``p``, both (n, P, P), from x / C, (n, C, P), and w, (P, P).

    ``f = 1 - 2 p``, ``p = 1 / (1 + c (delta / (1 - delta))^2)``; delta = 1 goes through infinity to p = 0.
    """
    one = torch.ones((), dtype=w.dtype, device=w.device)
    torch.sub(x_i[:, 0, :, None], x_j[:, 0, None, :], out=out).abs_()
    for k in range(1, x_i.shape[1]):
        out += torch.sub(x_i[:, k, :, None], x_j[:, k, None, :], out=p).abs_()
    torch.sub(one, out, out=p)
    out /= p
    torch.addcmul(one, out, out, value=c, out=p).reciprocal_()
    torch.addcmul(w, w, p, value=-2, out=out)


class _Tiling(NamedTuple):
    """A map cut into rows x columns tiles of h x w pixels; the last ones may be padded."""

    rows: int
    columns: int
    h: int
    w: int

    @classmethod
    def of(cls, H: int, W: int, reach: float) -> "_Tiling":
        """Square tiles of at most 14 x 14 pixels, smaller where the reach is; long ones for flat maps."""
        edge = min(max(round(reach), 6), 14)
        rows = math.ceil(H / edge)
        h = math.ceil(H / rows)
        columns = math.ceil(W * h / edge**2)
        return cls(rows, columns, h, math.ceil(W / columns))

    def split(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (rows, columns, B, C, h * w), zero where padded."""
        rows, columns, h, w = self
        maps = F.pad(maps, (0, columns * w - maps.shape[3], 0, rows * h - maps.shape[2]))
        return maps.unflatten(3, (columns, w)).unflatten(2, (rows, h)).permute(2, 4, 0, 1, 3, 5).flatten(4)

    def join(self, tiles: Tensor, H: int, W: int) -> Tensor:
        """(rows, columns, B, C, h * w) -> (B, C, H, W)."""
        return tiles.unflatten(4, (self.h, self.w)).permute(2, 3, 0, 4, 1, 5).flatten(4).flatten(2, 3)[:, :, :H, :W]

    def offsets(self, reach: float) -> Iterator[tuple[int, int]]:
        """Offsets (in tiles) of tiles within reach of each other; of two opposite offsets only one."""
        for dy in range(self.rows):
            for dx in range(1 - self.columns if dy else 0, self.columns):
                gap_y, gap_x = max(0, (dy - 1) * self.h + 1), max(0, (abs(dx) - 1) * self.w + 1)
                if math.hypot(gap_y, gap_x) <= reach:
                    yield dy, dx

    def runs(self, dy: int, dx: int) -> Iterator[tuple[tuple[int, slice], tuple[int, slice]]]:
        """Pairs of indices of tiles that lie (dy, dx) apart, a row of tiles at a time."""
        first, last = max(0, -dx), self.columns - max(0, dx)
        for row in range(self.rows - dy):
            yield (row, slice(first, last)), (row + dy, slice(first + dx, last + dx))


def _gaussian(tiling: _Tiling, dy: int, dx: int, sigma: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 7 and squared distances, both (P, P), between the pixels of two tiles (dy, dx) tiles apart."""
    _, _, h, w = tiling
    y, x = (torch.arange(side, dtype=like.dtype, device=like.device) for side in (h, w))
    y2, x2 = (y + dy * h - y[:, None]).square_(), (x + dx * w - x[:, None]).square_()
    r2 = (y2[:, None, :, None] + x2[:, None, :]).view(h * w, h * w)
    gauss = torch.exp(r2 * (-0.5 / sigma**2)).mul_(0.5 / (math.pi * sigma**2))
    if dy == 0 and dx == 0:
        gauss.fill_diagonal_(0)  # a pixel with itself adds nothing but rounding, which a small sigma would show
    return gauss, r2
