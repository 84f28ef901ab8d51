"""The losses of stage 1 against sums written out in NumPy, and where their gradients stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss_nb.models import CamOutput
from wsss_nb.similarity import FeatureSimilarityLoss
from wsss_nb.stages import objectives
from wsss_nb.stages.config import CamConfig
from wsss_nb.stages.objectives import equivariance_loss, paper_objective, seam_objective
from wsss_nb.stages.views import Batch

B, K = 2, 3


class ToyNet(nn.Module):
    """Logits are a class's own mixture of the features; the "PCM" is another mixture, optionally cut off."""

    def __init__(self, detach: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.plain = nn.Parameter(2 * torch.randn(K, 4, generator=generator))
        self.other = nn.Parameter(torch.randn(K, K, generator=generator))
        self.detach = detach
        self.asked: list[bool] = []

    def from_frozen(self, features: Tensor, images: Tensor, revise: bool = True) -> CamOutput:
        self.asked.append(revise)
        logits = torch.einsum("kc,bchw->bkhw", self.plain, features)
        if not revise:
            return CamOutput(logits, None)
        source = logits.detach() if self.detach else logits
        return CamOutput(logits, torch.einsum("kl,blhw->bkhw", self.other, source))


def make_batch(
    small: bool = True, size: tuple[int, int] = (6, 5), small_size: tuple[int, int] = (3, 4)
) -> Batch:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    images, features = draw(B, 3, *size), draw(B, 4, *size) - 0.5
    if not small:
        return Batch(images, features, labels)
    return Batch(images, features, labels, draw(B, 3, *small_size), draw(B, 4, *small_size) - 0.5)


# NumPy's side


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def entropy(p: np.ndarray, y: np.ndarray, e: float = 1e-3) -> np.ndarray:
    """The release's rule: multilabel soft margin of log(p (1 - e) + e) - log(1 - p (1 - e))."""
    logit = np.log(p * (1 - e) + e) - np.log(1 - p * (1 - e))
    return np.log1p(np.exp(-logit)) * y + np.log1p(np.exp(logit)) * (1 - y)


def resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with aligned corners, by two products with interpolation matrices."""

    def matrix(n: int, m: int) -> np.ndarray:
        places = np.arange(m) * (n - 1) / max(m - 1, 1)
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(n)[None]))

    return np.einsum("ih,bkhw,jw->bkij", matrix(maps.shape[2], size[0]), maps, matrix(maps.shape[3], size[1]))


def pooled_loss(cam: np.ndarray, y: np.ndarray, e: float = 1e-3) -> float:
    return float(entropy(cam.max((2, 3)), y, e).mean())


def expected_loss(cam: np.ndarray, y: np.ndarray, first: int, e: float = 1e-3) -> float:
    weights = cam / cam.sum((2, 3), keepdims=True)
    return float((weights * entropy(cam, y[:, :, None, None], e)).sum((2, 3))[:, first:].mean())


def similarity(cam: np.ndarray, image: np.ndarray, mu: float, sigma: float) -> float:
    """Eq. 6 by a double loop, 1/(HW) in front and g with its 1/2."""
    H, W = cam.shape[2:]
    total = 0.0
    for a, x in zip(cam, image, strict=True):
        for i in range(H * W):
            for j in range(H * W):
                (r, c), (s, d) = divmod(i, W), divmod(j, W)
                w = np.exp(-((r - s) ** 2 + (c - d) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
                delta = np.abs(x[:, r, c] - x[:, s, d]).mean()
                f = np.tanh(mu + np.log(delta / (1 - delta))) if 0 < delta < 1 else 2 * delta - 1
                total -= w * f * 0.5 * ((a[:, r, c] - a[:, s, d]) ** 2).sum()
    return total / (len(cam) * H * W)


def arrays(net: ToyNet, batch: Batch) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits of both views, plain and revised."""
    plain, other = net.plain.detach().double().numpy(), net.other.detach().double().numpy()
    views = [x for x in (batch.features, batch.small_features) if x is not None]
    logits = [np.einsum("kc,bchw->bkhw", plain, x.double().numpy()) for x in views]
    return logits, [np.einsum("kl,blhw->bkhw", other, x) for x in logits]


# Equivariance


def test_equivariance_by_hand() -> None:
    def flat(value: float) -> Tensor:
        return torch.full((1, 2, 2, 2), value)

    # |a1-a2| .3, |r1-r2| .5, |a1-r1| .1, |a2-r2| .1; |a1-r2| .4, |a2-r1| .2
    losses = equivariance_loss(flat(0.5), flat(0.2), flat(0.6), flat(0.1))
    assert losses["er"].item() == pytest.approx(0.3 + 0.5 + 0.1 + 0.1)
    assert losses["ecr"].item() == pytest.approx(0.4 + 0.4)
    ramp = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    small = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    # With aligned corners the middle column drops out, and both ends agree.
    assert all(value.item() == 0 for value in equivariance_loss(ramp, small, ramp, small).values())


def test_equivariance_of_equal_constant_maps_is_zero() -> None:
    big, small = torch.full((2, 3, 9, 7), 1 / 3), torch.full((2, 3, 4, 2), 1 / 3)
    assert all(abs(value.item()) < 1e-6 for value in equivariance_loss(big, small, big, small).values())


# The paper's objective


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("background", [True, False])
def test_paper_objective_is_the_sum_it_says(weight: float, background: bool) -> None:
    net, batch = ToyNet(), make_batch()
    config = CamConfig(
        weight=weight, num_samples=None, sample_background=background, similarity_weight=0.7, siamese=True
    )
    found = paper_objective(net, batch, config, FeatureSimilarityLoss(1.5, 2.0), torch.Generator())
    y = batch.labels.numpy()
    plain, other = arrays(net, batch)
    cams, revised = [softmax(x) for x in plain], [softmax(x) for x in other]
    first = 0 if background else 1
    expected = {
        f"classification{n}": (1 - weight) * pooled_loss(cam, y) + weight * expected_loss(cam, y, first)
        for n, cam in enumerate(cams, start=1)
    }
    expected |= {f"revised{n}": pooled_loss(cam, y) for n, cam in enumerate(revised, start=1)}
    size = cams[1].shape[2:]
    a1, a2, r1, r2 = resized(cams[0], size), cams[1], resized(revised[0], size), revised[1]
    expected["er"] = sum(np.abs(p - q).mean() for p, q in [(a1, a2), (r1, r2), (a1, r1), (a2, r2)])
    expected["ecr"] = np.abs(a1 - r2).mean() + np.abs(a2 - r1).mean()
    expected["similarity"] = 0.7 * 2 * similarity(cams[0], batch.images.double().numpy(), 1.5, 2.0)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=2e-4, abs=1e-6), name
    assert net.asked == [True, True]


