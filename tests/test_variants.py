"""Variants: records that change settings of stage 1, poolings and posteriors by hand, and functions of one's own."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_nb.binomial import binomial_activation
from wsss_nb.cam import class_activation_map
from wsss_nb.log_sum_exp import log_sum_exp_pool
from wsss_nb.run.profiles import load_profile
from wsss_nb.sampling import find_pooling
from wsss_nb.similarity import FeatureSimilarityLoss
from wsss_nb.stages.cam import cam_loss
from wsss_nb.stages.views import Batch
from wsss_nb.system.errors import InputError
from wsss_nb.system.plugins import load_function, plugin_hash
from wsss_nb.variants import OURS, VARIANTS, find_variant, lambda_variant

LOGITS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LABELS = torch.tensor([[1.0, 1, 0], [1, 0, 1]], dtype=torch.float64)


def logarithmic_loss(probability: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3 by its definition."""
    return -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()


def loss_of(variant: str, *changes: str) -> dict[str, Tensor]:
    """The losses of stage 1 on :data:`LOGITS` under the settings of a variant."""
    config = load_profile("quick", f"variants=[{variant}]", "cam.eps=1e-12", *changes)
    point = config.grid()[find_variant(variant).name]

    def net(images: Tensor, features: Tensor, *, revise: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=LOGITS, revised=None)

    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(4))
    batch = Batch(images=images, features=images, labels=LABELS.float())
    similarity = FeatureSimilarityLoss(mu=2.5, sigma=3.0)
    return cam_loss(net, batch, config.cam_config(point), similarity, torch.Generator().manual_seed(5))


# Log-sum-exp pooling


def test_log_sum_exp_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3.0)], [0.0, math.log(3.0)]]]], dtype=torch.float64)
    assert log_sum_exp_pool(logits, r=1.0).item() == pytest.approx(math.log(2.0))  # the mean of 1, 3, 1, 3
    assert log_sum_exp_pool(logits, r=2.0).item() == pytest.approx(math.log(5.0) / 2)  # of 1, 9, 1, 9


def test_log_sum_exp_lies_between_the_mean_and_the_maximum_and_reaches_both() -> None:
    mean, top = LOGITS.mean((2, 3)), LOGITS.amax((2, 3))
    pooled = log_sum_exp_pool(LOGITS)
    assert ((mean < pooled) & (pooled < top)).all()
    torch.testing.assert_close(log_sum_exp_pool(LOGITS, r=1e-6), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_sum_exp_pool(LOGITS, r=1e4), top, atol=1e-3, rtol=0)
    assert log_sum_exp_pool(torch.full((1, 1, 2, 2), 1e6)).item() == 1e6  # no overflow


def test_log_sum_exp_gradient() -> None:
    maps = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(log_sum_exp_pool, maps)


@pytest.mark.parametrize("r", [0.0, -1.0, math.inf, math.nan])
def test_log_sum_exp_needs_a_sharpness(r: float) -> None:
    with pytest.raises(ValueError, match=rf"r: expected a finite number above 0, got {r}"):
        log_sum_exp_pool(LOGITS, r)


def test_log_sum_exp_is_trained_by_eq_3_on_the_sigmoid_of_the_pooled_logits() -> None:
    expected = logarithmic_loss(torch.sigmoid((LOGITS * 4).exp().mean((2, 3)).log() / 4)[:, 1:], LABELS[:, 1:])
    (loss,) = loss_of("log_sum_exp", "cam.sample_background=false").values()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


# Binomial posterior


def test_binomial_posterior_by_hand() -> None:
    maps = binomial_activation(torch.tensor([[[[50.0]], [[0.0]], [[math.log(3.0)]]]]))
    assert maps.flatten().tolist() == pytest.approx([0.25, 0.5, 0.75])  # whatever the background's own logit


def test_binomial_classes_do_not_compete() -> None:
    more = LOGITS.clone()
    more[:, 2] += 5
    torch.testing.assert_close(binomial_activation(more)[:, 1], binomial_activation(LOGITS)[:, 1])
    assert not torch.allclose(class_activation_map(more)[:, 1], class_activation_map(LOGITS)[:, 1])


