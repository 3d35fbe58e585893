"""Annotations become a plan: every sharing group resolved, nothing touched.

Tensors that use one set of quantization parameters form a group (`pt2q.spec.sharing` says which).
Every group has one real spec: a chain of shared specs that reaches none is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph

from pt2q.errors import SharingError
from pt2q.ir.graph import EdgeOrNode, edge_name
from pt2q.spec.describe import describe_spec
from pt2q.spec.requests import Requests, read_requests
from pt2q.spec.resolution import as_key, resolve
from pt2q.spec.sharing import Links, sharing_groups
from pt2q.spec.specs import (
    DerivedQuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)

_NEW, _WAITING, _PLACED = "new", "its sources are being placed", "placed"


@dataclass(frozen=True)
class Group:
    """Tensors with one set of quantization parameters.

    Args:
        members: the edges and nodes, in the order of the graph.
        spec: the one real spec they resolve to.
        derived_from: for a derived spec, the positions of its sources in ``Plan.groups``.
    """

    members: tuple[EdgeOrNode, ...]
    spec: QuantizationSpecBase
    derived_from: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is to be quantized, with what shared; see the module's text.

    Args:
        groups: sources of derived groups come before them.
        group_of: position in ``groups`` of each edge and node.
        skipped: annotated edges and nodes that are left alone, with the reason.
    """

    groups: tuple[Group, ...]
    group_of: dict[EdgeOrNode, int]
    skipped: tuple[tuple[EdgeOrNode, str], ...] = ()

    def __str__(self) -> str:
        lines = []
        for index, group in enumerate(self.groups):
            members = ", ".join(edge_name(m) for m in group.members)
            source = f" derived from {list(group.derived_from)}" if group.derived_from else ""
            lines.append(f"{index}: {describe_spec(group.spec)}{source}: {members}")
        lines += [f"skipped {edge_name(e)}: {reason}" for e, reason in self.skipped]
        return "\n".join(lines)


def build_plan(graph: Graph, *bodies: Graph, links: Links = ()) -> Plan:
    """Resolve the annotations of a graph and of those its control flow runs.

    Args:
        graph: annotated by a quantizer; it is not changed.
        bodies: the graphs inside it.
        links: pairs of nodes in different graphs that are one value.

    Returns:
        The plan, sources of derived groups first.

    Raises:
        AnnotationError: an annotation names an edge that does not exist.
        SharingError: a cycle or a dangling reference.
    """
    graphs = (graph, *bodies)
    found = read_requests(graphs)
    resolved = resolve(found)
    joined = sharing_groups(found, resolved, graphs, links)
    groups = [Group(tuple(keys), _one_spec(keys, found)) for keys in joined]
    placed = _placed(groups)
    group_of = {key: i for i, group in enumerate(placed) for key in group.members}
    return Plan(placed, group_of, tuple(found.skipped.items()))


def _one_spec(keys: list[EdgeOrNode], found: Requests) -> QuantizationSpecBase:
    """The real spec of a group. There is one: every chain ends in one, and only equal ones join."""
    return next(
        spec
        for spec in (found.specs[key] for key in keys)
        if not isinstance(spec, SharedQuantizationSpec)
    )


def _placed(groups: list[Group]) -> tuple[Group, ...]:
    """The groups, sources first and otherwise in the order of the graph."""
    index_of = {key: i for i, group in enumerate(groups) for key in group.members}
    sources = [_sources(group, index_of) for group in groups]
    order = _sources_first(groups, sources)
    place = {old: new for new, old in enumerate(order)}
    return tuple(
        Group(groups[old].members, groups[old].spec, tuple(place[s] for s in sources[old]))
        for old in order
    )


def _sources(group: Group, index_of: dict[EdgeOrNode, int]) -> tuple[int, ...]:
    """Which groups a group's parameters are derived from."""
    if not isinstance(group.spec, DerivedQuantizationSpec):
        return ()
    keys = [as_key(source) for source in group.spec.derived_from]
    for key in keys:
        if key not in index_of:
            raise SharingError(
                f"{edge_name(group.members[0])} derives its parameters from {edge_name(key)}, "
                "which is not quantized; annotate it"
            )
    return tuple(index_of[key] for key in keys)


def _sources_first(groups: list[Group], sources: list[tuple[int, ...]]) -> list[int]:
    """A topological order, depth first, without recursion: chains may be long."""
    order: list[int] = []
    state = [_NEW] * len(groups)
    stack = list(range(len(groups) - 1, -1, -1))
    while stack:
        at = stack[-1]
        waiting = [s for s in sources[at] if state[s] is not _PLACED]
        if state[at] is _WAITING and waiting:
            names = ", ".join(edge_name(groups[i].members[0]) for i in (at, *waiting))
            raise SharingError(f"parameters are derived from each other in a circle: {names}")
        if waiting and state[at] is _NEW:
            state[at] = _WAITING
            stack.extend(waiting)
            continue
        stack.pop()
        if state[at] is not _PLACED:
            state[at] = _PLACED
            order.append(at)
    return order
