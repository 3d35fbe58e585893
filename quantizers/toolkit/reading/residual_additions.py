"""Residual additions: which operand a convolution's kernel can take in, and which it adds."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from pt2q.ir.ops import BATCH_NORM, Target, is_op
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.reading.tensor_roles import float_activations
from pt2q.quantizers.toolkit.reasons import Reason


@dataclass(frozen=True)
class Residual:
    """An addition that the kernel of a convolution can perform.

    Args:
        convolved: the operand whose convolution takes the addition in.
        other: the operand it adds: the skip branch.
    """

    convolved: Node
    other: Node


def residual_of(
    node: Node, heads: frozenset[Target], *, prefer_last: bool, own_input: bool = False
) -> Residual | None:
    """Read an addition as the residual of one of its operands' producers.

    Args:
        node: an addition.
        heads: the operators that can take it in.
        prefer_last: of two such operands choose the one computed last, not first.
        own_input: the skip branch may be the input of that operator itself.

    Returns:
        None if no operand comes straight from such an operator, or the skip branch is a constant.
    """
    for found, source in _candidates(node, heads, prefer_last):
        if found.other.op != "get_attr" and (own_input or source.args[0] is not found.other):
            return found
    return None


def why_no_residual(node: Node, heads: frozenset[Target], producer: str) -> Reason:
    """The reason why `residual_of` finds none, for the user.

    Args:
        node: an addition.
        heads: as for `residual_of`.
        producer: what they are called.
    """
    found = [residual for residual, _ in _candidates(node, heads, False)]
    if any(residual.other.op == "get_attr" for residual in found):
        reason = reasons.ADDS_CONSTANT
    elif found:
        reason = reasons.ADDS_OWN_INPUT
    elif any(_made_by(operand, heads) is not None for operand in float_activations(node)):
        reason = reasons.RESULT_READ_TWICE
    else:
        reason = reasons.NO_PRODUCER
    return reason.filled(producer=producer)


def _candidates(
    node: Node, heads: frozenset[Target], prefer_last: bool
) -> list[tuple[Residual, Node]]:
    """The operands that could be added in the kernel that gives the other one, and that kernel."""
    operands = float_activations(node)
    if len(operands) != 2:
        return []
    pairs = [Residual(operands[0], operands[1]), Residual(operands[1], operands[0])]
    pairs.sort(key=lambda pair: pair.convolved, reverse=prefer_last)
    found = ((pair, _producer(pair.convolved, heads)) for pair in pairs)
    return [(pair, source) for pair, source in found if source is not None]


def _made_by(node: Node, heads: frozenset[Target]) -> Node | None:
    """The operator a tensor comes straight from, or through a batch norm."""
    if is_op(node, BATCH_NORM) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node if is_op(node, heads) else None


def _producer(node: Node, heads: frozenset[Target]) -> Node | None:
    """The operator a tensor comes straight from, if nobody else reads it."""
    source = _made_by(node, heads)
    alone = len(node.users) == 1 and source is not None and len(source.users) == 1
    return source if alone else None
