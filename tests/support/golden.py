"""Golden texts of graphs, and models whose figures are equal on any machine."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pt2q.ir.graph import dump

GOLDEN = Path(__file__).parents[1] / "golden"


def assert_golden(name: str, text: str) -> None:
    """Compare with ``golden/<name>.txt``; PT2Q_WRITE_GOLDEN=1 writes it instead."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PT2Q_WRITE_GOLDEN"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text(), f"{path.name} differs:\n{text}"


def assert_golden_graph(name: str, model: GraphModule) -> None:
    assert_golden(name, dump(model))


def exact(model: nn.Module) -> nn.Module:
    """Parameters become small multiples of 1/8: sums are exact, golden scales equal anywhere."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            count = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
            parameter.copy_(((count * (5 + 2 * index)) % 13 - 6) / 8)
    return model.eval()


def exact_input(*shape: int) -> Tensor:
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    return ((count * 7) % 17 - 6) / 4
