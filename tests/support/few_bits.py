"""A quantizer of weights alone, of any number of bits."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from pt2q import QuantizationAnnotation, QuantizationSpec
from pt2q.ir import ops
from pt2q.observers import MinMaxObserver, PerChannelMinMaxObserver
from support.small_quantizers import FunctionQuantizer


def few_bits(bits: int, scheme: str = "channel", axis: int = 0) -> QuantizationSpec:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if scheme == "tensor":
        return QuantizationSpec(torch.int8, MinMaxObserver, low, high, torch.per_tensor_symmetric)
    qscheme = torch.per_channel_affine if scheme == "affine" else torch.per_channel_symmetric
    return QuantizationSpec(torch.int8, PerChannelMinMaxObserver, low, high, qscheme, ch_axis=axis)


def weights_alone(spec: QuantizationSpec, *more: Any) -> FunctionQuantizer:
    """Quantizes the weight of every product."""

    def annotate(node: Node) -> QuantizationAnnotation | None:
        names = {ops.ADDMM: "mat2", ops.MM: "mat2", ops.MATMUL: "other"}
        weighted = ops.CONV | ops.CONV_GENERIC | ops.LINEAR
        name = next((n for kinds, n in names.items() if ops.is_op(node, kinds)), None)
        if ops.is_op(node, weighted):
            name = "weight"
        return None if name is None else QuantizationAnnotation({ops.argument(node, name): spec})

    return FunctionQuantizer(annotate)
