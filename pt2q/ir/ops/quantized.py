"""Quantize, dequantize, and what chooses their parameters at run time."""

from __future__ import annotations

from torch.fx import Node

from pt2q.ir.ops.names import qd

QUANTIZE = frozenset(
    {
        qd.quantize_per_tensor.default,
        qd.quantize_per_tensor.tensor,
        qd.quantize_per_tensor.tensor2,
        qd.quantize_per_channel.default,
        qd.quantize_per_token.default,
        qd.quantize_per_channel_group.default,
    }
)
QUANTIZE_OF_OTHERS = frozenset({"torchao.quantize_affine"})
"""Operators that observers of other libraries write for themselves: known by name, never loaded."""


def quantizes_elsewhere(node: Node) -> bool:
    """Whether a node calls a quantize of another library, with its overload or without."""
    name = str(node.target).removesuffix(".default")
    return node.op == "call_function" and name in QUANTIZE_OF_OTHERS


DEQUANTIZE = frozenset(
    {
        qd.dequantize_per_tensor.default,
        qd.dequantize_per_tensor.tensor,
        qd.dequantize_per_tensor.tensor2,
        qd.dequantize_per_channel.default,
        qd.dequantize_per_token.default,
        qd.dequantize_per_channel_group.default,
    }
)
CHOOSE_QPARAMS = frozenset(
    {
        qd.choose_qparams.tensor,
        qd.choose_qparams_symmetric.tensor,
        qd.choose_qparams_per_token_asymmetric.default,
        qd.choose_qparams_per_token.default,
    }
)
