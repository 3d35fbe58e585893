"""The graph that Inductor gets: a converted model in the form that its patterns expect."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import GraphModule, Node

from pt2q.deploy.export import in_float32
from pt2q.deploy.inductor.additions import rewrite_additions
from pt2q.deploy.inductor.bfloat16 import cast_beside_quantization
from pt2q.errors import LoweringError
from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_constant, value_of
from pt2q.ir.module import InputCheck, QuantGraphModule, copy_module
from pt2q.ir.qparams import read_qparams, write_dequantize
from pt2q.ir.torch_private import forward_pre_hooks, remove_forward_pre_hook
from pt2q.passes.transform.float32 import half_types

_WEIGHTED = ops.CONV | ops.LINEAR | ops.ADDMM | ops.MM
_PER_TENSOR = ops.overloads(ops.qd.dequantize_per_tensor)
_PER_CHANNEL = ops.overloads(ops.qd.dequantize_per_channel)
_STATIC = frozenset({ops.qd.dequantize_per_tensor.default})


def for_inductor(model: GraphModule) -> QuantGraphModule:
    """A copy of a converted model, written the way Inductor's patterns expect; same function.

    Weights with one scale get that scale per channel, the only form its int8 kernels take. A
    quantized constant that is added (a position embedding) becomes the float constant it stands
    for: fused into a convolution, the kernel would add into the constant itself. A weight that
    several operators read is stored once for each, as packed weights are anyway. Additions that its
    patterns would take in wrongly are written another way. bfloat16 stays; float16, which no int8
    kernel gives, becomes float32.

    Args:
        model: a converted model; it shares its tensors with the copy and is not changed.

    Raises:
        LoweringError: activations are int8, which Inductor runs a thousand times slower, if at
            all.
    """
    record = model.record if isinstance(model, QuantGraphModule) else None
    result = copy_module(model, record)
    if torch.float16 in half_types(result):
        in_float32(result, "Inductor on int8")
    emit = Emitter(result, "pt2q.for_inductor")
    seen: set[str] = set()
    for node in list(result.graph.nodes):
        if not ops.is_op(node, ops.DEQUANTIZE):
            continue
        source = ops.data_input(node)
        if is_constant(source):
            _store_once_each(emit, _rewrite_constant(emit, node, source), seen)
        else:
            _refuse_int8(node)
    rewrite_additions(emit)
    _lay_out(emit)
    cast_beside_quantization(emit)
    result.graph.eliminate_dead_code()
    result.recompile()
    return copy_module(result, record)  # leaves behind what nothing reads


def take_input_checks(model: QuantGraphModule) -> tuple[InputCheck, ...]:
    """Remove the shape checks of a model, to be run before its compiled code.

    Traced into the code they would cost guards on every call.

    Args:
        model: what `for_inductor` gave; changed in place.
    """
    found = {k: h for k, h in forward_pre_hooks(model).items() if isinstance(h, InputCheck)}
    for key in found:
        remove_forward_pre_hook(model, key)
    return tuple(found.values())


def _refuse_int8(node: Node) -> None:
    weighted = next((user for user in node.users if ops.is_op(user, _WEIGHTED)), None)
    if weighted is None or not ops.is_op(node, _PER_TENSOR):
        return
    if read_qparams(node).dtype is torch.int8:
        raise LoweringError(
            f"the input of {weighted.name} is int8; Inductor's int8 kernels take uint8. Quantize "
            "with X86InductorQuantizer; int8 activations are for XNNPACK and TensorRT."
        )


def _rewrite_constant(emit: Emitter, node: Node, source: Node) -> Node:
    """Write a stored constant as Inductor takes it; returns what gives its value."""
    if not ops.is_op(node, _PER_TENSOR | _PER_CHANNEL):
        return node
    if all(ops.is_op(user, ops.ADD) or _is_misread(user) for user in node.users):
        return _store_float(emit, node, source)
    if ops.is_op(node, _STATIC) and get_constant(emit.model, source).dim() > 1:
        return _spread_scale(emit, node, source)
    return node


def _store_once_each(emit: Emitter, node: Node, seen: set[str]) -> None:
    """Inductor merges the dequantizes of a weight used twice, and matches neither use."""
    source = ops.data_input(node) if ops.is_op(node, _PER_CHANNEL) else None
    if source is None or not any(ops.is_op(user, _WEIGHTED) for user in node.users):
        return
    target = str(source.target)
    if target not in seen:
        seen.add(target)
        return
    own = get_constant(emit.model, target).clone()
    node.replace_input_with(source, emit.before(node, origin=source).constant(target, own))


def _lay_out(emit: Emitter) -> None:
    """Copy what is transposed and quantized where sizes are symbolic.

    Inductor writes a linear layer on transposed activations as a batch of products, and its pattern
    for these compares sizes that it can only compare where they are numbers.
    """
    for node in list(emit.model.graph.nodes):
        source = ops.data_input(node) if ops.is_op(node, ops.QUANTIZE) else None
        if not isinstance(source, Node) or not ops.is_op(source, ops.PERMUTE):
            continue
        if not all(isinstance(size, int) for size in value_of(source).shape):
            layout = {"memory_format": torch.contiguous_format}
            emit.before(node, origin=source)
            node.replace_input_with(source, emit.call(ops.aten.clone.default, source, **layout))


def _is_misread(node: Node) -> bool:
    """Whether Inductor gives a convolution of one dimension, as a kernel, a wrong size.

    It does where padding is not zero. That shows where something computes with the result before
    it is quantized again: such a convolution computes in float.
    """
    if not ops.is_op(node, ops.CONV1D):
        return False
    while len(node.users) == 1 and ops.is_op(next(iter(node.users)), ops.RELU | ops.CLAMP_LIKE):
        node = next(iter(node.users))
    return any(not ops.is_op(user, ops.QUANTIZE) and user.op != "output" for user in node.users)


def _store_float(emit: Emitter, node: Node, source: Node) -> Node:
    values = [get_constant(emit.model, a) if isinstance(a, Node) else a for a in node.args]
    with torch.no_grad():
        value = node.target(*values, **node.kwargs)  # type: ignore[operator]
    return emit.before(node).replace_by(emit.constant(f"{source.target}_float", value))


def _spread_scale(emit: Emitter, node: Node, source: Node) -> Node:
    """Write a weight's one scale once per output channel."""
    params, axis = read_qparams(node), _channel_axis(node)
    if axis is None or params.dtype is not torch.int8 or not params.is_per_tensor:
        return node
    channels = (get_constant(emit.model, source).shape[axis],)
    emit.before(node)
    scale, zero_point = params.known
    spread = replace(
        params,
        scale=emit.constant(f"{source.target}_scale", torch.full(channels, float(scale))),
        zero_point=emit.constant(
            f"{source.target}_zero_point", torch.full(channels, int(zero_point))
        ),
        axis=axis,
    )
    return emit.replace_by(write_dequantize(emit, source, spread, value_of(node)))


def _channel_axis(node: Node) -> int | None:
    """The output-channel axis of a weight, by what reads it; None for anything else."""
    users = list(node.users)
    if users and all(ops.is_op(u, ops.CONV_FORWARD | ops.LINEAR) for u in users):
        return 0 if all(ops.argument(u, "weight") is node for u in users) else None
    return None
