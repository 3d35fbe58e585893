"""A value with several readers, annotations, and prepared models for tests of single passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantGraphModule, QuantizationAnnotation
from pt2q.ir.module import copy_module
from support.flow import calibrated
from support.small_quantizers import ACTIVATION


class Fork(nn.Module):
    """One value with three readers, one of which reads it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.tanh(x) * (x * x)


def annotate_inputs(node: Node) -> QuantizationAnnotation | None:
    if node.op != "call_function":
        return None
    inputs = [n for n in node.all_input_nodes if n.op == "placeholder"]
    return QuantizationAnnotation(dict.fromkeys(inputs, ACTIVATION)) if inputs else None


def annotate_all_edges(node: Node) -> QuantizationAnnotation | None:
    if node.op != "call_function":
        return None
    return QuantizationAnnotation(dict.fromkeys(node.all_input_nodes, ACTIVATION), ACTIVATION)


def prepared_copy(model: nn.Module, quantizer: Any, *inputs: Any) -> QuantGraphModule:
    """Calibrated on the inputs; passes of conversion may run on it."""
    ready = calibrated(torch.export.export(model.eval(), inputs), quantizer, inputs)
    return copy_module(ready, ready.record)
