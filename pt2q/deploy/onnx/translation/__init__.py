"""How each quantized operator is written in ONNX.

ONNX's ``QuantizeLinear`` saturates at the bounds of its type; where a spec uses fewer integers a
``Clip`` stands before it. See `pt2q.deploy.onnx.rewrites` for what becomes of dynamic quantization,
4-bit weights and embeddings afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pt2q.deploy.onnx.translation import computed, per_token, stored
from pt2q.ir import ops

Translation = Callable[..., Any]


def translations() -> dict[Any, Translation]:
    """The table for ``torch.onnx.export``, by operator."""
    qd = ops.qd
    return {
        qd.quantize_per_tensor.default: stored.quantize,
        qd.dequantize_per_tensor.default: stored.dequantize,
        qd.quantize_per_tensor.tensor: computed.quantize,
        qd.dequantize_per_tensor.tensor: computed.dequantize,
        qd.quantize_per_channel.default: stored.quantize_channels,
        qd.dequantize_per_channel.default: stored.dequantize_channels,
        qd.dequantize_per_channel_group.default: stored.dequantize_groups,
        qd.choose_qparams.tensor: computed.choose,
        qd.choose_qparams_symmetric.tensor: computed.choose_symmetric,
        qd.choose_qparams_per_token_asymmetric.default: per_token.choose,
        qd.quantize_per_token.default: per_token.quantize,
        qd.dequantize_per_token.default: per_token.dequantize,
    }
