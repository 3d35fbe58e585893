"""What reading a prepared graph once tells: order, last readers, constants, where it may be cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.control_flow import graph_modules
from pt2q.ir.storage import StorageMap
from pt2q.ir.torch_private import schema_of


def is_pure(node: Node) -> bool:
    """Whether an operator gives the same for the same inputs and writes nowhere."""
    schema = schema_of(node.target)
    if schema is None:
        return getattr(node.target, "__module__", "") == "_operator"
    writes = schema.is_mutable and node.target not in ops.WRITES_NOTHING
    return not writes and not is_random(node)


_OFF = {"train": False, "training": False, "dropout_p": 0.0}
"""Arguments with which an operator that may draw random numbers draws none."""


def is_random(node: Node) -> bool:
    """Whether an operator draws random numbers, in the mode that it is in."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    return not any(
        ops.has_argument(node, name) and ops.argument(node, name) == off
        for name, off in _OFF.items()
    )


@dataclass(frozen=True)
class Schedule:
    """The order of one graph and what follows from it. Positions are those in ``nodes``.

    Args:
        nodes: all nodes, in order.
        position: of each node.
        last_read: the position of the last reader of each node; its own if nobody reads it.
        constants: nodes whose value is the same in every call.
        state: ``get_attr`` nodes of tensors that the graph writes into.
        root: for each node the first one whose storage it may lie in, observers seen through.
        written: roots whose storage is written, with the position of the last write.
    """

    nodes: tuple[Node, ...]
    position: dict[Node, int]
    last_read: dict[Node, int]
    constants: frozenset[Node]
    state: frozenset[Node]
    root: dict[Node, Node]
    written: dict[Node, int]

    @classmethod
    def of(cls, module: GraphModule) -> Schedule:
        """Read a graph.

        Args:
            module: owns it; it is not changed.
        """
        nodes = tuple(module.graph.nodes)
        position = {node: index for index, node in enumerate(nodes)}
        last_read = {n: max((position[u] for u in n.users), default=position[n]) for n in nodes}
        storage = StorageMap.of(module.graph)
        root = storage.root
        written = {node: storage.last_write(node) for node in storage.writers}
        state = frozenset(n for n in nodes if n.op == "get_attr" and root[n] in written)
        constants = _constants(nodes, root, written)
        return cls(nodes, position, last_read, constants, state, root, written)

    def is_value(self, node: Node) -> bool:
        """Whether a node's value belongs to a batch: it is no constant and no state."""
        return node not in self.constants and node not in self.state and node.op != "output"

    @cached_property
    def _open(self) -> list[int]:
        """For every position, how many tensors of the module are written around a cut there."""
        steps = [0] * (len(self.nodes) + 2)
        for first, last in self._uses_of_state().values():
            steps[first + 1] += 1
            steps[last + 1] -= 1
        return list(accumulate(steps))

    def _uses_of_state(self) -> dict[Node, tuple[int, int]]:
        """The first and the last position at which each written tensor of the module is used."""
        uses: dict[Node, tuple[int, int]] = {}
        roots = {self.root[node] for node in self.state}
        for node in self.nodes:
            root = self.root[node]
            if root not in roots:
                continue
            readers = [self.position[user] for user in node.users]
            first, last = uses.get(root, (len(self.nodes), 0))
            # The tensor itself is no use of it: only what reads it is.
            own = [] if node in self.state else [self.position[node]]
            uses[root] = min([first, *own, *readers]), max([last, *own, *readers])
        return {root: span for root, span in uses.items() if span[0] <= span[1]}

    def cut_before(self, position: int) -> int:
        """The last position up to ``position`` before which the run may stop."""
        return next(at for at in range(position, -1, -1) if self._open[at] == 0)

    def cut_after(self, position: int) -> int:
        """The first position from ``position`` on before which the run may stop."""
        return next(at for at in range(position, len(self._open)) if self._open[at] == 0)

    def born(self, node: Node) -> int:
        """The first position before which a value is there: for inputs the first of all."""
        return 0 if node.op == "placeholder" else self.position[node] + 1

    def live(self, position: int) -> list[Node]:
        """The values that are there before a position and read from it on, in order."""
        return [
            node
            for node in self.nodes
            if self.born(node) <= position <= self.last_read[node]
            and self.is_value(node)
            and node.users
        ]

    def writes(self, first: int, last: int) -> bool:
        """Whether a node in a range of positions writes into a tensor."""
        return any(ops.is_mutating(node) for node in self.nodes[first : last + 1])

    def needed(self, targets: Iterable[Node], first: int) -> list[Node]:
        """The nodes from a position on that have to run for some of them to have their values.

        Args:
            targets: nodes at ``first`` or after it.
            first: where the run stands.
        """
        ends = [self.position[node] for node in targets]
        between = self.nodes[first : max(ends) + 1]
        if self.writes(first, max(ends)):
            return list(between)
        wanted = set(targets)
        for node in reversed(between):
            if node in wanted:
                wanted.update(node.all_input_nodes)
        return [node for node in between if node in wanted]

    def inputs(self, nodes: Iterable[Node]) -> list[Node]:
        """The values that some nodes read and none of them makes, in order."""
        run = {node for node in nodes if node.op != "placeholder"}
        read = {source for node in run for source in node.all_input_nodes} - run
        return sorted(filter(self.is_value, read), key=self.position.__getitem__)


def _constants(
    nodes: tuple[Node, ...], root: dict[Node, Node], written: dict[Node, int]
) -> frozenset[Node]:
    known: set[Node] = set()
    for node in nodes:
        if root[node] in written:
            continue
        inputs = node.all_input_nodes
        computed = node.op == "call_module" or (node.op == "call_function" and is_pure(node))
        if node.op == "get_attr" or (computed and inputs and all(n in known for n in inputs)):
            known.add(node)
    return frozenset(known)


class Program:
    """A prepared module with the schedules of its graph and of those its control flow runs.

    Args:
        model: the module. Its graph stays as it is while the program is in use; its tensors and
            observers may change.
    """

    def __init__(self, model: GraphModule) -> None:
        self.model = model
        self.schedules = {module: Schedule.of(module) for module in graph_modules(model)}

    @property
    def schedule(self) -> Schedule:
        """That of the outermost graph."""
        return self.schedules[self.model]

    def owner_of(self, node: Node) -> GraphModule:
        """The module whose graph a node is in."""
        return next(m for m in self.schedules if m.graph is node.graph)
