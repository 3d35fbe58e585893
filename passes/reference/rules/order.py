"""What picks integers by their order: the largest, the smallest, bounds."""

from __future__ import annotations

from pt2q.ir import ops
from pt2q.ir.qparams import QParams
from pt2q.passes.reference.call import Call, finite
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.rules.movement import rounded_operand
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Value

aten = ops.aten


@reference_rule(ops.MAX_POOL)
def max_pool(call: Call) -> Quantized:
    """The largest integer is that of the largest number; padding never wins."""
    x = rounded_operand(call, call.argument("self"), static=True)
    if not ops.is_op(call.node, ops.MAX_POOL1D):
        return Quantized(call.emit.call(call.node.target, x.node, *call.node.args[1:]), x.params)
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (list(call.argument(n)) for n in names)
    window = [1, *kernel], [1, *(stride or kernel)], [0, *padding], [1, *dilation]
    flat = call.emit.call(aten.unsqueeze.default, x.node, -2)
    ceil_mode = call.argument("ceil_mode")
    pooled = call.emit.call(aten.max_pool2d.default, flat, *window, ceil_mode)
    return Quantized(call.emit.call(aten.squeeze.dim, pooled, -2), x.params)


@reference_rule(ops.EXTREME)
def extreme(call: Call) -> Quantized:
    """The largest or smallest along dimensions."""
    x = rounded_operand(call, call.argument("self"), static=True)
    node = call.emit.call(call.node.target, x.node, *call.node.args[1:], **call.node.kwargs)
    return Quantized(node, x.params)


@reference_rule(ops.CLAMP_LIKE)
def clamp(call: Call) -> Value:
    """relu, relu6, hardtanh, clamp: bounds on integers.

    Of a quantized value whose integers can hold the bounds (relu's is the zero point), at once;
    else those of the result, which is exact, too.
    """
    found = call.value(call.node.args[0])
    if found is None:
        raise NoIntegerForm("its operand is not quantized")
    low, high = _bounds(call)
    if isinstance(found, Sum):
        return found.clamped(low, high)
    levels = [_exact_level(found.params, bound) for bound in (low, high)]
    if None in levels:
        return call.widened(found).clamped(low, high)
    return Quantized(call.emit.call(aten.clamp.default, found.node, *levels), found.params)


def _exact_level(params: QParams, bound: float) -> int | None:
    """The integer that stands for a bound, or None if there is none."""
    if not isinstance(params.scale, float) or not isinstance(params.zero_point, int):
        return None
    if bound == 0:
        return params.zero_point
    if bound <= (params.quant_min - params.zero_point) * params.scale:
        return params.quant_min
    return (
        params.quant_max if bound >= (params.quant_max - params.zero_point) * params.scale else None
    )


def _bounds(call: Call) -> tuple[float, float]:
    node = call.node
    if ops.is_op(node, ops.RELU):
        return 0.0, float("inf")
    if ops.is_op(node, ops.RELU6):
        return 0.0, 6.0
    if ops.is_op(node, ops.HARDTANH):
        return finite(call.argument("min_val"), -1.0), finite(call.argument("max_val"), 1.0)
    low = call.argument("min") if ops.has_argument(node, "min") else None
    high = call.argument("max") if ops.has_argument(node, "max") else None
    return finite(low, float("-inf")), finite(high, float("inf"))
