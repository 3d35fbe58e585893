"""The one place that makes nodes: each with its value, and with the metadata of what it stands for.

`make lint` forbids `Graph.create_node` and its kin everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from typing_extensions import Self

from pt2q.ir import ops
from pt2q.ir.graph import (
    Names,
    copy_meta,
    fake_constant,
    get_constant,
    set_constant,
    value_of,
)
from pt2q.ir.torch_private import FakeTensor, pytree


class Emitter:
    """Makes the nodes of one pass, at a place that moves over the graph.

    Args:
        model: the module; its graph grows, and its constants.
        pass_name: who makes the nodes; recorded in ``from_node``.

    Attributes:
        at: new nodes come directly before it, in the order in which they are made.
        origin: the node whose metadata new ones get.
        made: all nodes made so far.
    """

    at: Node
    origin: Node

    def __init__(self, model: GraphModule, pass_name: str) -> None:
        self.model = model
        self.graph: Graph = model.graph
        self.pass_name = pass_name
        self.made: list[Node] = []

    @cached_property
    def names(self) -> Names:
        """Names that are free in the module."""
        return Names.of(self.model)

    # -------------------------------------------------------------- where

    def before(self, node: Node, origin: Node | None = None) -> Self:
        """Write before a node from now on.

        Args:
            node: the next node to come.
            origin: what the new nodes stand for, if that is another node; of any graph.
        """
        self.at, self.origin = node, node if origin is None else origin
        return self

    def after(self, node: Node, origin: Node | None = None) -> Self:
        """Write behind a node from now on; as `before`."""
        return self.before(node.next, node if origin is None else origin)

    # -------------------------------------------------------------- calls

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of an operator; its value is computed by running it on those of its arguments.

        Sizes, strides and dtypes are what the operator gives, symbolic ones included.
        """
        return self._made("call_function", target, args, kwargs, computed(target, args, kwargs))

    def call_giving(self, value: Any, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of an operator whose value is known, which is faster than computing it."""
        return self._made("call_function", target, args, kwargs, value)

    def observe(self, name: str, node: Node) -> Node:
        """A call of the submodule ``name``, which gives what it is given."""
        return self._made("call_module", name, (node,), {}, value_of(node))

    def again(self, node: Node) -> Node:
        """The same call once more."""
        return self._made(node.op, node.target, node.args, node.kwargs, value_of(node))

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """The node as another dtype; itself if it has that one."""
        value = value_of(node)
        if isinstance(value, Tensor) and value.dtype == dtype:
            return node
        return self.call(ops.TO_DTYPE, node, dtype)

    def size(self, node: Node, dim: int) -> int | Node:
        """A size of a tensor: a number, or where it is symbolic a node that asks for it."""
        size = value_of(node).shape[dim]
        return size if isinstance(size, int) else self.call(ops.aten.sym_size.int, node, dim)

    def replace_by(self, new: Node) -> Node:
        """Let the users of the origin read ``new``, erase the origin, and return ``new``."""
        self.origin.replace_all_uses_with(new)
        self.graph.erase_node(self.origin)
        return new

    # -------------------------------------------------------------- constants, inputs

    def read(self, target: str) -> Node:
        """A read of a constant that the module has."""
        value = fake_constant(get_constant(self.model, target), _fake_near(self.origin))
        return self._made("get_attr", target, (), {}, value)

    def keep(self, name: str, value: Tensor, *, persistent: bool = True) -> str:
        """Store a constant under a free name, and return that.

        Args:
            name: what it should be called; a number is added where that is taken.
            value: a Parameter, or what becomes a buffer.
            persistent: whether a buffer belongs to the state dict.
        """
        free = self.names.fresh(name)
        set_constant(self.model, free, value, persistent=persistent)
        return free

    def constant(self, name: str, value: Tensor) -> Node:
        """Store a constant as `keep` does, and read it."""
        return self.read(self.keep(name, value))

    def input(self, name: str) -> Node:
        """An input of the graph, with the value of the origin."""
        return self._made("placeholder", name, (), {}, value_of(self.origin))

    # -------------------------------------------------------------- nodes

    def _made(self, op: str, target: Any, args: Any, kwargs: Any, value: Any) -> Node:
        with self.graph.inserting_before(self.at):
            node = _create(self.graph, op, target, args, kwargs)
        copy_meta(node, self.origin, self.pass_name)
        node.meta["val"] = value
        self.made.append(node)
        return node


def computed(target: Any, args: Any, kwargs: Any) -> Any:
    """The fake value of a call, by running it on those of its arguments.

    Args:
        target: an operator, or another function of tensors.
        args, kwargs: nodes and literals.

    Returns:
        None where no argument has a fake value.
    """
    args, kwargs = map_arg((args, kwargs), value_of)
    fakes = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
    if not fakes:
        return None
    with torch.no_grad(), fakes[0].fake_mode:
        return target(*args, **kwargs)


def has_fake_values(node: Node) -> bool:
    """Whether what a node reads carries the values that `Emitter.call` computes with."""
    return all(isinstance(value_of(source), FakeTensor) for source in node.all_input_nodes)


def copied(node: Node, graph: Graph, change: Callable[[Node], Node]) -> Node:
    """A copy of a node at the insertion point of a graph, with its name and its metadata.

    Args:
        node: of any graph.
        graph: where the copy goes.
        change: what the copy reads in place of each node that the original reads.
    """
    args, kwargs = map_arg((node.args, node.kwargs), change)
    new = _create(graph, node.op, node.target, args, kwargs, node.name, node.type)
    new.meta.update(node.meta)
    return new


def restored(
    graph: Graph, op: str, target: Any, args: Any, kwargs: Any, name: str, meta: dict[str, Any]
) -> Node:
    """A node at the insertion point of a graph, by all that it consists of."""
    node = _create(graph, op, target, args, kwargs, name)
    node.meta.update(meta)
    return node


def _create(
    graph: Graph,
    op: str,
    target: Any,
    args: Any,
    kwargs: Any,
    name: str | None = None,
    type_: Any = None,
) -> Node:
    node = graph.create_node(op, target, None, None, name, type_)
    # Set afterwards: create_node searches given arguments for symbolic numbers, which is slow.
    # And past Node's own way, by which the graph's index of operators and targets is made anew.
    if args:
        object.__setattr__(node, "args", args)
    if kwargs:
        object.__setattr__(node, "kwargs", kwargs)
    return node


def _fake_near(node: Node) -> Any:
    """A fake value of a node or of what it reads, for the fake mode it belongs to."""
    for source in (node, *node.all_input_nodes):
        if isinstance(value_of(source), FakeTensor):
            return value_of(source)
        for leaf in pytree.tree_leaves(value_of(source)):
            if isinstance(leaf, FakeTensor):
                return leaf
    return None
