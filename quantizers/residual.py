"""Residual additions: which operand a convolution's kernel can take in, and which it adds."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from pt2q.ops import BATCH_NORM, Target, is_op
from pt2q.quantizers.roles import float_activations


@dataclass(frozen=True)
class Residual:
    """An addition that the kernel of a convolution can perform.

    Args:
        convolved: the operand whose convolution takes the addition in.
        other: the operand it adds: the skip branch.
    """

    convolved: Node
    other: Node


def residual_of(node: Node, heads: frozenset[Target], *, prefer_last: bool) -> Residual | None:
    """Read an addition as the residual of one of its operands' producers.

    Args:
        node: an addition.
        heads: the operators that can take it in.
        prefer_last: of two such operands choose the one computed last, not first.

    Returns:
        None if no operand comes straight from such an operator, or the skip branch is a constant
        or that operator's own input.
    """
    operands = float_activations(node)
    if len(operands) != 2:
        return None
    for convolved in sorted(operands, reverse=prefer_last):
        other = operands[1] if convolved is operands[0] else operands[0]
        source = _producer(convolved, heads)
        if source is not None and source.args[0] is not other and other.op != "get_attr":
            return Residual(convolved, other)
    return None


def _producer(node: Node, heads: frozenset[Target]) -> Node | None:
    """The operator a tensor comes straight from, if nobody else reads it."""
    if len(node.users) == 1 and is_op(node, BATCH_NORM) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node if len(node.users) == 1 and is_op(node, heads) else None
