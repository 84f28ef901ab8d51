"""Stage 1: its losses and SEAM's against sums written out in NumPy, and an image's CAM from its views."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_nb.data import VOCFolder, make_synthetic
from wsss_nb.models.networks import CamOutput
from wsss_nb.similarity import FeatureSimilarityLoss
from wsss_nb.stages import cam
from wsss_nb.stages.cam import build_cam_net, cam_loss, equivariance_loss, foreground_cam, seam_loss
from wsss_nb.stages.config import CamConfig, InferenceConfig
from wsss_nb.stages.loop import NotFiniteError
from wsss_nb.stages.views import Batch

B, K = 2, 3
SCALE = {"release": lambda pixels: 2 / pixels, "pixels": lambda pixels: 1 / pixels, "pairs": lambda pixels: pixels**-2}


class ToyNet(nn.Module):
    """Logits are a class's own mixture of the features; the "PCM" is another mixture, optionally cut off."""

    def __init__(self, detach: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.plain = nn.Parameter(2 * torch.randn(K, 4, generator=generator))
        self.other = nn.Parameter(torch.randn(K, K, generator=generator))
        self.detach = detach
        self.asked: list[bool] = []

    def forward(self, images: Tensor, features: Tensor, revise: bool = True) -> CamOutput:
        self.asked.append(revise)
        logits = torch.einsum("kc,bchw->bkhw", self.plain, features)
        source = logits.detach() if self.detach else logits
        return CamOutput(logits, torch.einsum("kl,blhw->bkhw", self.other, source) if revise else None)


def make_batch(small: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(7)

    def view(*size: int) -> tuple[Tensor, Tensor]:
        return torch.rand(B, 3, *size, generator=generator), torch.rand(B, 4, *size, generator=generator) - 0.5

    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    images, features = view(6, 5)
    return Batch(images, features, labels, *(view(3, 4) if small else ()))


def losses_of(config: CamConfig, net: Any = None, batch: Batch | None = None, seed: int = 0) -> dict[str, Tensor]:
    similarity = FeatureSimilarityLoss(1.5, 2.0, normalization=config.fsl_normalization)
    generator = torch.Generator().manual_seed(seed)
    return cam_loss(net or ToyNet(), batch or make_batch(), config, similarity, generator)


# NumPy's side


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def entropy(p: np.ndarray, y: np.ndarray, e: float) -> np.ndarray:
    """The release's rule: multilabel soft margin of log(p (1 - e) + e) - log(1 - p (1 - e))."""
    return margin(np.log(p * (1 - e) + e) - np.log(1 - p * (1 - e)), y)


def margin(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(-x)) * y + np.log1p(np.exp(x)) * (1 - y)


def resized(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bilinear with aligned corners, by two products with interpolation matrices."""

    def matrix(n: int, m: int) -> np.ndarray:
        places = np.arange(m) * (n - 1) / max(m - 1, 1)
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(n)[None]))

    return np.einsum("ih,bkhw,jw->bkij", matrix(maps.shape[2], size[0]), maps, matrix(maps.shape[3], size[1]))


def pooled_loss(maps: np.ndarray, y: np.ndarray, e: float = 1e-3) -> float:
    return float(entropy(maps.max((2, 3)), y, e).mean())


def expected_loss(maps: np.ndarray, y: np.ndarray, first: int, e: float = 1e-3) -> float:
    weights = maps / maps.sum((2, 3), keepdims=True)
    return float((weights * entropy(maps, y[:, :, None, None], e)).sum((2, 3))[:, first:].mean())


def similarity_sum(maps: np.ndarray, image: np.ndarray, mu: float, sigma: float) -> float:
    """-sum_ij w g f of Eq. 6 by a double loop, g with its 1/2; mean over the batch."""
    total = 0.0
    pixels = list(itertools.product(range(maps.shape[2]), range(maps.shape[3])))
    for a, x in zip(maps, image, strict=True):
        for (r, c), (s, d) in itertools.product(pixels, pixels):
            w = np.exp(-((r - s) ** 2 + (c - d) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
            delta = np.abs(x[:, r, c] - x[:, s, d]).mean()
            f = np.tanh(mu + np.log(delta / (1 - delta))) if 0 < delta < 1 else 2 * delta - 1
            total -= w * f * 0.5 * ((a[:, r, c] - a[:, s, d]) ** 2).sum()
    return total / len(maps)


def arrays(net: ToyNet, batch: Batch) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits of both views, plain and revised."""
    plain, other = net.plain.detach().double().numpy(), net.other.detach().double().numpy()
    views = [x for x in (batch.features, batch.small_features) if x is not None]
    logits = [np.einsum("kc,bchw->bkhw", plain, x.double().numpy()) for x in views]
    return logits, [np.einsum("kl,blhw->bkhw", other, x) for x in logits]


def assert_losses(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(float(value), rel=2e-4, abs=1e-6), name


# The paper's losses


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_loss_is_the_sum_it_says(lam: float, siamese: bool, background: bool) -> None:
    net, batch = ToyNet(), make_batch()
    config = CamConfig(lam=lam, num_samples=None, sample_background=background, fsl_weight=0.7, siamese=siamese)
    found = losses_of(config, net, batch)
    y = batch.labels.numpy()
    plain, other = ([softmax(x) for x in logits] for logits in arrays(net, batch))

    def classification(maps: np.ndarray) -> float:
        return (1 - lam) * pooled_loss(maps, y) + lam * expected_loss(maps, y, 0 if background else 1)

    expected = {"classification": classification(plain[0])}
    if siamese:
        expected = {f"classification{n}": classification(maps) for n, maps in enumerate(plain, start=1)}
        expected |= {f"revised{n}": pooled_loss(maps, y) for n, maps in enumerate(other, start=1)}
        size = plain[1].shape[2:]
        a1, a2, r1, r2 = resized(plain[0], size), plain[1], resized(other[0], size), other[1]
        expected["er"] = sum(np.abs(p - q).mean() for p, q in [(a1, a2), (r1, r2), (a1, r1), (a2, r2)])
        expected["ecr"] = np.abs(a1 - r2).mean() + np.abs(a2 - r1).mean()
    expected["similarity"] = 0.7 * 2 / 30 * similarity_sum(plain[0], batch.images.double().numpy(), 1.5, 2.0)
    assert_losses(found, expected)
    assert net.asked == ([True, True] if siamese else [False])


@pytest.mark.parametrize("posterior", ["softmax", "torch:sigmoid"])
@pytest.mark.parametrize("normalization", list(SCALE))
def test_every_normalisation_and_another_posterior(normalization: Any, posterior: str) -> None:
    net, batch = ToyNet(), make_batch(small=False)
    config = CamConfig(
        posterior=posterior, lam=0.5, num_samples=None, siamese=False, fsl_normalization=normalization, fsl_weight=2
    )
    maps = (softmax if posterior == "softmax" else sigmoid)(arrays(net, batch)[0][0])
    y, total = batch.labels.numpy(), similarity_sum(maps, batch.images.double().numpy(), 1.5, 2.0)
    expected = {
        "classification": 0.5 * pooled_loss(maps, y) + 0.5 * expected_loss(maps, y, 0),
        "similarity": 2 * SCALE[normalization](30) * total,
    }
    assert_losses(losses_of(config, net, batch), expected)


def test_eq3s_guard_and_average_pooling_are_settings() -> None:
    net, batch = ToyNet(), make_batch()
    found = losses_of(CamConfig(lam=0.4, num_samples=None, fsl_weight=0, eps=1e-6), net, batch)
    y = batch.labels.numpy()
    plain, other = arrays(net, batch)
    for n, (maps, revised) in enumerate(zip(map(softmax, plain), map(softmax, other), strict=True), start=1):
        expected = 0.6 * pooled_loss(maps, y, 1e-6) + 0.4 * expected_loss(maps, y, 0, 1e-6)
        assert found[f"classification{n}"].item() == pytest.approx(expected, rel=2e-5)
        assert found[f"revised{n}"].item() == pytest.approx(pooled_loss(revised, y, 1e-6), rel=2e-5)
    average = CamConfig(lam=0.0, pooling="average", siamese=False, fsl_weight=0.0, sample_background=False)
    expected = margin(plain[0].mean((2, 3))[:, 1:], y[:, 1:]).mean()
    assert_losses(losses_of(average, net, batch), {"classification": expected})


def similarity(maps: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """An extra loss of the user's own, named as one of the paper's."""
    return maps.mean() + 2 * images.mean() + 3 * labels.mean()


def test_an_extra_loss_is_added_as_it_is_and_replaces_nothing() -> None:
    net, batch = ToyNet(), make_batch()
    name = f"{__name__}:similarity"
    without = losses_of(CamConfig(num_samples=2), net, batch)
    found = losses_of(CamConfig(num_samples=2, extra_loss=name), net, batch)
    extra = found.pop(name).item()
    maps = softmax(arrays(net, batch)[0][0])
    expected = maps.mean() + 2 * batch.images.mean().item() + 3 * batch.labels.mean().item()
    assert extra == pytest.approx(expected, rel=1e-5)
    assert_losses(found, {key: value.item() for key, value in without.items()})


def test_draws_come_from_the_generator_alone() -> None:
    config = CamConfig(num_samples=2)

    def values(seed: int) -> dict[str, float]:
        return {name: loss.item() for name, loss in losses_of(config, seed=seed).items()}

    state = torch.random.get_rng_state()
    assert values(1) == values(1) != values(2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_gradients_of_every_term_agree_with_differences() -> None:
    net, batch = ToyNet().double(), make_batch()
    batch = Batch(*(x.double() if x is not None else None for x in batch))  # type: ignore[arg-type]
    start, parts = net.plain.detach().clone().requires_grad_(), (net, batch)

    def total(plain: Tensor) -> Tensor:
        config = CamConfig(num_samples=None, lam=0.0, fsl_weight=0.5)

        def call(images: Tensor, features: Tensor, revise: bool = True) -> CamOutput:
            logits = torch.einsum("kc,bchw->bkhw", plain, features)
            return CamOutput(logits, torch.einsum("kl,blhw->bkhw", parts[0].other, logits))

        return torch.stack([loss.double() for loss in losses_of(config, call, parts[1]).values()]).sum()

    (gradient,) = torch.autograd.grad(total(start), start)
    direction = torch.randn(K, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-3
    with torch.no_grad():
        slope = (total(start + step * direction) - total(start - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=2e-2)


def test_without_siamese_the_pcm_is_not_trained() -> None:
    net = ToyNet()
    torch.stack(list(losses_of(CamConfig(siamese=False, num_samples=None), net).values())).sum().backward()
    assert net.plain.grad is not None and net.plain.grad.abs().sum() > 0 and net.other.grad is None


@pytest.mark.parametrize("call", [lambda batch: losses_of(CamConfig(), batch=batch), lambda b: seam_loss(ToyNet(), b)])
def test_a_missing_second_view_is_named(call: Any) -> None:
    with pytest.raises(ValueError, match=r"batch: expected view 2 \(small_images, small_features\).*, got none"):
        call(make_batch(small=False))


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("view", [1, 2])
def test_logits_that_are_not_finite_are_named(lam: float, view: int) -> None:
    """No pixel can be drawn from such maps, and no loss is needed to know."""
    batch = make_batch()
    broken = {"features" if view == 1 else "small_features": torch.full((B, 4, 2, 2), float("inf"))}
    with pytest.raises(NotFiniteError, match=f"^the logits of view {view} are not finite$"):
        losses_of(CamConfig(lam=lam), batch=batch._replace(**broken))


def test_equivariance_by_hand() -> None:
    def flat(value: float) -> Tensor:
        return torch.full((1, 2, 2, 2), value)

    # |a1-a2| .3, |r1-r2| .5, |a1-r1| .1, |a2-r2| .1; |a1-r2| .4, |a2-r1| .4
    losses = equivariance_loss(flat(0.5), flat(0.2), flat(0.6), flat(0.1))
    assert losses["er"].item() == pytest.approx(0.3 + 0.5 + 0.1 + 0.1)
    assert losses["ecr"].item() == pytest.approx(0.4 + 0.4)
    ramp = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    small = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    # with aligned corners the middle column drops out, and both ends agree
    assert all(value.item() == 0 for value in equivariance_loss(ramp, small, ramp, small).values())


def test_training_gets_the_settings_of_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalisation, sizes of view 2, rates and warm-up of mu and sigma, as the loop is given them."""
    make_synthetic(tmp_path / "fish", num_train=2, num_val=1, size=48)
    calls: list[dict[str, Any]] = []

    def record(modules: Any, loader: Any, loss: Any, **options: Any) -> list[Any]:
        calls.append({"modules": modules, "loader": loader, "loss": loss, **options})
        return []

    monkeypatch.setattr(cam, "train", record)
    base = CamConfig(lam=0.0, fsl_weight=0.7, mu=2.0, sigma=2.0, dropout=0.0, siamese_scale=0.5, fsl_warmup=0.25)
    base = base.model_copy(update={"views": base.views.model_copy(update={"cached": True, "sizes": ((48, 48),)})})
    values = []
    folder = VOCFolder(tmp_path / "fish", "train")
    for name in SCALE:
        config = base.model_copy(update={"fsl_normalization": name, "learn_fsl": name == "pairs"})
        cam.train_cam(folder, "tiny", config, 0, tmp_path)
        batch = next(calls[-1]["loader"].epoch(0))
        values.append(calls[-1]["loss"](batch, torch.Generator())["similarity"].item())
    release, pixels, pairs = values
    assert release == pytest.approx(2 * pixels) and pixels == pytest.approx(144 * pairs) and pairs != 0
    assert batch.small_images.shape[-2:] == (6, 6), "24 pixels at stride 4"
    assert calls[-1]["warmups"] == {"similarity": 0.25} and calls[0]["extra_groups"] is None
    (learned,) = calls[-1]["extra_groups"]
    assert learned["lr"] == pytest.approx(0.1 * 0.01) and learned["weight_decay"] == 0 and len(learned["params"]) == 2
    assert calls[-1]["record"]() == {"mu": 2.0, "sigma": 2.0}


# SEAM


def test_seams_maps_by_hand() -> None:
    maps = torch.tensor([[[[9.0, 9.0]], [[4.0, 2.0]], [[-1.0, 6.0]], [[8.0, 8.0]]]])
    labels = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    expected = torch.tensor([[[[1.0, 1.0]], [[1.0, 0.5]], [[0.0, 1.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(cam._max_normalized(maps, maps, labels), expected, atol=1e-4, rtol=0)
    # the background is 1 - max wherever it is, only the foreground classes compete
    soft = torch.tensor([[[[0.0, 0.0]], [[0.7, 0.2]], [[0.3, 0.9]]]])
    torch.testing.assert_close(cam._one_class(soft), torch.tensor([[[[0.3, 0.1]], [[0.7, 0.0]], [[0.0, 0.9]]]]))


def test_hardest_fifth_and_smallest_quarter_by_hand() -> None:
    difference = torch.stack([torch.arange(10.0), torch.zeros(10)]).view(2, 2, 1, 5)
    assert cam._hardest(difference).item() == pytest.approx((9 + 8 + 0 + 0) / 4)
    revised = torch.zeros(1, 3, 2, 4)
    revised[0, 0] = 100  # the background has no say
    revised[0, 1] = torch.arange(1.0, 9.0).view(2, 4)
    revised[0, 2] = 50  # absent
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    assert cam._adaptive_min_pool(revised, labels).item() == pytest.approx(1.5)
    revised[0, 1] -= 1.5  # smallest quarter now -0.5 and 0.5: relu before the mean
    assert cam._adaptive_min_pool(revised, labels).item() == pytest.approx(0.25)


def test_seams_loss_is_the_sum_it_says() -> None:
    net, batch = ToyNet(), make_batch()
    y = batch.labels.numpy()
    plain, other = arrays(net, batch)

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
        "classification": np.mean([margin(x.mean((2, 3))[:, 1:], y[:, 1:]).mean() for x in plain]),
        "minimum": np.mean([minimum(x) for x in other]),
        "er": np.abs(maps[0] - maps[1])[:, 1:].mean(),
        "ecr": hardest(np.abs(winners(maps[0]) - refined[1])) + hardest(np.abs(winners(maps[1]) - refined[0])),
    }
    assert_losses(seam_loss(net, batch), expected)


def test_seams_targets_pass_no_gradient() -> None:
    def gradient(name: str) -> tuple[Any, Any]:
        net = ToyNet(detach=True)
        return torch.autograd.grad(seam_loss(net, make_batch())[name], (net.plain, net.other), allow_unused=True)

    # the revised maps see detached logits, so ECR reaches the plain weights through its targets or not at all
    plain, other = gradient("ecr")
    assert plain is None or not plain.any()
    assert other is not None and other.any()
    plain, other = gradient("er")
    assert plain.any() and other is None


# Inference

CONFIG = CamConfig(siamese=False, dropout=0.0)


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)


@pytest.mark.parametrize("max_normalize", [False, True])
@pytest.mark.parametrize("seam", [False, True])
def test_an_image_without_labels_has_empty_maps(seam: bool, max_normalize: bool) -> None:
    net = build_cam_net("tiny", 4, CONFIG, seed=0, seam=seam).eval()
    inference = InferenceConfig(max_normalize=max_normalize)
    found = foreground_cam(net, image(), np.array([1, 0, 0, 0], np.uint8), CONFIG, inference, seam=seam)
    assert found.shape == (3, 40, 52) and found.dtype == np.float32 and not found.any()


@pytest.mark.parametrize("paired_pixels", [10**9, 1500, 0])
@pytest.mark.parametrize("posterior", ["softmax", "torch:sigmoid"])
def test_the_cam_is_the_mean_over_scales_and_flips(
    posterior: str, paired_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against maps of the present classes alone: a softmax is renormalised over them, independent sigmoids are not.

    Flips go through the network with their view, alone where the view is large, or all alone.
    """
    monkeypatch.setattr(cam, "PAIRED_PIXELS", paired_pixels)
    config = CONFIG.model_copy(update={"posterior": posterior})
    net = build_cam_net("tiny", 5, config, seed=0).eval()
    inference = InferenceConfig(scales=(1.0, 0.5), max_normalize=False)
    found = foreground_cam(net, image(), np.array([1, 0, 1, 0, 1], np.uint8), config, inference)

    tensor = torch.from_numpy(image()).permute(2, 0, 1)[None] / 255
    half = F.interpolate(tensor, (20, 26), mode="bicubic", antialias=True).clamp(0, 1)

    def maps_of(view: Tensor) -> Tensor:
        logits = net(view, revise=False).logits[:, [0, 2, 4]]
        if posterior == "torch:sigmoid":  # does not compete: the present class's own sigmoid
            return logits.sigmoid()[:, 1:]
        return logits.softmax(1)[:, 1:]

    with torch.no_grad():
        views = [side for view in (tensor, half) for side in (maps_of(view), maps_of(view.flip(-1)).flip(-1))]
    expected = torch.cat([F.interpolate(maps, (40, 52), mode="bilinear") for maps in views]).mean(0).numpy()
    np.testing.assert_allclose(found[[1, 3]], expected, atol=1e-6)
    assert not found[[0, 2]].any() and expected.std() > 1e-3
