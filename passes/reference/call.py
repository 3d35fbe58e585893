"""What a rule is given.

A rule is a function of one `Call`. It writes the integer form of the call and returns what it
computes, or raises `NoIntegerForm` with the reason why there is none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.graph import is_constant, is_float_tensor, value_of
from pt2q.ir.qparams import QParams
from pt2q.passes.reference.arithmetic import Arithmetic
from pt2q.passes.reference.params import quantization_of
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Term, Value


class Call:
    """One call of a float operator, and what is known of its operands.

    Args:
        node: the call.
        emit: writes nodes before it.
        values: what earlier nodes are in integers.
        constants: the known values of the graph.
    """

    def __init__(
        self,
        node: Node,
        emit: Arithmetic,
        values: dict[Node, Value],
        constants: Constants,
    ) -> None:
        self.node = node
        self.emit = emit
        self.values = values
        self.constants = constants

    def argument(self, name: str) -> Any:
        """An argument by its schema name, or the schema's default."""
        return ops.argument(self.node, name)

    def value(self, operand: Any) -> Value | None:
        """What an operand is in integers, or None."""
        return self.values.get(operand) if isinstance(operand, Node) else None

    def quantized(self, operand: Any, *, static: bool = False) -> Quantized:
        """An operand that must be quantized.

        Args:
            operand: an argument, or the name of one.
            static: per tensor, with parameters known now.

        Raises:
            NoIntegerForm: it is not.
        """
        operand = self.argument(operand) if isinstance(operand, str) else operand
        found = self.value(operand)
        if not isinstance(found, Quantized):
            raise NoIntegerForm(f"operand {_name(operand)} is not quantized")
        if static and not found.params.is_per_tensor:
            raise NoIntegerForm(f"operand {_name(operand)} has not one known scale")
        return found

    def known(self, operand: Any) -> Tensor | None:
        """An operand that is a constant, as float64, or None."""
        if isinstance(operand, bool | int | float):
            return torch.tensor(float(operand), dtype=torch.float64)
        value = self.values.get(operand) if isinstance(operand, Node) else None
        if isinstance(value, Quantized):
            return self._dequantized(value)
        if is_float_tensor(operand) and self.constants.is_constant(operand):
            known: Tensor = self.constants.value(operand)
            return known.to(torch.float64)
        return None

    def _dequantized(self, value: Quantized) -> Tensor | None:
        params = value.params
        if not params.is_static or params.group or not self.constants.is_constant(value.node):
            return None
        integers: Tensor = self.constants.value(value.node)
        zero_point = params.along(torch.as_tensor(params.zero_point), integers.dim())
        scale = params.along(torch.as_tensor(params.scale, dtype=torch.float64), integers.dim())
        return (integers.to(torch.int64) - zero_point).to(torch.float64) * scale

    def total(self, operand: Any, *, bounded: bool = False) -> Sum:
        """An operand as an exact sum: quantized, accumulated or constant.

        Args:
            operand: an argument.
            bounded: an activation may have been applied to it.

        Raises:
            NoIntegerForm: it is none of these.
        """
        found = self.value(operand)
        if found is None:
            known = self.known(operand)
            if known is None:
                raise NoIntegerForm(f"operand {_name(operand)} is not quantized")
            return Sum((), known)
        result = found if isinstance(found, Sum) else self.widened(found)
        if result.is_bounded and not bounded:
            raise NoIntegerForm(f"operand {_name(operand)} was clamped and not quantized")
        return result

    def widened(self, value: Quantized) -> Sum:
        """``(q - zero_point) * scale`` as a sum of one term."""
        params, rank = value.params, _rank(value.node)
        if params.group:
            raise NoIntegerForm("scales per group have a form in linear only")
        term = Term(self.centred(value), torch.ones((), dtype=torch.float64), params.steps)
        if isinstance(params.scale, Node):
            factor = self.emit.along(params.scale, params, rank)
            return Sum((Term(term.node, term.scale, term.bound, (factor,)),))
        scale = torch.as_tensor(params.scale, dtype=torch.float64)
        return Sum((term.scaled(params.along(scale, rank)),))

    def centred(self, value: Quantized, dtype: torch.dtype = torch.int32) -> Node:
        """``q - zero_point`` as a wider integer type."""
        node = self.emit.cast(value.node, dtype)
        return self.emit.subtract(node, self._zero_point(value, dtype))

    def _zero_point(self, value: Quantized, dtype: torch.dtype) -> Node | int:
        params, rank = value.params, _rank(value.node)
        zero_point = params.zero_point
        if isinstance(zero_point, int):
            return zero_point
        if isinstance(zero_point, Node):
            return self.emit.cast(self.emit.along(zero_point, params, rank), dtype)
        if not bool(zero_point.any()):
            return 0
        if params.group:
            raise NoIntegerForm("groups with zero points have no integer form")
        return self.emit.buffer(params.along(zero_point, rank).to(dtype), "zero_point")

    @property
    def output(self) -> QParams:
        """The parameters with which the result is quantized, right away or after being moved.

        Raises:
            NoIntegerForm: it is not, or not one way.
        """
        found = self.destination(self.node)
        if found is None:
            raise NoIntegerForm("its result is not quantized, or in more than one way")
        return found

    def destination(self, node: Node) -> QParams | None:
        """How a node's result is quantized, seen through operators that commute with that."""
        found: QParams | None = None
        for user in node.users:
            if ops.is_op(user, ops.QUANTIZE):
                params = quantization_of(user, self.constants)
            elif ops.is_op(user, ops.MONOTONE) or user.target is ops.GETITEM:
                params = self.destination(user)
            else:
                return None
            if params is None or not params.is_per_tensor or not params.same(found or params):
                return None
            found = params
        return found


def finite(value: Any, default: float) -> float:
    """A clamp's bound, which may be missing.

    Raises:
        NoIntegerForm: it is computed, or no number.
    """
    if value is None:
        return default
    if isinstance(value, Node) or not isinstance(value, int | float) or math.isnan(value):
        raise NoIntegerForm("its bounds are not known numbers")
    return float(value)


def _rank(node: Node) -> int:
    return int(value_of(node).dim())


def _name(operand: Any) -> str:
    if isinstance(operand, Node):
        kind = "constant " if is_constant(operand) else ""
        return f"{kind}{operand.name}"
    return str(operand)
