"""The rows of the benchmark table."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Row, Setup
from benchmarks.references import all_pairs_loss, contour_by_dilation, dense_random_walk, one_view_at_a_time
from wsss_nb.affinity import pair_indices, random_walk
from wsss_nb.counts import contour_matches
from wsss_nb.similarity import feature_similarity_loss

if TYPE_CHECKING:
    from wsss_nb.teach import Explorer

__all__ = ["ROWS", "pixels_times_window"]

SIGMA = 5.0


def _reach(sigma: float) -> float:
    """Where the loss stops looking in float32, in pixels."""
    return 5.5 * sigma


REACH = _reach(SIGMA)


def _maps(B: int, K: int, size: int) -> tuple[Tensor, Tensor]:
    """Smooth random CAMs and images, the same every time."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(B, K + 3, size // 8, size // 8, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic")
    return (3 * smooth[:, :K]).softmax(1), torch.sigmoid(smooth[:, K:])


def _close(ours: Any, theirs: Any, tolerance: float = 2e-3) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = torch.as_tensor(mine), torch.as_tensor(other)
        error = (mine - other).abs().max() / other.abs().max()
        if not error < tolerance:
            raise AssertionError(f"results differ by {error:.2g} of the largest value, expected {tolerance:g}")


def _gradients(
    loss: Callable[..., Tensor], B: int, size: int, learned: bool, width: float = SIGMA
) -> Callable[[], Any]:
    """Value and gradients of a feature similarity loss, as one training step needs them."""
    cam, image = _maps(B, 21, size)

    def work() -> tuple[Tensor, ...]:
        leaf = cam.clone().requires_grad_()
        mu, sigma = (torch.tensor(value, requires_grad=learned) for value in (2.5, width))
        value = loss(leaf, image, mu, sigma)
        wanted = (leaf, mu, sigma) if learned else (leaf,)
        return (value.detach(), *torch.autograd.grad(value, wanted))

    return work


def _similarity(learned: bool) -> Setup:
    return Setup(
        _gradients(feature_similarity_loss, 4, 56, learned), _gradients(all_pairs_loss, 4, 56, learned), _close
    )


def pixels_times_window(size: int, reach: float = REACH) -> int:
    """Pairs of pixels of a size x size map that lie within ``reach`` of each other."""
    steps = np.arange(1 - size, size)
    near = steps[:, None] ** 2 + steps**2 <= reach**2
    left = size - abs(steps)
    return int((left[:, None] * left * near).sum())


def _large_similarity(size: int) -> Row:
    return _grown_similarity(
        (size, SIGMA), (56, SIGMA), "the same at 56x56", {"memory_mb": 1000, "time_per_growth": 1.5}
    )


def _narrow_similarity() -> Row:
    """Tiles do not shrink with the window, so a narrow one costs twice its share; a fixed window would cost 11 times."""
    against = f"the same with a window of {_reach(10):g} pixels"
    return _grown_similarity((112, 2.5), (112, 10), against, {"time_per_growth": 3})


def _grown_similarity(
    ours: tuple[int, float], other: tuple[int, float], against: str, targets: dict[str, float]
) -> Row:
    """Two maps, each given by its size and sigma."""
    size, width = ours
    pairs, others = (pixels_times_window(edge, _reach(sigma)) for edge, sigma in (ours, other))
    return Row(
        f"feature similarity, forward + backward, B 1, K 21, {size}x{size}, window of {_reach(width):g} pixels",
        lambda: Setup(
            _gradients(feature_similarity_loss, 1, size, False, width),
            _gradients(feature_similarity_loss, 1, other[0], False, other[1]),
        ),
        against,
        targets,
        growth=pairs / others,
        facts={"pixels_times_window": pairs, "all_pairs": size**4},
    )


def _contours() -> Setup:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:375, :500]
    target, prediction = np.zeros((2, 375, 500), np.uint8)
    for label, (row, column) in zip((3, 9, 15), ((120, 110), (200, 300), (280, 430)), strict=True):
        for label_map in (target, prediction):
            shift = rng.integers(-6, 7, 2)
            inside = ((y - row - shift[0]) / 70) ** 2 + ((x - column - shift[1]) / 90) ** 2 < 1
            label_map[inside] = label

    def check(ours: Any, theirs: Any) -> None:
        np.testing.assert_array_equal(ours, theirs)

    return Setup(
        lambda: contour_matches(prediction, target, 21), lambda: contour_by_dilation(prediction, target, 21), check
    )


