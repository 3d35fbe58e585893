"""Edges between nodes."""

from __future__ import annotations

from typing import TypeAlias

from torch.fx import Node

EdgeOrNode: TypeAlias = tuple[Node, Node] | Node
"""A tensor in the graph: the output of a node, or what a consumer reads from its producer."""


def inputs_of(node: Node) -> list[Node]:
    """The nodes a node reads, each once, in the order of its arguments."""
    return list(node.all_input_nodes)


def edge_name(edge_or_node: EdgeOrNode) -> str:
    """How an edge or node is called in messages: ``conv1`` or ``relu -> conv1``."""
    if isinstance(edge_or_node, Node):
        return edge_or_node.name
    return f"{edge_or_node[0].name} -> {edge_or_node[1].name}"
