"""The real spec of every annotated tensor, whatever chain of shared specs leads to it."""

from __future__ import annotations

from torch.fx import Node

from pt2q.errors import SharingError
from pt2q.ir.graph import EdgeOrNode, edge_name
from pt2q.spec.requests import Requests
from pt2q.spec.specs import (
    DerivedQuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)

Specs = dict[EdgeOrNode, QuantizationSpecBase]


def as_key(edge_or_node: EdgeOrNode) -> EdgeOrNode:
    """Return an edge or node as it is looked up."""
    if isinstance(edge_or_node, Node):
        return edge_or_node
    producer, consumer = edge_or_node  # a list is taken for a tuple
    return producer, consumer


def resolve(found: Requests) -> Specs:
    """Follow shared specs; what shares with, or derives from, a skipped tensor is skipped too.

    Args:
        found: what annotations ask for; tensors that turn out to stay in float are moved to its
            ``skipped``.

    Raises:
        SharingError: a chain of shared specs goes in a circle or ends nowhere.
    """
    while True:
        resolved = _follow_all(found)
        lost = {
            key: source
            for key, spec in found.specs.items()
            if isinstance(spec, DerivedQuantizationSpec)
            for source in map(as_key, spec.derived_from)
            if source in found.skipped
        }
        if not lost:
            return resolved
        for key, source in lost.items():
            found.skip(key, f"derived from {edge_name(source)}, which is {found.skipped[source]}")


def _follow_all(found: Requests) -> Specs:
    """Walk every chain once: each step on the way is remembered."""
    resolved: Specs = {}
    for key in list(found.specs):
        trail, end = _follow(key, found, resolved)
        real = resolved.get(end, found.specs.get(end))
        if real is not None:
            resolved.update(dict.fromkeys((*trail, end), real))
            continue
        for step in trail:
            found.skip(step, f"shares with {edge_name(end)}, which is {found.skipped[end]}")
    return resolved


def _follow(
    key: EdgeOrNode, found: Requests, resolved: Specs
) -> tuple[list[EdgeOrNode], EdgeOrNode]:
    """The shared tensors from ``key`` on, and what they lead to: resolved, real or skipped."""
    trail: list[EdgeOrNode] = []
    at, spec = key, found.specs.get(key)
    while at not in resolved and isinstance(spec, SharedQuantizationSpec):
        trail.append(at)
        at = as_key(spec.edge_or_node)
        spec = found.specs.get(at)
        circle = len(trail) > len(found.specs)
        if circle or (spec is None and at not in found.skipped):
            raise _sharing_error(key, found)
    return trail, at


def _sharing_error(key: EdgeOrNode, found: Requests) -> SharingError:
    """What is wrong with a chain of shared specs that reaches no real one."""
    seen = [key]
    spec = found.specs[key]
    while isinstance(spec, SharedQuantizationSpec):
        target = as_key(spec.edge_or_node)
        if target in seen:
            chain = ", ".join(edge_name(k) for k in (*seen, target))
            return SharingError(
                f"sharing goes in a circle: {chain}; give one of them a QuantizationSpec"
            )
        if target not in found.specs:
            return SharingError(
                f"{edge_name(seen[-1])} shares the parameters of {edge_name(target)}, but "
                "nothing annotates that; annotate it or refer to one that is annotated"
            )
        seen.append(target)
        spec = found.specs[target]
    raise AssertionError("the chain is sound")
