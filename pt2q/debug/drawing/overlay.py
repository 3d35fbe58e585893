"""Node data for Model Explorer, by the names that its reader of ``.pt2`` files gives nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pt2q.debug.comparison.comparison import Comparison, Measure
from pt2q.debug.drawing.colours import gradient

GRAPH = "graph"
"""What Model Explorer calls the graph of a ``.pt2`` file."""


def overlay(values: Mapping[str, float], name: str = "SQNR in dB") -> dict[str, Any]:
    """Figures by node, in the form that Model Explorer loads as node data.

    Args:
        values: by name of the node; those that are not finite are left out.
        name: what the figures are.
    """
    results = {node: {"value": value} for node, value in values.items() if math.isfinite(value)}
    return {GRAPH: {"name": name, "results": results, "gradient": gradient()}}


def errors_by_node(comparison: Comparison, by: Measure = "total") -> dict[str, float]:
    """The signal to noise ratio of each node of the float model, in dB.

    Args:
        comparison: of the float model with a quantized one.
        by: which of the two errors.
    """
    found = {}
    for row in comparison.rows:
        error = getattr(row, by)
        if error is not None:
            found.update(dict.fromkeys((*row.includes, row.node), error.rank))
    return found
