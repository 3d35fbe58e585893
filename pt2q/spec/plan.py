"""Annotations become a plan: every sharing group resolved, nothing touched.

Tensors that use one set of quantization parameters form a group. Groups are the connected
components of two relations, found with a union that does not depend on the order of nodes:

- explicit: a `SharedQuantizationSpec` joins its edge or node with the one it names;
- implicit: tensors that are the same value (a node's output and the edges that read it) are
  joined if the specs they resolve to are equal and both annotations allow it.

Every group then has one real spec: a chain of shared specs that reaches none is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from pt2q.errors import AnnotationError, SharingError
from pt2q.ir.graph import edge_name, is_float_tensor
from pt2q.ir.storage import StorageMap
from pt2q.spec.annotations import annotation_of
from pt2q.spec.specs import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)

Links = Sequence[tuple[Node, Node]]


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


def describe_spec(spec: QuantizationSpecBase) -> str:
    """A spec in a few words, such as ``int8[-127, 127] per_channel_symmetric axis 0``."""
    if isinstance(spec, SharedQuantizationSpec):
        return f"shared with {edge_name(spec.edge_or_node)}"
    if not isinstance(
        spec, QuantizationSpec | FixedQParamsQuantizationSpec | DerivedQuantizationSpec
    ):
        return str(spec)
    words = [str(spec.dtype).removeprefix("torch.")]
    if spec.quant_min is not None:
        words[0] += f"[{spec.quant_min}, {spec.quant_max}]"
    if spec.qscheme is not None:
        words.append(str(spec.qscheme).removeprefix("torch."))
    if getattr(spec, "ch_axis", None) is not None:
        words.append(f"axis {spec.ch_axis}")  # type: ignore[union-attr]
    if isinstance(spec, FixedQParamsQuantizationSpec):
        words.append(f"scale {spec.scale:g} zero_point {spec.zero_point}")
    if spec.is_dynamic:
        words.append("dynamic")
    return " ".join(words)


# ------------------------------------------------------------------ reading annotations

QUANTIZABLE = frozenset({torch.float32, torch.float16, torch.bfloat16})


@dataclass
class _Tensors:
    """What annotations say, before sharing is resolved."""

    specs: dict[EdgeOrNode, QuantizationSpecBase] = field(default_factory=dict)
    implicit: dict[EdgeOrNode, bool] = field(default_factory=dict)
    skipped: dict[EdgeOrNode, str] = field(default_factory=dict)

    def add(self, key: EdgeOrNode, spec: QuantizationSpecBase, implicit: bool) -> None:
        self.specs[key] = spec
        self.implicit[key] = implicit

    def skip(self, key: EdgeOrNode, reason: str) -> None:
        self.specs.pop(key, None)
        self.implicit.pop(key, None)
        self.skipped[key] = reason


def _read(graphs: Sequence[Graph]) -> _Tensors:
    found = _Tensors()
    for graph in graphs:
        _read_graph(found, graph, StorageMap.of(graph))
    return found


def _read_graph(found: _Tensors, graph: Graph, storage: StorageMap) -> None:
    for node in graph.nodes:
        annotation = annotation_of(node)
        if annotation is None:
            continue
        implicit = annotation.allow_implicit_sharing
        readers = set(node.all_input_nodes)
        for producer, spec in annotation.input_qspec_map.items():
            if producer not in readers:
                raise AnnotationError(
                    f"{node.name} is annotated on an edge from {producer}, which it does not "
                    f"read; its inputs are {[n.name for n in node.all_input_nodes]}"
                )
            if spec is not None:
                _read_one(found, (producer, node), producer, spec, implicit, storage)
        if annotation.output_qspec is not None:
            _read_one(found, node, node, annotation.output_qspec, implicit, storage)


def _read_one(
    found: _Tensors,
    key: EdgeOrNode,
    value: Node,
    spec: QuantizationSpecBase,
    implicit: bool,
    storage: StorageMap,
) -> None:
    if not isinstance(spec, QuantizationSpecBase):
        raise AnnotationError(
            f"{edge_name(key)} is annotated with a {type(spec).__name__}; use QuantizationSpec, "
            "SharedQuantizationSpec, DerivedQuantizationSpec or FixedQParamsQuantizationSpec"
        )
    reason = _why_not(value)
    if reason is not None:
        found.skip(key, reason)
    elif not isinstance(key, Node) and storage.must_write_through(*key):
        found.skip(key, "written in place: the write has to reach the original tensor")
    else:
        found.add(key, spec, implicit)


def _why_not(value: Node) -> str | None:
    """Why a value cannot be quantized, whatever its annotation says."""
    if not is_float_tensor(value):
        return "not a floating point tensor"
    tensor = value.meta["val"]
    if tensor.dtype not in QUANTIZABLE:
        return f"{tensor.dtype}, which the quantize operators do not take"
    if tensor.layout is not torch.strided:
        return f"a {str(tensor.layout).removeprefix('torch.')} tensor, which is not strided"
    # A plain meta tensor stands for one whose device is not on record.
    if isinstance(tensor, FakeTensor) and tensor.device.type == "meta":
        return "on the meta device: it has no data to find parameters from"
    return None


# ------------------------------------------------------------------ union


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


def _sharing_error(key: EdgeOrNode, found: _Tensors) -> SharingError:
    """What is wrong with a chain of shared specs that reaches no real one."""
    seen = [key]
    spec = found.specs[key]
    while isinstance(spec, SharedQuantizationSpec):
        target = _as_key(spec.edge_or_node)
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


def _as_key(edge_or_node: EdgeOrNode) -> EdgeOrNode:
    if isinstance(edge_or_node, Node):
        return edge_or_node
    producer, consumer = edge_or_node  # a list is taken for a tuple
    return producer, consumer


def _resolve(found: _Tensors) -> dict[EdgeOrNode, QuantizationSpecBase]:
    """The real spec of every tensor; what shares with a skipped tensor is skipped too.

    Chains are walked once: every step on the way is remembered.
    """
    resolved: dict[EdgeOrNode, QuantizationSpecBase] = {}
    for key in list(found.specs):
        trail = []
        at = key
        spec = found.specs.get(at)
        while at not in resolved and isinstance(spec, SharedQuantizationSpec):
            trail.append(at)
            at = _as_key(spec.edge_or_node)
            spec = found.specs.get(at)
            circle = len(trail) > len(found.specs)
            if circle or (spec is None and at not in found.skipped):
                raise _sharing_error(key, found)
        real = resolved.get(at, spec)
        for step in trail:
            if real is None:
                found.skip(step, f"shares with {edge_name(at)}, which is {found.skipped[at]}")
            else:
                resolved[step] = real
        if real is not None:
            resolved[at] = real
    return resolved


def _resolve_all(found: _Tensors) -> dict[EdgeOrNode, QuantizationSpecBase]:
    """`_resolve`; what derives its parameters from a skipped tensor is skipped as well."""
    while True:
        resolved = _resolve(found)
        lost = {
            key: source
            for key, spec in found.specs.items()
            if isinstance(spec, DerivedQuantizationSpec)
            for source in map(_as_key, spec.derived_from)
            if source in found.skipped
        }
        if not lost:
            return resolved
        for key, source in lost.items():
            found.skip(key, f"derived from {edge_name(source)}, which is {found.skipped[source]}")


def _join_explicit(found: _Tensors, union: _Union) -> None:
    for key, spec in found.specs.items():
        if isinstance(spec, SharedQuantizationSpec):
            union.join(_as_key(spec.edge_or_node), key)


def _keys_of(node: Node) -> list[EdgeOrNode]:
    return [node, *((node, user) for user in node.users)]


def _join_implicit(
    graphs: Sequence[Graph],
    links: Links,
    found: _Tensors,
    resolved: dict[EdgeOrNode, QuantizationSpecBase],
    union: _Union,
) -> None:
    for nodes in _values(graphs, links):
        same_value = [key for node in nodes for key in _keys_of(node)]
        first_with: list[EdgeOrNode] = []
        for key in same_value:
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


# ------------------------------------------------------------------ groups


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
    found = _read(graphs)
    resolved = _resolve_all(found)
    union = _Union(found.specs)
    _join_explicit(found, union)
    _join_implicit(graphs, links, found, resolved, union)
    members: dict[EdgeOrNode, list[EdgeOrNode]] = {}
    for key in found.specs:
        members.setdefault(union.find(key), []).append(key)
    groups = [Group(tuple(keys), _one_spec(keys, found)) for keys in members.values()]
    skipped = tuple(found.skipped.items())
    return _order(groups, skipped)


def _one_spec(keys: list[EdgeOrNode], found: _Tensors) -> QuantizationSpecBase:
    """The real spec of a group. There is one: every chain ends in one, and only equal ones join."""
    return next(
        spec
        for spec in (found.specs[key] for key in keys)
        if not isinstance(spec, SharedQuantizationSpec)
    )


def _sources(group: Group, index_of: dict[EdgeOrNode, int]) -> tuple[int, ...]:
    if not isinstance(group.spec, DerivedQuantizationSpec):
        return ()
    sources = []
    for key in map(_as_key, group.spec.derived_from):
        if key not in index_of:
            raise SharingError(
                f"{edge_name(group.members[0])} derives its parameters from {edge_name(key)}, "
                "which is not quantized; annotate it"
            )
        sources.append(index_of[key])
    return tuple(sources)


def _order(groups: list[Group], skipped: tuple[tuple[EdgeOrNode, str], ...]) -> Plan:
    """Sources first, otherwise in the order of the graph."""
    index_of = {key: i for i, group in enumerate(groups) for key in group.members}
    sources = [_sources(group, index_of) for group in groups]
    order: list[int] = []
    state = [0] * len(groups)  # 0 new, 1 its sources are being placed, 2 placed
    stack = list(range(len(groups) - 1, -1, -1))
    while stack:
        at = stack[-1]
        waiting = [s for s in sources[at] if state[s] != 2]
        if state[at] == 2 or not waiting:
            stack.pop()
            if state[at] != 2:
                state[at] = 2
                order.append(at)
            continue
        if state[at] == 1:
            names = ", ".join(edge_name(groups[i].members[0]) for i in (at, *waiting))
            raise SharingError(f"parameters are derived from each other in a circle: {names}")
        state[at] = 1
        stack.extend(waiting)
    place = {old: new for new, old in enumerate(order)}
    placed = tuple(
        Group(groups[old].members, groups[old].spec, tuple(place[s] for s in sources[old]))
        for old in order
    )
    return Plan(placed, {k: i for i, g in enumerate(placed) for k in g.members}, skipped)
