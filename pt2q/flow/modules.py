"""What preparing and converting do to modules alike."""

from __future__ import annotations

from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.module import QuantGraphModule


def own_modules(model: QuantGraphModule) -> list[tuple[str, QuantGraphModule]]:
    """A module ("") and those that its control flow runs, by path, which keep records."""
    return [(p, m) for p, m in named_graph_modules(model) if isinstance(m, QuantGraphModule)]
