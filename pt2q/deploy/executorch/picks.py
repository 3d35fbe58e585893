"""Matrices picked from a quantized stack, such as experts: as lookups of their rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import is_constant, value_of

PASS_NAME = "pt2q.executorch_picks"
_TURNED = [0, 2, 1]


class Pick(NamedTuple):
    """Matrices that are picked from a stack that is stored by its rows.

    Args:
        rows: dequantizes the rows of all matrices.
        height: how many rows a matrix has.
        matrices: how many there are.
        turned: the matrices are read as columns by rows.
        indices: which are picked.
    """

    rows: Node
    height: int
    matrices: int
    turned: bool
    indices: Any


def quantized_picks(model: GraphModule) -> list[Node]:
    """The operators that pick matrices from a quantized stack.

    Args:
        model: a converted module.
    """
    return [node for node in model.graph.nodes if _pick_of(node) is not None]


def picks_as_lookups(model: GraphModule) -> bool:
    """Write each as an embedding of the rows of its matrices, for `fuse_lookups` to fuse.

    As they are, all matrices would be dequantized in each call.

    Args:
        model: a converted module; changed in place.

    Returns:
        Whether there were any.
    """
    found = quantized_picks(model)
    emit = Emitter(model, PASS_NAME)
    for node in found:
        pick = _pick_of(node)
        assert pick is not None
        emit.before(node)
        looked_up = emit.call(ops.aten.embedding.default, pick.rows, _rows_of(emit, pick))
        if pick.turned:
            looked_up = emit.call(ops.aten.transpose.int, looked_up, -1, -2)
        emit.replace_by(looked_up)
    if found:
        model.graph.eliminate_dead_code()
        model.recompile()
    return bool(found)


def _rows_of(emit: Emitter, pick: Pick) -> Node:
    """The numbers of the rows of the matrices picked, which may be counted from the end."""
    aten = ops.aten
    # Not by a remainder: the runtime's keeps the sign of what is divided.
    behind = emit.call(aten.add.Tensor, pick.indices, pick.matrices)
    from_end = emit.call(aten.lt.Scalar, pick.indices, 0)
    number = emit.call(aten.where.self, from_end, behind, pick.indices)
    first = emit.call(aten.unsqueeze.default, emit.call(aten.mul.Tensor, number, pick.height), -1)
    inside = emit.constant("rows_of_matrix", torch.arange(pick.height))
    return emit.call(aten.add.Tensor, first, inside)


def _pick_of(node: Node) -> Pick | None:
    source, indices = _picked_from(node)
    if not isinstance(source, Node) or not isinstance(indices, Node):
        return None
    whole, turned = _unturned(source)
    if whole.target is not ops.aten.view.default:
        return None
    rows: Any = whole.args[0]
    if not ops.is_op(rows, ops.DEQUANTIZE) or not is_constant(ops.data_input(rows)):
        return None
    value, shape = value_of(rows), value_of(whole).shape
    if value.dim() != 2 or len(shape) != 3 or shape[-1] != value.shape[1]:
        return None
    return Pick(rows, int(shape[1]), int(shape[0]), turned, indices)


def _unturned(node: Node) -> tuple[Node, bool]:
    """What a stack is transposed from, matrix by matrix, and whether it is after all."""
    turned = False
    while node.op == "call_function" and ops.permutation(node, 3) == _TURNED:
        node, turned = ops.data_input(node), not turned
    return node, turned


def _picked_from(node: Node) -> tuple[Any, Any]:
    """What is picked from along its first axis, and by what."""
    if node.target is ops.aten.index.Tensor:
        source, indices = node.args[0], ops.argument(node, "indices")
        integers = len(indices) == 1 and _is_integer(indices[0])
        return (source, indices[0]) if integers else (None, None)
    if node.target is ops.aten.index_select.default and ops.argument(node, "dim") == 0:
        return ops.argument(node, "self"), ops.argument(node, "index")
    return None, None


def _is_integer(node: Any) -> bool:
    """A mask picks by position, too, but how many is not known."""
    return isinstance(node, Node) and value_of(node).dtype in (torch.int64, torch.int32)
