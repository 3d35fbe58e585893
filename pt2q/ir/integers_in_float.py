"""Values in floating point that count: made of integers, and read as integers.

Such as position ids, ``(mask.cumsum(1) * mask - 1).long()``: rounded to steps of a quantize they
are a little smaller, and the cast gives the integer before.
"""

from __future__ import annotations

from torch import Tensor
from torch.fx import Graph, Node

from pt2q.ir import ops
from pt2q.ir.graph import is_constant, is_float_tensor, value_of


def integers_in_float(graph: Graph) -> frozenset[Node]:
    """The values of a graph that are computed from integers and numbers and read as integers alone.

    Args:
        graph: with values in its metadata.
    """
    counted: set[Node] = set()
    for node in graph.nodes:
        if is_float_tensor(node) and _is_counted(node, counted):
            counted.add(node)
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in counted and node.users and all(_takes(user, found) for user in node.users):
            found.add(node)
    return frozenset(found)


def _is_counted(node: Node, counted: set[Node]) -> bool:
    if is_constant(node):
        return bool(value_of(node).numel() == 1)
    if node.op != "call_function":
        return False
    if not node.all_input_nodes:
        return ops.is_op(node, ops.FILLED)
    return all(n in counted or not is_float_tensor(n) for n in node.all_input_nodes)


def _takes(reader: Node, found: set[Node]) -> bool:
    """Whether a reader makes integers of what it reads, or counts on."""
    value = reader.meta.get("val")
    if ops.is_op(reader, ops.ASSERT_METADATA):
        return True
    is_tensor = reader.op == "call_function" and isinstance(value, Tensor)
    return reader in found or (is_tensor and not is_float_tensor(reader))
