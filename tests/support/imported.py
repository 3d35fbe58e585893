"""Modules exported and imported, and nodes in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pt2q.ir.module import QuantGraphModule, import_exported
from pt2q.ir.ops import is_op


class Apply(nn.Module):
    def __init__(self, fn: object, *layers: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.layers = nn.ModuleList(layers)

    def forward(self, *args: Tensor) -> object:
        return self.fn(self.layers, *args)  # type: ignore[operator]


def exported(module: nn.Module, *args: Tensor) -> QuantGraphModule:
    return import_exported(torch.export.export(module.eval(), args))


def find(model: GraphModule, ops: frozenset[object], index: int = 0) -> Node:
    return [n for n in model.graph.nodes if is_op(n, ops)][index]  # type: ignore[arg-type]
