"""Pictures of the explorers as pure functions: arrays and settings in, `Picture` out."""

# ruff: noqa: RUF001 -- Greek letters and minus signs are what the pictures show

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsss_nb.cam import class_activation_map
from wsss_nb.sampling import draw_pixels, sampling_probabilities
from wsss_nb.widgets.canvas import (
    ACTIVATION,
    DIVERGING,
    GREY,
    SKY,
    Box,
    Canvas,
    Picture,
    Pixels,
    Swatch,
    wrap_swatches,
)
from wsss_nb.widgets.compute import Pooling, enlarge, loss_gradient, score_map
from wsss_nb.widgets.maps import color_signed, color_unit, draw_boundary, overlay

__all__ = [
    "BAR",
    "GAP",
    "MARGIN",
    "NOTE",
    "TITLE",
    "Panel",
    "draw_panel",
    "render_cam",
    "render_panels",
    "render_sampling",
]

TITLE, GAP, MARGIN = 24, 14, 10
BAR = 64  # room for a colour bar and its labels
NOTE = 20
_KEY = 18  # height of a row of the legend


@dataclass(frozen=True)
class Panel:
    """One picture of a row: a title above, the pixels, an optional legend on the right and a note below.

    Attributes:
        title: one short line.
        pixels: (h, w, 3) uint8.
        legend: "unit" for the fixed scale 0..1, a positive number for the signed scale -number..number, or None.
        note: one short line below.
        smooth: enlarge with interpolation (photographs) rather than as squares (maps).
        points: (n, 2) rows and columns to mark with dots, in pixels of ``pixels``.
        cross: row and column to mark with a cross.
    """

    title: str
    pixels: Pixels
    legend: Literal["unit"] | float | None = None
    note: str = ""
    smooth: bool = False
    points: npt.NDArray[np.floating] | None = None
    cross: tuple[float, float] | None = None


def render_panels(
    panels: Sequence[Panel],
    alt: str,
    *,
    columns: int | None = None,
    panel_width: int = 300,
    values: Mapping[str, float] | None = None,
    key: Sequence[Swatch] = (),
) -> Picture:
    """Lay panels out in rows of equal panels.

    Args:
        panels: row by row.
        alt: what is to be seen, in words.
        columns: panels in a row; all of them if None.
        panel_width: pixels.
        values: the numbers in the picture.
        key: names and colours to explain below all panels, see `wsss_nb.widgets.label_key`.

    Raises:
        ValueError: no panels.
    """
    if not panels:
        raise ValueError("panels: expected at least one, got none")
    columns = columns or len(panels)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    legends = [any(p.legend is not None for p in panels[c::columns]) for c in range(columns)]
    heights = [
        max(round(panel_width * p.pixels.shape[0] / p.pixels.shape[1]) for p in row)
        + TITLE + (NOTE if any(p.note for p in row) else 0) + GAP
        for row in rows
    ]  # fmt: skip
    widths = [panel_width + (BAR if has else 0) + GAP for has in legends]
    width = sum(widths) - GAP
    legend = wrap_swatches(key, width)
    canvas = Canvas(
        width + 2 * MARGIN, sum(heights) - (0 if legend else GAP) + _KEY * len(legend) + 2 * MARGIN
    )
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = MARGIN
        for panel, step in zip(row, widths, strict=False):
            draw_panel(canvas, panel, x, y, panel_width)
            x += step
        y += height
    for entries in legend:
        canvas.swatches(MARGIN, y, entries)
        y += _KEY
    return Picture(canvas.pixels(), alt, dict(values or {}))


def draw_panel(canvas: Canvas, panel: Panel, x: int, y: int, width: int) -> None:
    """Draw a panel with its title, legend and note; (x, y) is its upper left corner, ``width`` that of the image."""
    rows, columns = panel.pixels.shape[:2]
    box = Box(x, y + TITLE, width, round(width * rows / columns))
    canvas.text(x, y + 3, panel.title, bold=True)
    canvas.image(box, panel.pixels, smooth=panel.smooth)
    canvas.frame(box)
    if panel.points is not None:
        radius = 3.5 if len(panel.points) <= 30 else 2.5
        for row, column in panel.points:
            canvas.dot(*box.at((column + 0.5) / columns, (row + 0.5) / rows), radius)
    if panel.cross is not None:
        row, column = panel.cross
        canvas.cross(*box.at((column + 0.5) / columns, (row + 0.5) / rows))
    if panel.legend is not None:
        bar = Box(box.x + box.width + 8, box.y, 12, min(box.height, 160))
        if panel.legend == "unit":
            canvas.color_bar(bar, ACTIVATION, ("0", "0.5", "1"))
        else:
            limit = float(panel.legend)
            canvas.color_bar(bar, DIVERGING, (f"−{_short(limit)}", "0", f"+{_short(limit)}"))
    if panel.note:
        canvas.text(x, box.y + box.height + 4, panel.note, size=11, color=GREY)


def _short(value: float) -> str:
    """Two digits that fit beside a colour bar."""
    return f"{value:.2g}" if value >= 0.01 else f"{value:.1e}".replace("e-0", "e-")


