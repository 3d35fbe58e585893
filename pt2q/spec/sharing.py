"""Which tensors share one set of parameters.

Groups are the connected components of two relations, found with a union that does not depend on
the order of nodes:

- explicit: a `SharedQuantizationSpec` joins its edge or node with the one it names;
- implicit: tensors that are the same value (a node's output and the edges that read it) are
  joined if the specs they resolve to are equal and both annotations allow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.fx import Graph, Node

from pt2q.ir.graph import EdgeOrNode
from pt2q.spec.requests import Requests
from pt2q.spec.resolution import Specs, as_key
from pt2q.spec.specs import SharedQuantizationSpec

Links = Sequence[tuple[Node, Node]]


def sharing_groups(
    found: Requests, resolved: Specs, graphs: Sequence[Graph], links: Links
) -> list[list[EdgeOrNode]]:
    """The tensors of each group, groups and tensors in the order of the graph.

    Args:
        found: what annotations ask for.
        resolved: the real spec of each tensor.
        graphs: where the tensors are.
        links: pairs of nodes in different graphs that are one value.
    """
    union = _Union(found.specs)
    _join_explicit(found, union)
    for nodes in _values(graphs, links):
        _join_implicit(nodes, found, resolved, union)
    members: dict[EdgeOrNode, list[EdgeOrNode]] = {}
    for key in found.specs:
        members.setdefault(union.find(key), []).append(key)
    return list(members.values())


class _Union:
    """Disjoint sets with path halving (Tarjan and van Leeuwen, 1984)."""

    def __init__(self, keys: Iterable[EdgeOrNode]) -> None:
        self.parent = {key: key for key in keys}

    def find(self, key: EdgeOrNode) -> EdgeOrNode:
        while self.parent[key] != key:
            self.parent[key] = self.parent[self.parent[key]]
            key = self.parent[key]
        return key

    def join(self, one: EdgeOrNode, other: EdgeOrNode) -> None:
        self.parent[self.find(other)] = self.find(one)


def _join_explicit(found: Requests, union: _Union) -> None:
    for key, spec in found.specs.items():
        if isinstance(spec, SharedQuantizationSpec):
            union.join(as_key(spec.edge_or_node), key)


def _keys_of(node: Node) -> list[EdgeOrNode]:
    return [node, *((node, user) for user in node.users)]


def _join_implicit(nodes: Sequence[Node], found: Requests, resolved: Specs, union: _Union) -> None:
    """Join the tensors of one value that ask for the same."""
    first_with: list[EdgeOrNode] = []
    for key in (key for node in nodes for key in _keys_of(node)):
        if not found.implicit.get(key, False):
            continue
        match = next((k for k in first_with if resolved[k] == resolved[key]), None)
        if match is None:
            first_with.append(key)
        else:
            union.join(match, key)


def _values(graphs: Sequence[Graph], links: Links) -> list[list[Node]]:
    """The nodes that are one value: each alone, but for those linked across graphs."""
    linked = _Union(node for pair in links for node in pair)
    for one, other in links:
        linked.join(one, other)
    classes: dict[EdgeOrNode, list[Node]] = {}
    for graph in graphs:
        for node in graph.nodes:
            root = linked.find(node) if node in linked.parent else node
            classes.setdefault(root, []).append(node)
    return list(classes.values())
