"""Which values of a graph are known before it runs, and what they are."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pt2q.ir import ops
from pt2q.ir.graph import get_constant, holds_tensor
from pt2q.ir.storage import StorageMap, writes_nothing
from pt2q.ir.torch_private import is_erased, schema_of


class Constants:
    """Constants of a graph and pure computations on them.

    Args:
        model: the module; its graph is read once, when the object is made.
    """

    def __init__(self, model: GraphModule) -> None:
        self.model = model
        storage = None if writes_nothing(model.graph) else StorageMap.of(model.graph)
        self._known: set[Node] = set()
        for node in model.graph.nodes:
            changes = storage is not None and storage.is_mutated(node)
            if not changes and self._is_known(node):
                self._known.add(node)

    def _is_known(self, node: Node) -> bool:
        """Whether what a node gives, whose storage is not written, is known."""
        if node.op == "get_attr":
            return holds_tensor(self.model, node)
        if node.op != "call_function" or not _is_pure(node):
            return False
        if not node.all_input_nodes:
            return ops.is_op(node, ops.FILLED)
        return all(n in self._known for n in node.all_input_nodes)

    def is_constant(self, node: Node) -> bool:
        """Whether the node's value is the same in every call."""
        return node in self._known

    def value(self, node: Node) -> Any:
        """Compute a constant. Nothing is kept: peak memory is that of one chain.

        Args:
            node: one for which `is_constant` holds.
        """
        with torch.no_grad():
            return self._evaluate(node, {})

    def _evaluate(self, node: Node, done: dict[Node, Any]) -> Any:
        order = ancestors(node)
        for step in order:
            done[step] = self._step(step, done)
        return done[node]

    def _step(self, node: Node, done: dict[Node, Any]) -> Any:
        if node.op == "get_attr":
            return get_constant(self.model, node).detach()
        args = map_arg(node.args, done.__getitem__)
        kwargs = map_arg(node.kwargs, done.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def ancestors(node: Node) -> list[Node]:
    """The node and all it depends on, inputs first."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(node, False)]
    while stack:
        at, ready = stack.pop()
        if ready:
            order.append(at)
        elif at not in seen:
            seen.add(at)
            stack.append((at, True))
            stack.extend((n, False) for n in at.all_input_nodes)
    return order


def chain_to_constant(node: Node) -> list[Node]:
    """The nodes from a call back to the constant that it is computed from, through first operands.

    Args:
        node: the first of them. The last is a constant, or what the chain starts from without one.
    """
    chain = [node]
    while chain[-1].op == "call_function" and chain[-1].all_input_nodes:
        chain.append(chain[-1].all_input_nodes[0])
    return chain


def _is_pure(node: Node) -> bool:
    return _writes_nothing(node.target) and (
        not _draws_numbers(node.target) or _is_switched_off(node)
    )


@lru_cache(maxsize=4096)
def _writes_nothing(target: ops.Target) -> bool:
    schema = schema_of(target)
    if schema is None:
        return getattr(target, "__module__", "") == "_operator"
    return not schema.is_mutable or target in ops.WRITES_NOTHING


@lru_cache(maxsize=4096)
def _draws_numbers(target: ops.Target) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _is_switched_off(node: Node) -> bool:
    """Whether an operator that can draw random numbers does not: dropout in evaluation."""
    for name in ("train", "training", "dropout", "dropout_p"):
        if ops.has_argument(node, name) and not ops.argument(node, name):
            return True
    return False


def drop_assertions(model: GraphModule, constants: Constants) -> bool:
    """Erase what export asserts of constants, and what is computed for that only.

    It holds, and would keep the constants in the module.

    Args:
        model: its graph is changed in place.
        constants: those of the graph.

    Returns:
        Whether there was any.
    """
    found = [
        node
        for node in model.graph.nodes
        if ops.is_op(node, ops.ASSERT_METADATA)
        and all(constants.is_constant(n) for n in node.all_input_nodes)
    ]
    for node in found:
        read = node.all_input_nodes
        model.graph.erase_node(node)
        erase_unread(read)
    return bool(found)


def erase_unread(nodes: list[Node]) -> None:
    """Erase operators that nobody reads, and then those that only they read.

    Args:
        nodes: where to look; pure operators, or constants, which stay.
    """
    waiting = list(nodes)
    while waiting:
        at = waiting.pop()
        if at.op != "call_function" or at.users or is_erased(at):
            continue
        waiting.extend(at.all_input_nodes)
        at.graph.erase_node(at)
