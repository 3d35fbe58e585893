"""Additions, means, average pooling, batch norm: sums of scaled integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.passes.reference.fixed_point import INT32_LIMIT
from pt2q.passes.reference.operators import Call, reference_rule
from pt2q.passes.reference.values import NoIntegerForm, Sum, Term

aten = ops.aten


@reference_rule(ops.ADD)
def add(call: Call) -> Sum:
    """``a + alpha * b``: two addends with a multiplier each and one shift."""
    return _sum(call, call.node.args[0], call.node.args[1], _alpha(call))


@reference_rule(ops.SUB)
def subtract(call: Call) -> Sum:
    """``a - alpha * b``."""
    return _sum(call, call.node.args[0], call.node.args[1], -_alpha(call))


@reference_rule(ops.RSUB)
def subtract_from(call: Call) -> Sum:
    """``b - alpha * a``."""
    return _sum(call, call.node.args[1], call.node.args[0], -_alpha(call))


@reference_rule(ops.NEG)
def negate(call: Call) -> Sum:
    """``-a``."""
    return call.total(call.node.args[0]).scaled(-1.0)


def _alpha(call: Call) -> float:
    alpha = call.argument("alpha") if ops.has_argument(call.node, "alpha") else 1
    if isinstance(alpha, Node):
        raise NoIntegerForm("alpha is computed")
    return float(alpha)


def _sum(call: Call, one: Any, other: Any, factor: float) -> Sum:
    a, b = call.total(one), call.total(other).scaled(factor)
    return Sum(a.terms + b.terms, a.constant + b.constant)


# ------------------------------------------------------------------ means


@reference_rule(ops.MEAN)
def mean(call: Call) -> Sum:
    """``sum (q - z)``, with the count in the scale."""
    x = call.quantized("self", static=True)
    sizes = value_of(x.node).shape
    given = call.argument("dim") if ops.has_argument(call.node, "dim") else None
    dims = list(given) if given else list(range(len(sizes)))
    keep = ops.has_argument(call.node, "keepdim") and bool(call.argument("keepdim"))
    count = _count([sizes[d] for d in dims])
    return _mean(call, dims, keep, count)


def _count(sizes: list[Any]) -> int:
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
        return _mean(call, dims, True, _count(sizes))
    _count(sizes + output)
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
    _count(sizes[-spatial:])
    ones = torch.ones(1, 1, *sizes[-spatial:], dtype=torch.float64)
    node = call.node
    arguments = [ops.argument(node, a.name) for a in node.target._schema.arguments[1:]]  # type: ignore[union-attr]
    averages = node.target(ones, *arguments)  # type: ignore[operator]
    widened = ones.unsqueeze(-2) if ops.is_op(node, ops.AVG_POOL1D) else ones
    target, _, *rest = _sum_pool(call, None)
    sums = target(widened, *rest)
    if ops.is_op(node, ops.AVG_POOL1D):
        sums = sums.squeeze(-2)
    counts = torch.round(sums / averages)[0]
    return counts.flatten()[0] if bool((counts == counts.flatten()[0]).all()) else counts


# ------------------------------------------------------------------ batch norm


@reference_rule(ops.BATCH_NORM)
def batch_norm(call: Call) -> Sum:
    """A batch norm that was not folded: ``gain * x + shift`` per channel."""
    if call.argument("training"):
        raise NoIntegerForm("batch statistics")
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (call.argument(n) for n in names)
    known = [None if n is None else call.known(n) for n in (mean, variance, weight, bias)]
    if (
        known[0] is None
        or known[1] is None
        or (weight and known[2] is None)
        or (bias and known[3] is None)
    ):
        raise NoIntegerForm("its statistics or parameters are not constant")
    gain = torch.rsqrt(known[1] + call.argument("eps"))
    gain = gain if known[2] is None else gain * known[2]
    shift = -known[0] * gain
    shift = shift if known[3] is None else shift + known[3]
    rank = int(value_of(call.node).dim())
    channels = (-1,) + (1,) * (rank - 2)
    x = call.total(call.argument("input")).scaled(gain.reshape(channels))
    return replace(x, constant=x.constant + shift.reshape(channels))
