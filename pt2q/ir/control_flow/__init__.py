"""Operators that hold graphs: ``cond``, ``while_loop``, ``scan`` and ``map``.

In a prepared model they are run by plain Python functions; convert puts the operators back.
"""

from pt2q.ir.control_flow.boundaries import boundary_links
from pt2q.ir.control_flow.branching import (
    Branching,
    Layout,
    branchings,
    graph_modules,
    is_control_flow,
    named_graph_modules,
    placeholders,
    results,
)
from pt2q.ir.control_flow.runners import run_cond, run_map, run_scan, run_while_loop

__all__ = [
    "Branching",
    "Layout",
    "boundary_links",
    "branchings",
    "graph_modules",
    "is_control_flow",
    "named_graph_modules",
    "placeholders",
    "results",
    "run_cond",
    "run_map",
    "run_scan",
    "run_while_loop",
]
