"""Means over dimensions, and over windows that an output size gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.fixed_point import INT32_LIMIT
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.values import NoIntegerForm, Sum, Term

aten = ops.aten


@reference_rule(ops.MEAN)
def mean(call: Call) -> Sum:
    """``sum (q - z)``, with the count in the scale."""
    x = call.quantized("self", static=True)
    sizes = value_of(x.node).shape
    given = call.argument("dim") if ops.has_argument(call.node, "dim") else None
    dims = list(given) if given else list(range(len(sizes)))
    keep = ops.has_argument(call.node, "keepdim") and bool(call.argument("keepdim"))
    count = known_count([sizes[d] for d in dims])
    return _mean(call, dims, keep, count)


def known_count(sizes: list[Any]) -> int:
    """The product of sizes.

    Raises:
        NoIntegerForm: one is symbolic.
    """
    result = 1
    for size in sizes:
        if not isinstance(size, int):
            raise NoIntegerForm("the number of elements it averages is not known")
        result *= size
    return result


def _mean(call: Call, dims: list[int], keep: bool, count: int) -> Sum:
    x = call.widened(call.quantized("self", static=True)).terms[0]
    bound = x.bound * count
    dtype = torch.int32 if bound < INT32_LIMIT else torch.int64
    node = call.emit.call(aten.sum.dim_IntList, x.node, dims, keep, dtype=dtype)
    return Sum((replace(x, node=node, scale=x.scale / count, bound=bound),))


@reference_rule(ops.ADAPTIVE_AVG_POOL)
def adaptive_average_pool(call: Call) -> Sum:
    """To one element: a mean. Else the sums over windows as products with matrices of 0 and 1."""
    x = call.quantized("self", static=True)
    output = list(call.argument("output_size"))
    sizes = list(value_of(x.node).shape[-len(output) :])
    dims = list(range(-len(output), 0))
    if all(size == 1 for size in output):
        return _mean(call, dims, True, known_count(sizes))
    known_count(sizes + output)
    term = call.widened(x).terms[0]
    for dim, before, after in zip(dims, sizes, output, strict=True):
        term = _window_sums(call, term, dim, _windows(before, after))
    return Sum((term,))


def _windows(before: int, after: int) -> Tensor:
    """``[after, before]``: one where an output averages an input."""
    rows = torch.zeros(after, before, dtype=torch.int32)
    for i in range(after):
        rows[i, i * before // after : -((-(i + 1) * before) // after)] = 1
    return rows


def _window_sums(call: Call, term: Term, dim: int, windows: Tensor) -> Term:
    counts = windows.sum(1)
    bound = term.bound * int(counts.max())
    if bound >= INT32_LIMIT:
        raise NoIntegerForm("its sums do not fit 32 bits")
    emit = call.emit
    matrix = emit.buffer(windows, "windows")
    moved = emit.call(aten.transpose.int, term.node, dim, -1)
    summed = emit.call(aten.linear.default, moved, matrix)
    node = emit.call(aten.transpose.int, summed, dim, -1)
    scale = term.scale / counts.to(torch.float64).reshape(-1, *(1,) * (-dim - 1))
    return replace(term, node=node, scale=scale, bound=bound)
