"""What moves, selects or bounds integers: shapes, concatenation, padding, maxima, clamps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.qparams import QParams
from pt2q.passes.reference.operators import Call, finite, reference_rule
from pt2q.passes.reference.rescale import requantize
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Value

aten = ops.aten


# ------------------------------------------------------------------ moving


@reference_rule(ops.MOVES, ops.DROPOUT)
def move(call: Call) -> Value:
    """The same operator on integers."""
    if ops.is_op(call.node, ops.DROPOUT):
        return _inactive_dropout(call)
    x = _rounded(call, call.node.args[0])
    if x.params.group is not None or isinstance(x.params.scale, Node):
        raise NoIntegerForm("it would have to move scales too")
    params = _moved_axis(call, x.params)
    return Quantized(_on_integers(call, x), params)


def _rounded(call: Call, operand: Any, *, static: bool = False) -> Quantized:
    """An operand as integers; an accumulator is rounded to what the result is rounded to."""
    found = call.value(operand)
    if isinstance(found, Sum):
        return requantize(call.emit, found, call.output)
    return call.quantized(operand, static=static)


def _on_integers(call: Call, x: Quantized) -> Node:
    """The call with its first operand, and others it takes a shape from, as integers."""

    def integers(node: Node) -> Node:
        value = call.values.get(node)
        return value.node if isinstance(value, Quantized) else node

    args, kwargs = map_arg((call.node.args[1:], call.node.kwargs), integers)
    return call.emit.call(call.node.target, x.node, *args, **kwargs)


def _inactive_dropout(call: Call) -> Value:
    active = ops.has_argument(call.node, "train") and call.argument("train")
    found = call.value(call.node.args[0])
    if active or found is None or not isinstance(value_of(call.node), torch.Tensor):
        raise NoIntegerForm("a dropout that is active")
    return found


def _moved_axis(call: Call, params: QParams) -> QParams:
    """Per-channel parameters follow a permutation; no other movement is followed."""
    if params.axis is None:
        return params
    rank = int(value_of(call.node.args[0]).dim()) if isinstance(call.node.args[0], Node) else 0
    order = ops.permutation(call.node, rank)
    if order is None:
        raise NoIntegerForm("it moves a dimension that has its own scales")
    return replace(params, axis=order.index(params.axis % rank))


@reference_rule(ops.GETITEM)
def element(call: Call) -> Value:
    """One of several results."""
    found = call.value(call.node.args[0])
    if not isinstance(found, Quantized):
        raise NoIntegerForm("its operand is not quantized")
    return replace(found, node=call.emit.call(ops.GETITEM, found.node, call.node.args[1]))


@reference_rule(ops.CAT, ops.STACK)
def concatenate(call: Call) -> Quantized:
    """Integers side by side, each brought to the scale of the result where they differ."""
    tensors, dim = call.argument("tensors"), call.argument("dim")
    found = [call.value(t) for t in tensors]
    first = found[0]
    if isinstance(first, Quantized) and all(
        isinstance(f, Quantized) and f.params.same(first.params) for f in found
    ):
        nodes = [f.node for f in found if isinstance(f, Quantized)]
        return Quantized(call.emit.call(call.node.target, nodes, dim), first.params)
    out = call.output
    nodes = [requantize(call.emit, call.total(t), out).node for t in tensors]
    return Quantized(call.emit.call(call.node.target, nodes, dim), out)


@reference_rule(ops.PAD)
def pad(call: Call) -> Quantized:
    """Padding with a number that the integers can hold, or with neighbours."""
    x = call.quantized(call.node.args[0], static=True)
    mode = call.argument("mode") if ops.has_argument(call.node, "mode") else "constant"
    target, amounts = call.node.target, call.argument("pad")
    if mode != "constant":
        return Quantized(call.emit.call(target, x.node, amounts, mode), x.params)
    value = call.argument("value")
    if value:
        x = requantize(call.emit, call.widened(x), call.output)
    level = _level(x.params, float(value or 0.0))
    padded = call.emit.call(aten.constant_pad_nd.default, x.node, amounts, level)
    return Quantized(padded, x.params)


def _level(params: QParams, value: float) -> int:
    assert isinstance(params.scale, float) and isinstance(params.zero_point, int)
    steps = round(value * (1.0 / params.scale)) if abs(value) < 1e30 else value
    return int(min(max(steps + params.zero_point, params.quant_min), params.quant_max))


# ------------------------------------------------------------------ order


@reference_rule(ops.MAX_POOL)
def max_pool(call: Call) -> Quantized:
    """The largest integer is that of the largest number; padding never wins."""
    x = _rounded(call, call.argument("self"), static=True)
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
    x = _rounded(call, call.argument("self"), static=True)
    node = call.emit.call(call.node.target, x.node, *call.node.args[1:], **call.node.kwargs)
    return Quantized(node, x.params)


# ------------------------------------------------------------------ bounds


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


# ------------------------------------------------------------------ nearest neighbours


@reference_rule(ops.UPSAMPLE_NEAREST)
def upsample_nearest(call: Call) -> Quantized:
    """Rows and columns picked by index."""
    x = call.quantized(call.node.args[0], static=True)
    before, after = value_of(x.node).shape, value_of(call.node).shape
    node = x.node
    for dim in range(2, len(before)):
        node = call.emit.call(
            aten.index_select.default, node, dim, _picked(call, dim, before, after)
        )
    return Quantized(node, x.params)


def _picked(call: Call, dim: int, before: Any, after: Any) -> Node:
    """Which input each output position shows, found by resampling the positions."""
    if not isinstance(before[dim], int) or not isinstance(after[dim], int):
        raise NoIntegerForm("its sizes are not known")
    shape = [1] * len(before)
    shape[dim] = before[dim]
    sizes = [1, 1, *before[2:]]
    positions = torch.arange(before[dim], dtype=torch.float64).reshape(shape).expand(sizes)
    shown = call.node.target(positions.contiguous(), *call.node.args[1:])  # type: ignore[operator]
    line = shown.movedim(dim, 0).flatten(1)[:, 0]
    return call.emit.buffer(line.to(torch.int64), "positions")