def test_binomial_trains_sampling_and_average_pooling_of_the_foreground() -> None:
    """Both terms of Eq. 5 with one pixel in each map, where a draw has no choice."""
    logits = LOGITS[:, :, :1, :1]
    probability = torch.sigmoid(logits[:, 1:, 0, 0])
    expected = logarithmic_loss(probability, LABELS[:, 1:])

    config = load_profile("quick", "variants=[binomial]", "cam.eps=1e-12")
    settings = config.cam_config(config.grid()["binomial"])
    images = torch.rand(2, 3, 1, 1)
    batch = Batch(images=images, features=images, labels=LABELS.float())
    losses = cam_loss(
        lambda images, features, *, revise: SimpleNamespace(logits=logits, revised=None), batch, settings,
        FeatureSimilarityLoss(mu=2.5, sigma=3.0), torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert losses["classification"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert settings.lam == 0.2 and "similarity" in losses


# Records


def test_titles_and_order() -> None:
    names = ["average", "seam", "log_sum_exp", "binomial", "lambda0", "lambda0_fsl", "lambda1", OURS]
    records = [find_variant(name) for name in names]
    assert [record.name for record in records] == names
    assert [record.order for record in records] == sorted(record.order for record in records)
    titles = [record.title for record in records]
    assert titles[0] == "average pooling" and titles[-1] == "sampling (λ = 1) + FSL"
    assert len(set(titles)) == len(titles)
    assert [record.lam for record in records] == [None] * 4 + [0.0, 0.0, 1.0, 1.0]


def test_a_record_changes_nothing_but_its_settings() -> None:
    profile = load_profile("quick", "variants=[average,log_sum_exp,binomial]")
    for name in profile.grid():
        variant = find_variant(name)
        changed = profile.cam_config(variant).model_dump()
        off = {} if variant.fsl else {"fsl_weight": 0.0}
        assert changed == {**profile.cam.model_dump(), **off, **variant.changes}


@pytest.mark.parametrize("lam", [0.0, 0.25, 1e-05, 1.0])
@pytest.mark.parametrize("fsl", [False, True])
def test_a_point_of_figure_2_is_found_by_its_name(lam: float, fsl: bool) -> None:
    variant = lambda_variant(lam, fsl)
    assert find_variant(variant.name) == variant and (variant.lam, variant.fsl) == (lam, fsl)


@pytest.mark.parametrize("name", ["lambda2", "lambda-1", "lambda", "lambda.e", "nonsense", "", "seam2"])
def test_unknown_variants(name: str) -> None:
    with pytest.raises(InputError, match=r"variant: expected one of average, seam, log_sum_exp, binomial, lambda0 to"):
        find_variant(name)
    assert name not in VARIANTS


def test_a_loss_is_added_once_and_only_where_there_is_none() -> None:
    found = find_variant("average+fsl")
    assert (found.name, found.title, found.fsl) == ("average+fsl", "average pooling + FSL", True)
    for name in ("seam+fsl", "lambda1+fsl", "lambda1_fsl+fsl", "binomial+fsl", "average+fsl+fsl"):
        with pytest.raises(InputError, match=r"variant: expected \+fsl after one that has no such loss yet"):
            find_variant(name)
    for name in ("average+fslx", "seam+fsll"):
        with pytest.raises(InputError, match="variant: expected one of"):
            find_variant(name)


# One's own


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the source of a module that can be imported by its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return path

    return write


def test_a_pooling_of_ones_own_is_trained_by_eq_3(module: Any) -> None:
    module("pools_a", "def root_mean_square(cam):\n    return cam.square().mean((2, 3)).sqrt()\n")
    name = find_variant("pools_a:root_mean_square").name
    (loss,) = loss_of("pools_a:root_mean_square").values()
    probability = class_activation_map(LOGITS).square().mean((2, 3)).sqrt()
    assert name == "pools_a.root_mean_square"
    assert loss.item() == pytest.approx(logarithmic_loss(probability, LABELS).item(), rel=1e-5)


def test_a_function_itself_is_a_pooling() -> None:
    assert find_pooling(log_sum_exp_pool) is log_sum_exp_pool
    assert find_pooling("wsss_nb.log_sum_exp:log_sum_exp_pool") is log_sum_exp_pool


def test_a_parameter_named_logits_gets_them(module: Any) -> None:
    module("pools_b", "def average(logits):\n    return logits.mean((2, 3))\n")
    (loss,) = loss_of("pools_b:average").values()
    expected = F.binary_cross_entropy_with_logits(LOGITS.mean((2, 3)), LABELS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_term_of_ones_own_is_added(module: Any) -> None:
    module("terms_a", "def squares(cam, image, labels):\n    return (cam.square() * labels[:, :, None, None]).mean()\n")
    losses = loss_of("lambda0", "cam.extra_loss=terms_a:squares")
    expected = (class_activation_map(LOGITS).square() * LABELS[:, :, None, None]).mean()
    assert losses["terms_a:squares"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(losses) == {"classification", "terms_a:squares"}


def test_a_loss_term_of_ones_own_is_named_in_every_title_but_seams(module: Any) -> None:
    module("terms_b", "def squares(cam, image, labels):\n    return cam.square().mean()\n")
    grid = load_profile("quick", "cam.extra_loss=terms_b:squares").grid()
    assert grid["lambda1_fsl"].title == "sampling (λ = 1) + FSL + squares" and grid["seam"].title == "SEAM"


@pytest.mark.parametrize("result", ["cam.mean((1, 2, 3))", "1.0", "None"])
def test_a_loss_term_gives_a_scalar(module: Any, result: str) -> None:
    name = f"terms_c{abs(hash(result))}"
    module(name, f"def term(cam, image, labels):\n    return {result}\n")
    with pytest.raises(InputError, match=f"extra_loss: expected a scalar tensor of {name}:term, got"):
        loss_of("lambda0", f"cam.extra_loss={name}:term")


def test_an_edited_module_is_loaded_again(module: Any) -> None:
    """A notebook's kernel lives on while one edits; the hash in a step's key is that of what is computed."""
    path = module("pools_e", "def pool(cam):\n    return cam.amax((2, 3))\n")
    maps = class_activation_map(LOGITS)
    assert torch.equal(load_function("pools_e:pool")(maps), maps.amax((2, 3)))
    path.write_text("def pool(cam):\n    return cam.mean((2, 3)) + 0\n")
    assert torch.equal(load_function("pools_e:pool")(maps), maps.mean((2, 3)))


def test_the_hash_of_a_plugin_is_that_of_its_source(module: Any) -> None:
    path = module("pools_c", "def pool(cam):\n    return cam.amax((2, 3))\n")
    first = plugin_hash("pools_c:pool")
    path.write_text("def pool(cam):\n    return cam.mean((2, 3))\n")
    assert plugin_hash("pools_c:pool") != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:pool", "variant: expected module no_such_module to import, got ModuleNotFoundError"),
        ("math:no_such_function", "variant: expected a function no_such_function in math, got none"),
        ("math:pi", "variant: expected a function, got math:pi of type float"),
        ("a b:c", "variant: expected module:function, got 'a b:c'"),
    ],
)
def test_what_is_no_function(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_variant(name)


def test_a_compiled_function_without_a_signature_gets_the_maps() -> None:
    with pytest.raises(ValueError, match=r"pooling: expected a tensor \(B, K\) = \(2, 3\), got \(2, 3, 4, 5\)"):
        loss_of("torch:sigmoid")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return cam", r"\(B, K\) = \(2, 3\), got \(2, 3, 4, 5\)"),
        ("return cam.amax((2, 3)) + 1", r"in \[0, 1\]"),
        ("return 'text'", r"pooling: expected a tensor \(B, K\) = \(2, 3\), got \(\)"),
    ],
)
def test_what_a_pooling_returns_is_checked(module: Any, body: str, message: str) -> None:
    name = f"pools_d{abs(hash(body))}"
    module(name, f"def pool(cam):\n    {body}\n")
    with pytest.raises((ValueError, TypeError), match=message):
        loss_of(f"{name}:pool")
