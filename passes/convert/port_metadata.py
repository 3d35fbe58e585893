"""Say which module each quantize and dequantize belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.module import QuantGraphModule

PORTED = ("nn_module_stack", "stack_trace", "torch_fn", "custom")


@dataclass(frozen=True)
class PortNodeMetaForQDQ:
    """Copy module path and stack trace onto q/dq nodes from the operator they serve.

    A dequantize belongs to the operator that reads it. A quantize belongs to the operator that
    made the value; where that is an input or a weight, to the first operator that reads it.
    Nodes that compute parameters (``choose_qparams``, their getitems, scales) go with their
    quantize. Backends that partition by module then find whole patterns.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Copy metadata; returns whether any q/dq node was found."""
        found = False
        for node in model.graph.nodes:
            if ops.is_op(node, ops.DEQUANTIZE):
                found = True
                _port_from(node, _reader(node))
        for node in model.graph.nodes:
            if ops.is_op(node, ops.QUANTIZE | ops.CHOOSE_QPARAMS):
                found = True
                _port_from(node, _maker(node))
        for node in reversed(model.graph.nodes):
            if "nn_module_stack" not in node.meta and node.op == "get_attr":
                _port_from(node, _reader(node))
        return found


def _reader(node: Node) -> Node | None:
    """The first operator that reads a value, through q/dq nodes if need be."""
    at = node
    for _ in range(8):  # get_attr, quantize, dequantize, operator: never a long chain
        at_next = next((u for u in at.users if u.op != "output"), None)
        if at_next is None:
            return None
        if not ops.is_op(at_next, ops.QUANTIZE | ops.DEQUANTIZE | ops.CHOOSE_QPARAMS):
            return at_next
        at = at_next
    return None


def _maker(node: Node) -> Node | None:
    value = ops.data_input(node)
    if isinstance(value, Node) and "nn_module_stack" in value.meta:
        return value
    return _reader(node)


def _port_from(node: Node, source: Node | None) -> None:
    if source is None:
        return
    for key in PORTED:
        if key in source.meta:
            node.meta[key] = source.meta[key]
