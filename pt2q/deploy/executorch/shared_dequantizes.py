"""What several operators read in float is dequantized once."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.qparams import PER_TENSOR

_TAKES_INTEGERS = ops.CONV | ops.CONV_GENERIC | ops.LINEAR | ops.ADDMM | ops.MM


def share_dequantizes(model: GraphModule) -> bool:
    """Let operators that run in float read one dequantize of a tensor, not one each.

    Each has one of its own since `DuplicateDQPass`, so that a backend finds the pattern around an
    operator that it runs in integers. Where it runs in float, each is a conversion of all of the
    tensor.

    Args:
        model: a converted module; changed in place.

    Returns:
        Whether there were any.
    """
    first: dict[Any, Node] = {}
    changed = False
    for node in list(model.graph.nodes):
        if node.target is not PER_TENSOR[1] or not all(map(_runs_in_float, node.users)):
            continue
        kept = first.setdefault((node.args, tuple(node.kwargs.items())), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            model.graph.erase_node(node)
            changed = True
    if changed:
        model.recompile()
    return changed


def _runs_in_float(node: Node) -> bool:
    """Whether an operator is no part of a pattern that ends in a quantize, and no product."""
    if ops.is_op(node, _TAKES_INTEGERS | ops.QUANTIZE | ops.CHOOSE_QPARAMS):
        return False
    readers = [*node.users, *(user for reader in node.users for user in reader.users)]
    return not any(ops.is_op(reader, ops.QUANTIZE) for reader in readers)