def _walk() -> Setup:
    generator = torch.Generator().manual_seed(0)
    height, width = 47, 63
    scores = torch.rand(21, height, width, generator=generator)
    pairs = pair_indices(5, height, width)[1].shape
    affinity = torch.rand(*pairs, generator=generator)
    return Setup(
        lambda: random_walk(scores, affinity, beta=8, log_t=6),
        lambda: dense_random_walk(scores, affinity, beta=8, log_t=6),
        lambda ours, theirs: _close([ours], [theirs]),
    )


def _inference(precision: Literal["float32", "bfloat16"]) -> Setup:
    from skimage import data

    from wsss_nb.models import create_cam_net
    from wsss_nb.stages.cam import foreground_cam
    from wsss_nb.stages.config import CamConfig, InferenceConfig

    torch.manual_seed(0)
    net = create_cam_net("efficientnet_lite0", 21).eval()
    image = np.ascontiguousarray(data.chelsea()[:, :, :3])
    labels = np.zeros(21, np.uint8)
    labels[[0, 8, 15]] = 1
    inference = InferenceConfig(max_normalize=False)
    config = CamConfig(siamese=False, precision=precision)
    return Setup(
        lambda: foreground_cam(net, image, labels, config, inference),
        lambda: one_view_at_a_time(net, image, labels, inference.scales),
        lambda ours, theirs: _close([ours], [theirs], tolerance=0.05),
    )


def _dragged(explorer: Explorer, *sliders: Any) -> Setup:
    """One move of a slider, from its value to the encoded picture, as the kernel does it while one drags."""
    turns = itertools.count()

    def work() -> bytes:
        control, turn = sliders[(number := next(turns)) % len(sliders)], number // len(sliders)
        middle = (control.min + control.max) / 2
        before = explorer.picture.value
        control.value = middle + control.step * (turn % 20 - 10)
        picture: bytes = explorer.picture.value
        if picture == before:
            raise AssertionError(f"{control.description}: expected another picture, got the same")
        return picture

    return Setup(work)


def _similarity_sliders() -> Setup:
    from wsss_nb.teach import SimilarityExplorer

    explorer = SimilarityExplorer("coffee", size=56)
    return _dragged(explorer, explorer.mu, explorer.sigma)


def _threshold_slider() -> Setup:
    from wsss_nb.teach import CamExplorer, class_logits, load_photo

    explorer = CamExplorer("coffee")
    photo = load_photo("coffee", short_side=375)
    assert photo.mask is not None
    image, mask = photo.image[:, :500], photo.mask[:, :500]
    explorer.photo = photo._replace(image=image, mask=mask)
    explorer.logits = class_logits(image, stride=16)
    return _dragged(explorer, explorer.threshold)


ROWS: dict[str, Row] = {
    "similarity": Row(
        "feature similarity, forward + backward, B 4, K 21, 56x56, mu and sigma fixed",
        lambda: _similarity(learned=False),
        "all pairs in torch",
        {"speed_up": 12, "memory_share": 1 / 20},
    ),
    "similarity-learned": Row(
        "the same, mu and sigma learned",
        lambda: _similarity(learned=True),
        "all pairs in torch",
        {"speed_up": 8, "memory_share": 1 / 20},
    ),
    "similarity-112": _large_similarity(112),
    "similarity-224": _large_similarity(224),
    "similarity-window": _narrow_similarity(),
    "contour": Row(
        "contour matches, 500x375, 21 classes, 3 present",
        _contours,
        "disk dilation for all 20 classes",
        {"speed_up": 20},
    ),
    "walk": Row(
        "random walk, 63x47, K 21, 64 steps",
        _walk,
        "dense matrix, squared 6 times",
        {"speed_up": 50, "memory_share": 1 / 20},
    ),
    "inference": Row(
        "multi-scale CAMs, EfficientNet-Lite0, 451x300, 4 scales with flips, bfloat16",
        lambda: _inference("bfloat16"),
        "one view at a time in float32",
        {"speed_up": 2},
    ),
    "inference-float32": Row(
        "the same in float32, as the profiles have it",
        lambda: _inference("float32"),
        "one view at a time in float32",
        {"speed_up": 1},
    ),
    "slider-similarity": Row(
        "slider to picture: mu and sigma on a 56x56 map, six panels and scores",
        _similarity_sliders,
        targets={"milliseconds": 150},
    ),
    "slider-threshold": Row(
        "slider to picture: threshold on a 500x375 photograph, three panels and scores",
        _threshold_slider,
        targets={"milliseconds": 150},
    ),
}
