"""Chains of operators: a head, and what may follow it and be fused with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch.fx import Node

from pt2q.ir.ops import Target, is_op


def next_in_chain(node: Node, ops: frozenset[Target]) -> Node | None:
    """The single user of ``node``, if it is one of ``ops`` and works on ``node`` first."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if not is_op(user, ops) or not user.args or user.args[0] is not node:
        return None
    return user


def follow_chain(
    head: Node, tails: Iterable[frozenset[Target]], accept: Callable[[Node], bool] | None = None
) -> tuple[Node, ...]:
    """Walk from a head through optional followers.

    Args:
        head: the first node.
        tails: one set of operators per step; a step that does not match is passed over.
        accept: asked about every follower; False passes the step over.

    Returns:
        The head and the followers found.
    """
    nodes = [head]
    for ops in tails:
        found = next_in_chain(nodes[-1], ops)
        if found is not None and (accept is None or accept(found)):
            nodes.append(found)
    return tuple(nodes)
