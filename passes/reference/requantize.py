"""From accumulators to integers of the output."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.qparams import QParams
from pt2q.numerics import rounding
from pt2q.passes.reference.arithmetic import Arithmetic
from pt2q.passes.reference.fixed_point import FixedPoint, fixed_point, integer_bias
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Term

aten = ops.aten


def requantize(emit: Arithmetic, value: Sum, out: QParams) -> Quantized:
    """Write ``clamp(zero_point + round(value / scale))`` in 64-bit integers.

    The equations are those of `pt2q.passes.reference.fixed_point`. The bounds of a fused
    activation become bounds on the integers, which is exact, because quantization is monotone.

    Args:
        emit: writes the nodes.
        value: with known scales.
        out: static parameters.

    Raises:
        NoIntegerForm: the scales are computed at run time, or there is nothing to add up.
    """
    if not value.is_static or not out.is_static:
        raise NoIntegerForm("its scales are computed at run time")
    if not value.terms:
        raise NoIntegerForm("it is a constant")
    rank = max(int(value_of(t.node).dim()) - (t.summed is not None) for t in value.terms)
    scale = out.along(torch.as_tensor(out.scale, dtype=torch.float64), rank)
    value = _with_integer_bias(emit, value, scale)
    numbers = fixed_point(
        [t.scale / scale for t in value.terms],
        [t.bound for t in value.terms],
        value.constant / scale,
        [t.summed for t in value.terms],
    )
    rounded = _rounded(emit, value.terms, numbers)
    low, high = _bounds(value, out)
    zero_point = emit.number(out.along(torch.as_tensor(out.zero_point), rank), "zero_point")
    shifted = emit.add(rounded, zero_point)
    clamped = emit.call(aten.clamp.default, shifted, low, high)
    return Quantized(emit.cast(clamped, out.dtype), out)


def _with_integer_bias(emit: Arithmetic, value: Sum, scale: Tensor) -> Sum:
    if len(value.terms) != 1 or not bool(value.constant.any()):
        return value
    term = value.terms[0]
    if term.summed is not None or bool((term.scale == 0).any()):
        return value
    bias = integer_bias(value.constant, term.scale, term.scale / scale, term.bound)
    if bias is None:
        return value
    bound = term.bound + int(bias.abs().amax())
    node = emit.add(term.node, emit.number(bias, "bias"))
    zero = torch.zeros((), dtype=torch.float64)
    return replace(value, terms=(replace(term, node=node, bound=bound),), constant=zero)


def _rounded(emit: Arithmetic, terms: tuple[Term, ...], numbers: FixedPoint) -> Node:
    if numbers.is_identity:
        return terms[0].node
    total: Node | None = None
    for term, multiplier in zip(terms, numbers.multipliers, strict=True):
        product = _product(emit, term, multiplier)
        total = product if total is None else emit.add(total, product)
    assert total is not None
    if numbers.offset is not None:
        total = emit.add(total, emit.number(numbers.offset, "offset"))
    return shift_right(emit, total, numbers.shift)


def _product(emit: Arithmetic, term: Term, multiplier: Tensor) -> Node:
    wide = emit.cast(term.node, torch.int64)
    product = emit.multiply(wide, emit.number(multiplier.to(torch.int32), "multiplier"))
    if term.summed is None:
        return product
    return emit.call(aten.sum.dim_IntList, product, [term.summed])


def shift_right(emit: Arithmetic, value: Node, shift: Tensor) -> Node:
    """Write ``value / 2 ** shift`` rounded to the nearest integer, half to even.

    ``(value + 2 ** (shift - 1) - 1 + ((value >> shift) & 1)) >> shift``, shifts being arithmetic.

    Args:
        emit: writes the nodes.
        value: int64, below ``2 ** 62`` in magnitude.
        shift: in [1, 62], one or broadcastable.
    """
    amount = emit.number(shift, "shift")
    below_half = emit.number((torch.ones_like(shift) << (shift - 1)) - 1, "rounding")
    operator = aten.bitwise_right_shift
    by = operator.Tensor if isinstance(amount, Node) else operator.Tensor_Scalar
    odd = emit.call(aten.bitwise_and.Scalar, emit.call(by, value, amount), 1)
    raised = emit.add(emit.add(value, below_half), odd)
    return emit.call(by, raised, amount)


def _bounds(value: Sum, out: QParams) -> tuple[int, int]:
    """The range of the integers after a fused activation."""
    if value.is_bounded and not out.is_per_tensor:
        raise NoIntegerForm("an activation before scales per channel")
    return _level(value.low, out, out.quant_min), _level(value.high, out, out.quant_max)


def _level(bound: float, out: QParams, unbounded: int) -> int:
    if math.isinf(bound):
        return unbounded
    assert isinstance(out.scale, float) and isinstance(out.zero_point, int)
    real = torch.tensor(bound, dtype=torch.float32)
    level = rounding.quantize(
        real, out.scale, out.zero_point, out.quant_min, out.quant_max, torch.int32
    )
    return int(level)
