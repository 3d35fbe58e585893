"""Remove reads of constants that nobody uses."""

from __future__ import annotations

from dataclasses import dataclass

from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class RemoveUnusedConstants:
    """Erase ``get_attr`` nodes without users.

    Export writes one for every parameter and buffer, used or not; after folding, a float weight
    must not be kept alive by such a node.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Erase; returns whether there were any."""
        unused = [n for n in model.graph.nodes if n.op == "get_attr" and not n.users]
        for node in unused:
            model.graph.erase_node(node)
        return bool(unused)
