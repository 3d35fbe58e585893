"""A function called with every node."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pt2q.debug import (
    CUSTOM_KEY,
    FROM_NODE_KEY,
    NUMERIC_DEBUG_HANDLE_KEY,
    bfs_trace_with_node_process,
    generate_numeric_debug_handle,
)
from pt2q.errors import NotExportedError


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,))


def test_bodies_come_after_the_graph_that_runs_them() -> None:
    program = torch.export.export(Branch(), (torch.randn(3),))
    for model in (program, program.module()):
        seen: list[str] = []
        bfs_trace_with_node_process(model, lambda node, seen=seen: seen.append(node.name))
        assert seen.index("sum_1") < seen.index("cond") < seen.index("sin") < seen.index("cos")


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(NotExportedError, match="found Branch"):
        bfs_trace_with_node_process(Branch(), print)  # type: ignore[arg-type]


def test_the_keys_are_where_handles_and_sources_are() -> None:
    program = torch.export.export(nn.ReLU(), (torch.randn(3),))
    generate_numeric_debug_handle(program)
    (relu,) = (n for n in program.module().graph.nodes if n.op == "call_function")
    assert relu.meta[CUSTOM_KEY] == {NUMERIC_DEBUG_HANDLE_KEY: 1}
    assert relu.meta[FROM_NODE_KEY][-1].name == "relu"
