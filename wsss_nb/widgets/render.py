"""Pictures of the explorers as pure functions: arrays and settings in, `Picture` out."""

# ruff: noqa: RUF001 -- Greek letters and minus signs are what the pictures show

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsss_nb.cam import class_activation_map
from wsss_nb.crf import CRFConfig, dense_crf
from wsss_nb.pseudo_labels import add_background
from wsss_nb.sampling import draw_pixels, sampling_probabilities
from wsss_nb.similarity import dissimilarity, similarity_weight, spatial_weight
from wsss_nb.widgets.canvas import ACTIVATION, DIVERGING, GREY, INK, ORANGE, SKY, Box, Canvas, Picture, Pixels
from wsss_nb.widgets.compute import cross_over, enlarge, loss_gradient, score_map, similarity_field
from wsss_nb.widgets.maps import color_signed, color_unit, draw_boundary, outlined, overlay

__all__ = ["Panel", "render_cam", "render_panels", "render_sampling", "render_similarity"]

_TITLE, _GAP, _MARGIN = 24, 14, 10
_BAR = 64  # room for a colour bar and its labels
_NOTE = 20


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
) -> Picture:
    """Lay panels out in rows of equal panels.

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
        + _TITLE + (_NOTE if any(p.note for p in row) else 0) + _GAP
        for row in rows
    ]  # fmt: skip
    widths = [panel_width + (_BAR if has else 0) + _GAP for has in legends]
    canvas = Canvas(sum(widths) - _GAP + 2 * _MARGIN, sum(heights) - _GAP + 2 * _MARGIN)
    y = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = _MARGIN
        for panel, width in zip(row, widths, strict=False):
            _draw_panel(canvas, panel, x, y, panel_width)
            x += width
        y += height
    return Picture(canvas.pixels(), alt, dict(values or {}))


def _draw_panel(canvas: Canvas, panel: Panel, x: int, y: int, width: int) -> None:
    rows, columns = panel.pixels.shape[:2]
    box = Box(x, y + _TITLE, width, round(width * rows / columns))
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
    crf: CRFConfig | None = None,
    name: str = "object",
    pooling: Literal["average", "max"] | None = None,
) -> Picture:
    """Overlay of one class's map, the label map that a background rule makes of it, and its scores.

    Args:
        image: photograph (H, W, 3).
        activation: map of the class (h, w) in 0..1, resized to the photograph bilinearly.
        strength: of the overlay, 0..1.
        rule: background rule, such as "threshold:0.3", "power:4" or "complement".
        mask: the true object (H, W), for IoU and contour F.
        crf: refine the scores with a dense CRF of these parameters first.
        name: of the class.
        pooling: "max" marks the pixel that max pooling looks at.

    Returns:
        Picture with the values of `score_map`.
    """
    full = enlarge(activation, (image.shape[0], image.shape[1]))
    labels, values = score_map(full, rule, mask)
    if crf is not None:
        labels, values = _refined(image, full, rule, mask, crf)
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
    panels = [
        Panel("photograph", image, smooth=True),
        Panel(
            f"map of “{name}”",
            overlay(image, color_unit(full), strength),
            "unit",
            note=f"{width} × {height} map, enlarged; scale is always 0 to 1",
            smooth=True,
            cross=cross,
        ),
        Panel(f"label map, {rule}" + (", CRF" if crf else ""), found, note=note, smooth=True),
    ]
    how = rule + (" and a dense CRF" if crf else "")
    alt = f"Photograph, activation map of {name} on a scale of 0 to 1, and the label map by {how}: {scores}."
    return render_panels(panels, alt, panel_width=330, values=values)


def _refined(
    image: Pixels,
    full: npt.NDArray[np.float32],
    rule: str,
    mask: npt.NDArray[np.bool_] | None,
    crf: CRFConfig,
) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
    scores = add_background(full[None], rule)
    probabilities = scores / scores.sum(0).clip(1e-5)
    refined = dense_crf(image.copy(), probabilities, **vars(crf))
    # the refined pair sums to one, so "complement" is its argmax
    return score_map(refined[1], "complement", mask)


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


def render_similarity(
    image: Tensor,
    foreground: Tensor,
    *,
    mu: float = 2.5,
    sigma: float = 3.0,
    pixel: tuple[int, int] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Picture:
    """Eq. 6-8 around one pixel: f, w, whom the pixel attracts and repels, the loss and where it pushes the map.

    Args:
        image: (1, 3, h, w) in 0..1, of the map's size.
        foreground: map of the object (h, w) in 0..1; the background is one minus it.
        mu: of Eq. 8.
        sigma: of Eq. 7, map pixels.
        pixel: row and column; the middle if None.
        mask: the true object (h, w), drawn as a white line.

    Returns:
        Picture with "loss" (pixels normalisation), "cross_over", and with a mask the "contour_f" of the map.
    """
    height, width = foreground.shape
    row, column = pixel if pixel is not None else (height // 2, width // 2)
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"pixel: expected a place in {(height, width)}, got {(row, column)}")
    a = foreground.detach().float()
    colors = image[0].permute(1, 2, 0)
    delta = dissimilarity(colors, colors[row, column])
    grid = torch.stack(
        torch.meshgrid(torch.arange(height) - row, torch.arange(width) - column, indexing="ij"), -1
    )
    weight = spatial_weight(grid.float(), sigma)
    w = (weight / weight.max()).numpy()
    f = similarity_weight(delta, mu).numpy()
    loss, gradient = similarity_field(torch.stack([1 - a, a])[None], image, mu, sigma)
    push = (gradient[0] - gradient[1]).numpy()  # minus the derivative along a, the background being 1 - a
    limit = max(float(np.abs(push).max()), 1e-9)
    values = {"loss": loss, "cross_over": cross_over(mu)}
    pixels = np.rint(colors.numpy() * 255).clip(0, 255).astype(np.uint8)
    note = "1 − a is the background"
    fine = 1
    if mask is not None:
        fine = max(280 // max(mask.shape), 1)
        pixels = outlined(pixels, mask, fine)
        values["contour_f"] = score_map(a.numpy(), "complement", mask)[1]["contour_f"]
        note = f"map above ½ against the mask: contour F {100 * values['contour_f']:.1f}"
    panels = [
        Panel(
            "image and pixel i", pixels, note="the cross is pixel i" + (", white the true outline" if fine > 1 else ""),
            cross=((row + 0.5) * fine - 0.5, (column + 0.5) * fine - 0.5),
        ),
        Panel("map a", color_unit(a.numpy()), "unit", note=note),
        Panel("", np.full((height, width, 3), 255, np.uint8)),
        Panel("w: who is near (Eq. 7)", color_unit(w), "unit", note=f"σ = {sigma:g}, relative to its peak"),
        Panel(
            "w · f: attracts − , repels +", color_signed(w * f, 1.0), 1.0,
            note="purple: should agree with i, orange: may differ", cross=(row, column),
        ),
        Panel(
            "push on the map, −∂L/∂a", color_signed(push, limit), limit,
            note=f"loss {loss:+.5f}   (purple down, orange up)".replace("-", "−"),
        ),
    ]  # fmt: skip
    size, rows = 290, 2
    cell = (size + _BAR + _GAP, round(size * height / width) + _TITLE + _NOTE + _GAP)
    canvas = Canvas(3 * cell[0] - _GAP + 2 * _MARGIN, rows * cell[1] - _GAP + 2 * _MARGIN)
    for place, panel in enumerate(panels):
        x, y = _MARGIN + place % 3 * cell[0], _MARGIN + place // 3 * cell[1]
        if panel.title:
            _draw_panel(canvas, panel, x, y, size)
        else:
            _draw_curve(
                canvas, Box(x + 34, y + _TITLE, size + _BAR - 40, cell[1] - _TITLE - 54), mu, delta.numpy(), w
            )
    alt = (
        f"Feature similarity around pixel {(row, column)} with mu {mu:g} and sigma {sigma:g}: image, map, curve of f "
        f"with cross-over at dissimilarity {values['cross_over']:.3f}, spatial weight, attraction and repulsion, and "
        f"the gradient; loss {loss:.5f}."
    )
    return Picture(canvas.pixels(), alt, values)


def _draw_curve(
    canvas: Canvas, box: Box, mu: float, delta: npt.NDArray[np.floating], w: npt.NDArray[np.floating]
) -> None:
    """f over the dissimilarity, above a histogram of the dissimilarities that the neighbourhood offers."""
    canvas.text(box.x - 34, box.y - _TITLE + 3, "f: alike or not (Eq. 8)", bold=True)
    top = 0.6  # dissimilarities above are rare; the curve is flat there
    counts, _ = np.histogram(delta, bins=30, range=(0, top), weights=w)
    for index, share in enumerate(counts / max(counts.max(), 1e-9)):
        (left, base), (right, peak) = box.at(index / 30, 1), box.at((index + 1) / 30, 1 - 0.45 * share)
        corners = np.array([[left, base], [left, peak], [right - 1, peak], [right - 1, base]])
        canvas.polygon(corners, (205, 220, 232))
    x = np.linspace(0, 1, 121)
    f = similarity_weight(torch.from_numpy(x * top), mu).numpy()
    zero = box.at(0, 0.5)[1]
    canvas.line(np.array([[box.x, zero], [box.x + box.width, zero]]), GREY, 1)
    points = np.stack([box.x + x * box.width, box.y + (1 - f) / 2 * box.height], 1)
    canvas.line(points, INK, 3)
    place = cross_over(mu)
    if place < top:
        at = box.at(place / top, 0)[0]
        canvas.line(np.array([[at, box.y], [at, box.y + box.height]]), ORANGE, 1)
        canvas.dot(at, zero, 5)
        right = place < 0.6 * top
        canvas.text(
            at + (8 if right else -8),
            zero + 8,
            f"δ = {place:.3f}",
            size=12,
            color=ORANGE,
            anchor="la" if right else "ra",
        )
    ticks = [(tick / top, f"{tick:g}") for tick in (0, 0.2, 0.4, 0.6)]
    canvas.axes(
        box,
        ticks,
        [(0, "−1"), (0.5, "0"), (1, "+1")],
        "dissimilarity δ  (bars: neighbours of i, weighted by w)",
    )
    canvas.text(box.x + box.width - 8, box.y + 8, "repels", size=12, color=ORANGE, anchor="ra")
    canvas.text(
        box.x + box.width - 8, box.y + box.height - 22, "attracts", size=12, color=(84, 39, 136), anchor="ra"
    )
