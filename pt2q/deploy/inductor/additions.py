"""Additions that Inductor's patterns take into a product wrongly, written another way."""

from __future__ import annotations

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import is_float_tensor

_PRODUCTS = ops.CONV | ops.LINEAR
_PASSED = ops.BATCH_NORM | ops.RELU | ops.RESHAPE | ops.COPY


def rewrite_additions(emit: Emitter) -> None:
    """Write additions behind products so that Inductor computes them right; same function.

    The kernel that takes an addition in knows no ``alpha``: the operand is multiplied before. It
    has no form for one operand added to itself, which becomes a product with 2.

    Args:
        emit: of the graph, which is changed.
    """
    for node in list(emit.model.graph.nodes):
        if ops.is_op(node, ops.ADD) and len(list(_operands(node))) == 2:
            _rewrite(emit, node)


def _operands(node: Node) -> list[Node]:
    found = [ops.argument(node, name) for name in ("self", "other")]
    return [each for each in found if isinstance(each, Node) and is_float_tensor(each)]


def _rewrite(emit: Emitter, node: Node) -> None:
    left, right = _operands(node)
    alpha = ops.argument(node, "alpha")
    if not (_is_product(left) or _is_product(right)):
        return
    emit.before(node)
    if left is right:
        multiply = ops.multiply_ if ops.is_mutating(node) else ops.multiply
        emit.replace_by(emit.call(multiply, left, 1 + alpha))
    elif alpha != 1:
        ops.set_argument(node, "other", emit.call(ops.multiply, right, alpha))
        ops.set_argument(node, "alpha", 1)


def _is_product(node: Node) -> bool:
    """Whether a product gives a value, also behind what Inductor's patterns see through."""
    while ops.is_op(node, _PASSED) and isinstance(ops.data_input(node), Node):
        node = ops.data_input(node)
    return ops.is_op(node, _PRODUCTS)
