"""Quantize and dequantize around bfloat16 as Inductor's patterns have them: float32 and casts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import fake_like, value_of
from pt2q.ir.qparams import read_qparams, write_dequantize


def cast_beside_quantization(emit: Emitter) -> None:
    """Let dequantizes give float32 that is cast, and quantizes take what is cast to float32.

    Args:
        emit: of the model whose graph is rewritten.
    """
    for node in list(emit.graph.nodes):
        if ops.is_op(node, ops.DEQUANTIZE) and _is_bfloat16(node):
            _cast_result(emit, node)
        elif ops.is_op(node, ops.QUANTIZE) and _is_bfloat16(ops.data_input(node)):
            _cast_input(emit, node)


def dequantize_behind(node: object) -> Node | None:
    """The dequantize that gives a value, straight or through a cast; None if there is none.

    Args:
        node: what an operator reads.
    """
    if ops.is_op(node, ops.CASTS):
        assert isinstance(node, Node)
        node = node.args[0]
    return node if isinstance(node, Node) and ops.is_op(node, ops.DEQUANTIZE) else None


def _is_bfloat16(node: object) -> bool:
    value = value_of(node) if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.dtype is torch.bfloat16


def _cast_result(emit: Emitter, node: Node) -> None:
    single = fake_like(value_of(node), torch.float32)
    params = read_qparams(node)
    emit.before(node)
    wide = write_dequantize(emit, ops.data_input(node), params, single)
    emit.replace_by(emit.cast(wide, torch.bfloat16))


def _cast_input(emit: Emitter, node: Node) -> None:
    source = ops.data_input(node)
    node.replace_input_with(source, emit.before(node, origin=source).cast(source, torch.float32))
