"""Values that go in and out of the graphs that control flow runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.control_flow.branching import (
    Branching,
    branchings,
    graph_modules,
    placeholders,
    results,
)


def boundary_links(model: GraphModule) -> list[tuple[Node, Node]]:
    """Pairs of nodes in different graphs that are one value, or one after the other.

    An operand and the placeholder it arrives at; a result and the getitem that takes it; a
    carried value and what replaces it in the next step. They have one set of parameters.
    """
    links: list[tuple[Any, Any]] = []
    for module in graph_modules(model):
        for call in branchings(module):
            links.extend(_links(call))
    return [(a, b) for a, b in links if isinstance(a, Node) and isinstance(b, Node)]


def _links(call: Branching) -> Iterator[tuple[Any, Any]]:
    for body in call.bodies:
        yield from zip(call.operands, placeholders(body), strict=True)
    taken = {user.args[1]: user for user in call.node.users if user.target is ops.GETITEM}
    for index in call.layout.returning:
        body = call.bodies[index]
        inner = results(body)
        yield from ((inner[i], user) for i, user in taken.items() if isinstance(i, int))
        if call.layout.carried is not None:
            count = len(call.group(call.layout.carried))
            yield from zip(inner[:count], placeholders(body), strict=False)
