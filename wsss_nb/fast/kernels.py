"""The two sums over pixel pairs as Triton kernels: feature similarity, and the Gaussian messages of the dense CRF.

Both walk over tiles of 64 x 64 pairs whose weights are made in registers and never written to memory. A program
owns the rows of one tile and passes over the tiles within reach, so no result is added to by two programs: there
are no atomics, and the same input gives the same bits. (Using each weight for both its pixels would halve the
work on weights, at the price of atomics and of a second product with the transpose.)

Weights times values go through the tensor cores. TF32 alone keeps 11 bits, so each factor is split into
two TF32 numbers, of which three products are added: 21 bits. TF32 does not round what it can hold, so the products
are those of Triton's interpreter. Tiles are added up in float32, rounded to nearest, which tensor cores do not do.

This module needs triton; :func:`wsss_nb.fast.pairwise.fused_kernels` imports it where that works.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_nb.fast.launch import TILE, Variant, padded_columns

__all__ = ["GaussianSum", "pair_sums", "probe"]

REACH = 6.0  # kernel widths beyond which a Gaussian counts as 0: exp(-18) is below float32's resolution
_LISTED = 2**26  # tile pairs examined at a time
_LAUNCH = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}  # a * b + c as one instruction


@triton.jit
def _tf32(x: tl.tensor) -> tl.tensor:
    """Nearest number that TF32 holds: 13 bits fewer than float32."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _product(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """x @ y to 21 bits; the small terms first."""
    x_high, y_high = _tf32(x), _tf32(y)
    x_low, y_low = _tf32(x - x_high), _tf32(y - y_high)
    sums = tl.dot(x_low, y_high, input_precision="tf32")
    sums = tl.dot(x_high, y_low, sums, input_precision="tf32")
    return tl.dot(x_high, y_high, sums, input_precision="tf32")


@triton.jit(do_not_specialize=["K", "H", "W"])
def _similarity_pack(  # type: ignore[no-untyped-def]
    cam, image, maps, colours, K, H, W, C: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, KC: tl.constexpr
) -> None:
    """Maps (B, K, H, W) and images (B, C, H, W) in tiles, 0 outside the map.

    Written are ``maps`` (chunks, B, tiles, P, KC): a, 1/2 |a|^2 and 1 of each pixel; ``colours`` (B, C, tiles, P).
    """
    tile, b, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles, B = tl.num_programs(0), tl.num_programs(1)
    columns = tl.cdiv(W, TW)
    pixel, k = tl.arange(0, TH * TW), tl.arange(0, KC)
    y, x = tile // columns * TH + pixel // TW, tile % columns * TW + pixel % TW
    inside = (y < H) & (x < W)
    at = y * W + x
    channel = chunk * (KC - 2) + k
    known = inside[:, None] & ((k < KC - 2) & (channel < K))[None, :]
    image_of = b.to(tl.int64)
    a = tl.load(cam + image_of * K * H * W + channel[None, :] * (H * W) + at[:, None], mask=known, other=0.0)
    s = 0.5 * tl.sum(a * a, axis=1)
    a = tl.where(k[None, :] == KC - 2, s[:, None], a)
    a = tl.where((k[None, :] == KC - 1) & inside[:, None], 1.0, a)
    place = ((chunk * B + image_of) * tiles + tile) * (TH * TW) + pixel
    tl.store(maps + place[:, None] * KC + k[None, :], a)
    if chunk == 0:
        for plane in tl.static_range(C):
            v = tl.load(image + (image_of * C + plane) * H * W + at, mask=inside, other=0.0)
            tl.store(colours + ((image_of * C + plane) * tiles + tile) * (TH * TW) + pixel, v)


@triton.jit(do_not_specialize=["K", "H", "W"])
def _similarity_kernel(  # type: ignore[no-untyped-def]
    maps,  # (chunks, B, tiles, P, KC)
    colours,  # (B, C, tiles, P)
    d_cam,  # (B, K, H, W), written: derivative of the sum
    sums,  # (chunks, B, tiles, 3), written: the tile's share of the value and of two moments
    K,
    H,
    W,
    c,  # exp(2 mu)
    narrow,  # log2(e) / (2 sigma^2): exp(-r^2 / 2 sigma^2) = 2^(-narrow r^2)
    peak,  # 1 / (2 pi sigma^2)
    reach,
    C: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    KC: tl.constexpr,
    PJ: tl.constexpr,
    SCALARS: tl.constexpr,
) -> None:
    P: tl.constexpr = TH * TW
    rows, columns = tl.cdiv(H, TH), tl.cdiv(W, TW)
    tile, b, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles, B = tl.num_programs(0), tl.num_programs(1)
    row, column = tile // columns, tile % columns
    pixel, k = tl.arange(0, P), tl.arange(0, KC)
    maps += (chunk * B + b).to(tl.int64) * tiles * P * KC
    colours += b.to(tl.int64) * C * tiles * P
    in_tile = pixel[:, None] * KC + k[None, :]
    # Positions relative to the tile, in pixels: small integers, which TF32 holds.
    y, x = (pixel // TW).to(tl.float32), (pixel % TW).to(tl.float32)
    part, axis = tl.arange(0, PJ), tl.arange(0, 16)
    place = tl.where(axis[None, :] == 0, y[:, None], tl.where(axis[None, :] == 1, x[:, None], 0.0))

    product = tl.zeros((P, KC), tl.float32)  # M (a, s, 1)
    slope = tl.zeros((P,), tl.float32)  # rows of w (1 - f^2) g / 4
    spread = tl.zeros((P,), tl.float32)  # rows of w f g r^2
    if SCALARS:
        # left_i . right_j = 1/2 |a_i - a_j|^2, with right_j = (a_j, s_j, 1), zero outside the map
        a_i = tl.load(maps + tile * P * KC + in_tile)
        s_i = tl.load(maps + (tile * P + pixel) * KC + KC - 2)
        left = tl.where(k[None, :] == KC - 2, 1.0, tl.where(k[None, :] == KC - 1, s_i[:, None], -a_i))

    half = tl.floor(reach).to(tl.int32)
    first_row = tl.maximum(row * TH - half, 0) // TH
    end_row = tl.minimum((row * TH + TH - 1 + half) // TH + 1, rows)
    for other_row in range(first_row, end_row):
        gap = tl.maximum(tl.abs(other_row - row) * TH - (TH - 1), 0).to(tl.float32)
        width = tl.floor(tl.sqrt(tl.maximum(reach * reach - gap * gap, 0.0))).to(tl.int32)
        first_column = tl.maximum(column * TW - width, 0) // TW
        end_column = tl.minimum((column * TW + TW - 1 + width) // TW + 1, columns)
        for step in range(first_column * (P // PJ), end_column * (P // PJ)):
            other_column = step // (P // PJ)
            pixel_j = step % (P // PJ) * PJ + part
            first_j = (other_row * columns + other_column) * P
            right = tl.load(maps + (first_j + pixel_j)[:, None] * KC + k[None, :])
            delta = tl.zeros((P, PJ), tl.float32)
            for plane in tl.static_range(C):
                v_i = tl.load(colours + (plane * tiles + tile) * P + pixel)
                v_j = tl.load(colours + plane * tiles * P + first_j + pixel_j)
                delta += tl.abs(v_i[:, None] - v_j[None, :])
            near, far = (1.0 - delta) * (1.0 - delta), c * delta * delta
            root = tl.rsqrt(near + far)
            inverse = root * root
            y_j = ((other_row - row) * TH + pixel_j // TW).to(tl.float32)
            x_j = ((other_column - column) * TW + pixel_j % TW).to(tl.float32)
            place_j = tl.where(axis[:, None] == 0, y_j[None, :], tl.where(axis[:, None] == 1, x_j[None, :], 0.0))
            # As a product the distances are born in the tensor cores' layout, where the weights have to end.
            r2 = (y * y + x * x)[:, None] + (y_j * y_j + x_j * x_j)[None, :]
            r2 -= 2.0 * tl.dot(place, place_j, input_precision="tf32")
            # A pixel with itself adds nothing but rounding, which a small sigma would show.
            w = tl.where(r2 > 0, tl.exp2(-narrow * r2), 0.0)
            weights = w * ((far - near) * inverse)
            product += _product(weights, right)
            if SCALARS:
                g = _product(left, tl.trans(right))
                slope += tl.sum(w * (far * inverse) * (near * inverse) * g, axis=1)
                spread += tl.sum(weights * r2 * g, axis=1)

    a = tl.load(maps + tile * P * KC + in_tile)
    s = tl.load(maps + (tile * P + pixel) * KC + KC - 2)
    one = tl.load(maps + (tile * P + pixel) * KC + KC - 1)
    channel = chunk * (KC - 2) + k
    is_channel = (k < KC - 2) & (channel < K)
    total = tl.sum(tl.where(k[None, :] == KC - 1, product, 0.0), axis=1)
    others = tl.sum(tl.where(k[None, :] == KC - 2, product, 0.0), axis=1)
    value = total * s - tl.sum(tl.where(is_channel[None, :], a * product, 0.0), axis=1) + others
    at = sums + 3 * ((chunk * B + b) * tiles + tile)
    tl.store(at, tl.sum(one * value, axis=0))
    tl.store(at + 1, tl.sum(one * slope, axis=0))
    tl.store(at + 2, tl.sum(one * spread, axis=0))
    at = (row * TH + pixel // TW) * W + column * TW + pixel % TW
    d_cam += b.to(tl.int64) * K * H * W
    gradient = 2.0 * peak * (total[:, None] * a - product)
    known = (one > 0)[:, None] & is_channel[None, :]
    tl.store(d_cam + channel[None, :] * (H * W) + at[:, None], gradient, mask=known)


def pair_sums(
    cam: Tensor, image: Tensor, c: float, sigma: float, reach: float, variant: Variant
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value and derivatives of ``sum_b sum_ij w_ij f_ij 1/2 |a_i - a_j|^2``, see :mod:`wsss_nb.fast.pairwise`.

    Args:
        cam: a, (B, K, H, W), float32.
        image: x / C, (B, C, H, W), float32.
        c: exp(2 mu).
        sigma: standard deviation of w in pixels.
        reach: pixels beyond which tiles are left out.
        variant: what is launched; says whether the derivatives for mu and sigma are computed as well.

    Returns:
        Value, d_cam (B, K, H, W), d_mu and d_sigma; the scalars are float64, the last two zero if not asked for.
    """
    cam, image = cam.contiguous(), image.contiguous()
    B, K, H, W = cam.shape
    colours_per_pixel, tile_h, tile_w, width, with_scalars = variant
    grid = (triton.cdiv(H, tile_h) * triton.cdiv(W, tile_w), B, triton.cdiv(K, width - 2))
    d_cam = torch.empty_like(cam)
    maps = cam.new_empty(grid[2], B, grid[0], TILE, width)
    colours = cam.new_empty(B, colours_per_pixel, grid[0], TILE)
    sums = cam.new_empty(grid[2], B, grid[0], 3)
    narrow, peak = math.log2(math.e) / (2 * sigma**2), 0.5 / (math.pi * sigma**2)
    sizes = {"C": colours_per_pixel, "TH": tile_h, "TW": tile_w, "KC": width}
    with torch.cuda.device_of(cam):
        _similarity_pack[grid](cam, image, maps, colours, K, H, W, **sizes, **_LAUNCH)
        sizes |= {"PJ": TILE // 2 if with_scalars else TILE, "SCALARS": with_scalars}
        _similarity_kernel[grid](maps, colours, d_cam, sums, K, H, W, c, narrow, peak, reach, **sizes, **_LAUNCH)
    value, slope, spread = (peak * sums.sum(dim=(0, 1, 2), dtype=torch.float64)).unbind()
    if not with_scalars:
        return value, d_cam, slope, spread
    return value, d_cam, 4 * slope, (spread / sigma**2 - 2 * value) / sigma


@triton.jit
def _gaussian_kernel(features, values, first, near, sums, N, P: tl.constexpr, C: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    """Sums (N, C), written, of values (N, C) with weights 2^-|f_i - f_j|^2 of features (5, N).

    ``near`` holds numbers of tiles; those near a tile are listed from ``first`` (tiles + 1,) of that tile on.
    """
    tile = tl.program_id(0)
    pixel, k = tl.arange(0, P), tl.arange(0, C)
    i = tile * P + pixel
    product = tl.zeros((P, C), tl.float32)
    for number in range(tl.load(first + tile), tl.load(first + tile + 1)):
        j = tl.load(near + number) * P + pixel
        r2 = tl.zeros((P, P), tl.float32)
        for axis in tl.static_range(5):
            difference = tl.load(features + axis * N + i)[:, None] - tl.load(features + axis * N + j)[None, :]
            r2 += difference * difference
        product += _product(tl.exp2(-r2), tl.load(values + j[:, None] * C + k[None, :]))
    tl.store(sums + i[:, None] * C + k[None, :], product)


class GaussianSum:
    """``S_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j`` over all pixels, exact to float32.

    The pixels are ordered into tiles of 64 that lie close together in feature space; a tile's sums run over
    the tiles whose bounding boxes are within 6 of its own.

    Args:
        features: f, (H, W, D), float32, D at most 5.
    """

    def __init__(self, features: Tensor) -> None:
        features = features.flatten(0, 1)
        N = len(features)
        self.order = _compact_order(features)
        tiles = triton.cdiv(N, TILE)
        rest = self.order[-1:].expand(tiles * TILE - N)  # a pixel twice changes no bounding box
        tiled = features[torch.cat([self.order, rest])].view(tiles, TILE, -1)
        low, high = tiled.amin(1), tiled.amax(1)
        counts, near = [], []
        for part in torch.arange(tiles, device=features.device).split(max(1, _LISTED // tiles)):
            r2 = features.new_zeros(len(part), tiles)
            for axis in range(features.shape[1]):
                gap = torch.maximum(low[part, None, axis] - high[:, axis], low[:, axis] - high[part, None, axis])
                r2 += gap.clamp_(min=0).square_()
            within = r2 < REACH**2
            counts.append(within.sum(1))
            near.append(within.nonzero()[:, 1].int())
        self.near = torch.cat(near)
        self.pairs = len(self.near) * TILE**2  # of pixels whose weights a call computes, with those that fill tiles up
        self.first = torch.cat([counts[0].new_zeros(1), *counts]).cumsum(0)
        self.features = features.new_zeros(5, tiles * TILE)
        self.features[: features.shape[1]] = tiled.flatten(0, 1).T * math.sqrt(math.log2(math.e) / 2)

    def __call__(self, values: Tensor) -> Tensor:
        """Sums for maps (K, H, W), float32; at most 64 at a time go through the kernel."""
        if len(values) > 64:
            return torch.cat([self(part) for part in values.split(64)])
        K, N = len(values), len(self.order)
        padded = values.new_zeros(self.features.shape[1], padded_columns(K))
        padded[:N, :K] = values.flatten(1).T[self.order]
        sums = torch.empty_like(padded)
        with torch.cuda.device_of(values):
            _gaussian_kernel[(len(self.first) - 1,)](
                self.features, padded, self.first, self.near, sums, len(padded), P=TILE, C=padded.shape[1], **_LAUNCH
            )
        result = torch.empty_like(values)
        result.view(K, N).T[self.order] = sums[:N, :K]
        return result


def _compact_order(points: Tensor) -> Tensor:
    """Order in which each run of TILE points, counted from the first, fills a small box.

    All points are cut in two along the axis in which they spread most, so that both parts are whole tiles
    (but for the last); the parts likewise, until each is one tile.
    """
    N = len(points)
    place = order = torch.arange(N, device=points.device)
    cuts = torch.tensor([0, triton.cdiv(N, TILE)], device=points.device)
    while (cuts.diff() > 1).any():
        part = torch.searchsorted(cuts * TILE, place, right=True) - 1
        ordered = points[order]
        bounds = points.new_zeros(len(cuts) - 1, points.shape[1])
        index = part[:, None].expand_as(ordered)
        high, low = (bounds.scatter_reduce(0, index, ordered, end, include_self=False) for end in ("amax", "amin"))
        axis = (high - low).argmax(1)[part]
        by_value = ordered.gather(1, axis[:, None])[:, 0].argsort(stable=True)
        order = order[by_value[part[by_value].argsort(stable=True)]]
        cuts = torch.cat([cuts, (cuts[:-1] + cuts[1:]) // 2]).unique()
    return order


def probe(device: torch.device, launch: Variant | int) -> None:
    """Compile a variant and run it once, or raise what the compiler or the driver raises."""
    if isinstance(launch, Variant):
        sides = launch.tile_h, launch.tile_w
        cam = torch.ones(1, launch.columns - 2, *sides, device=device)
        image = torch.ones(1, launch.colours, *sides, device=device)
        pair_sums(cam, image, c=1.0, sigma=1.0, reach=1.0, variant=launch)[0].cpu()
    else:
        gaussian_sum = GaussianSum(torch.zeros(1, 1, 1, device=device))
        for columns in (16, 32, 64):  # the normaliser is one column, more than 64 go through in parts
            if columns <= launch:
                gaussian_sum(torch.ones(columns, 1, 1, device=device)).cpu()
