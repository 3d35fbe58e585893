"""Parameters per tensor that are found at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op

from pt2q.deploy.onnx.translation.constants import cast_out, number, zero_point_of

NEGLIGIBLE = 1e-6
"""A smallest scale up to this only guards against a division by 0, as ONNX does by itself."""


def choose(input: Any, quant_min: int, quant_max: int, eps: float, dtype: int) -> tuple[Any, Any]:
    """``DynamicQuantizeLinear`` counts in uint8; int8 is the same grid, 128 lower."""
    _, scale, zero_point = op.DynamicQuantizeLinear(input)
    if eps > NEGLIGIBLE:
        scale = op.Max(scale, number(eps))
    if ir.DataType(dtype) == ir.DataType.INT8:
        wide = op.Cast(zero_point, to=ir.DataType.INT32)
        shifted = op.Sub(wide, op.Constant(value=ir.tensor(np.array(128, dtype=np.int32))))
        zero_point = op.Cast(shifted, to=dtype)
    return scale, zero_point


def choose_symmetric(
    input: Any, quant_min: int, quant_max: int, eps: float, dtype: int
) -> tuple[Any, Any]:
    """Symmetric: the largest magnitude is the end of the range."""
    largest = op.ReduceMax(op.Abs(input), keepdims=0)
    scale = op.Max(op.Div(largest, number((quant_max - quant_min) / 2)), number(eps))
    return scale, zero_point_of(0, dtype)


def quantize(
    input: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: int
) -> Any:
    """With parameters that are computed."""
    return op.QuantizeLinear(input, scale, zero_point)


def dequantize(
    input: Any,
    scale: Any,
    zero_point: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> Any:
    """With parameters that are computed."""
    return cast_out(op.DequantizeLinear(input, scale, zero_point), out_dtype)
