"""Softmax by a table of exponentials and a division of integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.rules.tables import MOST_LEVELS
from pt2q.passes.reference.values import NoIntegerForm, Quantized

aten = ops.aten
EXPONENT_BITS = 24


@reference_rule(ops.SOFTMAX_ONLY)
def softmax(call: Call) -> Quantized:
    """``E = table[max(q) - q]``, then a division of integers.

    ``table[d] = rint(exp(-s * d) * 2 ** 24)``; with ``K = rint(2 ** f / s_y)``::

        y = clamp(z_y + floor((2 * E * K + D) / (2 * D)), low, high)    D = sum(E) * 2 ** f

    ``f`` is the largest at most 16 with ``K < 2 ** 31``.
    """
    out, x = call.output, call.quantized(call.node.args[0], static=True)
    scale, dim = x.params.scale, call.argument("dim")
    assert isinstance(scale, float) and isinstance(out.scale, float)
    emit = call.emit
    wide = emit.cast(x.node, torch.int64)
    largest = emit.call(aten.amax.default, wide, [dim], True)
    index = emit.subtract(largest, wide)
    exponentials = _exponentials(scale, x.params.quant_max - x.params.quant_min + 1)
    found = emit.call(aten.index.Tensor, emit.buffer(exponentials, "table"), [index])
    total = emit.call(aten.sum.dim_IntList, found, [dim], True)
    bits = _fraction_bits(1.0 / out.scale)
    factor = round(2.0**bits / out.scale)
    y = _divide(call, emit.multiply(found, factor), emit.multiply(total, 1 << bits))
    y = emit.call(aten.clamp.default, emit.add(y, out.zero_point), out.quant_min, out.quant_max)
    return Quantized(emit.cast(y, out.dtype), out)


def _exponentials(scale: float, levels: int) -> Tensor:
    if levels > MOST_LEVELS:
        raise NoIntegerForm(f"a table of {levels} entries")
    distance = torch.arange(levels, dtype=torch.float64) * scale
    return torch.round(torch.exp(-distance) * 2.0**EXPONENT_BITS).to(torch.int64)


def _fraction_bits(inverse: float) -> int:
    bits = 16
    while bits > 0 and inverse * 2.0**bits >= 2.0**31:
        bits -= 1
    if inverse >= 2.0**31:
        raise NoIntegerForm("the scale of its result is below 2 ** -31")
    return bits


def _divide(call: Call, numerator: Node, denominator: Node) -> Node:
    """``floor((2 * numerator + denominator) / (2 * denominator))``: rounded half up."""
    emit = call.emit
    raised = emit.add(emit.multiply(numerator, 2), denominator)
    divisor: Any = emit.multiply(denominator, 2)
    return emit.call(aten.div.Tensor_mode, raised, divisor, rounding_mode="floor")
