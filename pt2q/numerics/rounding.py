"""Quantize and dequantize as pure functions.

``quantize``, ``dequantize`` and ``round_trip`` give, bit for bit, what the
``quantized_decomposed`` operators of a converted graph give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pt2q.numerics.broadcasting import shape_along
from pt2q.numerics.parts import row_parts


def _broadcastable(value: Tensor | float, x: Tensor, ch_axis: int | None) -> Tensor | float:
    """Shape per-channel parameters ``[C]`` to line up with axis ``ch_axis`` of ``x``."""
    if not isinstance(value, Tensor):
        return value
    if ch_axis is None:
        return value.reshape(())
    return value.to(x.device).view(shape_along(ch_axis, x.dim()))


def _check_input(x: Tensor) -> Tensor:
    """Return ``x`` in float32, which is what the operators compute in."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.to(torch.float32)
    if x.dtype != torch.float32:
        raise TypeError(f"expected a float32, float16 or bfloat16 tensor, found {x.dtype}")
    return x


def _levels(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    quant_min: int | float,
    quant_max: int | float,
    ch_axis: int | None,
) -> Tensor:
    """Return ``clamp(round(x * (1 / scale)) + zero_point)`` as float32: a new tensor.

    The operators multiply by the reciprocal, which is not the same number as a division gives.
    """
    x = _check_input(x)
    inverse = 1.0 / _broadcastable(scale, x, ch_axis)
    offset = _broadcastable(zero_point, x, ch_axis)
    return (x * inverse).round_().add_(offset).clamp_(quant_min, quant_max)


def quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    quant_min: int | float,
    quant_max: int | float,
    dtype: torch.dtype,
    ch_axis: int | None = None,
) -> Tensor:
    """Return ``q = clamp(round(x / scale) + zero_point, quant_min, quant_max)`` as ``dtype``.

    Rounding is half to even. Bit-identical to ``quantized_decomposed.quantize_per_tensor`` and,
    with a ``ch_axis``, to ``quantize_per_channel``; so float8 values are rounded to integers too,
    and int32 saturates only below 2 ** 31 - 128, the largest such float32.

    Args:
        x: Real values of any shape, float32 (float16 and bfloat16 are converted).
        scale: One number, or ``[C]`` with ``ch_axis``.
        zero_point: One integer, or ``[C]`` with ``ch_axis``.
        quant_min: Smallest integer in use.
        quant_max: Largest integer in use.
        dtype: Type of the result.
        ch_axis: Axis of ``x`` that the parameters run along, or ``None`` for per tensor.

    Raises:
        TypeError: ``x`` is of another dtype.
    """
    parts = row_parts(x)
    if not parts:
        return _levels(x, scale, zero_point, quant_min, quant_max, ch_axis).to(dtype)
    result = torch.empty_like(x, dtype=dtype)
    per_row = ch_axis is not None and ch_axis % x.dim() == 0
    for rows in parts:
        factor = scale[rows] if per_row and isinstance(scale, Tensor) else scale
        zero = zero_point[rows] if per_row and isinstance(zero_point, Tensor) else zero_point
        result[rows].copy_(_levels(x[rows], factor, zero, quant_min, quant_max, ch_axis))
    return result


def dequantize(
    q: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    quant_min: int | float,
    quant_max: int | float,
    dtype: torch.dtype,
    ch_axis: int | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return ``x = (q - zero_point) * scale`` as ``out_dtype``.

    Bit-identical to ``quantized_decomposed.dequantize_per_tensor`` and, with a ``ch_axis``, to
    ``dequantize_per_channel``. ``quant_min`` and ``quant_max`` are taken for symmetry with
    :func:`quantize` and have no influence.

    Args:
        q: Quantized values of any shape and of type ``dtype``.
        scale: One number, or ``[C]`` with ``ch_axis``.
        zero_point: One integer, or ``[C]`` with ``ch_axis``.
        quant_min: Not used.
        quant_max: Not used.
        dtype: Type of ``q``.
        ch_axis: Axis of ``q`` that the parameters run along, or ``None`` for per tensor.
        out_dtype: Type of the result.

    Raises:
        TypeError: ``q`` is not of type ``dtype``.
    """
    if q.dtype != dtype:
        raise TypeError(f"expected a tensor of {dtype}, found {q.dtype}")
    factor = _broadcastable(scale, q, ch_axis)
    offset = _broadcastable(zero_point, q, ch_axis)
    if ch_axis is None:
        # A number is multiplied in float32 even where the result is narrower; a tensor is not.
        factor = factor if out_dtype == torch.float32 else float(factor)
        return q.to(out_dtype, copy=True).sub_(offset).mul_(factor)
    if dtype == torch.int32:
        return ((q - offset) * factor).to(out_dtype)
    return q.to(torch.float32).sub_(offset).mul_(factor).to(out_dtype)


def round_trip(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    quant_min: int | float,
    quant_max: int | float,
    dtype: torch.dtype,
    ch_axis: int | None = None,
) -> Tensor:
    """Return ``dequantize(quantize(x))`` as float32 without leaving the floating point numbers.

    Bit-identical to the pair of operators; arguments as in :func:`quantize`.
    """
    if dtype not in (torch.int8, torch.uint8, torch.int16, torch.uint16):
        q = quantize(x, scale, zero_point, quant_min, quant_max, dtype, ch_axis)
        return dequantize(q, scale, zero_point, quant_min, quant_max, dtype, ch_axis)
    levels = _levels(x, scale, zero_point, quant_min, quant_max, ch_axis)
    offset = _broadcastable(zero_point, x, ch_axis)
    return levels.sub_(offset).mul_(_broadcastable(scale, x, ch_axis))
