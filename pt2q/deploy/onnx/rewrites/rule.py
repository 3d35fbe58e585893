"""What the rules have in common: reading constants and attributes, and storing new constants."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase


class Rule(RewriteRuleClassBase):  # type: ignore[misc] # onnxscript is not typed
    """A rule that leaves what it matched to the removal of what nothing reads.

    One dequantize may have several readers; `onnxscript.rewriter` matches no such node if it is to
    remove it itself.
    """

    def __init__(self) -> None:
        super().__init__(remove_nodes=False)
        self._numbers = itertools.count()

    def store(self, op: Any, value: ir.Value, kind: str, numbers: np.ndarray) -> ir.Value:
        """A new constant.

        Args:
            op: what the rule builds its replacement with.
            value: what it is made from.
            kind: what it is, for its name.
            numbers: its content.
        """
        name = f"{value.name}_{kind}_{next(self._numbers)}"
        stored: ir.Value = op.initializer(ir.tensor(numbers, name=name), name=name)
        return stored


def refuse(reason: str) -> Any:
    """What a check returns where the rule does not apply.

    Args:
        reason: shown by the tracer of `onnxscript.rewriter`.
    """
    return MatchResult().fail(reason)


def fits(*conditions: tuple[bool, str]) -> Any:
    """What a check returns: the first reason against the rule, if there is one.

    Args:
        conditions: (what has to hold, why the rule does not apply where it does not).
    """
    against = next((reason for holds, reason in conditions if not holds), None)
    return True if against is None else refuse(against)


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant, or None."""
    if value is None:
        return None
    found = ir.convenience.get_const_tensor(value)
    return None if found is None else found.numpy()


def producer_of(value: ir.Value) -> ir.Node:
    """The operator that gives a value which a pattern matched as an operator's."""
    node = value.producer()
    assert node is not None
    return node


def zero_point_of(dequantize: ir.Value) -> ir.Value | None:
    """The zero point of a quantize or dequantize, by its result; None stands for 0."""
    inputs = producer_of(dequantize).inputs
    return inputs[2] if len(inputs) > 2 else None


def integer(value: ir.Value, name: str, default: int) -> int:
    """An attribute of the operator that gives a value."""
    attribute = producer_of(value).attributes.get(name)
    return default if attribute is None else attribute.as_int()


def is_plain_product(value: ir.Value) -> bool:
    """A product without factors of its own (``alpha``, ``beta``) and without ``transA``."""
    attributes = producer_of(value).attributes
    factors = (attributes.get(name) for name in ("alpha", "beta"))
    plain = all(factor is None or factor.as_float() == 1.0 for factor in factors)
    return plain and not integer(value, "transA", 0)
