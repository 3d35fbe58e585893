"""Batch norms that are folded, or left alone."""

from __future__ import annotations

import torch
from torch import nn

from pt2q.ir.module import QuantGraphModule, import_exported
from pt2q.passes import FoldConvBatchNorm, run_passes, verified_passes


def imported(model: nn.Module, *inputs: torch.Tensor, decompose: bool = False) -> QuantGraphModule:
    program = torch.export.export(model, inputs)
    return import_exported(program.run_decompositions() if decompose else program)


def fold(model: QuantGraphModule) -> QuantGraphModule:
    with verified_passes():
        return run_passes(model, [FoldConvBatchNorm()])


def count(model: QuantGraphModule) -> int:
    return sum("batch_norm" in str(n.target) for n in model.graph.nodes)


def reasons(model: QuantGraphModule) -> str:
    return "\n".join(map(str, model.record.notes))


def assert_folds(model: nn.Module, x: torch.Tensor, **kwargs: bool) -> QuantGraphModule:
    expected = model(x)
    graph = imported(model, x, **kwargs)
    fold(graph)
    assert count(graph) == 0, reasons(graph)
    torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5)
    return graph
