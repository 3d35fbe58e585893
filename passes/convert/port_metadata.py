"""Say which module each quantize and dequantize belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import TRACE_META, carry, replace_meta
from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class PortNodeMetaForQDQ:
    """Give q/dq nodes the metadata of the operator they serve: module path, stack trace, all tags.

    A dequantize belongs to the operator that reads it. A quantize belongs to the operator that
    made the value; where that is an input or a weight, to the first operator that reads it.
    Nodes that compute parameters (``choose_qparams``, their getitems, scales) go with their
    quantize. Backends that partition by module or by a tag of their own then find whole patterns,
    and no tag of one operator on what belongs to another.
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
            reader = _reader(node) if node.op == "get_attr" else None
            if reader is not None and "nn_module_stack" not in node.meta:
                node.meta.update({k: reader.meta[k] for k in TRACE_META if k in reader.meta})
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
    trace = {key: node.meta[key] for key in TRACE_META if key in node.meta}
    carry(node, source)
    replace_meta(node, {**trace, **node.meta})
