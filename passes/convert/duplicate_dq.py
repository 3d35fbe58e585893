"""Give every reader of a dequantized value a dequantize of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class DuplicateDQPass:
    """Copy each dequantize once per user, so that a backend can match q/dq around one operator.

    What a per-channel dequantize reads (int8 weight, scales) stays shared; only the operator is
    copied. The first user keeps the original. What quantizes the value anew, at run time, counts as
    one user: ``choose_qparams`` and the quantize that takes its parameters.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Copy; returns whether any dequantize had more than one user."""
        shared = [n for n in model.graph.nodes if ops.is_op(n, ops.DEQUANTIZE) and len(n.users) > 1]
        emit = Emitter(model, "pt2q.duplicate_dq")
        for node in shared:
            for users in _readers(node)[1:]:
                # Directly behind the original: later its input may be overwritten.
                copy = emit.after(node).again(node)
                for user in users:
                    user.replace_input_with(node, copy)
        return bool(shared)


def _readers(node: Node) -> list[list[Node]]:
    """The users of a node, those together that quantize it with parameters chosen at run time."""
    found: dict[Node, list[Node]] = {}
    for user in node.users:
        chosen = user if ops.is_op(user, ops.CHOOSE_QPARAMS) else _chosen_by(user)
        found.setdefault(chosen or user, []).append(user)
    return list(found.values())


def _chosen_by(user: Node) -> Node | None:
    """The ``choose_qparams`` whose parameters a quantize takes."""
    if not ops.is_op(user, ops.QUANTIZE):
        return None
    taken = (source.args[0] for source in user.all_input_nodes if source.target is ops.GETITEM)
    choices = (n for n in taken if isinstance(n, Node) and ops.is_op(n, ops.CHOOSE_QPARAMS))
    return next(choices, None)
