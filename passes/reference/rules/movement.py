"""What moves or places integers: shapes, concatenation, padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.qparams import QParams
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.requantize import requantize
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Value

aten = ops.aten


@reference_rule(ops.MOVES, ops.DROPOUT)
def move(call: Call) -> Value:
    """The same operator on integers."""
    if ops.is_op(call.node, ops.DROPOUT):
        return _inactive_dropout(call)
    x = rounded_operand(call, call.node.args[0])
    if x.params.group is not None or isinstance(x.params.scale, Node):
        raise NoIntegerForm("it would have to move scales too")
    params = _moved_axis(call, x.params)
    return Quantized(_on_integers(call, x), params)


def rounded_operand(call: Call, operand: Any, *, static: bool = False) -> Quantized:
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
