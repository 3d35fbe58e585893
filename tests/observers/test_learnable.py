"""Learned steps, and parameters per group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pt2q
from pt2q.errors import SpecError
from pt2q.numerics import rounding
from pt2q.numerics.learned_step import learned_step, lsq_factor
from pt2q.numerics.straight_through import fake_quantize_groups
from pt2q.observers import (
    DerivedObserverOrFakeQuantize,
    GroupFakeQuantize,
    LearnableFakeQuantize,
    MinMaxObserver,
)

SYMMETRIC = {"qscheme": torch.per_tensor_symmetric, "quant_min": -127, "quant_max": 127}


def lsq_by_autograd(x, scale, zero_point, low, high, shape, share) -> torch.Tensor:
    """The formula of the paper, with `detach` for what has no gradient."""
    s = (scale * share + (scale - scale * share).detach()).reshape(shape)
    z = (zero_point * share + (zero_point - zero_point * share).detach()).reshape(shape)
    z = z + (z.round().clamp(low, high) - z).detach()
    v = x / s + z
    v = v.clamp(low, high)
    v = v + (v.round() - v).detach()
    return (v - z) * s


@pytest.mark.parametrize("share", [1.0, 1 / (36 * 7) ** 0.5])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_learned_step_gradients(axis: int | None, share: float) -> None:
    count, shape = (1, [1, 1]) if axis is None else (6, [6, 1] if axis == 0 else [1, 6])
    x = torch.randn(6, 6, dtype=torch.float64) * 3
    scale = torch.rand(count, dtype=torch.float64) * 0.2 + 0.05
    zero_point = torch.randint(-3, 4, (count,)).double()
    weights = torch.randn(6, 6, dtype=torch.float64)
    grads = []
    for function in (
        lambda *a: learned_step(*a, -8, 7, axis, share),
        lambda *a: lsq_by_autograd(*a, -8, 7, shape, share),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, scale, zero_point)]
        y = function(*leaves)
        y.backward(weights)
        grads.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_learned_step_against_the_operator_of_torch() -> None:
    x, scale, zero_point = torch.randn(500) * 3, torch.tensor([0.1]), torch.tensor([2.0])
    share = 1 / (500 * 7) ** 0.5
    grads = []
    for function in (
        lambda x, s, z: learned_step(x, s, z, -8, 7, None, lsq_factor(x, 7)),
        lambda x, s, z: torch._fake_quantize_learnable_per_tensor_affine(x, s, z, -8, 7, share),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, scale, zero_point)]
        function(*leaves).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_learning_starts_from_the_observed_range_and_lowers_the_error() -> None:
    torch.manual_seed(1)
    x = torch.randn(4096)
    bits = {**SYMMETRIC, "quant_min": -8, "quant_max": 7}
    fake = LearnableFakeQuantize(MinMaxObserver, use_grad_scaling=True, **bits)
    fake(x)
    start = fake.scale.detach().clone()
    torch.testing.assert_close(start, x.abs().amax().reshape(1) / 7.5)
    before = pt2q.sqnr(x, fake(x))
    fake.apply(pt2q.enable_range_learning)
    optimizer = torch.optim.SGD([fake.scale], lr=5.0)
    for _ in range(100):
        optimizer.zero_grad()
        (fake(x) - x).square().mean().backward()
        optimizer.step()
    assert fake.scale < start
    assert pt2q.sqnr(x, fake(x)) > before + 1


def test_groups_have_parameters_of_their_own() -> None:
    fake = GroupFakeQuantize(4, scale_dtype=torch.bfloat16)
    x = torch.randn(3, 12, requires_grad=True)
    y = fake(x)
    scale, zero_point = fake.calculate_qparams()
    assert scale.shape == zero_point.shape == (3, 3)
    assert torch.equal(scale, scale.bfloat16().float())
    expected = torch.cat(
        [
            rounding.round_trip(
                x[:, 4 * i : 4 * i + 4], scale[:, i], zero_point[:, i], -8, 7, torch.int8, 0
            )
            for i in range(3)
        ],
        1,
    )
    assert torch.equal(y, expected)
    y.sum().backward()
    assert x.grad.min() >= 0 and x.grad.max() == 1
    with pytest.raises(SpecError, match="multiple of 4"):
        fake(torch.randn(3, 10))


def test_groups_with_zero_points() -> None:
    x = torch.randn(2, 8)
    scale, zero_point = torch.rand(2, 2) + 0.1, torch.randint(-2, 3, (2, 2))
    y = fake_quantize_groups(x, scale, zero_point, -8, 7, 4)
    assert y.shape == x.shape and not torch.equal(y, x)


def test_derived_observers_are_switched_too() -> None:
    from support.qat_quantizer import QATQuantizer, prepare

    model = nn.Conv2d(3, 4, 3)
    prepared = prepare(model, torch.randn(2, 3, 5, 5), quantizer=QATQuantizer(bias=True))
    (derived,) = (m for m in prepared.modules() if isinstance(m, DerivedObserverOrFakeQuantize))
    prepared.apply(pt2q.disable_fake_quant)
    x = torch.randn(2, 3, 5, 5)
    assert not derived.fake_quant
    assert torch.equal(prepared(x), model(x))
