"""The feature similarity loss: its field and its descent, the picture around one pixel, and the explorer over it."""

# ruff: noqa: RUF001 -- Greek letters and minus signs are what the pictures show

from functools import partial
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.data.transforms import to_tensor
from wsss_nb.similarity import MU_RANGE, dissimilarity, feature_similarity, feature_similarity_loss, spatial_weight
from wsss_nb.system.errors import require
from wsss_nb.system.workers import fixed_threads
from wsss_nb.teach import pictures
from wsss_nb.teach.cam import activation, photo_logits, score_map
from wsss_nb.teach.explorer import Explorer, menu, photo_options, slider
from wsss_nb.teach.lessons import draw_fish
from wsss_nb.teach.photos import load_photo
from wsss_nb.teach.pictures import Box, Panel, Picture, color_signed, color_unit, outlined, render_panels

__all__ = ["SimilarityExplorer", "cross_over", "descend", "render_similarity", "similarity_field", "snap_example"]


def cross_over(mu: float) -> float:
    """Dissimilarity at which f of Eq. 8 changes sign: mu + logit(delta) = 0, so delta = 1 / (1 + e^mu)."""
    return 1 / (1 + float(np.exp(mu)))


@fixed_threads(1)
def similarity_field(cam: Tensor, image: Tensor, mu: float, sigma: float) -> tuple[float, Tensor]:
    """Loss of Eq. 6 ("pixels" normalisation) and its gradient with respect to the map, times H W, (K, h, w)."""
    leaf = cam.detach().clone().requires_grad_()
    loss = feature_similarity_loss(leaf, image, mu, sigma)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient[0] * (cam.shape[2] * cam.shape[3])


class Descent(NamedTuple):
    """What gradient descent on Eq. 6 went through: foreground maps (n + 1, h, w) and losses (n + 1)."""

    maps: npt.NDArray[np.float32]
    losses: npt.NDArray[np.float64]


@fixed_threads(1)
def descend(
    foreground: Tensor, image: Tensor, mu: float = 2.5, sigma: float = 3.0, steps: int = 40, rate: float = 1.0
) -> Descent:
    """Let one foreground map follow the feature similarity loss alone.

    The map is a = sigmoid(s), background 1 - a; every step s <- s - rate * H W * dL/ds. No classifier holds the map
    back, so one sees what Eq. 6 wants.

    Args:
        foreground: (h, w) in 0..1.
        image: (1, 3, h, w) in 0..1.
        mu: as in Eq. 8.
        sigma: as in Eq. 7, map pixels.
        steps: number of steps.
        rate: step length.
    """
    height, width = foreground.shape
    logits = torch.logit(foreground.detach().double().clamp(0.02, 0.98)).float()[None, None]
    maps, losses = [], []
    for _ in range(steps + 1):
        logits = logits.requires_grad_()
        a = torch.sigmoid(logits)
        loss = feature_similarity_loss(torch.cat([1 - a, a], dim=1), image, mu, sigma)
        (gradient,) = torch.autograd.grad(loss, logits)
        maps.append(a.detach()[0, 0].numpy())
        losses.append(loss.item())
        logits = (logits - rate * height * width * gradient).detach()
    return Descent(np.stack(maps), np.array(losses))


