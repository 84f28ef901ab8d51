"""Importance sampling: where the loss of Eq. 5 pushes a map, the picture of it, and the explorer over it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.cam import class_activation_map
from wsss_nb.sampling import classification_loss, draw_pixels, sampling_probabilities
from wsss_nb.system.workers import fixed_threads
from wsss_nb.teach.explorer import Explorer, menu, slider
from wsss_nb.teach.lessons import draw_fish
from wsss_nb.teach.pictures import Panel, Picture, Pixels, color_signed, color_unit, render_panels

__all__ = ["SamplingExample", "SamplingExplorer", "imitated_example", "loss_gradient", "render_sampling"]


@fixed_threads(1)
def loss_gradient(
    logits: Tensor, labels: Tensor, weight: float = 1.0, num_samples: int | None = 1, pooling: str = "max",
    seed: int = 0
) -> Tensor:  # fmt: skip
    """Gradient of Eq. 5 with respect to the logits, (1, K, h, w): minus it is where a training step pushes them."""
    leaf = logits.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    cam = class_activation_map(leaf)
    loss = classification_loss(cam, labels, weight, num_samples, pooling=pooling, logits=leaf, generator=generator)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


class SamplingExample(NamedTuple):
    """What the sampling explorer shows: image (H, W, 3), logits (1, K, h, w), labels (1, K), class names (K)."""

    title: str
    image: Pixels
    logits: Tensor
    labels: Tensor
    names: Sequence[str]


def render_sampling(
    example: SamplingExample, *, index: int = 1, num_samples: int = 10, weight: float = 1.0, seed: int = 0
) -> Picture:
    """Eq. 4 and 5 for one class: its map, the draws, and where the loss pushes the map.

    Args:
        example: image, logits and labels.
        index: class to look at.
        num_samples: draws.
        weight: lambda.
        seed: of the draws.

    Returns:
        Picture with "drawn_mean" (mean of the map at the draws), "map_mean" and "map_max".
    """
    image, name, loss = example.image, example.names[index], (example.logits, example.labels, weight)
    cam = class_activation_map(example.logits.detach())
    a = cam[0, index].numpy()
    p = sampling_probabilities(cam)[0, index].numpy()
    # the same stream of randomness as the loss below, so that the dots are the draws that were used
    pixels = draw_pixels(cam, num_samples, torch.Generator().manual_seed(seed))[0, index].numpy()
    points = np.stack(np.divmod(pixels, a.shape[1]), 1).astype(float)
    if num_samples > 1:  # within the pixel, so that repeated draws do not hide each other
        points += np.random.default_rng(seed).uniform(-0.4, 0.4, points.shape)
    scale = np.array(image.shape[:2]) / a.shape
    sampled = -loss_gradient(*loss, num_samples, seed=seed)[0, index].numpy()
    expected = -loss_gradient(*loss, None)[0, index].numpy()
    limits = [max(float(np.abs(push).max()), 1e-9) for push in (sampled, expected)]
    values = {"drawn_mean": float(a.ravel()[pixels].mean()), "map_mean": float(a.mean()), "map_max": float(a.max())}
    title, mean = f"{num_samples} draw{'s' * (num_samples != 1)} for “{name}”", f"{values['drawn_mean']:.2f}"
    mass, sign = f"likeliest pixel: {100 * p.max():.1f} % of the mass", "orange: logit is raised, purple: lowered"
    panels = [
        Panel(title, image, note=f"mean of the map there: {mean}", smooth=True, points=(points + 0.5) * scale - 0.5),
        Panel("map a, proportional to Eq. 4", color_unit(a), "unit", note=mass),
        Panel(f"push by these draws, λ = {weight:g}", color_signed(sampled, limits[0]), limits[0], note=sign),
        Panel("push in expectation", color_signed(expected, limits[1]), limits[1], note="the limit of many draws"),
    ]
    alt = (
        f"{num_samples} pixels drawn from the map of {name}, the map itself, and the gradient of the loss for these "
        f"draws and in expectation, lambda {weight:g}. Mean of the map at the draws {mean}, "
        f"maximum {values['map_max']:.2f}."
    )
    return render_panels(panels, alt, columns=4, panel_width=235, values=values)


def imitated_example(index: int = 3, size: int = 96) -> SamplingExample:
    """A synthetic image with the logits that a classifier might have: sure of heads, unsure of bodies, stride 4."""
    fish = draw_fish(1, "val", size=size, first=index)
    logits = fish.paint_parts(body=2.5, head=8)
    logits[:, 0] = 3
    return SamplingExample("Fish, imitated map", fish.picture(0), F.avg_pool2d(logits, 4), fish.labels, fish.names)


class SamplingExplorer(Explorer):
    """Eq. 4 and 5 on given maps: draws, the mass they come from, and where the loss pushes.

    Args:
        examples: images with their logits; an imitated one if none.
    """

    def __init__(self, examples: Sequence[SamplingExample] = ()) -> None:
        self.examples = list(examples) or [imitated_example()]
        self.seed = 0
        steps = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
        super().__init__(
            1200, {"example": self.restart, "redraw": self._draw_again}, example=menu([(one.title, place) for place,
            one in enumerate(self.examples)], "map of"), class_menu=menu([], "class"), num_samples=menu(steps, "draws",
            10, ipywidgets.SelectionSlider), weight=slider(1.0, 0, 1, 0.05, "λ"),
            redraw=ipywidgets.Button(description="draw again", icon="refresh")
        )  # fmt: skip

    def load(self) -> None:
        """The classes of the example in the menu, those of the image first."""
        one = self.examples[self.example.value]
        present = one.labels[0] > 0
        classes = sorted(range(1, len(one.names)), key=lambda k: not present[k])
        options = [(one.names[k] + " (not in the image)" * (not present[k]), k) for k in classes]
        with self.quietly():
            self.class_menu.options = [*options, ("background", 0)]
            self.class_menu.value = self.class_menu.options[0][1]

    def _draw_again(self, _: Any) -> None:
        self.seed += 1
        self.refresh()

    def draw(self) -> Picture:
        """Draws, map, pushes."""
        one, settings = self.examples[self.example.value], self.chosen("num_samples", "weight")
        return render_sampling(one, index=self.class_menu.value, seed=self.seed, **settings)
