"""Fake quantizers have the bits of the operators."""

from __future__ import annotations

import pytest
import torch
import torch.ao.quantization as tq
from hypothesis import given, settings
from hypothesis import strategies as st

import pt2q
from pt2q.errors import NonFiniteActivationError
from pt2q.numerics import rounding
from pt2q.numerics.straight_through import fake_quantize
from pt2q.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)

AFFINE = {"qscheme": torch.per_tensor_affine, "quant_min": -128, "quant_max": 127}


SYMMETRIC = {"qscheme": torch.per_tensor_symmetric, "quant_min": -127, "quant_max": 127}


CHANNEL = {
    "qscheme": torch.per_channel_symmetric,
    "ch_axis": 0,
    "quant_min": -127,
    "quant_max": 127,
}


FOUR_BITS = {**CHANNEL, "quant_min": -8, "quant_max": 7}


def pull(module, x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(weights)
    return y.detach(), x.grad


@given(
    st.floats(1e-4, 30.0),
    st.integers(-128, 127),
    st.integers(0, 2**31),
    st.booleans(),
    st.sampled_from([(-128, 127), (-127, 127), (-8, 7), (0, 255)]),
)
@settings(max_examples=60, deadline=None)
def test_sweeps_have_the_bits_of_the_operator(scale, zero_point, seed, halves, bounds) -> None:
    """Forward and gradient, also at and next to the points where rounding turns."""
    low, high = bounds
    zero_point = min(max(zero_point, low), high)
    torch.manual_seed(seed)
    s, z = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)
    x = torch.randn(4096) * s * 150
    if halves:
        x[:3000] = (torch.randint(-300, 300, (3000,)) + 0.5) * s
        x[:1000] = torch.nextafter(x[:1000], torch.tensor(torch.inf))
        x[1000:2000] = torch.nextafter(x[1000:2000], torch.tensor(-torch.inf))
    weights = torch.randn(4096)
    ours = pull(lambda x: fake_quantize(x, s, z, low, high), x, weights)
    theirs = pull(lambda x: torch.fake_quantize_per_tensor_affine(x, s, z, low, high), x, weights)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_sweeps_per_channel_have_the_bits_of_the_operator(axis: int) -> None:
    x, weights = torch.randn(6, 6, 6) * 30, torch.randn(6, 6, 6)
    s, z = torch.rand(6) + 0.05, torch.zeros(6, dtype=torch.int32)
    ours = pull(lambda x: fake_quantize(x, s, z, -8, 7, axis), x, weights)
    theirs = pull(
        lambda x: torch.fake_quantize_per_channel_affine(x, s, z, axis % 3, -8, 7), x, weights
    )
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_zero_points_per_channel() -> None:
    x, s = torch.randn(4, 8) * 9, torch.rand(4) + 0.05
    z = torch.tensor([-3, 0, 2, 5], dtype=torch.int32)
    y, grad = pull(lambda x: fake_quantize(x, s, z, -8, 7, 0), x, torch.ones(4, 8))
    assert torch.equal(y, rounding.round_trip(x, s, z, -8, 7, torch.int8, 0))
    q = (x / s[:, None]).round() + z[:, None]
    assert torch.equal(grad, ((q >= -8) & (q <= 7)).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_kept(dtype: torch.dtype) -> None:
    x = torch.randn(3000, dtype=dtype, requires_grad=True)
    y = fake_quantize(x, torch.tensor([0.1]), torch.zeros(1, dtype=torch.int32), -128, 127)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype


@pytest.mark.parametrize("constant", [0.01, 1.0])
@pytest.mark.parametrize("options", [AFFINE, SYMMETRIC, CHANNEL, FOUR_BITS])
def test_fused_has_the_bits_of_torch(options: dict, constant: float) -> None:
    channel = "ch_axis" in options
    theirs = tq.FusedMovingAvgObsFakeQuantize(
        observer=tq.MovingAveragePerChannelMinMaxObserver
        if channel
        else tq.MovingAverageMinMaxObserver,
        dtype=torch.qint8,
        averaging_constant=constant,
        **options,
    )
    ours = FusedMovingAvgObsFakeQuantize(
        observer=MovingAveragePerChannelMinMaxObserver if channel else MovingAverageMinMaxObserver,
        averaging_constant=constant,
        **options,
    )
    for _ in range(6):
        x = torch.randn(16, 300) * 10 ** float(torch.randn(1))
        weights = torch.randn_like(x)
        a, b = pull(ours, x, weights), pull(theirs, x, weights)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert torch.equal(ours.scale, theirs.scale)
        assert torch.equal(ours.zero_point, theirs.zero_point)
        assert torch.equal(ours.calculate_qparams()[0], ours.scale)


@pytest.mark.parametrize("options", [SYMMETRIC, CHANNEL, FOUR_BITS])
def test_symmetric_parameters_are_symmetric_whatever_the_sign(options: dict) -> None:
    channel = "ch_axis" in options
    observer = MovingAveragePerChannelMinMaxObserver if channel else MovingAverageMinMaxObserver
    for x in (torch.rand(5, 9), -torch.rand(5, 9), torch.zeros(5, 9), torch.full((5, 9), 1e-30)):
        fake = FusedMovingAvgObsFakeQuantize(observer, **options)
        assert pt2q.sqnr(x, fake(x)) > 15 or x.abs().max() < 1e-3
        scale, zero_point = fake.calculate_qparams()
        assert (zero_point == 0).all() and (scale > 0).all() and torch.isfinite(scale).all()


@pytest.mark.parametrize("options", [AFFINE, SYMMETRIC])
def test_plain_has_the_bits_of_torch(options: dict) -> None:
    theirs = tq.FakeQuantize(tq.MovingAverageMinMaxObserver, dtype=torch.qint8, **options)
    ours = FakeQuantize(MovingAverageMinMaxObserver, **options)
    for _ in range(4):
        x = torch.randn(64, 64) * 3
        weights = torch.randn_like(x)
        a, b = pull(ours, x, weights), pull(theirs, x, weights)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("observer", [MinMaxObserver, HistogramObserver])
def test_any_observer_can_be_trained_with(observer: type) -> None:
    fake = FakeQuantize(observer, **AFFINE)
    x = torch.randn(2000)
    expected = rounding.round_trip(x, *observer_qparams(observer, x), -128, 127, torch.int8)
    assert torch.equal(fake(x), expected)


def observer_qparams(observer: type, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    alone = observer(**AFFINE)
    alone(x)
    return alone.calculate_qparams()


def test_eps_is_the_smallest_scale() -> None:
    fake = FusedMovingAvgObsFakeQuantize(eps=2**-12, **SYMMETRIC)
    fake(torch.full((4,), 1e-6))
    assert fake.calculate_qparams()[0] == 2**-12


def test_float8_and_int32() -> None:
    x = torch.randn(100, requires_grad=True)
    for dtype in (torch.float8_e4m3fn, torch.int32):
        fake = FakeQuantize(MinMaxObserver, dtype=dtype, qscheme=torch.per_tensor_symmetric)
        fake(x).sum().backward()
        assert pt2q.sqnr(x, fake(x)) > 20
    assert torch.equal(x.grad, torch.full((100,), 2.0))


def test_dynamic_forgets_the_last_input() -> None:
    for kind in (FakeQuantize, FusedMovingAvgObsFakeQuantize):
        fake = kind(is_dynamic=True, averaging_constant=1.0, **AFFINE)
        fake(torch.linspace(-100, 100, 50))
        fake(torch.linspace(-1, 1, 50))
        torch.testing.assert_close(fake.scale, torch.tensor([2 / 255]))


def test_masks_and_nan() -> None:
    fake = FusedMovingAvgObsFakeQuantize(**AFFINE)
    fake(torch.tensor([-torch.inf, torch.finfo(torch.float32).min, -1.0, 2.0]))
    torch.testing.assert_close(fake.scale, torch.tensor([3 / 255]))
    fake(torch.full((3,), -torch.inf))
    assert torch.isfinite(fake.scale).all()
    fake.node_name = "softmax"
    with pytest.raises(NonFiniteActivationError, match="softmax"):
        fake(torch.tensor([torch.nan]))


def kept(call) -> list[torch.Tensor]:
    """What a call keeps for the backward pass."""
    found: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        call()
    return found


@pytest.mark.parametrize("observing", [True, False])
@pytest.mark.parametrize("options", [AFFINE, CHANNEL])
def test_nothing_is_kept_where_nothing_is_clamped(options: dict, observing: bool) -> None:
    channel = "ch_axis" in options
    observer = MovingAveragePerChannelMinMaxObserver if channel else MovingAverageMinMaxObserver
    fake = FusedMovingAvgObsFakeQuantize(observer=observer, **options)
    x = torch.randn(16, 300)
    fake(3 * x)
    fake.enable_observer(observing)
    weights = torch.randn_like(x)
    assert torch.equal(pull(fake, x, weights)[1], weights)
    assert not kept(lambda: fake(x.clone().requires_grad_()))
    outside = (4 * x).requires_grad_()
    assert kept(lambda: fake(outside))
    y, grad = pull(fake, outside.detach(), weights)
    operator = torch.fake_quantize_per_channel_affine if channel else None
    arguments = (0, -127, 127) if channel else (-128, 127)
    theirs = pull(
        lambda x: (operator or torch.fake_quantize_per_tensor_affine)(
            x, fake.scale, fake.zero_point, *arguments
        ),
        outside.detach(),
        weights,
    )
    assert torch.equal(y, theirs[0]) and torch.equal(grad, theirs[1])
