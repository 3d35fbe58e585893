"""Parameters per token, which have no operator in ONNX and are written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op

from pt2q.deploy.onnx.translation.constants import bounds_of, cast_out, number


def choose(input: Any, dtype: int) -> tuple[Any, Any]:
    """``scale = (high - low) / (Q - q)``; the zero point from the end with the smaller error."""
    bounds = bounds_of(dtype)
    assert bounds is not None
    least, greatest = bounds
    axes = op.Constant(value_ints=[-1])
    zero = number(0.0)
    low = op.Min(op.ReduceMin(input, axes, keepdims=1), zero)
    high = op.Max(op.ReduceMax(input, axes, keepdims=1), zero)
    span = op.Div(op.Sub(high, low), number(greatest - least))
    scale = op.Max(span, number(float(np.finfo(np.float32).eps)))
    below, above = op.Div(low, scale), op.Div(high, scale)
    error = op.Add(op.Add(number(least), below), op.Add(number(greatest), above))
    from_low, from_high = op.Sub(number(least), below), op.Sub(number(greatest), above)
    zero_point = op.Where(op.Greater(error, zero), from_low, from_high)
    return scale, op.Round(op.Clip(zero_point, number(least), number(greatest)))


def quantize(
    input: Any, scales: Any, zero_points: Any, quant_min: int, quant_max: int, dtype: int
) -> Any:
    """The nearest whole step within the range."""
    steps = op.Round(op.Add(op.Div(input, scales), zero_points))
    return op.Cast(op.Clip(steps, number(quant_min), number(quant_max)), to=dtype)


def dequantize(
    input: Any,
    scales: Any,
    zero_points: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    output_dtype: int = 1,
) -> Any:
    """Steps from the zero point, in the unit of each token."""
    steps = op.Sub(op.Cast(input, to=ir.DataType.FLOAT), zero_points)
    return cast_out(op.Mul(steps, scales), output_dtype)
