"""Give every reader of a dequantized value a dequantize of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import copy_meta, create_call
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
        for node in shared:
            for user in list(node.users)[1:]:
                user.replace_input_with(node, _copy(model, node, user))
        return bool(shared)


def _copy(model: QuantGraphModule, node: Node, user: Node) -> Node:
    # Directly behind the original: between it and the user its input may be overwritten.
    with model.graph.inserting_after(node):
        new = create_call(model.graph, node.target, node.args, dict(node.kwargs))
    copy_meta(new, node, "pt2q.duplicate_dq")
    return new
