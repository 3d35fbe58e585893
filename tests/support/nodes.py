"""Nodes of a graph by what they call."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir import ops


def nodes_of(model: GraphModule, targets: frozenset[Any]) -> list[Node]:
    return [n for n in model.graph.nodes if ops.is_op(n, targets)]


def node_of(model: GraphModule, targets: frozenset[Any], index: int = 0) -> Node:
    """The first that calls one of the targets, or a later one."""
    return nodes_of(model, targets)[index]


def count(model: GraphModule, *names: str) -> int:
    """How many nodes call something with one of these names in its own."""
    return sum(any(name in str(n.target) for name in names) for n in model.graph.nodes)
