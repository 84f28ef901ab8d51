"""The feature similarity loss around one pixel: a pure picture, and the explorer over it."""

# ruff: noqa: RUF001 -- Greek letters and minus signs are what the pictures show

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsss_nb.similarity import dissimilarity, similarity_weight, spatial_weight
from wsss_nb.widgets.canvas import GREY, INK, ORANGE, Box, Canvas, Picture
from wsss_nb.widgets.compute import cross_over, descend, score_map, similarity_field, snap_example
from wsss_nb.widgets.explorers import Explorer, menu, photo_options, slider
from wsss_nb.widgets.maps import color_signed, color_unit, outlined
from wsss_nb.widgets.render import BAR, GAP, MARGIN, NOTE, TITLE, Panel, draw_panel

__all__ = ["SimilarityExplorer", "render_similarity"]


def render_similarity(
    image: Tensor,
    foreground: Tensor,
    *,
    mu: float = 2.5,
    sigma: float = 3.0,
    pixel: tuple[int, int] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    descended: tuple[int, Tensor] | None = None,
) -> Picture:
    """Eq. 6-8 around one pixel: f, w, whom the pixel attracts and repels, the loss and where it pushes the map.

    Args:
        image: (1, 3, h, w) in 0..1, of the map's size.
        foreground: map of the object (h, w) in 0..1; the background is one minus it.
        mu: of Eq. 8.
        sigma: of Eq. 7, map pixels.
        pixel: row and column; the middle if None.
        mask: the true object (h, w), drawn as a white line.
        descended: number of steps of `wsss_nb.widgets.descend` that led to this map, and the map (h, w) before them.

    Returns:
        Picture with "loss" (pixels normalisation), "cross_over", and with a mask the "contour_f" of the map, after a
        descent "contour_f_before" as well.

    Raises:
        ValueError: the pixel is outside the map.
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
    steps = 0 if descended is None else descended[0]
    walked = f"after {steps} step{'s' * (steps != 1)}"
    note, fine = walked if steps else "1 − a is the background", 1
    said = f", {walked} of descent" if steps else ""
    if mask is not None:
        fine = max(280 // max(mask.shape), 1)
        pixels = outlined(pixels, mask, fine)
        after = values["contour_f"] = score_map(a.numpy(), "complement", mask)[1]["contour_f"]
        note = f"map above ½ against the mask: contour F {100 * after:.1f}"
        said = f", contour F {100 * after:.1f}"
        if descended is not None:
            before = values["contour_f_before"] = score_map(descended[1].numpy(), "complement", mask)[1][
                "contour_f"
            ]
            note = f"{walked}: contour F {100 * before:.1f} → {100 * after:.1f}"
            said = f", {walked} of descent contour F {100 * after:.1f}, before {100 * before:.1f}"
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
    cell = (size + BAR + GAP, round(size * height / width) + TITLE + NOTE + GAP)
    canvas = Canvas(3 * cell[0] - GAP + 2 * MARGIN, rows * cell[1] - GAP + 2 * MARGIN)
    for place, panel in enumerate(panels):
        x, y = MARGIN + place % 3 * cell[0], MARGIN + place // 3 * cell[1]
        if panel.title:
            draw_panel(canvas, panel, x, y, size)
        else:
            _draw_curve(
                canvas, Box(x + 34, y + TITLE, size + BAR - 40, cell[1] - TITLE - 54), mu, delta.numpy(), w
            )
    alt = (
        f"Feature similarity around pixel {(row, column)} with mu {mu:g} and sigma {sigma:g}: image, map, curve of f "
        f"with cross-over at dissimilarity {values['cross_over']:.3f}, spatial weight, attraction and repulsion, and "
        f"the gradient; loss {loss:.5f}{said}."
    )
    return Picture(canvas.pixels(), alt, values)


def _draw_curve(
    canvas: Canvas, box: Box, mu: float, delta: npt.NDArray[np.floating], w: npt.NDArray[np.floating]
) -> None:
    """f over the dissimilarity, above a histogram of the dissimilarities that the neighbourhood offers."""
    canvas.text(box.x - 34, box.y - TITLE + 3, "f: alike or not (Eq. 8)", bold=True)
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


class SimilarityExplorer(Explorer):
    """Eq. 6-8 around a pixel of an image; "descend" lets the map follow the loss for as many steps as asked.

    Args:
        photo: name of the photograph to begin with, or "fish".
        size: of the map in pixels.
    """

    def __init__(self, photo: str = "coffee", size: int = 56) -> None:
        self.size = size
        self.photo_menu = menu([*photo_options(), ("Synthetic fish", "fish")], "image")
        self.photo_menu.value = photo
        self.mu = slider(2.5, -2, 6, 0.1, "μ")
        self.sigma = slider(3.0, 0.5, 12, 0.1, "σ (map pixels)")
        self.row = slider(size // 2, 0, size - 1, 1, "row of i")
        self.column = slider(size // 2, 0, size - 1, 1, "column of i")
        self.steps = slider(10, 1, 50, 1, "steps")
        self.descend = ipywidgets.Button(description="descend", icon="arrow-down", layout={"width": "auto"})
        self.reset = ipywidgets.Button(description="reset the map", icon="undo", layout={"width": "auto"})
        self._load()
        controls = [
            self.photo_menu, self.mu, self.sigma, self.row, self.column, self.steps,
            ipywidgets.Box([self.descend, self.reset]),
        ]  # fmt: skip
        super().__init__(controls, 1120)
        self.watch(self.photo_menu, self.reset, call=self._restart)
        self.watch(self.mu, self.sigma, self.row, self.column)
        self.watch(self.descend, call=self._descend)

    def _load(self) -> None:
        self.image, self.start, self.mask = snap_example(self.photo_menu.value, self.size)
        self.foreground, self.descended = self.start, 0

    def _restart(self, _: Any) -> None:
        self._load()
        self.refresh()

    def _descend(self, _: Any) -> None:
        steps = self.steps.value
        self.say("descending …")
        path = descend(self.foreground, self.image, self.mu.value, self.sigma.value, steps=steps)
        self.foreground = torch.from_numpy(path.maps[-1])
        self.descended += steps
        self.refresh()

    def draw(self) -> Picture:
        """Curve, weights, field and gradient."""
        return render_similarity(
            self.image,
            self.foreground,
            mu=self.mu.value,
            sigma=self.sigma.value,
            pixel=(self.row.value, self.column.value),
            mask=self.mask,
            descended=(self.descended, self.start) if self.descended else None,
        )
