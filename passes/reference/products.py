"""Convolutions, linear layers, matrix products, elementwise products.

All multiply ``q - zero_point`` of one operand by that of the other and add up; the scale of the
accumulator is the product of the scales. (A device that multiplies the stored integers instead
subtracts ``zero_point_x * sum(w)`` per output channel: the same number.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.qparams import QParams
from pt2q.passes.reference.fixed_point import INT32_LIMIT
from pt2q.passes.reference.operators import Call, reference_rule
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Term

aten = ops.aten
ONE = torch.ones((), dtype=torch.float64)


# ------------------------------------------------------------------ shared


def _factor(params: QParams, axis: int | None) -> tuple[Tensor, tuple[Node, ...]]:
    """Known and computed part of a scale; per channel only along ``axis``."""
    if params.axis is not None and isinstance(params.scale, Node):
        raise NoIntegerForm("scales per channel that are computed at run time")
    if isinstance(params.scale, Node):
        return ONE, (params.scale,)
    if params.axis is not None and params.axis != axis:
        raise NoIntegerForm(f"scales along dimension {params.axis} of an operand")
    return torch.as_tensor(params.scale, dtype=torch.float64), ()


def _magnitude(call: Call, weight: Quantized, summed: tuple[int, ...], count: Any) -> int:
    """The largest ``sum |q - zero_point|`` over what one output adds up."""
    params = weight.params
    if not call.constants.is_constant(weight.node) or not isinstance(params.zero_point, int):
        return params.steps * (count if isinstance(count, int) else INT32_LIMIT)
    integers = call.constants.value(weight.node).to(torch.int64) - params.zero_point
    return int(integers.abs().sum(summed).amax()) if integers.numel() else 0


def _width(bound: int) -> torch.dtype:
    """The accumulator: 32 bits where the sum provably fits."""
    return torch.int32 if bound < INT32_LIMIT else torch.int64


def _bias(call: Call, name: str, shape: tuple[int, ...]) -> Tensor:
    bias = call.argument(name)
    if bias is None:
        return torch.zeros((), dtype=torch.float64)
    known = call.known(bias)
    if known is None:
        raise NoIntegerForm(f"its {name} is computed")
    return known.reshape(shape)


# ------------------------------------------------------------------ convolution


@reference_rule(ops.CONV, ops.CONV_GENERIC)
def convolution(call: Call) -> Sum:
    """``sum (x - z_x) * (w - z_w)`` over the window, zero padded."""
    x, weight = call.quantized("input"), call.quantized("weight")
    _reject_per_channel(x)
    known, computed = _factor(x.params, None)
    if computed and _is_tensor_of_many(computed[0]):
        raise NoIntegerForm("its input is quantized per token")
    transposed = _is_transposed(call)
    groups, rank = call.argument("groups"), int(value_of(weight.node).dim())
    factor, runtime = _factor(weight.params, 1 if transposed else 0)
    if transposed and factor.dim():
        factor = factor.repeat(groups)
    channels = (-1,) + (1,) * (rank - 2)
    window = tuple(i for i in range(rank) if i != int(transposed))
    magnitude = _magnitude(call, weight, window, _window_size(weight, transposed))
    bound = magnitude * x.params.steps
    scale = factor.reshape(channels if factor.dim() else ()) * known
    node = _accumulate(call, x, weight, bound, transposed)
    bias = _bias(call, "bias", channels)
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
    width = torch.int64 if transposed or dilated else _width(bound)
    operands = {
        "input": call.centred(x, width),
        "weight": call.centred(weight, width),
        "bias": None,
    }
    node = _same_call(call, operands)
    return call.emit.cast(node, _width(bound))


def _same_call(call: Call, changed: dict[str, Any]) -> Node:
    """The same operator with some arguments changed."""
    schema = call.node.target._schema  # type: ignore[union-attr]
    given = [a.name for a in schema.arguments]
    arguments = [changed.get(name, call.argument(name)) for name in given]
    positional = [v for v, a in zip(arguments, schema.arguments, strict=True) if not a.kwarg_only]
    return call.emit.call(call.node.target, *positional)


# ------------------------------------------------------------------ matrix products


@reference_rule(ops.LINEAR)
def linear(call: Call) -> Sum:
    """``sum_k (x_k - z_x) * (w_ok - z_w)``."""
    x, weight = call.quantized("input"), call.quantized("weight")
    if weight.params.group is not None:
        return _grouped_linear(call, x, weight)
    _reject_per_channel(x)
    factor, runtime = _factor(weight.params, 0)
    count = value_of(weight.node).shape[-1]
    bound = _magnitude(call, weight, (1,), count) * x.params.steps
    width = _width(bound)
    node = call.emit.call(aten.linear.default, call.centred(x, width), call.centred(weight, width))
    known, computed = _factor(x.params, None)
    return Sum((Term(node, factor * known, bound, computed + runtime),), _bias(call, "bias", (-1,)))


def _reject_per_channel(x: Quantized) -> None:
    if x.params.axis is not None or x.params.group is not None:
        raise NoIntegerForm("an activation with scales per channel")


def _grouped_linear(call: Call, x: Quantized, weight: Quantized) -> Sum:
    """One accumulator per group of neighbours that share a scale; groups are added scaled."""
    _reject_per_channel(x)
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
    known, computed = _factor(x.params, None)
    term = Term(node, factor * known, bound, computed, summed=0)
    return Sum((term,), _bias(call, "bias", (-1,)))


def _group_products(
    call: Call, x: Quantized, weight: Quantized, sizes: tuple[int, int, int], rank: int
) -> Node:
    """``[groups, ..., outputs]``: the products of each group."""
    outputs, groups, group = sizes
    emit = call.emit
    bound = x.params.steps * weight.params.steps * group
    width = _width(bound)
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


@reference_rule(ops.MATMUL, ops.MM, ops.BMM)
def matrix_product(call: Call) -> Sum:
    """``sum_k (a_ik - z_a) * (b_kj - z_b)``, batched or not."""
    one, other = (call.quantized(operand) for operand in call.node.args[:2])
    return _matrix_product(call, one, other)


def _matrix_product(call: Call, one: Quantized, other: Quantized) -> Sum:
    _reject_per_channel(one)
    rank = int(value_of(other.node).dim())
    last = rank - 1
    if other.params.group is not None or other.params.axis not in (None, last, -1):
        raise NoIntegerForm("scales along what is summed")
    known, computed = _factor(one.params, None)
    factor, runtime = _factor(other.params, other.params.axis)
    if runtime and _is_tensor_of_many(runtime[0]):
        raise NoIntegerForm("its right operand is quantized per token")
    count = value_of(one.node).shape[-1]
    if rank == 2 and call.constants.is_constant(other.node):
        bound = _magnitude(call, other, (0,), count) * one.params.steps
    else:
        size = count if isinstance(count, int) else INT32_LIMIT
        bound = size * one.params.steps * other.params.steps
    width = _width(bound)
    target = aten.matmul.default if rank != 2 else call.node.target
    target = aten.mm.default if ops.is_op(call.node, ops.ADDMM) else target
    node = call.emit.call(target, call.centred(one, width), call.centred(other, width))
    return Sum((Term(node, factor * known, bound, computed + runtime),))


def _is_tensor_of_many(node: Node) -> bool:
    value = value_of(node)
    return not isinstance(value, Tensor) or value.dim() > 1


@reference_rule(ops.ADDMM)
def matrix_product_with_bias(call: Call) -> Sum:
    """``bias + a @ b``, what a linear is once decomposed."""
    if call.argument("alpha") != 1 or call.argument("beta") != 1:
        raise NoIntegerForm("alpha and beta other than 1")
    product = _matrix_product(call, call.quantized("mat1"), call.quantized("mat2"))
    bias = call.known(call.argument("self"))
    if bias is None:
        raise NoIntegerForm("its bias is computed")
    return replace(product, constant=bias)


# ------------------------------------------------------------------ elementwise


@reference_rule(ops.MUL)
def multiply(call: Call) -> Sum:
    """``(a - z_a) * (b - z_b)``; a known factor goes into the scale."""
    one, other = call.node.args[:2]
    for value, factor in ((one, other), (other, one)):
        known = _constant_factor(call, value, factor)
        if known is not None:
            return call.total(value, bounded=True).scaled(known)
    a, b = call.quantized(one), call.quantized(other)
    terms = [call.widened(value).terms[0] for value in (a, b)]
    bound = terms[0].bound * terms[1].bound
    if bound >= INT32_LIMIT:
        terms = [replace(t, node=call.emit.cast(t.node, torch.int64)) for t in terms]
    node = call.emit.call(aten.mul.Tensor, terms[0].node, terms[1].node)
    scale = terms[0].scale * terms[1].scale
    return Sum((Term(node, scale, bound, terms[0].runtime + terms[1].runtime),))


def _constant_factor(call: Call, value: Any, factor: Any) -> Tensor | None:
    """A known float factor that does not make the result larger than the value."""
    if isinstance(factor, Node) and factor in call.values:
        return None  # a quantized constant is multiplied as integers
    if not isinstance(value, Node) or value not in call.values:
        return None
    known = call.known(factor)
    same = known is None or known.numel() == 1 or _shape(value) == _shape(call.node)
    return known if same else None


def _shape(node: Any) -> tuple[Any, ...]:
    return tuple(value_of(node).shape)


@reference_rule(ops.DIV)
def divide(call: Call) -> Sum:
    """By a known number: a factor of the scale."""
    known = call.known(call.node.args[1])
    if known is None or not bool((known != 0).all()) or "mode" in str(call.node.target):
        raise NoIntegerForm("a division by a computed value")
    if known.numel() != 1 and _shape(call.node.args[0]) != _shape(call.node):
        raise NoIntegerForm("a division that broadcasts its input")
    return call.total(call.node.args[0], bounded=True).scaled(1.0 / known)
