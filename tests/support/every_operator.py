"""Quantizers of all kinds, and one that annotates every input and output."""

from __future__ import annotations

from torch.fx import Node

from pt2q import (
    QuantizationAnnotation,
    Quantizer,
)
from pt2q.quantizers import (
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
)
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
