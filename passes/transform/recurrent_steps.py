"""The steps of recurrent layers: linears and pointwise operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import value_of


@dataclass(frozen=True)
class Cell:
    """One direction of one layer: its weights.

    Args:
        weights: input weight, state weight.
        biases: of both, or None twice.
        projection: what the state of an LSTM is projected with, or None.
    """

    weights: tuple[Node, Node]
    biases: tuple[Node | None, Node | None]
    projection: Node | None


def cells_of(node: Node, per_layer: int) -> list[Cell]:
    """The cells of a recurrent operator, layer by layer, forward before backward.

    Args:
        node: the operator.
        per_layer: how many directions it has.
    """
    params: Sequence[Node] = ops.argument(node, "params")
    biased: bool = ops.argument(node, "has_biases")
    size = len(params) // (ops.argument(node, "num_layers") * per_layer)
    cells = []
    for start in range(0, len(params), size):
        own = params[start : start + size]
        biases = (own[2], own[3]) if biased else (None, None)
        projected = size > (4 if biased else 2)
        cells.append(Cell((own[0], own[1]), biases, own[-1] if projected else None))
    return cells


@dataclass
class SequenceRun:
    """One cell, run over a sequence.

    Args:
        emit: writes the steps.
        cell: its weights.
        axis: of time.
        reverse: from the last step to the first.
    """

    emit: Emitter
    cell: Cell
    axis: int
    reverse: bool

    def over(self, sequence: Node, state: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        """All outputs, in the order of time, and the last state."""
        emit = self.emit
        projected = self._linear(sequence, 0)
        steps = range(value_of(sequence).shape[self.axis])
        outputs = {}
        for step in reversed(steps) if self.reverse else steps:
            inputs = emit.call(ops.aten.select.int, projected, self.axis, step)
            state = self._step(inputs, state)
            outputs[step] = state[0]
        stacked = emit.call(ops.aten.stack.default, [outputs[step] for step in steps], self.axis)
        return stacked, state

    def _linear(self, value: Node, which: int) -> Node:
        weight, bias = self.cell.weights[which], self.cell.biases[which]
        return self.emit.call(ops.aten.linear.default, value, weight, bias)

    def _step(self, inputs: Node, state: tuple[Node, ...]) -> tuple[Node, ...]:
        hidden = self._linear(state[0], 1)
        if ops.is_op(self.emit.origin, ops.LSTM):
            return self._lstm(self._call("add.Tensor", inputs, hidden), state[1])
        if ops.is_op(self.emit.origin, ops.GRU):
            return (self._gru(inputs, hidden, state[0]),)
        total = self._call("add.Tensor", inputs, hidden)
        return (self._call("relu" if ops.is_op(self.emit.origin, ops.RNN_RELU) else "tanh", total),)

    def _lstm(self, gates: Node, cell: Node) -> tuple[Node, Node]:
        i, f, g, o = self._chunks(gates, 4)
        kept = self._call("mul.Tensor", self._call("sigmoid", f), cell)
        new = self._call("mul.Tensor", self._call("sigmoid", i), self._call("tanh", g))
        cell = self._call("add.Tensor", kept, new)
        hidden = self._call("mul.Tensor", self._call("sigmoid", o), self._call("tanh", cell))
        if self.cell.projection is not None:
            hidden = self.emit.call(ops.aten.linear.default, hidden, self.cell.projection)
        return hidden, cell

    def _gru(self, inputs: Node, hidden: Node, state: Node) -> Node:
        (r, z, n), (hr, hz, hn) = self._chunks(inputs, 3), self._chunks(hidden, 3)
        reset = self._call("sigmoid", self._call("add.Tensor", r, hr))
        update = self._call("sigmoid", self._call("add.Tensor", z, hz))
        gated = self._call("mul.Tensor", reset, hn)
        new = self._call("tanh", self._call("add.Tensor", n, gated))
        moved = self._call("mul.Tensor", update, self._call("sub.Tensor", state, new))
        return self._call("add.Tensor", new, moved)

    def _chunks(self, gates: Node, count: int) -> list[Node]:
        parts = self.emit.call(ops.aten.chunk.default, gates, count, -1)
        return [self._take(parts, index) for index in range(count)]

    def _take(self, parts: Node, index: int) -> Node:
        return self.emit.call(ops.GETITEM, parts, index)

    def _call(self, name: str, *args: Any) -> Node:
        packet, _, overload = name.partition(".")
        return self.emit.call(getattr(getattr(ops.aten, packet), overload or "default"), *args)
