"""What the tests of the peer's faults share: settled models, prepared, and quantizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Node

from pt2q import (
    QuantizationAnnotation,
    Quantizer,
    prepare_pt2e,
)
from pt2q.ir.graph import is_float_tensor
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config
from support.small_quantizers import (
    ACTIVATION,
)


def prepared(model: nn.Module, quantizer: Quantizer, *inputs: Any, **options: Any) -> Any:
    return prepare_pt2e(torch.export.export(model, inputs, **options), quantizer)


def everything(node: Node) -> QuantizationAnnotation | None:
    """Any floating point input and output of any operator."""
    if node.op == "output":
        return None
    inputs: Any = {n: ACTIVATION for n in node.all_input_nodes if is_float_tensor(n)}
    return QuantizationAnnotation(inputs, ACTIVATION if is_float_tensor(node) else None)


def xnnpack(**options: Any) -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**options))
