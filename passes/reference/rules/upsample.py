"""Nearest neighbours: rows and columns picked by index."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.values import NoIntegerForm, Quantized

aten = ops.aten


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
