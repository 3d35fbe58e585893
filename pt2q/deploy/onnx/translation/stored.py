"""Parameters that are stored."""

from __future__ import annotations

from typing import Any

from onnxscript import opset18 as op
from onnxscript import opset21

from pt2q.deploy.onnx.translation.constants import cast_out, is_narrower, number, zero_point_of


def quantize(
    input: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
) -> Any:
    """One scale for all of a tensor."""
    if is_narrower(quant_min, quant_max, dtype):
        low, high = (quant_min - zero_point) * scale, (quant_max - zero_point) * scale
        input = op.Clip(input, number(low), number(high))
    return op.QuantizeLinear(input, number(scale), zero_point_of(zero_point, dtype))


def dequantize(
    input: Any,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> Any:
    """One scale for all of a tensor."""
    value = op.DequantizeLinear(input, number(scale), zero_point_of(zero_point, dtype))
    return cast_out(value, out_dtype)


def quantize_channels(
    input: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
) -> Any:
    """A scale per channel."""
    value = op.QuantizeLinear(input, scales, zero_points, axis=axis)
    if not is_narrower(quant_min, quant_max, dtype):
        return value
    return op.Clip(value, zero_point_of(quant_min, dtype), zero_point_of(quant_max, dtype))


def dequantize_channels(
    input: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> Any:
    """A scale per channel."""
    return cast_out(op.DequantizeLinear(input, scales, zero_points, axis=axis), out_dtype)


def dequantize_groups(
    input: Any,
    scales: Any,
    zero_points: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    group_size: int = 256,
    output_dtype: int = 1,
) -> Any:
    """A scale per group of columns; opset 21."""
    value = opset21.DequantizeLinear(input, scales, zero_points, axis=1, block_size=group_size)
    return cast_out(value, output_dtype)
