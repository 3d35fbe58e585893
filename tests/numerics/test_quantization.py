from __future__ import annotations

import math

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchao.quantization.pt2e.observer import MinMaxObserver as PeerMinMax

from pt2q.ir.dtypes import (
    FLOAT8_DTYPES,
    INTEGER_DTYPES,
    dtype_bounds,
    is_per_channel,
    is_quantized_dtype,
    is_symmetric,
)
from pt2q.numerics.qparams import choose_qparams, symmetric_zero_point
from pt2q.numerics.rounding import dequantize, quantize, round_trip
from pt2q.numerics.sqnr import sqnr

qd = torch.ops.quantized_decomposed
AFFINE, SYMMETRIC = torch.per_tensor_affine, torch.per_tensor_symmetric
RANGES = [
    (torch.int8, -128, 127),
    (torch.int8, -127, 127),
    (torch.int8, -8, 7),
    (torch.uint8, 0, 255),
    (torch.uint8, 0, 15),
    (torch.int16, -32768, 32767),
    (torch.uint16, 0, 65535),
    (torch.int32, -(2**31), 2**31 - 1),
]
SMALL_RANGES = RANGES[:-1]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def qparams(low: float, high: float, dtype: torch.dtype, a: int, b: int, scheme=AFFINE, eps=1e-7):
    return choose_qparams(
        torch.tensor([low]),
        torch.tensor([high]),
        quant_min=a,
        quant_max=b,
        dtype=dtype,
        qscheme=scheme,
        eps=eps,
    )


def test_bounds_and_kinds() -> None:
    assert dtype_bounds(torch.int8) == (-128, 127)
    assert dtype_bounds(torch.uint16) == (0, 65535)
    assert dtype_bounds(torch.float8_e4m3fn) == (-448.0, 448.0)
    assert all(is_quantized_dtype(dtype) for dtype in INTEGER_DTYPES + FLOAT8_DTYPES)
    assert not is_quantized_dtype(torch.float16)
    assert is_per_channel(torch.per_channel_affine) and not is_per_channel(AFFINE)
    assert is_symmetric(torch.per_channel_symmetric) and not is_symmetric(AFFINE)
    with pytest.raises(TypeError, match="float32"):
        dtype_bounds(torch.float32)


def test_symmetric_zero_point_is_the_middle() -> None:
    assert symmetric_zero_point(-128, 127, torch.int8) == 0
    assert symmetric_zero_point(0, 255, torch.uint8) == 128
    assert symmetric_zero_point(0, 15, torch.uint8) == 7
    assert symmetric_zero_point(0, 65535, torch.uint16) == 2**15


@pytest.mark.parametrize("dtype, a, b", RANGES)
@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC])
@settings(max_examples=40, deadline=None)
@given(low=finite, high=finite)
def test_qparams_are_always_usable(dtype, a, b, scheme, low, high) -> None:
    low, high = min(low, high), max(low, high)
    scale, zero_point = qparams(low, high, dtype, a, b, scheme)
    assert scale.dtype == torch.float32 and zero_point.dtype == torch.int64
    assert math.isfinite(float(scale)) and math.isfinite(1 / float(scale)) and float(scale) >= 1e-7
    assert a <= int(zero_point) <= b


@pytest.mark.parametrize("dtype, a, b", SMALL_RANGES)
@settings(max_examples=40, deadline=None)
@given(low=finite, high=finite)
def test_affine_range_is_covered(dtype, a, b, low, high) -> None:
    low, high = min(low, high, 0.0), max(low, high, 0.0)
    scale, zero_point = (float(v) for v in qparams(low, high, dtype, a, b))
    slack = scale * (0.5 + 1e-3) + 1e-6 * max(-low, high)
    assert (a - zero_point) * scale <= low + slack
    assert (b - zero_point) * scale >= high - slack


@pytest.mark.parametrize("dtype, a, b", SMALL_RANGES[:6])
@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC])
def test_qparams_agree_with_the_peer(dtype, a, b, scheme) -> None:
    full = (a, b) == dtype_bounds(dtype)
    for _ in range(50):
        x = torch.randn(17) * 10 ** torch.randint(-4, 5, (1,)) + torch.randn(1)
        bounds = {} if full and dtype == torch.uint8 else {"quant_min": a, "quant_max": b}
        peer = PeerMinMax(dtype=dtype, qscheme=scheme, **bounds)
        peer(x)
        eps = torch.finfo(torch.float32).eps
        scale, zero_point = qparams(float(x.min()), float(x.max()), dtype, a, b, scheme, eps)
        expected = peer.calculate_qparams()
        assert torch.equal(scale, expected[0]) and torch.equal(zero_point, expected[1].long())


def test_huge_tiny_and_constant_ranges() -> None:
    big = torch.finfo(torch.float32).max
    scale, zero_point = qparams(-big, big, torch.int8, -128, 127)
    assert float(scale) == pytest.approx(2 * big / 255) and int(zero_point) in (-1, 0)
    scale, _ = qparams(-1e-30, 1e-30, torch.int8, -128, 127, eps=2**-12)
    assert float(scale) == 2**-12
    scale, zero_point = qparams(0.0, 0.0, torch.uint8, 0, 255, eps=0.0)
    assert 0 < float(scale) < 1e-37 and int(zero_point) == 0
    scale, zero_point = qparams(5.0, 5.0, torch.int8, -128, 127)
    value = round_trip(torch.tensor([5.0]), scale, zero_point, -128, 127, torch.int8)
    assert float(value) == pytest.approx(5.0)


def test_float8_scale_maps_the_largest_value_to_the_largest_float8() -> None:
    scale, zero_point = qparams(-896.0, 10.0, torch.float8_e4m3fn, -448, 448)
    assert float(scale) == 2.0 and int(zero_point) == 0


