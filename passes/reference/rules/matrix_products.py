"""Linear layers and matrix products."""

from __future__ import annotations

from dataclasses import replace

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.fixed_point import INT32_LIMIT
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.rules import products
from pt2q.passes.reference.rules.grouped_linear import grouped_linear
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Term

aten = ops.aten


@reference_rule(ops.LINEAR)
def linear(call: Call) -> Sum:
    """``sum_k (x_k - z_x) * (w_ok - z_w)``."""
    x, weight = call.quantized("input"), call.quantized("weight")
    if weight.params.group is not None:
        return grouped_linear(call, x, weight)
    products.reject_per_channel(x)
    factor, runtime = products.known_factor(weight.params, 0)
    count = value_of(weight.node).shape[-1]
    bound = products.magnitude(call, weight, (1,), count) * x.params.steps
    width = products.width_for(bound)
    node = call.emit.call(aten.linear.default, call.centred(x, width), call.centred(weight, width))
    known, computed = products.known_factor(x.params, None)
    term = Term(node, factor * known, bound, computed + runtime)
    return Sum((term,), products.known_bias(call, "bias", (-1,)))


@reference_rule(ops.MATMUL, ops.MM, ops.BMM)
def matrix_product(call: Call) -> Sum:
    """``sum_k (a_ik - z_a) * (b_kj - z_b)``, batched or not."""
    one, other = (call.quantized(operand) for operand in call.node.args[:2])
    return _matrix_product(call, one, other)


def _matrix_product(call: Call, one: Quantized, other: Quantized) -> Sum:
    products.reject_per_channel(one)
    rank = int(value_of(other.node).dim())
    last = rank - 1
    if other.params.group is not None or other.params.axis not in (None, last, -1):
        raise NoIntegerForm("scales along what is summed")
    known, computed = products.known_factor(one.params, None)
    factor, runtime = products.known_factor(other.params, other.params.axis)
    if runtime and products.is_tensor_of_many(runtime[0]):
        raise NoIntegerForm("its right operand is quantized per token")
    count = value_of(one.node).shape[-1]
    if rank == 2 and call.constants.is_constant(other.node):
        bound = products.magnitude(call, other, (0,), count) * one.params.steps
    else:
        size = count if isinstance(count, int) else INT32_LIMIT
        bound = size * one.params.steps * other.params.steps
    width = products.width_for(bound)
    target = aten.matmul.default if rank != 2 else call.node.target
    target = aten.mm.default if ops.is_op(call.node, ops.ADDMM) else target
    node = call.emit.call(target, call.centred(one, width), call.centred(other, width))
    return Sum((Term(node, factor * known, bound, computed + runtime),))


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
