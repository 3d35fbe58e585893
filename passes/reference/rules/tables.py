"""Functions of one value by table.

A quantized value has few levels: a function of it is an array of integers, computed here in float
once and read by index when the model runs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.qparams import QParams
from pt2q.numerics import rounding
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.requantize import requantize
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum

aten = ops.aten
MOST_LEVELS = 1 << 16
# Past 16 these functions are within a float's rounding of 0, 1 or their input.
TAIL = 16.0


@reference_rule(ops.POINTWISE)
def by_table(call: Call) -> Quantized:
    """``y = table[q - low]`` with ``table[i] = quantize(f((i + low - z) * s))``.

    Bit for bit what the float operators give. An accumulator is first rounded to 16 bits.
    """
    out = call.output
    operands = [n for n in call.node.all_input_nodes if n in call.values]
    if len(operands) != 1 or len(call.node.all_input_nodes) != 1:
        raise NoIntegerForm("its operands are not one quantized value")
    found = call.value(operands[0])
    x = _in_16_bits(call, found, out) if isinstance(found, Sum) else found
    assert x is not None
    return look_up(call, x, _table(call, x.params, operands[0], out), out)


def look_up(call: Call, x: Quantized, table: Tensor, out: QParams) -> Quantized:
    """Read a table by the integers of ``x``."""
    emit = call.emit
    index = emit.subtract(emit.cast(x.node, torch.int64), x.params.quant_min)
    node = emit.call(aten.index.Tensor, emit.buffer(table, "table"), [index])
    return Quantized(node, out)


def _table(call: Call, params: QParams, operand: Node, out: QParams) -> Tensor:
    if not params.is_per_tensor:
        raise NoIntegerForm(f"operand {operand.name} has not one known scale")
    levels = params.quant_max - params.quant_min + 1
    if levels > MOST_LEVELS:
        raise NoIntegerForm(f"a table of {levels} entries")
    real = _levels(params)
    dtype = value_of(operand).dtype
    arguments = torch.fx.node.map_arg((call.node.args, call.node.kwargs), lambda _: real.to(dtype))
    with torch.no_grad():
        image = call.node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
    return _quantized(image, out)


def _levels(params: QParams) -> Tensor:
    assert isinstance(params.scale, float) and isinstance(params.zero_point, int)
    integers = torch.arange(params.quant_min, params.quant_max + 1, dtype=torch.int32)
    return rounding.dequantize(
        integers, params.scale, params.zero_point, params.quant_min, params.quant_max, torch.int32
    )


def _quantized(image: Tensor, out: QParams) -> Tensor:
    assert isinstance(out.scale, float) and isinstance(out.zero_point, int)
    image = image.to(torch.float32)
    if not bool(torch.isfinite(image).all()):
        raise NoIntegerForm("it is not finite on every level of its input")
    return rounding.quantize(
        image, out.scale, out.zero_point, out.quant_min, out.quant_max, out.dtype
    )


def _in_16_bits(call: Call, value: Sum, out: QParams) -> Quantized:
    """Levels fine enough, over a range outside of which the function is flat or saturates."""
    if not ops.is_op(call.node, ops.SATURATING):
        raise NoIntegerForm("its operand is not quantized and its range not known")
    reach = float(_levels(out).abs().max()) + TAIL
    fine = QParams(reach / 32767, 0, -32768, 32767, torch.int16)
    return requantize(call.emit, value, fine)
