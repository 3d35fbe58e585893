"""A quantizer for everything, and the flow with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Node

from pt2q import (
    QuantGraphModule,
    QuantizationAnnotation,
    Quantizer,
    convert_pt2e,
    prepare_pt2e,
)
from pt2q.quantizers import (
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
)
from support.laws import assert_laws
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    PER_TOKEN,
    FunctionQuantizer,
    SmallQuantizer,
)


def everything(node: Node) -> QuantizationAnnotation | None:
    """Each input and output of each operator, whatever it is."""
    if node.op == "output":
        return None
    return QuantizationAnnotation(dict.fromkeys(node.all_input_nodes, ACTIVATION), ACTIVATION)


def quantized(
    model: nn.Module, quantizer: Quantizer, *inputs: Any, calls: Any = None, **options: Any
) -> QuantGraphModule:
    ready = prepare_pt2e(torch.export.export(model, inputs, **options), quantizer)
    for call in calls or [inputs]:
        ready(*call)
    done = convert_pt2e(ready)
    assert_laws(done, converted=True)
    return done


def quantizers() -> dict[str, Quantizer]:
    return {
        "everything": FunctionQuantizer(everything),
        "static": SmallQuantizer(),
        "dynamic": SmallQuantizer(DYNAMIC),
        "per token": SmallQuantizer(PER_TOKEN),
        "xnnpack": XNNPACKQuantizer(),
        "xnnpack, all apart": XNNPACKQuantizer().set_decompositions(attention=True),
        "x86": X86InductorQuantizer(),
        "8da4w": WeightQuantizer(get_dynamic_activation_4bit_weight_config()),
    }
