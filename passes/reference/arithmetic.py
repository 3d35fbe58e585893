"""Write integer arithmetic: calls that do nothing are left out, constants named by their use."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node
from typing_extensions import Self

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.qparams import QParams


class Arithmetic(Emitter):
    """An emitter with the operations that rules need.

    Attributes:
        owner: the node that new buffers are named after.
    """

    owner: Node

    def before(self, node: Node, origin: Node | None = None) -> Self:
        """Write before a node, which new buffers are named after."""
        self.owner = node
        return super().before(node, origin)

    def named_after(self, owner: Node) -> Self:
        """Name new buffers after another node than the next one."""
        self.owner = owner
        return self

    def buffer(self, value: Tensor, what: str) -> Node:
        """A buffer.

        Args:
            value: the numbers.
            what: what they are; the last part of the name.
        """
        return self.constant(f"{self.owner.name}_{what}", value)

    def number(self, value: Tensor, what: str) -> Node | int | float:
        """A literal if it is one number, else a buffer."""
        if value.numel() == 1:
            literal: int | float = value.item()
            return literal
        return self.buffer(value, what)

    def along(self, node: Node, params: QParams, rank: int) -> Node:
        """A computed per-channel vector shaped to broadcast with a tensor of that rank."""
        if params.axis is None:
            return node
        shape = [1] * rank
        shape[params.axis] = -1
        return self.call(ops.aten.view.default, node, shape)

    def add(self, one: Node, other: Any) -> Node:
        """``one + other``; ``one`` itself for a literal zero."""
        return self._unless(0, ops.aten.add.Tensor, one, other)

    def subtract(self, one: Node, other: Any) -> Node:
        """``one - other``; ``one`` itself for a literal zero."""
        return self._unless(0, ops.aten.sub.Tensor, one, other)

    def multiply(self, one: Node, other: Any) -> Node:
        """``one * other``; ``one`` itself for a literal one."""
        return self._unless(1, ops.aten.mul.Tensor, one, other)

    def _unless(self, neutral: int, target: Any, one: Node, other: Any) -> Node:
        if not isinstance(other, Node) and other == neutral:
            return one
        return self.call(target, one, other)