def test_the_guard_of_eq3_is_a_setting() -> None:
    net, batch = ToyNet(), make_batch()
    config = CamConfig(weight=0.4, num_samples=None, similarity_weight=0, eps=1e-6)
    found = paper_objective(net, batch, config, FeatureSimilarityLoss(), torch.Generator())
    y = batch.labels.numpy()
    plain, other = arrays(net, batch)
    for n, (cam, revised) in enumerate(zip(map(softmax, plain), map(softmax, other), strict=True), start=1):
        expected = 0.6 * pooled_loss(cam, y, 1e-6) + 0.4 * expected_loss(cam, y, 0, 1e-6)
        assert found[f"classification{n}"].item() == pytest.approx(expected, rel=2e-5)
        assert found[f"revised{n}"].item() == pytest.approx(pooled_loss(revised, y, 1e-6), rel=2e-5)


def test_average_pooling_is_on_logits() -> None:
    net, batch = ToyNet(), make_batch(small=False)
    config = CamConfig(
        weight=0.0, pooling="average", siamese=False, similarity_weight=0.0, sample_background=False
    )
    found = paper_objective(net, batch, config, FeatureSimilarityLoss(), torch.Generator())
    mean, y = arrays(net, batch)[0][0].mean((2, 3))[:, 1:], batch.labels.numpy()[:, 1:]
    expected = (np.log1p(np.exp(-mean)) * y + np.log1p(np.exp(mean)) * (1 - y)).mean()
    assert found.keys() == {"classification"}
    assert found["classification"].item() == pytest.approx(expected, rel=1e-5)


def test_without_siamese_there_is_one_view_and_no_pcm() -> None:
    net, batch = ToyNet(), make_batch()
    config = CamConfig(siamese=False, num_samples=None)
    found = paper_objective(net, batch, config, FeatureSimilarityLoss(), torch.Generator())
    assert found.keys() == {"classification", "similarity"} and net.asked == [False]
    net.zero_grad()
    torch.stack(list(found.values())).sum().backward()
    assert net.plain.grad is not None and net.plain.grad.abs().sum() > 0 and net.other.grad is None


