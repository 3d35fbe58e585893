"""Batch norms behind a layer whose result is flattened, reshaped or transposed first.

Whatever only moves elements commutes with what does the same to all elements of a channel, so such
a batch norm folds into its layer as one directly behind it does.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.batch_norm.reading import BatchNorm, Layer, layer_of
from pt2q.ir.graph import value_of

_MOVES = ops.RESHAPE | ops.PERMUTE | ops.COPY


def layer_before_moves(bn: BatchNorm) -> Layer | None:
    """The layer whose output channels a batch norm normalizes, with only moves between.

    Args:
        bn: the batch norm; the batch norm alone reads the values of the layer and of each move.

    Returns:
        None if there is none, or its channels are not those that are normalized.
    """
    chain = _chain(ops.argument(bn.node, "input"))
    layer = layer_of(chain[0])
    if layer is None or (bn.output is bn.node and bn.node.target not in ops.BATCH_NORM):
        return None
    if not all(_reads_alone(user, node) for node, user in pairwise([*chain, bn.node])):
        return None
    axis: int | None = _channel_axis(layer)
    for source, move in pairwise(chain):
        axis = None if axis is None else _axis_behind(move, source, axis)
    return layer if axis == 1 else None


def _chain(node: Node) -> list[Node]:
    """The nodes from the one before the first move to the last move."""
    found = [node]
    while ops.is_op(found[-1], _MOVES):
        source = ops.data_input(found[-1])
        if not isinstance(source, Node):
            break
        found.append(source)
    return found[::-1]


def _reads_alone(user: Node, node: Node) -> bool:
    """Whether nobody else reads the values of a node; others may ask for its sizes."""
    return all(other is user or _asks_for_size(other, node) for other in node.users)


def _asks_for_size(user: Node, node: Node) -> bool:
    if ops.is_op(user, ops.SIZE):
        return True
    return ops.is_op(user, ops.SHAPED_LIKE) and ops.argument(user, "self") is not node


def _channel_axis(layer: Layer) -> int:
    rank = int(value_of(layer.node).dim())
    return rank - 1 if layer.spatial == 0 else rank - layer.spatial - 1


def _axis_behind(move: Node, source: Node, axis: int) -> int | None:
    """Where a move takes an axis; None if it takes it apart or joins it with others."""
    before, behind = value_of(source).shape, value_of(move).shape
    order = ops.permutation(move, len(before))
    if order is not None:
        return order.index(axis)
    if not ops.is_op(move, ops.RESHAPE):
        return None
    rest = before[axis + 1 :]
    for found, size in enumerate(behind):
        if _same(size, before[axis]) and _same_product(rest, behind[found + 1 :]):
            return found
    return None


def _same(one: object, other: object) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one == other


def _same_product(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Whether as many elements stand behind the axis; symbolic sizes have to be the same."""
    if all(isinstance(n, int) for n in (*one, *other)):
        return prod(one) == prod(other)  # type: ignore[arg-type]
    return list(map(str, one)) == list(map(str, other))
