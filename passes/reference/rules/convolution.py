"""Convolutions, transposed ones too."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.torch_private import schema_of
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.rules import products
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Term

aten = ops.aten


@reference_rule(ops.CONV, ops.CONV_GENERIC)
def convolution(call: Call) -> Sum:
    """``sum (x - z_x) * (w - z_w)`` over the window, zero padded."""
    x, weight = call.quantized("input"), call.quantized("weight")
    products.reject_per_channel(x)
    known, computed = products.known_factor(x.params, None)
    if computed and products.is_tensor_of_many(computed[0]):
        raise NoIntegerForm("its input is quantized per token")
    transposed = _is_transposed(call)
    groups, rank = call.argument("groups"), int(value_of(weight.node).dim())
    factor, runtime = products.known_factor(weight.params, 1 if transposed else 0)
    if transposed and factor.dim():
        factor = factor.repeat(groups)
    channels = (-1,) + (1,) * (rank - 2)
    window = tuple(i for i in range(rank) if i != int(transposed))
    size = _window_size(weight, transposed)
    bound = products.magnitude(call, weight, window, size) * x.params.steps
    scale = factor.reshape(channels if factor.dim() else ()) * known
    node = _accumulate(call, x, weight, bound, transposed)
    bias = products.known_bias(call, "bias", channels)
    return Sum((Term(node, scale, bound, computed + runtime),), bias)


def _is_transposed(call: Call) -> bool:
    if ops.is_op(call.node, ops.CONV_GENERIC):
        return bool(call.argument("transposed"))
    return ops.is_op(call.node, ops.CONV_TRANSPOSE)


def _window_size(weight: Quantized, transposed: bool) -> int:
    sizes = value_of(weight.node).shape
    return int(sizes.numel() // sizes[int(transposed)])


def _accumulate(call: Call, x: Quantized, weight: Quantized, bound: int, transposed: bool) -> Node:
    """The operator itself on integers; 64-bit operands where torch has no 32-bit kernel."""
    dilation = call.argument("dilation")
    dilated = any(d != 1 for d in (dilation if isinstance(dilation, list | tuple) else [dilation]))
    width = torch.int64 if transposed or dilated else products.width_for(bound)
    operands = {
        "input": call.centred(x, width),
        "weight": call.centred(weight, width),
        "bias": None,
    }
    node = _same_call(call, operands)
    return call.emit.cast(node, products.width_for(bound))


def _same_call(call: Call, changed: dict[str, Any]) -> Node:
    """The same operator with some arguments changed."""
    schema = schema_of(call.node.target)
    given = [a.name for a in schema.arguments]
    arguments = [changed.get(name, call.argument(name)) for name in given]
    positional = [v for v, a in zip(arguments, schema.arguments, strict=True) if not a.kwarg_only]
    return call.emit.call(call.node.target, *positional)