def snap_example(name: str, size: int = 56) -> tuple[Tensor, Tensor, npt.NDArray[np.bool_] | None]:
    """An image at map size with a diffuse map of its object, and the object's mask.

    Args:
        name: a photograph, with the CAM of its first class, or "fish": a synthetic image, whose CAM is imitated by
            blurring the mask.
        size: of the map in pixels.

    Returns:
        image (1, 3, size, size), foreground (size, size) in 0..1, mask (size, size) or None.
    """
    if name != "fish":
        photo = load_photo(name)
        image, mask = to_tensor(photo.image)[None], photo.mask
        coarse = activation(photo_logits(name, 16), photo.classes[0])
        foreground = F.interpolate(coarse[None, None], size=(size, size), mode="bilinear").clone()
    else:
        fish = draw_fish(1, "val", size=2 * size, num_classes=6, first=2)
        image, mask = fish.images, fish.masks[0].numpy() > 0
        blurred = _shrink(mask, size)
        for radius in (size // 8, size // 14):
            blurred = F.avg_pool2d(F.pad(blurred, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)
        foreground = 0.95 * (blurred / blurred.max())
    small = None if mask is None else np.asarray(_shrink(mask, size)[0, 0] > 0.5)
    return F.interpolate(image, size=(size, size), mode="area"), foreground[0, 0], small


def _shrink(mask: npt.NDArray[np.bool_], size: int) -> Tensor:
    """Of a mask (H, W): the share of each pixel that it covers, (1, 1, size, size)."""
    return F.interpolate(torch.from_numpy(mask)[None, None].float(), size=(size, size), mode="area")


def render_similarity(
    image: Tensor, foreground: Tensor, *, mu: float = 2.5, sigma: float = 3.0, pixel: tuple[int, int] | None = None,
    mask: npt.NDArray[np.bool_] | None = None, descended: tuple[int, Tensor] | None = None
) -> Picture:  # fmt: skip
    """Eq. 6-8 around one pixel: f, w, whom the pixel attracts and repels, the loss and where it pushes the map.

    Args:
        image: (1, 3, h, w) in 0..1, of the map's size.
        foreground: map of the object (h, w) in 0..1; the background is one minus it.
        mu: of Eq. 8.
        sigma: of Eq. 7, map pixels.
        pixel: row and column; the middle if None.
        mask: the true object (h, w), drawn as a white line.
        descended: number of steps of `wsss_nb.teach.descend` that led to this map, and the map (h, w) before them.

    Returns:
        Picture with "loss" (pixels normalisation), "cross_over", and with a mask the "contour_f" of the map, after a
        descent "contour_f_before" as well.

    Raises:
        ValueError: the pixel is outside the map.
    """
    height, width = foreground.shape
    row, column = pixel if pixel is not None else (height // 2, width // 2)
    inside = 0 <= row < height and 0 <= column < width
    require(inside, f"pixel: expected a place in {(height, width)}, got {(row, column)}")
    a = foreground.detach().float()
    colors = image[0].permute(1, 2, 0)
    delta = dissimilarity(colors, colors[row, column])
    grid = torch.stack(torch.meshgrid(torch.arange(height) - row, torch.arange(width) - column, indexing="ij"), -1)
    weight = spatial_weight(grid.float(), sigma)
    w = (weight / weight.max()).numpy()
    f = feature_similarity(delta, mu).numpy()
    loss, gradient = similarity_field(torch.stack([1 - a, a])[None], image, mu, sigma)
    push = (gradient[0] - gradient[1]).numpy()  # minus the derivative along a, the background being 1 - a
    limit = max(float(np.abs(push).max()), 1e-9)
    values = {"loss": loss, "cross_over": cross_over(mu)}
    pixels = np.rint(colors.numpy() * 255).clip(0, 255).astype(np.uint8)
    steps, start = descended or (0, foreground)
    walked = f"after {steps} step{'s' * (steps != 1)}"
    note, said, fine = walked if steps else "1 − a is the background", f", {walked} of descent" * bool(steps), 1
    if mask is not None:
        fine = max(280 // max(mask.shape), 1)
        pixels = outlined(pixels, mask, fine)
        before, after = (score_map(one.numpy(), "complement", mask)[1]["contour_f"] for one in (start.detach(), a))
        values["contour_f"] = after
        note = f"map above ½ against the mask: contour F {100 * after:.1f}"
        said = f"{said or ','} contour F {100 * after:.1f}"
        if steps:
            values["contour_f_before"] = before
            note = f"{walked}: contour F {100 * before:.1f} → {100 * after:.1f}"
            said += f", before {100 * before:.1f}"
    cross, lines = (row, column), "the cross is pixel i" + ", white the true outline" * (fine > 1)
    on_image = ((row + 0.5) * fine - 0.5, (column + 0.5) * fine - 0.5)
    wants = "purple: should agree with i, orange: may differ"
    force = f"loss {loss:+.5f}   (purple down, orange up)".replace("-", "−")
    panels = [
        Panel("image and pixel i", pixels, note=lines, cross=on_image),
        Panel("map a", color_unit(a.numpy()), "unit", note=note),
        Panel("f: alike or not (Eq. 8)", pixels, draw=partial(_draw_curve, mu=mu, delta=delta.numpy(), w=w)),
        Panel("w: who is near (Eq. 7)", color_unit(w), "unit", note=f"σ = {sigma:g}, relative to its peak"),
        Panel("w · f: attracts − , repels +", color_signed(w * f, 1.0), 1.0, note=wants, cross=cross),
        Panel("push on the map, −∂L/∂a", color_signed(push, limit), limit, note=force),
    ]
    alt = (
        f"Feature similarity around pixel {(row, column)} with mu {mu:g} and sigma {sigma:g}: image, map, curve of f "
        f"with cross-over at dissimilarity {values['cross_over']:.3f}, spatial weight, attraction and repulsion, and "
        f"the gradient; loss {loss:.5f}{said}."
    )
    return render_panels(panels, alt, columns=3, panel_width=290, values=values)


def _draw_curve(
    canvas: pictures.Canvas, place: Box, mu: float, delta: npt.NDArray[np.floating], w: npt.NDArray[np.floating]
) -> None:
    """f over the dissimilarity, above a histogram of the dissimilarities that the neighbourhood offers."""
    box = Box(place.x + 34, place.y, place.width + pictures.BAR - 40, place.height - 20)  # room for the axes' labels
    top = 0.6  # dissimilarities above are rare; the curve is flat there
    counts, _ = np.histogram(delta, bins=30, range=(0, top), weights=w)
    for index, share in enumerate(counts / max(counts.max(), 1e-9)):
        (left, base), (right, peak) = box.at(index / 30, 1), box.at((index + 1) / 30, 1 - 0.45 * share)
        canvas.polygon([left, base, left, peak, right - 1, peak, right - 1, base], (205, 220, 232))
    x = np.linspace(0, 1, 121)
    f = feature_similarity(torch.from_numpy(x * top), mu).numpy()
    zero = box.at(0, 0.5)[1]
    canvas.line(np.array([[box.x, zero], [box.x + box.width, zero]]), pictures.GREY, 1)
    points = np.stack([box.x + x * box.width, box.y + (1 - f) / 2 * box.height], 1)
    canvas.line(points, width=3)
    zero_at = cross_over(mu)
    if zero_at < top:
        at = box.at(zero_at / top, 0)[0]
        canvas.line(np.array([[at, box.y], [at, box.y + box.height]]), pictures.ORANGE, 1)
        canvas.dot(at, zero, 5)
        gap, anchor = (8, "la") if zero_at < 0.6 * top else (-8, "ra")
        canvas.text(at + gap, zero + 8, f"δ = {zero_at:.3f}", size=12, color=pictures.ORANGE, anchor=anchor)
    ticks = [(tick / top, f"{tick:g}") for tick in (0, 0.2, 0.4, 0.6)]
    about = "dissimilarity δ  (bars: neighbours of i, weighted by w)"
    canvas.axes(box, ticks, [(0, "−1"), (0.5, "0"), (1, "+1")], about)
    canvas.text(box.x + box.width - 8, box.y + 8, "repels", size=12, color=pictures.ORANGE, anchor="ra")
    canvas.text(box.x + box.width - 8, box.y + box.height - 22, "attracts", size=12, color=(84, 39, 136), anchor="ra")


class SimilarityExplorer(Explorer):
    """Eq. 6-8 around a pixel of an image; "descend" lets the map follow the loss for as many steps as asked.

    Args:
        photo: name of the photograph to begin with, or "fish".
        size: of the map in pixels.
    """

    def __init__(self, photo: str = "coffee", size: int = 56) -> None:
        self.size = size
        super().__init__(
            1120, {"photo_menu": self.restart, "reset": self.restart, "steps": lambda _: None,
            "descend": self._descend}, photo_menu=menu([*photo_options(), ("Synthetic fish", "fish")], "image", photo),
            mu=slider(2.5, *MU_RANGE, 0.1, "μ"), sigma=slider(3.0, 0.5, 12, 0.1, "σ (map pixels)"),
            row=slider(size // 2, 0, size - 1, 1, "row of i"), column=slider(size // 2, 0, size - 1, 1, "column of i"),
            steps=slider(10, 1, 50, 1, "steps"), descend=ipywidgets.Button(description="descend", icon="arrow-down",
            layout={"width": "auto"}), reset=ipywidgets.Button(description="reset the map", icon="undo",
            layout={"width": "auto"})
        )  # fmt: skip

    def load(self) -> None:
        """The image with its map as it was before any descent."""
        self.image, self.start, self.mask = snap_example(self.photo_menu.value, self.size)
        self.foreground, self.descended = self.start, 0

    def _descend(self, _: Any) -> None:
        steps = self.steps.value
        self.say("descending …")
        path = descend(self.foreground, self.image, self.mu.value, self.sigma.value, steps=steps)
        self.foreground = torch.from_numpy(path.maps[-1])
        self.descended += steps
        self.refresh()

    def draw(self) -> Picture:
        """Curve, weights, field and gradient."""
        given = {"pixel": (self.row.value, self.column.value), "mask": self.mask, **self.chosen("mu", "sigma")}
        if self.descended:
            given["descended"] = self.descended, self.start
        return render_similarity(self.image, self.foreground, **given)
