"""Which biases bias correction changes, and which it leaves alone, with the reason."""

from __future__ import annotations

from typing import Any

import torch
from support.few_bits import few_bits, weights_alone
from support.planted import calibrated, quality
from support.small_quantizers import UNSIGNED, FunctionQuantizer
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantizationAnnotation
from pt2q.algorithms import BiasCorrection
from pt2q.ir import ops


def positive(count: int = 8, width: int = 16) -> list[Any]:
    """Inputs with a mean, so that errors of weights shift the outputs."""
    return [(torch.rand(16, width) + 1,) for _ in range(count)]


class SharesBias(nn.Module):
    """Two layers that add one vector, and one that adds what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = (nn.Linear(16, 16) for _ in range(3))
        self.other.bias = self.one.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.other(self.one(x).relu())
        return nn.functional.linear(y, self.last.weight, self.last.bias * 2)


def test_biases_that_are_not_a_layers_own_stay_as_they_are() -> None:
    network, batches = SharesBias().eval(), positive()
    prepared = calibrated(network, weights_alone(few_bits(3)), batches)
    report = BiasCorrection()(prepared, batches)
    reasons = {item.name: item.reason for _, item in report.passed}
    assert report.rows == ()
    assert reasons["linear"] == "its bias is also read by linear_1"
    assert reasons["linear_1"] == "its bias is also read by linear"
    assert "computed in the graph, at mul" in reasons["linear_2"]
    assert torch.equal(prepared.get_parameter("one.bias"), network.one.bias)


def test_a_bias_behind_two_observers_is_corrected() -> None:
    """A quantizer may watch the vector and the layer's edge from it, each with its own spec."""

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.op == "get_attr" and str(node.target).endswith("bias"):
            return QuantizationAnnotation(output_qspec=UNSIGNED)
        if not ops.is_op(node, ops.LINEAR):
            return None
        weight, bias = ops.argument(node, "weight"), ops.argument(node, "bias")
        return QuantizationAnnotation({weight: few_bits(3), bias: few_bits(8, "tensor")})

    network, batches = nn.Linear(16, 16).eval(), positive()
    prepared = calibrated(network, FunctionQuantizer(annotate), batches)
    before = quality(network, prepared, batches)
    (row,) = BiasCorrection()(prepared, batches).rows
    assert row.kept
    assert quality(network, prepared, batches) > before + 3
