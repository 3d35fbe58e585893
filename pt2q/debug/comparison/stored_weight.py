"""A quantized constant, read through a dequantize or a fake quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.debug.graph_runner import evaluate
from pt2q.debug.rounding.calls import is_rounding_module
from pt2q.ir import ops
from pt2q.ir.constants import Constants, ancestors


@dataclass(frozen=True)
class StoredWeight:
    """A quantized constant: its name, and its value in float.

    Args:
        target: the name.
        read: as the operator reads it.
        plain: as it is behind the dequantize.
        is_scaled: whether the rounded weight has its batch norm in it, as in training.
    """

    target: str
    read: Tensor
    plain: Tensor
    is_scaled: bool = False


def stored_weight(module: GraphModule, constants: Constants, node: Node) -> StoredWeight | None:
    """What is read through a dequantize or a fake quantizer, if it is a constant.

    Args:
        module: whose graph the node is in.
        constants: those of that graph.
        node: what an operator reads.
    """
    chain = list(_chain(node))
    root = chain[-1]
    if root.op != "get_attr":
        return None
    if is_rounding_module(module, node):
        return _fake_quantized(module, node, root)
    back = next((n for n in chain if ops.is_op(n, ops.DEQUANTIZE)), None)
    if back is None or not constants.is_constant(node):
        return None
    return StoredWeight(str(root.target), constants.value(node), constants.value(back))


def _fake_quantized(module: GraphModule, node: Node, root: Node) -> StoredWeight | None:
    if any(before.op == "placeholder" for before in ancestors(node)):
        return None
    value = evaluate(module, node)
    return StoredWeight(str(root.target), value, value, node.args[0] is not root)


def _chain(node: Node) -> Iterator[Node]:
    """A node and what it was made of, by first inputs."""
    seen: set[Node] = set()
    while node not in seen:
        seen.add(node)
        yield node
        if node.op == "get_attr" or not node.all_input_nodes:
            return
        node = node.all_input_nodes[0]
