"""Write nodes of integer arithmetic into a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from pt2q.ir import ops
from pt2q.ir.graph import Names, copy_meta, fake_constant, set_constant, value_of
from pt2q.ir.module import QuantGraphModule
from pt2q.passes.reference.values import QParams

PASS_NAME = "pt2q.reference"


class Emitter:
    """Writes calls before one node of the graph, the one being rewritten.

    Args:
        model: the module; its graph and buffers grow.

    Attributes:
        at: where the next call goes, and whose metadata it gets.
        owner: the node that new buffers are named after.
        written: all nodes made.
    """

    at: Node
    owner: Node

    def __init__(self, model: QuantGraphModule) -> None:
        self.model = model
        self.names = Names.of(model)
        self.written: set[Node] = set()

    def move(self, at: Node, owner: Node | None = None) -> None:
        """Write before ``at`` from now on.

        Args:
            at: the node being rewritten.
            owner: what buffers are named after, if that is another node.
        """
        self.at, self.owner = at, at if owner is None else owner

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of an operator; its fake value is computed from those of its arguments."""
        with self.model.graph.inserting_before(self.at):
            node = self.model.graph.call_function(target, args, kwargs)
        copy_meta(node, self.at, PASS_NAME)
        node.meta["val"] = _fake(target, args, kwargs)
        self.written.add(node)
        return node

    def constant(self, value: Tensor, what: str) -> Node:
        """A buffer.

        Args:
            value: the numbers.
            what: what they are; the last part of the name.
        """
        name = self.names.fresh(f"{self.owner.name}_{what}")
        set_constant(self.model, name, value)
        with self.model.graph.inserting_before(self.at):
            node = self.model.graph.get_attr(name)
        copy_meta(node, self.at, PASS_NAME, fake_constant(value, _first_fake(self.at)))
        self.written.add(node)
        return node

    def number(self, value: Tensor, what: str) -> Node | int | float:
        """A literal if it is one number, else a buffer."""
        if value.numel() == 1:
            literal: int | float = value.item()
            return literal
        return self.constant(value, what)

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """The node as another dtype; itself if it has that one."""
        value = value_of(node)
        if isinstance(value, torch.Tensor) and value.dtype == dtype:
            return node
        return self.call(ops.TO_DTYPE, node, dtype)

    def along(self, node: Node, params: QParams, rank: int) -> Node:
        """A computed per-channel vector shaped to broadcast with a tensor of that rank."""
        if params.axis is None:
            return node
        shape = [1] * rank
        shape[params.axis] = -1
        return self.call(ops.aten.view.default, node, shape)

    def add(self, one: Node, other: Any) -> Node:
        """``one + other``; ``one`` itself for a literal zero."""
        if not isinstance(other, Node) and other == 0:
            return one
        return self.call(ops.aten.add.Tensor, one, other)

    def subtract(self, one: Node, other: Any) -> Node:
        """``one - other``; ``one`` itself for a literal zero."""
        if not isinstance(other, Node) and other == 0:
            return one
        return self.call(ops.aten.sub.Tensor, one, other)

    def multiply(self, one: Node, other: Any) -> Node:
        """``one * other``; ``one`` itself for a literal one."""
        if not isinstance(other, Node) and other == 1:
            return one
        return self.call(ops.aten.mul.Tensor, one, other)


def _first_fake(node: Node) -> Any:
    leaves = pytree.tree_leaves([value_of(n) for n in (node, *node.all_input_nodes)])
    return next((v for v in leaves if isinstance(v, FakeTensor)), None)


def _fake(target: Any, args: Any, kwargs: Any) -> Any:
    """The fake value of a call, or None where an argument has none."""
    args, kwargs = map_arg((args, kwargs), value_of)
    fakes = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, FakeTensor)]
    if not fakes:
        return None
    with fakes[0].fake_mode:
        return target(*args, **kwargs)