def test_draws_come_from_the_generator_alone() -> None:
    net, batch = ToyNet(), make_batch()
    config = CamConfig(num_samples=2)

    def value(seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        losses = paper_objective(net, batch, config, FeatureSimilarityLoss(), generator)
        return {name: loss.item() for name, loss in losses.items()}

    state = torch.random.get_rng_state()
    assert value(1) == value(1) != value(2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_gradients_of_every_term_agree_with_differences() -> None:
    net, batch = ToyNet().double(), make_batch()
    batch = Batch(*(x.double() if x is not None else None for x in batch))  # type: ignore[arg-type]
    config = CamConfig(num_samples=None, weight=0.0, similarity_weight=0.5)

    def total(plain: Tensor) -> Tensor:
        losses = paper_objective(
            _With(net, plain), batch, config, FeatureSimilarityLoss(1.5, 2.0), torch.Generator()
        )
        return sum(loss.double() for loss in losses.values()) + torch.zeros(())

    start = net.plain.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(start), start)
    direction = torch.randn(K, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-3
    with torch.no_grad():
        slope = (total(start + step * direction) - total(start - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=2e-2)


class _With:
    """The toy net with other weights."""

    def __init__(self, net: ToyNet, plain: Tensor) -> None:
        self.net, self.weights = net, plain

    def from_frozen(self, features: Tensor, images: Tensor, revise: bool = True) -> CamOutput:
        logits = torch.einsum("kc,bchw->bkhw", self.weights, features)
        return CamOutput(logits, torch.einsum("kl,blhw->bkhw", self.net.other, logits))


@pytest.mark.parametrize("method", ["paper", "seam"])
def test_a_missing_second_view_is_named(method: str) -> None:
    batch = make_batch(small=False)
    with pytest.raises(ValueError, match=r"batch: expected view 2"):
        if method == "seam":
            seam_objective(ToyNet(), batch, torch.Generator())
        else:
            paper_objective(ToyNet(), batch, CamConfig(), FeatureSimilarityLoss(), torch.Generator())


# SEAM


def test_seams_maps_by_hand() -> None:
    maps = torch.tensor([[[[9.0, 9.0]], [[4.0, 2.0]], [[-1.0, 6.0]], [[8.0, 8.0]]]])
    labels = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    normalized = objectives._max_normalized(maps, labels)
    expected = torch.tensor([[[[1.0, 1.0]], [[1.0, 0.5]], [[0.0, 1.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(normalized, expected, atol=1e-4, rtol=0)

    soft = torch.tensor([[[[0.0, 0.0]], [[0.7, 0.2]], [[0.3, 0.9]]]])
    with_background = objectives._with_background(soft)
    torch.testing.assert_close(with_background[:, 0], torch.tensor([[[0.3, 0.1]]]))
    torch.testing.assert_close(with_background[:, 1:], soft[:, 1:])
    # The background is kept wherever it is, only the foreground classes compete.
    kept = objectives._winner_takes_all(with_background)
    torch.testing.assert_close(kept, torch.tensor([[[[0.3, 0.1]], [[0.7, 0.0]], [[0.0, 0.9]]]]))


def test_hardest_fifth_and_smallest_quarter_by_hand() -> None:
    difference = torch.stack([torch.arange(10.0), torch.zeros(10)]).view(2, 2, 1, 5)
    assert objectives._hardest(difference).item() == pytest.approx((9 + 8 + 0 + 0) / 4)
    revised = torch.zeros(1, 3, 2, 4)
    revised[0, 0] = 100  # the background has no say
    revised[0, 1] = torch.arange(1.0, 9.0).view(2, 4)
    revised[0, 2] = 50  # absent
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    assert objectives._adaptive_min_pool(revised, labels).item() == pytest.approx(1.5)
    revised[0, 1] -= 1.5  # smallest quarter now -0.5 and 0.5: relu before the mean
    assert objectives._adaptive_min_pool(revised, labels).item() == pytest.approx(0.25)


def test_seam_objective_is_the_sum_it_says() -> None:
    net, batch = ToyNet(), make_batch()
    found = seam_objective(net, batch, torch.Generator())
    y = batch.labels.numpy()
    plain, other = arrays(net, batch)

    def margin(logits: np.ndarray) -> float:
        x, t = logits.mean((2, 3))[:, 1:], y[:, 1:]
        return float((np.log1p(np.exp(-x)) * t + np.log1p(np.exp(x)) * (1 - t)).mean())

    def minimum(maps: np.ndarray) -> float:
        largest = (maps * y[:, :, None, None])[:, 1:].max(1).reshape(B, -1)
        return float(np.maximum(np.sort(largest)[:, : largest.shape[1] // 4], 0).mean())

    def normalized(maps: np.ndarray) -> np.ndarray:
        maps = np.maximum(maps, 0)
        return maps / (maps.max((2, 3), keepdims=True) + 1e-5) * y[:, :, None, None]

    def winners(maps: np.ndarray) -> np.ndarray:
        foreground = maps[:, 1:]
        best = foreground.max(1, keepdims=True)
        return np.concatenate([1 - best, np.where(foreground == best, foreground, 0)], 1)

    def hardest(difference: np.ndarray) -> float:
        flat = np.sort(difference.reshape(B, -1))[:, ::-1]
        return float(flat[:, : int(0.2 * flat.shape[1])].mean())

    size = plain[1].shape[2:]
    maps = [normalized(resized(plain[0], size)), normalized(plain[1])]
    refined = [normalized(resized(other[0], size)), normalized(other[1])]
    expected = {
        "classification": np.mean([margin(x) for x in plain]),
        "minimum": np.mean([minimum(x) for x in other]),
        "er": np.abs(maps[0] - maps[1])[:, 1:].mean(),
        "ecr": hardest(np.abs(winners(maps[0]) - refined[1]))
        + hardest(np.abs(winners(maps[1]) - refined[0])),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_seams_targets_pass_no_gradient() -> None:
    def gradient(name: str) -> tuple[Any, Any]:
        net = ToyNet(detach=True)
        loss = seam_objective(net, make_batch(), torch.Generator())[name]
        return torch.autograd.grad(loss, (net.plain, net.other), allow_unused=True)

    # The revised maps see detached logits, so ECR reaches the plain weights through its targets or not at all.
    plain, other = gradient("ecr")
    assert plain is None or not plain.any()
    assert other is not None and other.any()
    plain, other = gradient("er")
    assert plain.any() and other is None
