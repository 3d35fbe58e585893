"""Which operators XNNPACK gets together: the fewest blobs of which none waits for itself.

ExecuTorch's partitioner says which operators its delegate takes, in groups that must not be torn
apart. It joins groups in pairs, looking at each pair by itself; two joined sets may then each need
a result of the other, which it finds out too late ("Invalid partition, found dependency cycles").
Here a group is joined to those that are as many times behind an operator in float as it is: what
leaves a blob never comes back into it, and no joining needs fewer blobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch.fx import Graph, Node
from torch.fx.passes.infra.partitioner import Partition

from pt2q.optional import optional_modules

Group = Sequence[Node]


def xnnpack_partitioner() -> Any:
    """ExecuTorch's partitioner for XNNPACK, with its groups joined as this file does.

    Raises:
        MissingDependencyError: executorch is not installed.
    """
    names = ("xnnpack_partitioner", "config")
    modules = (f"executorch.backends.xnnpack.partition.{name}" for name in names)
    xnnpack, config = optional_modules(*modules, extra="executorch")

    class Partitioner(xnnpack.XnnpackPartitioner):  # type: ignore[misc, name-defined]
        def partition(self, exported_program: Any) -> Any:
            # Past the search of the whole stack, with its sources, for a deprecated caller.
            return super(xnnpack.XnnpackPartitioner, self).partition(exported_program)

        def generate_partitions(self, ep: Any) -> list[Partition]:
            groups = self.get_matched_nodes_from_configs(ep)
            return [
                Partition(id=number, nodes=nodes)
                for number, nodes in enumerate(joined(ep.graph_module.graph, groups))
            ]

    known = config.ALL_PARTITIONER_CONFIGS
    taken = [_padding_of(one) if one is config.ConstantPadConfig else one for one in known]
    return Partitioner(taken)


def _padding_of(base: Any) -> Any:
    """What takes paddings, those of integers by zeros too, which ExecuTorch pads in float.

    Args:
        base: ExecuTorch's own.
    """
    (precision,) = optional_modules(
        "executorch.backends.xnnpack.partition.config.xnnpack_config", extra="executorch"
    )
    kinds = precision.ConfigPrecisionType

    class Padding(base):  # type: ignore[misc]
        def supported_precision_types(self) -> list[Any]:
            return [kinds.FP32, kinds.STATIC_QUANT]

        def get_node_and_deps(self, node: Node, ep: Any) -> list[Node]:
            found: list[Node] = super().get_node_and_deps(node, ep) if _keeps(node) else [node]
            return found

    return Padding


def _keeps(node: Node) -> bool:
    """Whether zeros are added between a dequantize and a quantize of the same parameters."""
    source, user = node.args[0], next(iter(node.users), None)
    value = node.args[2] if len(node.args) > 2 else 0.0
    if not isinstance(source, Node) or user is None or value:
        return False
    return source.args[1:] == user.args[1:]


def joined(graph: Graph, groups: Sequence[Group]) -> list[list[Node]]:
    """Join groups of operators into blobs that can run one after the other.

    Args:
        graph: of a program.
        groups: disjoint sets of its operators and constants; each is run as one.

    Returns:
        The operators of each blob, in the order in which they run. A group that needs its own
        result, through others, is in none: its operators run one by one.
    """
    kept, levels = list(groups), _levels(graph, groups)
    while levels is None:
        kept.remove(min(_entangled(graph, kept), key=len))
        levels = _levels(graph, kept)
    blobs: dict[int, list[Node]] = {}
    for group in kept:
        blobs.setdefault(levels[group[0]], []).extend(group)
    return [blobs[level] for level in sorted(blobs)]


def _levels(graph: Graph, groups: Sequence[Group]) -> dict[Node, int] | None:
    """How often the way to each operator leaves a blob, at most; None if groups are entangled."""
    units = _Units(graph, groups)
    levels: dict[Node, int] = {}
    for unit in units.in_order(forward=True):
        members = units.members(unit)
        sources = {s for node in members for s in node.all_input_nodes} - set(members)
        found = [levels[s] + _leaves(units, s, unit) for s in sources]
        levels.update(dict.fromkeys(members, max(found, default=0)))
    return levels if len(levels) == len(graph.nodes) else None


def _leaves(units: _Units, source: Node, reader: Node) -> bool:
    return (
        units.is_grouped(source) and source.op == "call_function" and not units.is_grouped(reader)
    )


def _entangled(graph: Graph, groups: Sequence[Group]) -> list[Group]:
    """The groups that need their own results, and those between them."""
    units = _Units(graph, groups)
    free = {unit for forward in (True, False) for unit in units.in_order(forward)}
    return [group for group in groups if units.of(group[0]) not in free]


class _Units:
    """A graph in which each group is one node: the first of its members stands for it."""

    def __init__(self, graph: Graph, groups: Iterable[Group]) -> None:
        self.graph = graph
        self._members = {group[0]: group for group in groups}
        self._of = {node: group[0] for group in groups for node in group}

    def of(self, node: Node) -> Node:
        return self._of.get(node, node)

    def is_grouped(self, node: Node) -> bool:
        return node in self._of

    def members(self, unit: Node) -> Group:
        return self._members.get(unit, (unit,))

    def in_order(self, forward: bool) -> list[Node]:
        """Units behind all that they read; without those on a circle, and what reads them."""
        waits = {self.of(node): 0 for node in self.graph.nodes}
        for unit in waits:
            waits[unit] = len(self._next(unit, not forward))
        ready = [unit for unit, count in waits.items() if not count]
        for unit in ready:
            for other in self._next(unit, forward):
                waits[other] -= 1
                if not waits[other]:
                    ready.append(other)
        return ready

    def _next(self, unit: Node, forward: bool) -> set[Node]:
        nodes = self.members(unit)
        found = (n for at in nodes for n in (at.users if forward else at.all_input_nodes))
        return {self.of(n) for n in found} - {unit}
