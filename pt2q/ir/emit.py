"""Write the nodes that an operator is taken apart into, each with its value and its origin."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from pt2q.ir import ops
from pt2q.ir.graph import copy_meta, create_call, value_of
from pt2q.ir.module import QuantGraphModule


class Emitter:
    """Calls operators in a graph, in front of the node that they are to replace.

    The fake value of every new node is computed by running its operator on those of its inputs, so
    that sizes, strides and dtypes are what the operator gives, symbolic ones included.

    Args:
        graph: the graph.
        node: the node that is taken apart; new nodes inherit its module path and stack trace.
        pass_name: recorded in ``from_node``.
    """

    def __init__(self, graph: Graph, node: Node, pass_name: str) -> None:
        self.graph = graph
        self.node = node
        self.pass_name = pass_name

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A new call of ``target``; arguments are nodes and literals."""
        with self.graph.inserting_before(self.node):
            new = create_call(self.graph, target, args, kwargs)
        copy_meta(new, self.node, self.pass_name, _run(target, args, kwargs))
        return new

    def size(self, node: Node, dim: int) -> int | Node:
        """A size of a tensor: a number, or where it is symbolic a node that asks for it."""
        size = value_of(node).shape[dim]
        return size if isinstance(size, int) else self(ops.aten.sym_size.int, node, dim)

    def replace_by(self, new: Node) -> None:
        """Let the users of the node read ``new``, and erase the node."""
        self.node.replace_all_uses_with(new)
        self.graph.erase_node(self.node)


def has_fake_values(node: Node) -> bool:
    """Whether what a node reads carries the values that `Emitter` computes with."""
    tensors = [value_of(source) for source in node.all_input_nodes]
    return all(isinstance(value, FakeTensor) for value in tensors)


def note(model: GraphModule, origin: str, node: Node, reason: str) -> None:
    """Put on record why a node stays as it is; a plain module keeps no record."""
    if isinstance(model, QuantGraphModule):
        model.record.note(origin, node.name, reason)


def _run(target: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = map_arg((args, kwargs), value_of)
    if target is ops.GETITEM:
        return args[0][args[1]]
    modes = [v.fake_mode for v in _leaves(args) if isinstance(v, FakeTensor)]
    assert modes, "every operator written reads a tensor"
    with torch.no_grad(), modes[0]:
        return target(*args, **kwargs)


def _leaves(args: Any) -> list[Any]:
    found = []
    for value in args:
        found += _leaves(value) if isinstance(value, list | tuple) else [value]
    return found
