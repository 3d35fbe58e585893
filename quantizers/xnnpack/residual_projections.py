"""Linear layers whose result is added to a residual stream that is read in float only.

The last layer of an attention or feed-forward block is one. The runtime's static kernel gives
int8 results, and one scale for that stream, with its few huge values, spoils all others; its
dynamic kernel takes the same int8 weights and gives float results.
"""

from __future__ import annotations

from torch.fx import Node

from pt2q.ir.graph import is_constant
from pt2q.ir.ops import ADD, DROPOUT, GATES, GETITEM, LINEAR, SHAPE, is_op
from pt2q.quantizers.toolkit.reading.tensor_roles import float_activations
from pt2q.quantizers.toolkit.table.rule import Match


def is_residual_projection(match: Match, kept: dict[Node, Match]) -> bool:
    """Whether a static linear layer ends in a residual stream that nobody reads quantized.

    Args:
        match: one that will be annotated.
        kept: all that will be, by each of their nodes.
    """
    return _is_static_linear(match) and _feeds_float_residual(match, kept)


def _is_static_linear(match: Match) -> bool:
    config = match.config
    static = config.output_activation is not None and config.input_activation is not None
    return static and not config.is_qat and len(match.nodes) == 1 and is_op(match.head, LINEAR)


def _feeds_float_residual(match: Match, kept: dict[Node, Match]) -> bool:
    """Whether nobody reads the result quantized, and an addition in float reads it."""
    found = False
    waiting = [match.last]
    while waiting:
        for user in waiting.pop().users:
            if user in kept:
                return False
            if is_op(user, SHAPE | DROPOUT):
                waiting.append(user)
            found = found or _is_residual_addition(user, match)
    return found


def _is_residual_addition(node: Node, match: Match) -> bool:
    sources = float_activations(node)
    if not is_op(node, ADD) or len(sources) != 2 or any(is_constant(s) for s in sources):
        return False
    if any(match.context.masks.is_mask(source) for source in sources):
        return False
    return not _is_gate(node)


def _is_gate(node: Node) -> bool:
    """Whether a sum ends in sigmoids and tangents, as those of recurrent layers do."""
    readers = [user for user in node.users if not is_op(user, SHAPE | frozenset({GETITEM}))]
    passed = [user for user in node.users if user not in readers]
    return bool(node.users) and all(is_op(r, GATES) for r in readers) and all(map(_is_gate, passed))
