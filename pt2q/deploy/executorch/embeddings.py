"""Lookups in a quantized table, as the one operator that the runtime has for them."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_constant, value_of
from pt2q.ir.qparams import QParams, read_qparams
from pt2q.optional import optional_modules

PASS_NAME = "pt2q.executorch_embeddings"
_TYPES = (torch.int8, torch.uint8)


def quantized_lookups(model: GraphModule) -> list[Node]:
    """The embeddings that look rows up in a table of 8 bits, with a scale per row or per group.

    Args:
        model: a converted module.
    """
    return [node for node in model.graph.nodes if _table_params(node) is not None]


def fuse_lookups(model: GraphModule) -> bool:
    """Replace each by the runtime's ``embedding_byte``, which dequantizes the rows it looks up.

    As they are, the whole table would be dequantized for each call, by a kernel that the runtime
    does not have.

    Args:
        model: a converted module; changed in place.

    Returns:
        Whether there were any.

    Raises:
        MissingDependencyError: executorch is not installed.
    """
    found = quantized_lookups(model)
    if not found:
        return False
    register_kernels()
    emit = Emitter(model, PASS_NAME)
    for node in found:
        _fuse(emit, node)
    model.graph.eliminate_dead_code()
    model.recompile()
    return True


def register_kernels() -> None:
    """Let torch and the runtime know the operators of quantized tables."""
    optional_modules(
        "executorch.exir.passes._quant_patterns_and_replacements",
        "executorch.kernels.quantized",
        extra="executorch",
    )


def _table_params(node: Node) -> QParams | None:
    """The parameters of the table that an embedding reads, if the runtime takes them."""
    table = ops.argument(node, "weight") if ops.is_op(node, ops.EMBEDDING) else None
    if not isinstance(table, Node) or not ops.is_op(table, ops.DEQUANTIZE):
        return None
    params = read_qparams(table)
    stored = is_constant(ops.data_input(table)) and params.dtype in _TYPES
    return params if stored and (params.axis == 0 or params.group is not None) else None


def _fuse(emit: Emitter, node: Node) -> None:
    params = _table_params(node)
    assert params is not None
    table = ops.data_input(ops.argument(node, "weight"))
    emit.before(node)
    scale, zero_point = (_in_float(emit, params.scale), _in_float(emit, params.zero_point))
    bounds = params.quant_min, params.quant_max
    value = value_of(node)
    told: dict[str, Any] = {} if value.dtype == torch.float32 else {"dtype": value.dtype}
    target = ops.qd.embedding_byte.dtype if told else ops.qd.embedding_byte.default
    indices = ops.argument(node, "indices")
    emit.replace_by(
        emit.call_giving(value, target, table, scale, zero_point, *bounds, indices, **told)
    )


def _in_float(emit: Emitter, source: Any) -> Any:
    """A parameter in float32, as the operator asks for; a new constant where it is another type."""
    if not isinstance(source, Node) or not is_constant(source):
        return source
    value = get_constant(emit.model, source)
    if value.dtype is torch.float32:
        return source
    return emit.constant(f"{source.target}_float", value.to(torch.float32))
