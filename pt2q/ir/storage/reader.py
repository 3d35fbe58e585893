"""Read a graph once and join what may share storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch.fx import Graph, GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.control_flow import Branching, branchings, placeholders, results
from pt2q.ir.storage.effects import Effects, effects_of
from pt2q.ir.storage.overlap import Spans, constant_of


@dataclass(frozen=True)
class Reading:
    """What a graph does to storage.

    Args:
        root: for each node, the first node of the graph whose storage it may lie in. Constants
            that overlap have the same root.
        position: the position of each node in the graph.
        writers: by root, the calls that write into the storage, in the order of the graph.
        external: roots of storage that outlives the call: a constant's or an input's.
        effects: what each call does to storage, where it does anything.
        last_use: the position of the last node that reads a node, for those that are read.
    """

    root: dict[Node, Node]
    position: dict[Node, int]
    writers: dict[Node, list[Node]]
    external: frozenset[Node]
    effects: dict[Node, Effects]
    last_use: dict[Node, int]

    @cached_property
    def lying_in(self) -> dict[Node, list[Node]]:
        """By root, the nodes that may lie in the storage."""
        found: dict[Node, list[Node]] = {}
        for node, first in self.root.items():
            found.setdefault(first, []).append(node)
        return found


def read(graph: Graph) -> Reading:
    """Read a graph, and the graphs that its control flow runs.

    Args:
        graph: of a module, whose tensors say which constants overlap.
    """
    reader = _Reader(graph)
    reader.read_constants()
    reader.read_calls()
    return reader.reading()


@dataclass
class _Reader:
    graph: Graph
    position: dict[Node, int] = field(init=False)
    calls: dict[Node, Branching] = field(init=False)
    parent: dict[Node, Node] = field(default_factory=dict)
    spans: Spans = field(default_factory=Spans)
    effects: dict[Node, Effects] = field(default_factory=dict)
    given_out: dict[Node, dict[int, tuple[Node, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.position = {node: index for index, node in enumerate(self.graph.nodes)}
        owner = self.graph.owning_module
        found = branchings(owner) if isinstance(owner, GraphModule) else []
        self.calls = {call.node: call for call in found}

    def reading(self) -> Reading:
        root = {node: self.find(node) for node in self.position}
        writers: dict[Node, list[Node]] = {}
        for node, effects in self.effects.items():
            for written in dict.fromkeys(root[value] for value in effects.written):
                writers.setdefault(written, []).append(node)
        lasting = frozenset(root[n] for n in self.position if n.op in ("get_attr", "placeholder"))
        last_use = {read: at for n, at in self.position.items() for read in n.all_input_nodes}
        return Reading(root, self.position, writers, lasting, self.effects, last_use)

    # -------------------------------------------------------------- disjoint sets

    def find(self, node: Node) -> Node:
        """The first node of the graph that lies in the node's storage."""
        parent = self.parent
        while node in parent:
            above = parent[node]
            parent[node] = parent.get(above, above)
            node = above
        return node

    def join(self, one: Node, other: Node) -> None:
        first, second = self.find(one), self.find(other)
        if self.position[first] > self.position[second]:
            first, second = second, first
        if first is not second:
            self.parent[second] = first

    # -------------------------------------------------------------- constants

    def read_constants(self) -> None:
        """Join the reads of one constant, and constants that overlap in storage."""
        by_name: dict[str, Node] = {}
        for node in self.graph.find_nodes(op="get_attr"):
            first = by_name.setdefault(str(node.target), node)
            self.join(first, node)
        self.spans = Spans.of((node, constant_of(node)) for node in by_name.values())
        for one, other in self.spans.joined():
            self.join(one, other)

    # -------------------------------------------------------------- calls

    def read_calls(self) -> None:
        for node in self.graph.nodes:
            effects = self.effects_of(node)
            if not (effects.written or effects.shared):
                continue
            self.effects[node] = effects
            for source in effects.shared:
                self.join(source, node)

    def effects_of(self, node: Node) -> Effects:
        if node in self.calls:
            return self.of_bodies(self.calls[node])
        source = node.args[0] if node.target is ops.GETITEM else None
        if source in self.given_out:
            assert isinstance(source, Node)
            return Effects(shared=self.given_out[source].get(node.args[1], ()))  # type: ignore[arg-type]
        return effects_of(node)

    def of_bodies(self, call: Branching) -> Effects:
        """What a call that runs graphs writes; notes what each of its results may share."""
        layout, written = call.layout, []
        shared: dict[int, list[Node]] = {}
        if layout.carried is not None:  # a loop that makes no step gives out what it was given
            shared = {i: [value] for i, value in enumerate(call.group(layout.carried))}
        for index, body in enumerate(call.bodies):
            inside = _Body(call, body, self)
            written += inside.written()
            for i in range(len(results(body))) if index in layout.returning else ():
                shared.setdefault(i, []).extend(inside.shared(i))
        nodes = {i: tuple(v for v in found if isinstance(v, Node)) for i, found in shared.items()}
        self.given_out[call.node] = nodes
        return Effects(written=tuple(dict.fromkeys(written)))


class _Body:
    """A graph that a call runs, in terms of the graph around it."""

    def __init__(self, call: Branching, body: GraphModule, around: _Reader) -> None:
        self.body = body
        self.around = around
        self.reading = read(body.graph)
        self.outside: dict[Node, list[Node]] = {}
        for operand, inner in zip(call.operands, placeholders(body), strict=True):
            if isinstance(operand, Node):
                self._lies_in(inner, [operand])
        for node in body.graph.find_nodes(op="get_attr"):
            self._lies_in(node, around.spans.overlapping(constant_of(node)))

    def _lies_in(self, inner: Node, outer: list[Node]) -> None:
        self.outside.setdefault(self.reading.root[inner], []).extend(outer)

    def written(self) -> list[Node]:
        """The nodes outside whose storage is written in here."""
        return [node for root in self.reading.writers for node in self.outside.get(root, ())]

    def shared(self, index: int) -> list[Node]:
        """The nodes outside whose storage a result may lie in."""
        result = results(self.body)[index]
        return self.outside.get(self.reading.root[result], []) if isinstance(result, Node) else []
