"""Observers: how they are made and what they observe."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.observing import COLLECTING, PER_CHANNEL, PER_TENSOR, same, seen
from torchao.quantization.pt2e import observer as peers

from pt2q.errors import NoDataError, NonFiniteActivationError
from pt2q.observers import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)

INF = float("inf")


@pytest.mark.parametrize("cls", [*COLLECTING, PlaceholderObserver, NoopObserver])
def test_constructor_is_a_value(cls) -> None:
    made = cls.with_args(dtype=torch.uint8, eps=2**-12)
    assert made == cls.with_args(eps=2**-12).with_args(dtype=torch.uint8)
    assert made != cls.with_args(dtype=torch.uint8)
    assert hash(made) == hash(copy.deepcopy(made)) and pickle.loads(pickle.dumps(made)) == made
    observer = made(quant_min=1)
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.uint8, 1, 255)
    assert observer.eps == 2**-12 and "uint8" in repr(observer) and "uint8" in repr(made)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"bits": 8}, TypeError),
        ({"dtype": torch.int64}, TypeError),
        ({"dtype": torch.float16}, TypeError),
        ({"quant_min": 5, "quant_max": 5}, ValueError),
        ({"quant_max": 200}, ValueError),
        ({"qscheme": torch.per_channel_affine}, ValueError),
    ],
)
def test_wrong_arguments_are_errors(arguments, error) -> None:
    with pytest.raises(error):
        MinMaxObserver(**arguments)


def test_more_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="per-channel"):
        PerChannelMinMaxObserver(qscheme=torch.per_tensor_affine)
    with pytest.raises(ValueError, match="averaging_constant"):
        MovingAverageMinMaxObserver(averaging_constant=0.0)
    with pytest.raises(ValueError, match="power of two"):
        HistogramObserver(bins=100)
    with pytest.raises(ValueError, match="zero point"):
        FixedQParamsObserver(scale=1.0, zero_point=300)


def test_observers_that_need_no_data() -> None:
    fixed = FixedQParamsObserver(dtype=torch.uint8, scale=1 / 256, zero_point=3)
    assert fixed.has_data
    assert same(fixed.calculate_qparams(), (torch.tensor([1 / 256]), torch.tensor([3])))
    half = PlaceholderObserver(dtype=torch.float16)
    assert half.quant_min is None and half.quant_max is None and half.has_data
    dynamic = PlaceholderObserver(dtype=torch.int8, is_dynamic=True, per_token=True)
    assert (dynamic.per_token, dynamic.quant_min) == (True, -128)
    x = torch.arange(3)
    assert dynamic(x) is x  # whatever passes: nothing is observed
    with pytest.raises(NoDataError, match="run time"):
        dynamic.calculate_qparams()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("cls", [MinMaxObserver, MovingAverageMinMaxObserver])
def test_per_tensor_agrees_with_the_peer(cls, dtype, symmetric) -> None:
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    ours = cls(dtype=dtype, qscheme=scheme)
    peer = getattr(peers, cls.__name__)(dtype=dtype, qscheme=scheme)
    for index in range(5):
        x = torch.randn(4, 5) * (index + 1)
        ours(x), peer(x)
    expected = peer.calculate_qparams()
    assert same(ours.calculate_qparams(), (expected[0], expected[1].long()))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("cls", PER_CHANNEL)
def test_per_channel_agrees_with_the_peer(cls, axis) -> None:
    for scheme in (torch.per_channel_symmetric, torch.per_channel_affine):
        arguments = {"qscheme": scheme, "quant_min": -127, "quant_max": 127, "dtype": torch.int8}
        ours = cls(**arguments, ch_axis=axis)
        peer = getattr(peers, cls.__name__)(**arguments, ch_axis=axis % 3)
        for _ in range(3):
            x = torch.randn(3, 4, 5)
            ours(x), peer(x)
        expected = peer.calculate_qparams()
        assert same(ours.calculate_qparams(), (expected[0], expected[1].long()))


@pytest.mark.parametrize("cls", COLLECTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_do_not_enter_the_range(cls, dtype) -> None:
    x = torch.randn(4, 6).to(dtype)
    masked = torch.cat([x, torch.full((4, 2), -INF).to(dtype)], 1)
    lowest = torch.full((4, 2), torch.finfo(dtype).min).to(dtype)
    masked = torch.cat([masked, lowest, lowest + torch.ones(4, 2).to(dtype), -lowest], 1)
    assert same(seen(cls(), masked), seen(cls(), x))


@pytest.mark.parametrize("cls", COLLECTING)
def test_nothing_but_masks_is_no_data(cls) -> None:
    observer = cls()
    observer(torch.full((3, 3), -INF))
    observer(torch.empty(0, 3))
    assert not observer.has_data
    observer.node_name = "softmax_3"
    with pytest.raises(NoDataError, match="softmax_3"):
        observer.calculate_qparams()


@pytest.mark.parametrize("cls", COLLECTING)
def test_nan_is_an_error_that_names_the_node(cls) -> None:
    observer = cls()
    observer.node_name = "layer_norm_7"
    observer(torch.randn(2, 3))
    with pytest.raises(NonFiniteActivationError, match="layer_norm_7"):
        observer(torch.tensor([[1.0, float("nan")], [INF, 2.0]]))


@pytest.mark.parametrize("cls", COLLECTING)
@pytest.mark.parametrize("x", [torch.arange(4), torch.ones(2, dtype=torch.bool)])
def test_whole_numbers_are_an_error(cls, x) -> None:
    with pytest.raises(TypeError, match=str(x.dtype)):
        cls()(x)


@pytest.mark.parametrize("cls", PER_TENSOR)
@pytest.mark.parametrize(
    "x", [torch.tensor(2.5), torch.tensor([[-3.0]]), torch.full((9,), 0.1), torch.zeros(5)]
)
def test_single_and_constant_values_are_kept(cls, x) -> None:
    scale, zero_point = seen(cls(), x)
    value = (torch.round(x / scale) + zero_point).clamp(-128, 127).sub(zero_point).mul(scale)
    assert scale.shape == (1,) and torch.allclose(value, x, rtol=1e-2)


@pytest.mark.parametrize("cls", COLLECTING)
@pytest.mark.parametrize("factor", [1e-38, 1e-30, 1e30, 1e37])
def test_tiny_and_huge_values(cls, factor) -> None:
    scale, zero_point = seen(cls(eps=1e-37), torch.randn(4, 50) * factor, torch.zeros(4, 50))
    assert torch.isfinite(scale).all() and torch.isfinite(1 / scale).all()
    assert bool(((zero_point >= -128) & (zero_point <= 127)).all())


def test_eps_bounds_the_scale() -> None:
    for cls in COLLECTING:
        scale, _ = seen(cls(eps=2**-12), torch.randn(3, 40) * 1e-6)
        assert torch.equal(scale, torch.full_like(scale, 2**-12))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("cls", COLLECTING)
def test_float8(cls, dtype) -> None:
    scale, zero_point = seen(cls(dtype=dtype), torch.full((1, 4), -7.0))
    assert torch.allclose(scale, torch.tensor(7.0) / torch.finfo(dtype).max)
    assert not zero_point.any()


def test_int32_covers_the_range() -> None:
    scale, _ = seen(HistogramObserver(dtype=torch.int32, eps=0.0), torch.tensor([-1.0, 3.0]))
    assert float(scale) == pytest.approx(4 / (2**32 - 1))


@pytest.mark.parametrize("cls", COLLECTING)
def test_observer_leaves_gradients_and_inference_mode_alone(cls) -> None:
    observer = cls()
    x = torch.randn(3, 4, requires_grad=True)
    observer(x).sum().backward()
    assert x.grad is not None
    with torch.inference_mode():
        observer(torch.randn(3, 4) * 5)
    observer(torch.randn(3, 4) * 9)
    scale, _ = observer.calculate_qparams()
    assert not scale.requires_grad and not scale.is_inference()
    assert not any(buffer.is_inference() for buffer in observer.buffers())
