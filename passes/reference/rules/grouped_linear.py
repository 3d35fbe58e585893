"""Linear layers whose weight has a scale for each group of neighbours."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.rules import products
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Term

aten = ops.aten


def grouped_linear(call: Call, x: Quantized, weight: Quantized) -> Sum:
    """One accumulator per group of neighbours that share a scale; groups are added scaled."""
    products.reject_per_channel(x)
    scale, zero_point, group = weight.params.scale, weight.params.zero_point, weight.params.group
    if not isinstance(scale, Tensor) or isinstance(zero_point, Node) or group is None:
        raise NoIntegerForm("its scales per group are computed at run time")
    zero_points = torch.as_tensor(zero_point)
    if bool((zero_points != zero_points.flatten()[0]).any()):
        raise NoIntegerForm("its groups have different zero points")
    offset = int(zero_points.flatten()[0])
    weight = replace(weight, params=replace(weight.params, zero_point=offset, group=None))
    outputs, groups = scale.shape
    rank = int(value_of(x.node).dim())
    bound = x.params.steps * weight.params.steps * group
    node = _group_products(call, x, weight, (outputs, groups, group), rank)
    factor = scale.t().reshape(groups, *(1,) * (rank - 1), outputs)
    known, computed = products.known_factor(x.params, None)
    term = Term(node, factor * known, bound, computed, summed=0)
    return Sum((term,), products.known_bias(call, "bias", (-1,)))


def _group_products(
    call: Call, x: Quantized, weight: Quantized, sizes: tuple[int, int, int], rank: int
) -> Node:
    """``[groups, ..., outputs]``: the products of each group."""
    outputs, groups, group = sizes
    emit = call.emit
    bound = x.params.steps * weight.params.steps * group
    width = products.width_for(bound)
    split = emit.call(aten.unflatten.int, call.centred(x, width), -1, [groups, group])
    left = emit.call(aten.movedim.int, split, -2, 0)
    if rank == 1:
        left = emit.call(aten.unsqueeze.default, left, 1)
    grouped = emit.call(aten.view.default, call.centred(weight, width), [outputs, groups, group])
    right = emit.call(aten.permute.default, grouped, [1, 2, 0])
    for _ in range(rank - 2):
        right = emit.call(aten.unsqueeze.default, right, 1)
    product = emit.call(aten.matmul.default, left, right)
    return emit.call(aten.squeeze.dim, product, 1) if rank == 1 else product
