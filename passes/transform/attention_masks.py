"""What attention does with its masks; each is prepared once for all layers that share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import value_of
from pt2q.ir.storage import StorageMap


@dataclass
class SharedMasks:
    """What was computed from masks so far, for the next layer that reads the same one.

    Args:
        storage: which masks are written into.
        known: what was computed, by mask or by sizes.
    """

    storage: StorageMap
    known: dict[Any, Node] = field(default_factory=dict)

    def get(self, key: Any, compute: Callable[[], Node]) -> Node:
        """What ``compute`` gave for the key; a mask that is written into is asked each time."""
        if isinstance(key, Node) and self.storage.is_mutated(key):
            return compute()
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]


@dataclass
class MaskWriter:
    """Writes the masks of one attention.

    Args:
        emit: writes the nodes.
        shared: what other layers computed.
    """

    emit: Emitter
    shared: SharedMasks

    def hidden(self, mask: Node | None, query: Node, key: Node) -> Node | None:
        """True where a boolean or causal mask forbids to look."""
        if mask is not None and value_of(mask).dtype is torch.bool:
            return self.shared.get(mask, lambda: self.emit.call(ops.aten.logical_not.default, mask))
        if not ops.argument(self.emit.origin, "is_causal"):
            return None
        asked = (value_of(query).shape[-2], value_of(key).shape[-2], value_of(query).device)
        return self.shared.get(tuple(map(str, asked)), lambda: self._causal(query, key))

    def _causal(self, query: Node, key: Node) -> Node:
        size = [self.emit.size(query, -2), self.emit.size(key, -2)]
        ones = self.emit.call(ops.aten.new_ones.default, query, size, dtype=torch.bool)
        return self.emit.call(ops.aten.triu.default, ones, 1)

    def dead_rows(self, mask: Node | None) -> Node | None:
        """True for the rows in which a mask of numbers forbids everything."""
        if mask is None:
            return None

        def compute() -> Node:
            forbidden = self.emit.call(ops.aten.eq.Scalar, mask, float("-inf"))
            return self.emit.call(ops.aten.all.dim, forbidden, -1, True)

        return self.shared.get(mask, compute)
