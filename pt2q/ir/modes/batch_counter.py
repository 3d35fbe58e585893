"""The update of ``num_batches_tracked`` that a batch norm does in training and not in evaluation.

Export writes it as ``add_(num_batches_tracked, 1)`` before the batch norm, and only in training
mode. With ``momentum=None`` (the cumulative average) the momentum is ``1 / num_batches_tracked``,
which export can write in evaluation mode alone, as a literal 0; a switch to training puts the
division into the graph.
"""

from __future__ import annotations

import operator

from torch.fx import Graph, GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import beside, holds_tensor, split_name, value_of

PASS = "train_eval"
MEAN, COUNTER = "running_mean", "num_batches_tracked"


def counter_name(bn: Node) -> str | None:
    """The qualified name that the counter of a batch norm would have, next to its mean."""
    mean = ops.argument(bn, MEAN)
    if not isinstance(mean, Node) or mean.op != "get_attr":
        return None
    _, name = split_name(str(mean.target))
    if not name.endswith(MEAN):
        return None
    return beside(str(mean.target), name.removesuffix(MEAN) + COUNTER)


def _batch_norms(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if ops.is_op(n, ops.BATCH_NORM_IN_TRAINING)]


def _counted(update: Node) -> str | None:
    counter = update.args[0]
    if not isinstance(counter, Node) or counter.op != "get_attr":
        return None
    return str(counter.target)


def _updates(graph: Graph, counters: set[str | None]) -> dict[str | None, list[Node]]:
    """The ``add_`` nodes that count batches, by what they count, in the order of the graph."""
    found: dict[str | None, list[Node]] = {}
    for node in graph.nodes:
        if ops.is_op(node, ops.COUNT) and (name := _counted(node)) in counters:
            found.setdefault(name, []).append(node)
    return found


def zero_momentum_nodes(graph: Graph) -> frozenset[str]:
    """Batch norms in training mode whose momentum is the literal 0."""
    return frozenset(
        bn.name
        for bn in _batch_norms(graph)
        if ops.argument(bn, "training") and _has_zero_momentum(bn)
    )


def _has_zero_momentum(bn: Node) -> bool:
    momentum = ops.argument(bn, "momentum")
    return not isinstance(momentum, Node) and momentum == 0.0


def count_batches(model: GraphModule, zero_momentum: frozenset[str]) -> bool:
    """Make the batch norms in training mode, and only those, count their batches.

    Args:
        model: the module that owns the graph and the counters.
        zero_momentum: batch norms whose momentum of 0 is meant.

    Returns:
        Whether the graph changed.
    """
    names = {bn: counter_name(bn) for bn in _batch_norms(model.graph)}
    # A module called twice counts twice: each of its updates belongs to one of its calls.
    updates = _updates(model.graph, set(names.values()) - {None})
    changed = False
    for bn, name in names.items():
        if not ops.argument(bn, "training"):
            changed |= unset_cumulative(bn)
        elif name is not None and holds_tensor(model, name):
            changed |= _count(model, bn, name, updates.get(name, []), zero_momentum)
    leftover = [update for rest in updates.values() for update in rest]
    for update in leftover:
        _erase_update(update)
    return changed or bool(leftover)


def _count(
    model: GraphModule, bn: Node, name: str, updates: list[Node], zero_momentum: frozenset[str]
) -> bool:
    inserted = not updates
    update = updates.pop(0) if updates else _insert_update(model, bn, name)
    if not _has_zero_momentum(bn) or bn.name in zero_momentum:
        return inserted
    set_cumulative(model, bn, update)
    return True


def _erase_update(update: Node) -> None:
    counter = update.args[0]
    assert isinstance(counter, Node)
    update.replace_all_uses_with(counter)
    update.graph.erase_node(update)


def switch_branch_counters(graph: Graph, train: bool) -> bool:
    """Switch the updates in a branch of control flow, whose counters are its inputs.

    Args:
        graph: the branch.
        train: whether batches are counted.

    Returns:
        Whether the graph changed.
    """
    updates = [
        node
        for node in graph.nodes
        if ops.is_op(node, ops.COUNT)
        and isinstance(counter := node.args[0], Node)
        and counter.op == "placeholder"
        and counter.name.endswith(COUNTER)
        and node.args[1] != int(train)
    ]
    for node in updates:
        node.args = (node.args[0], int(train))
    return bool(updates)


def _insert_update(model: GraphModule, bn: Node, name: str) -> Node:
    emit = Emitter(model, PASS).before(bn)
    known = next(iter(model.graph.find_nodes(op="get_attr", target=name)), None)
    counter: Node = known or emit.read(name)
    return emit.call_giving(value_of(counter), ops.COUNT_ONE, counter, 1)


def set_cumulative(model: GraphModule, bn: Node, update: Node) -> None:
    """Give a batch norm the momentum ``1 / n``, n being the number of batches so far.

    Args:
        model: the module that owns the graph.
        bn: the batch norm.
        update: the node that increments its counter.
    """
    emit = Emitter(model, PASS).before(bn)
    count = emit.call_giving(1, ops.ITEM, update)
    momentum = emit.call_giving(1.0, operator.truediv, 1.0, count)
    ops.set_argument(bn, "momentum", momentum)


def unset_cumulative(bn: Node) -> bool:
    """Take the momentum ``1 / n`` of a batch norm back to the literal 0.

    Args:
        bn: the batch norm.

    Returns:
        Whether it had that momentum.
    """
    momentum = ops.argument(bn, "momentum")
    if not isinstance(momentum, Node):
        return False
    count = momentum.all_input_nodes[0]
    ops.set_argument(bn, "momentum", 0.0)
    for node in (momentum, count):
        if not node.users:
            bn.graph.erase_node(node)
    return True
