"""Give every reader of a dequantized value a dequantize of its own."""

from __future__ import annotations

from dataclasses import dataclass

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class DuplicateDQPass:
    """Copy each dequantize once per user, so that a backend can match q/dq around one operator.

    What a per-channel dequantize reads (int8 weight, scales) stays shared; only the operator is
    copied. The first user keeps the original.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Copy; returns whether any dequantize had more than one user."""
        shared = [n for n in model.graph.nodes if ops.is_op(n, ops.DEQUANTIZE) and len(n.users) > 1]
        emit = Emitter(model, "pt2q.duplicate_dq")
        for node in shared:
            for user in list(node.users)[1:]:
                # Directly behind the original: later its input may be overwritten.
                user.replace_input_with(node, emit.after(node).again(node))
        return bool(shared)
