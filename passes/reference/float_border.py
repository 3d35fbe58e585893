"""Into integers from float, and out of them: the only float arithmetic that is left."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.qparams import QParams
from pt2q.passes.reference.arithmetic import Arithmetic
from pt2q.passes.reference.values import Quantized, Sum, Term

aten = ops.aten


def to_float(emit: Arithmetic, value: Sum, dtype: torch.dtype) -> Node:
    """Write the dequantization of accumulators: the only float arithmetic that is left.

    ``clamp(sum_i accumulator_i * scale_i + constant, low, high)``.

    Args:
        emit: writes the nodes.
        value: what is wanted in float.
        dtype: its floating point type.
    """
    total: Node | None = None
    for term in value.terms:
        part = _real(emit, term)
        total = part if total is None else emit.add(total, part)
    assert total is not None
    if bool(value.constant.any()):
        total = emit.add(total, emit.number(value.constant.to(torch.float32), "bias"))
    low = None if math.isinf(value.low) else value.low
    high = None if math.isinf(value.high) else value.high
    if value.is_bounded:
        total = emit.call(aten.clamp.default, total, low, high)
    return emit.cast(total, dtype)


def _real(emit: Arithmetic, term: Term) -> Node:
    scale: Any = emit.number(term.scale.to(torch.float32), "scale")
    for factor in term.runtime:
        scale = emit.multiply(emit.cast(factor, torch.float32), scale)
    real = emit.multiply(emit.cast(term.node, torch.float32), scale)
    if term.summed is None:
        return real
    return emit.call(aten.sum.dim_IntList, real, [term.summed])


def quantize_float(emit: Arithmetic, node: Node, out: QParams) -> Node:
    """Write ``clamp(round(x * (1 / scale)) + zero_point, low, high)``: the way in from float.

    Args:
        emit: writes the nodes.
        node: the float value.
        out: any parameters but those per group.
    """
    rank = int(value_of(node).dim())
    inverse, zero_point = _inverse(emit, out, rank), _offset(emit, out, rank, torch.float32)
    scaled = emit.call(aten.mul.Tensor, emit.cast(node, torch.float32), inverse)
    rounded = emit.call(aten.round.default, scaled)
    shifted = emit.add(rounded, zero_point)
    clamped = emit.call(aten.clamp.default, shifted, out.quant_min, out.quant_max)
    return emit.cast(clamped, out.dtype)


def _inverse(emit: Arithmetic, out: QParams, rank: int) -> Node | int | float:
    if isinstance(out.scale, Node):
        scale = emit.cast(emit.along(out.scale, out, rank), torch.float32)
        return emit.call(aten.reciprocal.default, scale)
    if isinstance(out.scale, float):
        return 1.0 / out.scale
    inverse = torch.reciprocal(out.scale.to(torch.float32))
    return emit.number(out.along(inverse, rank), "inverse_scale")


def _offset(emit: Arithmetic, params: QParams, rank: int, dtype: torch.dtype) -> Node | int | float:
    zero_point = params.zero_point
    if isinstance(zero_point, Node):
        return emit.cast(emit.along(zero_point, params, rank), dtype)
    if isinstance(zero_point, int):
        return zero_point
    return emit.number(params.along(zero_point, rank).to(dtype), "zero_point")


def dequantize_float(emit: Arithmetic, value: Quantized, dtype: torch.dtype) -> Node:
    """Write ``(q - zero_point) * scale``: the way out to float.

    Args:
        emit: writes the nodes.
        value: the integers; not per group.
        dtype: a floating point type.
    """
    params, rank = value.params, int(value_of(value.node).dim())
    real = emit.cast(value.node, torch.float32)
    real = emit.subtract(real, _offset(emit, params, rank, torch.float32))
    scale: Any = params.scale
    if isinstance(scale, Node):
        scale = emit.cast(emit.along(scale, params, rank), torch.float32)
    elif isinstance(scale, Tensor):
        scale = emit.number(params.along(scale.to(torch.float32), rank), "scale")
    return emit.cast(emit.call(aten.mul.Tensor, real, scale), dtype)
