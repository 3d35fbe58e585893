"""Products with a stack of constant matrices, of which a call may pick some: experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import is_constant, is_float_tensor, value_of

_FACTORS: dict[ops.Target, tuple[tuple[int, int], ...]] = {
    **dict.fromkeys(ops.GROUPED_MM, ((1, -2),)),
    ops.aten.linear.default: ((1, -1),),
    ops.aten.bmm.default: ((1, -2), (0, -1)),
    ops.aten.matmul.default: ((1, -2), (0, -1)),
}
"""For each product which argument may be the stack, and along which axis rows are multiplied."""
PRODUCTS = frozenset(_FACTORS)


@dataclass(frozen=True)
class Stack:
    """A stack of constant matrices that a product reads.

    Args:
        constant: reads the stored tensor: the stack, or all rows of all its matrices.
        whole: gives the stack, of three dimensions: the constant, or what shapes its rows.
        axis: of the stack, along which a row of a matrix lies.
        picked: an input of the model decides which matrices a row of activations meets.
    """

    constant: Node
    whole: Node
    axis: int
    picked: bool

    @property
    def by_rows(self) -> bool:
        """Whether the stored tensor has the rows of all matrices along its first axis."""
        return self.constant is not self.whole


def stack_of(product: Node) -> Stack | None:
    """The stack of matrices that a product reads, or None.

    Args:
        product: any node.
    """
    for index, axis in _FACTORS.get(ops.known_as(product.target), ()):
        factor = product.args[index] if index < len(product.args) else None
        if isinstance(factor, Node) and is_float_tensor(factor):
            rank = value_of(factor).dim()
            found = _followed(factor, axis % rank, picked=_is_grouped(product))
            if found is not None:
                return found
    return None


def picks_matrices(node: Node) -> bool:
    """Whether a product reads constant matrices that are picked when the model runs."""
    found = stack_of(node)
    return found is not None and found.picked


def _is_grouped(product: Node) -> bool:
    return ops.known_as(product.target) in ops.GROUPED_MM


def _followed(node: Node, axis: int, picked: bool) -> Stack | None:
    """Back from a factor to the stack, through what moves and picks matrices."""
    while True:
        whole = _whole(node)
        if whole is not None:
            return Stack(whole, node, axis, picked) if axis in (1, 2) else None
        found = _step(node, axis)
        if found is None:
            return None
        node, axis, picks = found
        picked = picked or picks


def _whole(node: Node) -> Node | None:
    """The constant behind a stack of three dimensions."""
    if not is_float_tensor(node) or value_of(node).dim() != 3:
        return None
    if is_constant(node):
        return node
    if node.target is not ops.aten.view.default or not is_constant(node.args[0]):
        return None
    rows = value_of(node.args[0])  # type: ignore[arg-type]
    count, height, width = value_of(node).shape
    return node.args[0] if tuple(rows.shape) == (count * height, width) else None  # type: ignore[return-value]


def _step(node: Node, axis: int) -> tuple[Node, int, bool] | None:
    """What a node takes its matrices from, the axis there, and whether it picks some."""
    source: Any = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(source, Node) or not is_float_tensor(source):
        return None
    order = ops.permutation(node, value_of(source).dim())
    if order is not None:
        return source, order[axis], False
    before = _axes_of_index(node)
    if before is None or axis < before:
        return None
    return source, axis - before + 1, True


def _axes_of_index(node: Node) -> int | None:
    """How many axes a pick along the first axis puts in its place; None for another operator."""
    if node.target is ops.aten.index.Tensor:
        indices: Any = node.args[1]
        single = len(indices) == 1 and indices[0] is not None
        return int(value_of(indices[0]).dim()) if single else None
    if node.target is ops.aten.index_select.default:
        return 1 if ops.argument(node, "dim") == 0 else None
    return None