def render_cam(
    image: Pixels,
    activation: Tensor,
    *,
    strength: float = 0.6,
    rule: str = "threshold:0.3",
    mask: npt.NDArray[np.bool_] | None = None,
    refined: npt.NDArray[np.floating] | None = None,
    name: str = "object",
    pooling: Pooling = "average",
) -> Picture:
    """Overlay of one class's map, the label map that a background rule makes of it, and its scores.

    Args:
        image: photograph (H, W, 3).
        activation: map of the class (h, w) in 0..1, resized to the photograph bilinearly.
        strength: of the overlay, 0..1.
        rule: background rule, such as "threshold:0.3", "power:4" or "complement".
        mask: the true object (H, W), for IoU and contour F.
        refined: what a dense CRF made of map and rule, (H, W), see `wsss_nb.widgets.refine_map`.
        name: of the class.
        pooling: "max" marks the one pixel that max pooling looks at; "average" looks at all alike.

    Returns:
        Picture with the values of `score_map`.

    Raises:
        ValueError: unknown rule or pooling.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling: expected one of {get_args(Pooling)}, got {pooling!r}")
    full = enlarge(activation, (image.shape[0], image.shape[1]))
    # what the CRF returns sums to one with its background, so "complement" is its argmax
    labels, values = (
        score_map(full, rule, mask) if refined is None else score_map(refined, "complement", mask)
    )
    peak = np.unravel_index(int(full.argmax()), full.shape)
    cross = (float(peak[0]), float(peak[1])) if pooling == "max" else None
    found = image.copy()
    found[labels == 0] = found[labels == 0] // 3
    found = draw_boundary(found, labels, SKY)
    note, scores = f"{100 * values['covered']:.0f} % of the image", f"covered {100 * values['covered']:.1f} %"
    if mask is not None:
        found = draw_boundary(found, mask, (255, 255, 255))
        note = f"IoU {100 * values['iou']:.1f}   contour F {100 * values['contour_f']:.1f}   (white: outlined by hand)"
        scores += f", IoU {100 * values['iou']:.1f}, contour F {100 * values['contour_f']:.1f}"
    height, width = activation.shape
    size = f"{width} × {height} map"
    panels = [
        Panel("photograph", image, smooth=True),
        Panel(
            f"map of “{name}”",
            overlay(image, color_unit(full), strength),
            "unit",
            note=f"{size}, enlarged; scale is always 0 to 1"
            if cross is None
            else f"{size}, scale 0 to 1; max pooling sees the cross alone",
            smooth=True,
            cross=cross,
        ),
        Panel(f"label map, {rule}" + ("" if refined is None else ", CRF"), found, note=note, smooth=True),
    ]
    how = rule + ("" if refined is None else " and a dense CRF")
    alt = f"Photograph, activation map of {name} on a scale of 0 to 1, and the label map by {how}: {scores}."
    if cross is not None:
        alt += f" A cross marks the map's maximum, in row {peak[0]} and column {peak[1]}."
    return render_panels(panels, alt, panel_width=330, values=values)


def render_sampling(
    image: Pixels,
    logits: Tensor,
    labels: Tensor,
    *,
    index: int = 1,
    num_samples: int = 10,
    weight: float = 1.0,
    seed: int = 0,
    name: str = "object",
) -> Picture:
    """Eq. 4 and 5 for one class: its map, the draws, and where the loss pushes the map.

    Args:
        image: (H, W, 3).
        logits: s, (1, K, h, w).
        labels: y, (1, K).
        index: class to look at.
        num_samples: draws.
        weight: lambda.
        seed: of the draws.
        name: of the class.

    Returns:
        Picture with "drawn_mean" (mean of the map at the draws), "map_mean" and "map_max".
    """
    cam = class_activation_map(logits.detach())
    a = cam[0, index].numpy()
    p = sampling_probabilities(cam)[0, index].numpy()
    # the same stream of randomness as the loss below, so that the dots are the draws that were used
    pixels = draw_pixels(cam, num_samples, torch.Generator().manual_seed(seed))[0, index].numpy()
    rows, columns = np.divmod(pixels, a.shape[1])
    points = np.stack([rows, columns], 1).astype(float) + _spread(num_samples, seed)
    scale = np.array(image.shape[:2]) / a.shape
    sampled = -loss_gradient(logits, labels, weight, num_samples, seed=seed)[0, index].numpy()
    expected = -loss_gradient(logits, labels, weight, None)[0, index].numpy()
    values = {
        "drawn_mean": float(a.ravel()[pixels].mean()),
        "map_mean": float(a.mean()),
        "map_max": float(a.max()),
    }
    limits = [max(float(np.abs(push).max()), 1e-9) for push in (sampled, expected)]
    word = "draw" if num_samples == 1 else "draws"
    panels = [
        Panel(
            f"{num_samples} {word} for “{name}”", image, note=f"mean of the map there: {values['drawn_mean']:.2f}",
            smooth=True, points=(points + 0.5) * scale - 0.5,
        ),
        Panel(
            "map a, proportional to Eq. 4", color_unit(a), "unit",
            note=f"likeliest pixel: {100 * p.max():.1f} % of the mass",
        ),
        Panel(
            f"push by these draws, λ = {weight:g}", color_signed(sampled, limits[0]), limits[0],
            note="orange: logit is raised, purple: lowered",
        ),
        Panel(
            "push in expectation", color_signed(expected, limits[1]), limits[1],
            note="the limit of many draws",
        ),
    ]  # fmt: skip
    alt = (
        f"{num_samples} pixels drawn from the map of {name}, the map itself, and the gradient of the loss for these "
        f"draws and in expectation, lambda {weight:g}. Mean of the map at the draws {values['drawn_mean']:.2f}, "
        f"maximum {values['map_max']:.2f}."
    )
    return render_panels(panels, alt, columns=4, panel_width=235, values=values)


def _spread(count: int, seed: int) -> npt.NDArray[np.float64]:
    """Offsets within a pixel, so that repeated draws do not hide each other."""
    return np.random.default_rng(seed).uniform(-0.4, 0.4, (count, 2)) * (count > 1)
