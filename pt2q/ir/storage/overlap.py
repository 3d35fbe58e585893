"""Which constants of a graph overlap in storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from pt2q.ir.graph import find_attribute
from pt2q.ir.storage.identity import span_of, storage_of


def constant_of(node: Node) -> Tensor | None:
    """The tensor that a ``get_attr`` node reads from the module that owns its graph, or None."""
    owner = node.graph.owning_module
    found = None if owner is None else find_attribute(owner, str(node.target))
    return found if isinstance(found, Tensor) else None


@dataclass
class Spans:
    """What constants lie in, by storage.

    Args:
        found: the constants and a node that reads each. Most have a storage to themselves, so the
            bytes that each spans are asked for late.
    """

    found: dict[int, list[tuple[Tensor, Node]]] = field(default_factory=dict)

    @classmethod
    def of(cls, constants: Iterable[tuple[Node, Tensor | None]]) -> Spans:
        """Those of some nodes; what is no tensor has none."""
        result = cls()
        for node, tensor in constants:
            if tensor is not None:
                result.found.setdefault(storage_of(tensor), []).append((tensor, node))
        return result

    def overlapping(self, tensor: Tensor | None) -> list[Node]:
        """The nodes whose constants a tensor overlaps."""
        if tensor is None:
            return []
        start, end = span_of(tensor)
        known = _spans(self.found.get(storage_of(tensor), ()))
        return [node for low, high, node in known if low < end and start < high]

    def joined(self) -> Iterator[tuple[Node, Node]]:
        """Pairs that join all constants that overlap, directly or through others."""
        for constants in self.found.values():
            if len(constants) > 1:
                yield from _overlapping(_spans(constants))


def _spans(constants: Iterable[tuple[Tensor, Node]]) -> list[tuple[int, int, Node]]:
    return [(*span_of(tensor), node) for tensor, node in constants]


def _overlapping(spans: list[tuple[int, int, Node]]) -> Iterator[tuple[Node, Node]]:
    reach, first = -1, spans[0][2]
    for start, end, node in sorted(spans, key=lambda span: span[:2]):
        if start < reach:
            yield first, node
        elif end > start:
            first = node
        reach = max(reach, end)
