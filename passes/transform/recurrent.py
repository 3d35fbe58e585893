"""Unroll LSTM, GRU and plain recurrent layers into linears and pointwise operators.

Export keeps a recurrent layer as one operator that holds all its products. Unrolled, they are
linears like any other: one over the whole sequence for the inputs, one per time step for the
state, all steps with one weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter, has_fake_values
from pt2q.ir.graph import stand_for, value_of
from pt2q.ir.module import note
from pt2q.passes.transform.recurrent_steps import SequenceRun, cells_of

PASS_NAME = "pt2q.decompose_recurrent"
ORIGIN = "decompose_recurrent"


@dataclass(frozen=True)
class DecomposeRecurrent:
    """Replace ``lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu`` by their steps.

    For step ``t``, with ``x`` the input, ``h`` and ``c`` the state and ``W . + b`` linears, as
    documented for `torch.nn.LSTM` and `torch.nn.GRU`::

        lstm:  i, f, g, o = chunks of W_ih x_t + b_ih + W_hh h + b_hh
               c = sigmoid(f) c + sigmoid(i) tanh(g);  h = sigmoid(o) tanh(c), projected if asked
        gru:   r, z = sigmoid of the first two chunks of the sum
               n = tanh(third chunk of W_ih x_t + b_ih + r (third chunk of W_hh h + b_hh))
               h = n + z (h - n)

    Args:
        max_steps: the longest sequence that is unrolled. Each step adds about ten nodes per layer
            and direction.

    What cannot be unrolled stays, with the reason in ``record.notes``.
    """

    max_steps: int = 64

    def __call__(self, model: GraphModule) -> bool:
        """Replace; returns whether there was any."""
        found = [n for n in model.graph.nodes if ops.is_op(n, ops.RECURRENT)]
        changed = False
        for node in found:
            reason = self._why_not(node)
            if reason is not None:
                note(model, ORIGIN, node, reason)
                continue
            _write(Emitter(model, PASS_NAME).before(node))
            changed = True
        return changed

    def _why_not(self, node: Node) -> str | None:
        if not has_fake_values(node):
            return "the sizes of its inputs are not on record"
        if any(user.target is not ops.GETITEM for user in node.users):
            return "its results are used as one value"
        steps = value_of(ops.argument(node, "input")).shape[_time_axis(node)]
        if not isinstance(steps, int):
            return "its sequence length is symbolic: export it with a fixed one to unroll it"
        if steps > self.max_steps:
            return f"its {steps} steps are more than max_steps={self.max_steps}"
        return None


def _time_axis(node: Node) -> int:
    return 1 if ops.argument(node, "batch_first") else 0


def _write(emit: Emitter) -> None:
    node = emit.origin
    axis = _time_axis(node)
    directions = 2 if ops.argument(node, "bidirectional") else 1
    cells = cells_of(node, directions)
    states = _initial_states(node)
    final: list[tuple[Node, ...]] = []
    sequence: Node = ops.argument(node, "input")
    for layer in range(0, len(cells), directions):
        outputs = []
        for direction in range(directions):
            index = layer + direction
            state = tuple(emit.call(ops.aten.select.int, s, 0, index) for s in states)
            run = SequenceRun(emit, cells[index], axis, reverse=direction == 1)
            output, state = run.over(sequence, state)
            outputs.append(output)
            final.append(state)
        sequence = outputs[0] if directions == 1 else emit.call(ops.aten.cat.default, outputs, -1)
        if layer + directions < len(cells):
            sequence = _dropped(emit, sequence)
    columns = zip(*final, strict=True)
    last = [emit.call(ops.aten.stack.default, list(column), 0) for column in columns]
    _replace(node, [sequence, *last], emit)


def _initial_states(node: Node) -> list[Node]:
    given = ops.argument(node, "hx")
    return list(given) if isinstance(given, list | tuple) else [given]


def _dropped(emit: Emitter, sequence: Node) -> Node:
    p, train = ops.argument(emit.origin, "dropout"), ops.argument(emit.origin, "train")
    return sequence if p == 0 else emit.call(ops.aten.dropout.default, sequence, p, train)


def _replace(node: Node, results: list[Node], emit: Emitter) -> None:
    for user in list(node.users):
        result = results[user.args[1]]  # type: ignore[index]
        stand_for(result, user, PASS_NAME)
        user.replace_all_uses_with(result)
        emit.graph.erase_node(user)
    emit.graph.erase_node(node)
