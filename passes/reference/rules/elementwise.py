"""Sums, differences and products of two values, or of a value and a known number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.fixed_point import INT32_LIMIT
from pt2q.passes.reference.rule_table import reference_rule
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
