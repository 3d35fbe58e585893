"""How each quantized operator is written in ONNX.

ONNX's ``QuantizeLinear`` saturates at the bounds of its type; where a spec uses fewer integers a
``Clip`` stands before it. Per-token parameters have no operator in ONNX and are written out; see
`pt2q.deploy.onnx.rewrites` for dynamic quantization, 4-bit weights and embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op
from onnxscript import opset21

from pt2q.ir import ops

Translation = Callable[..., Any]

NEGLIGIBLE = 1e-6
"""A smallest scale up to this only guards against a division by 0, as ONNX does by itself."""


def translations() -> dict[Any, Translation]:
    """The table for ``torch.onnx.export``, by operator."""
    qd = ops.qd
    return {
        qd.quantize_per_tensor.default: _quantize,
        qd.dequantize_per_tensor.default: _dequantize,
        qd.quantize_per_tensor.tensor: _quantize_computed,
        qd.dequantize_per_tensor.tensor: _dequantize_computed,
        qd.quantize_per_channel.default: _quantize_channels,
        qd.dequantize_per_channel.default: _dequantize_channels,
        qd.dequantize_per_channel_group.default: _dequantize_groups,
        qd.choose_qparams.tensor: _choose,
        qd.choose_qparams_symmetric.tensor: _choose_symmetric,
        qd.choose_qparams_per_token_asymmetric.default: _choose_per_token,
        qd.quantize_per_token.default: _quantize_per_token,
        qd.dequantize_per_token.default: _dequantize_per_token,
    }


# ------------------------------------------------------------------ constants


def _number(value: float) -> Any:
    return op.Constant(value_float=float(value))


def _zero_point(value: float, dtype: int) -> Any:
    array = np.array(value, dtype=ir.DataType(dtype).numpy())
    return op.Constant(value=ir.tensor(array, dtype=ir.DataType(dtype)))


def _bounds(dtype: int) -> tuple[float, float] | None:
    """The least and the greatest integer of a type; None for floats."""
    kind = ir.DataType(dtype).numpy()
    if not np.issubdtype(kind, np.integer):
        return None
    return float(np.iinfo(kind).min), float(np.iinfo(kind).max)


def _is_narrower(low: float, high: float, dtype: int) -> bool:
    bounds = _bounds(dtype)
    return bounds is not None and (low > bounds[0] or high < bounds[1])


def _cast_out(value: Any, out_dtype: int | None) -> Any:
    return value if out_dtype in (None, -1, 1) else op.Cast(value, to=out_dtype)


# ------------------------------------------------------------------ static


def _quantize(
    input: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
) -> Any:
    if _is_narrower(quant_min, quant_max, dtype):
        low, high = (quant_min - zero_point) * scale, (quant_max - zero_point) * scale
        input = op.Clip(input, _number(low), _number(high))
    return op.QuantizeLinear(input, _number(scale), _zero_point(zero_point, dtype))


def _dequantize(
    input: Any,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> Any:
    value = op.DequantizeLinear(input, _number(scale), _zero_point(zero_point, dtype))
    return _cast_out(value, out_dtype)


def _quantize_channels(
    input: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
) -> Any:
    value = op.QuantizeLinear(input, scales, zero_points, axis=axis)
    if not _is_narrower(quant_min, quant_max, dtype):
        return value
    return op.Clip(value, _zero_point(quant_min, dtype), _zero_point(quant_max, dtype))


def _dequantize_channels(
    input: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> Any:
    return _cast_out(op.DequantizeLinear(input, scales, zero_points, axis=axis), out_dtype)


def _dequantize_groups(
    input: Any,
    scales: Any,
    zero_points: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    group_size: int = 256,
    output_dtype: int = 1,
) -> Any:
    value = opset21.DequantizeLinear(input, scales, zero_points, axis=1, block_size=group_size)
    return _cast_out(value, output_dtype)


# ------------------------------------------------------------------ dynamic, per tensor


def _choose(input: Any, quant_min: int, quant_max: int, eps: float, dtype: int) -> tuple[Any, Any]:
    """``DynamicQuantizeLinear`` counts in uint8; int8 is the same grid, 128 lower."""
    _, scale, zero_point = op.DynamicQuantizeLinear(input)
    if eps > NEGLIGIBLE:
        scale = op.Max(scale, _number(eps))
    if ir.DataType(dtype) == ir.DataType.INT8:
        wide = op.Cast(zero_point, to=ir.DataType.INT32)
        shifted = op.Sub(wide, op.Constant(value=ir.tensor(np.array(128, dtype=np.int32))))
        zero_point = op.Cast(shifted, to=dtype)
    return scale, zero_point


def _choose_symmetric(
    input: Any, quant_min: int, quant_max: int, eps: float, dtype: int
) -> tuple[Any, Any]:
    largest = op.ReduceMax(op.Abs(input), keepdims=0)
    scale = op.Max(op.Div(largest, _number((quant_max - quant_min) / 2)), _number(eps))
    return scale, _zero_point(0, dtype)


def _quantize_computed(
    input: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: int
) -> Any:
    return op.QuantizeLinear(input, scale, zero_point)


def _dequantize_computed(
    input: Any,
    scale: Any,
    zero_point: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> Any:
    return _cast_out(op.DequantizeLinear(input, scale, zero_point), out_dtype)


# ------------------------------------------------------------------ dynamic, per token


def _choose_per_token(input: Any, dtype: int) -> tuple[Any, Any]:
    """``scale = (high - low) / (Q - q)``; the zero point from the end with the smaller error."""
    bounds = _bounds(dtype)
    assert bounds is not None
    least, greatest = bounds
    axes = op.Constant(value_ints=[-1])
    zero = _number(0.0)
    low = op.Min(op.ReduceMin(input, axes, keepdims=1), zero)
    high = op.Max(op.ReduceMax(input, axes, keepdims=1), zero)
    span = op.Div(op.Sub(high, low), _number(greatest - least))
    scale = op.Max(span, _number(float(np.finfo(np.float32).eps)))
    below, above = op.Div(low, scale), op.Div(high, scale)
    error = op.Add(op.Add(_number(least), below), op.Add(_number(greatest), above))
    from_low, from_high = op.Sub(_number(least), below), op.Sub(_number(greatest), above)
    zero_point = op.Where(op.Greater(error, zero), from_low, from_high)
    return scale, op.Round(op.Clip(zero_point, _number(least), _number(greatest)))


def _quantize_per_token(
    input: Any, scales: Any, zero_points: Any, quant_min: int, quant_max: int, dtype: int
) -> Any:
    steps = op.Round(op.Add(op.Div(input, scales), zero_points))
    return op.Cast(op.Clip(steps, _number(quant_min), _number(quant_max)), to=dtype)


def _dequantize_per_token(
    input: Any,
    scales: Any,
    zero_points: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    output_dtype: int = 1,
) -> Any:
    steps = op.Sub(op.Cast(input, to=ir.DataType.FLOAT), zero_points)
    return _cast_out(op.Mul(steps, scales), output_dtype)
