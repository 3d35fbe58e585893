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
    """The bytes that constants lie in, by storage.

    Args:
        found: start, end and a node that reads the constant.
    """

    found: dict[int, list[tuple[int, int, Node]]] = field(default_factory=dict)

    @classmethod
    def of(cls, constants: Iterable[tuple[Node, Tensor | None]]) -> Spans:
        """Those of some nodes; what is no tensor has none."""
        result = cls()
        for node, tensor in constants:
            if tensor is not None:
                spans = result.found.setdefault(storage_of(tensor), [])
                spans.append((*span_of(tensor), node))
        return result

    def overlapping(self, tensor: Tensor | None) -> list[Node]:
        """The nodes whose constants a tensor overlaps."""
        if tensor is None:
            return []
        start, end = span_of(tensor)
        known = self.found.get(storage_of(tensor), ())
        return [node for low, high, node in known if low < end and start < high]

    def joined(self) -> Iterator[tuple[Node, Node]]:
        """Pairs that join all constants that overlap, directly or through others."""
        for spans in self.found.values():
            yield from _overlapping(spans)


def _overlapping(spans: list[tuple[int, int, Node]]) -> Iterator[tuple[Node, Node]]:
    if len(spans) < 2:
        return
    reach, first = -1, spans[0][2]
    for start, end, node in sorted(spans, key=lambda span: span[:2]):
        if start < reach:
            yield first, node
        elif end > start:
            first = node
        reach = max(reach, end)
