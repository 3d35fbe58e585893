"""The graph that the exporter gets: a converted model with the types that ONNX asks for."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from pt2q.deploy.export import in_float32
from pt2q.errors import LoweringError
from pt2q.ir import ops
from pt2q.ir.control_flow import graph_modules
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_constant, set_constant
from pt2q.ir.module import QuantGraphModule, copy_module
from pt2q.ir.qparams import read_qparams

_CHANNELWISE = frozenset(
    {
        ops.qd.quantize_per_channel.default,
        ops.qd.dequantize_per_channel.default,
        ops.qd.dequantize_per_channel_group.default,
    }
)


def for_onnx(model: GraphModule) -> QuantGraphModule:
    """A copy whose scales are float32 and whose zero points have the type of their tensor.

    Args:
        model: a converted model; it shares its other tensors with the copy.

    Raises:
        LoweringError: a zero point is not a whole number.
    """
    result = copy_module(model, model.record if isinstance(model, QuantGraphModule) else None)
    for module in graph_modules(result):
        assert isinstance(module, QuantGraphModule), "a copy is one, with all its bodies"
        for node in list(module.graph.nodes):
            if ops.is_op(node, _CHANNELWISE):
                _fit(module, node)
        module.recompile()
    # NumPy, through which ONNX Runtime is handed tensors, has no bfloat16.
    in_float32(result, "ONNX Runtime", keeps=(torch.float16,))
    return copy_module(result, result.record)


def _fit(model: QuantGraphModule, node: Node) -> None:
    params = read_qparams(node)
    _retype(model, node, params.scale, torch.float32)
    _check_whole(model, node, params.zero_point)
    _retype(model, node, params.zero_point, params.dtype)


def _check_whole(model: QuantGraphModule, node: Node, source: object) -> None:
    if not isinstance(source, Node) or not is_constant(source):
        return
    value = get_constant(model, source)
    if torch.equal(value, value.round()):
        return
    raise LoweringError(
        f"{node.name} has zero points in float, and ONNX has none but integers; quantize with "
        "torch.per_channel_affine, as get_embedding_quantization_config() does"
    )


def _retype(model: QuantGraphModule, node: Node, source: object, dtype: torch.dtype) -> None:
    if isinstance(source, Node) and source.op == "placeholder":
        # Of a body of control flow, which is handed its constants.
        emit = Emitter(model, "pt2q.for_onnx").before(node)
        node.replace_input_with(source, emit.cast(source, dtype))
    if not isinstance(source, Node) or not is_constant(source):
        return
    target = f"{source.target}_{str(dtype).removeprefix('torch.')}"
    value = get_constant(model, source)
    if value.dtype is dtype:
        return
    set_constant(model, target, value.detach().to(dtype))
    new = Emitter(model, "pt2q.for_onnx").before(node, origin=source).read(target)
    node.replace_input_with(source, new)
