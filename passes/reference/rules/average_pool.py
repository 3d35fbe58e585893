"""Average pooling: sums over windows of a given size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.torch_private import schema_of
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.fixed_point import INT32_LIMIT
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.rules.means import known_count
from pt2q.passes.reference.values import Sum

aten = ops.aten


@reference_rule(ops.AVG_POOL)
def average_pool(call: Call) -> Sum:
    """``sum (q - z)`` over the window; how many elements it averages goes into the scale."""
    x = call.quantized("self", static=True)
    one_dimensional = ops.is_op(call.node, ops.AVG_POOL1D)
    counts = _window_counts(call, list(value_of(x.node).shape))
    term = call.widened(x).terms[0]
    emit = call.emit
    node = emit.cast(term.node, torch.int64)  # the kernel exists for 64 bits
    if one_dimensional:
        node = emit.call(aten.unsqueeze.default, node, -2)
    node = emit.call(*_sum_pool(call, node))
    if one_dimensional:
        node = emit.call(aten.squeeze.dim, node, -2)
    scale, bound = term.scale / counts, term.bound * _window_size(call)
    return Sum((replace(term, node=_narrow(call, node, bound), scale=scale, bound=bound),))


def _spatial(call: Call) -> int:
    return next(
        i + 1
        for i, pools in enumerate((ops.AVG_POOL1D, ops.AVG_POOL2D, ops.AVG_POOL3D))
        if ops.is_op(call.node, pools)
    )


def _window_size(call: Call) -> int:
    kernel = list(call.argument("kernel_size"))
    return torch.Size(kernel * (_spatial(call) if len(kernel) == 1 else 1)).numel()


def _narrow(call: Call, node: Node, bound: int) -> Node:
    return call.emit.cast(node, torch.int32) if bound < INT32_LIMIT else node


def _sum_pool(call: Call, node: Any) -> tuple[Any, ...]:
    """The call that sums the windows: a divisor of 1, padding counted as zeros."""
    names = ("kernel_size", "stride", "padding")
    kernel, stride, padding = (list(call.argument(name)) for name in names)
    ceil_mode = call.argument("ceil_mode")
    if not ops.is_op(call.node, ops.AVG_POOL1D):
        return call.node.target, node, kernel, stride, padding, ceil_mode, True, 1
    kernel, stride, padding = [1, *kernel], [1, *(stride or kernel)], [0, *padding]
    return aten.avg_pool2d.default, node, kernel, stride, padding, ceil_mode, True, 1


def _window_counts(call: Call, sizes: list[Any]) -> Tensor:
    """What the float operator divides by, per output position; one number where all agree."""
    spatial = _spatial(call)
    known_count(sizes[-spatial:])
    ones = torch.ones(1, 1, *sizes[-spatial:], dtype=torch.float64)
    node = call.node
    arguments = [ops.argument(node, a.name) for a in schema_of(node.target).arguments[1:]]
    averages = node.target(ones, *arguments)  # type: ignore[operator]
    widened = ones.unsqueeze(-2) if ops.is_op(node, ops.AVG_POOL1D) else ones
    target, _, *rest = _sum_pool(call, None)
    sums = target(widened, *rest)
    if ops.is_op(node, ops.AVG_POOL1D):
        sums = sums.squeeze(-2)
    counts = torch.round(sums / averages)[0]
    return counts.flatten()[0] if bool((counts == counts.flatten()[0]).all()) else counts
