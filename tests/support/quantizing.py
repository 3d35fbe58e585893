"""Models prepared and quantized in one call, with the laws checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from pt2q import (
    QuantGraphModule,
    QuantizationAnnotation,
    Quantizer,
    convert_pt2e,
    prepare_pt2e,
)
from pt2q.ir.graph import is_float_tensor
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config
from support.laws import assert_laws
from support.small_quantizers import (
    ACTIVATION,
)


def settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


def prepared(model: nn.Module, quantizer: Quantizer, *inputs: Any, **options: Any) -> Any:
    return prepare_pt2e(torch.export.export(model, inputs, **options), quantizer)


def quantized(model: nn.Module, quantizer: Quantizer, *inputs: Any) -> QuantGraphModule:
    ready = prepared(model, quantizer, *inputs)
    ready(*inputs)
    done = convert_pt2e(ready)
    assert_laws(done, converted=True)
    return done


def everything(node: Node) -> QuantizationAnnotation | None:
    """Any floating point input and output of any operator."""
    if node.op == "output":
        return None
    inputs: Any = {n: ACTIVATION for n in node.all_input_nodes if is_float_tensor(n)}
    return QuantizationAnnotation(inputs, ACTIVATION if is_float_tensor(node) else None)


def xnnpack(**options: Any) -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**options))


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))
