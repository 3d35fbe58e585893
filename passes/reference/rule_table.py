"""The table of rules: which function gives the integer form of which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pt2q.ir import ops
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.values import Value

RULES: dict[ops.Target, Callable[[Call], Value]] = {}
Function = TypeVar("Function", bound=Callable[..., Value])


def reference_rule(*operators: Any) -> Callable[[Function], Function]:
    """Register the integer form of operators; a later rule replaces an earlier one.

    Args:
        operators: overloads, packets (every overload) or sets of them.

    Returns:
        A decorator for a function that takes a `Call` and returns a `Quantized` or a `Sum`.
    """

    def register(rule: Function) -> Function:
        for operator in operators:
            found = operator if isinstance(operator, frozenset) else ops.overloads(operator)
            RULES.update(dict.fromkeys(found, rule))
        return rule

    return register