def test_float_zero_point_scheme() -> None:
    scale, zero_point = choose_qparams(
        torch.tensor([1.0, -1.0]),
        torch.tensor([16.0, 2.0]),
        quant_min=0,
        quant_max=15,
        dtype=torch.uint8,
        qscheme=torch.per_channel_affine_float_qparams,
    )
    assert torch.equal(scale, torch.tensor([1.0, 0.2]))
    assert torch.allclose(zero_point, torch.tensor([-1.0, 5.0]))


def test_empty_range_of_integers_is_an_error() -> None:
    with pytest.raises(ValueError, match="quant_min < quant_max"):
        qparams(0.0, 1.0, torch.int8, 3, 3)


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype, a, b", RANGES + [(d, -200, 200) for d in FLOAT8_DTYPES])
def test_per_tensor_is_bit_identical_to_the_operators(dtype, a, b, source) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        x = (torch.randn(3, 50) * 10 ** torch.randint(-3, 3, (1,))).to(source)
        scale = float(torch.rand(1)) * 0.1 + 1e-4
        zero_point = 0 if a == -(2**31) or dtype in FLOAT8_DTYPES else (a + b) // 2 + seed % 5 - 2
        for s, z in (
            (scale, zero_point),
            (torch.tensor([scale]), torch.tensor([zero_point])),
        ):
            expected = qd.quantize_per_tensor(x, float(s), zero_point, a, b, dtype)
            got = quantize(x, s, z, a, b, dtype)
            assert got.dtype == dtype and torch.equal(got.float(), expected.float())
            for out in (torch.float32, torch.bfloat16):
                real = qd.dequantize_per_tensor(
                    expected, float(s), zero_point, a, b, dtype, out_dtype=out
                )
                same = dequantize(got, s, z, a, b, dtype, out_dtype=out)
                assert torch.equal(same, real) and same.dtype == out
            float_real = qd.dequantize_per_tensor(expected, float(s), zero_point, a, b, dtype)
            assert torch.equal(round_trip(x, s, z, a, b, dtype), float_real)


# The operators have no uint16 per channel: torch cannot add uint16 and int64.
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype, a, b", [r for r in RANGES if r[0] != torch.uint16])
def test_per_channel_is_bit_identical_to_the_operators(dtype, a, b, axis) -> None:
    x = torch.randn(4, 5, 6)
    scale = torch.rand(x.shape[axis]) * 0.1 + 1e-3
    middle = 0 if dtype == torch.int32 else (a + b) // 2
    zero_point = torch.randint(-3, 3, scale.shape) + middle
    expected = qd.quantize_per_channel(x, scale, zero_point, axis, a, b, dtype)
    got = quantize(x, scale, zero_point, a, b, dtype, axis)
    assert torch.equal(got.long(), expected.long())
    real = qd.dequantize_per_channel(expected, scale, zero_point, axis, a, b, dtype)
    assert torch.equal(dequantize(got, scale, zero_point, a, b, dtype, axis), real)
    assert torch.equal(round_trip(x, scale, zero_point, a, b, dtype, axis), real)


def test_rounding_is_half_to_even_and_inputs_stay_untouched() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    before = x.clone()
    assert quantize(x, 1.0, 0, -8, 7, torch.int8).tolist() == [0, 2, 2, 0, -2]
    round_trip(x, 1.0, 0, -8, 7, torch.int8)
    assert torch.equal(x, before)
    q = torch.tensor([1, 2], dtype=torch.int8)
    dequantize(q, 0.5, 1, -8, 7, torch.int8)
    assert q.tolist() == [1, 2]


def test_wrong_dtypes_are_errors() -> None:
    with pytest.raises(TypeError, match="int64"):
        quantize(torch.arange(3), 1.0, 0, -8, 7, torch.int8)
    with pytest.raises(TypeError, match="uint8"):
        dequantize(torch.zeros(1, dtype=torch.uint8), 1.0, 0, -8, 7, torch.int8)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_error_is_at_most_half_a_step_inside_the_range(values: list[float]) -> None:
    x = torch.tensor(values)
    scale, zero_point = qparams(float(x.min()), float(x.max()), torch.int8, -128, 127)
    error = (round_trip(x, scale, zero_point, -128, 127, torch.int8) - x).abs().max()
    # The zero point is rounded, so that an end may lie half a step further out.
    assert float(error) <= float(scale) * 1.0001 + 1e-6


def test_sqnr() -> None:
    reference: Tensor = torch.tensor([3.0, 4.0])
    assert float(sqnr(reference, reference)) == math.inf
    assert float(sqnr(reference, reference * 1.1)) == pytest.approx(20.0, abs=1e-4)
    assert float(sqnr(torch.zeros(2), torch.ones(2))) == -math.inf


@pytest.mark.parametrize("axis", [0, 1, -1, None])
@pytest.mark.parametrize("shape", [(700, 800), (3, 200_000), (70, 80, 10, 10)])
def test_large_tensors_are_quantized_part_by_part(shape: tuple[int, ...], axis: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    size = 1 if axis is None else shape[axis]
    scale, zero_point = torch.rand(size) + 0.01, torch.randint(-9, 9, (size,))
    arguments = scale, zero_point, -100, 100, torch.int8
    found = quantize(x, *arguments, axis)
    if axis is None:
        expected = qd.quantize_per_tensor(x, float(scale), int(zero_point), -100, 100, torch.int8)
    else:
        at = axis % x.dim()
        expected = qd.quantize_per_channel(x, scale, zero_point, at, -100, 100, torch.int8)
    assert torch.equal(found, expected) and found.stride() == x.stride()
    assert torch.equal(
        quantize(x.bfloat16(), *arguments, axis), quantize(x.bfloat16().float(), *arguments, axis)
    )
