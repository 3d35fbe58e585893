"""What is the same in every call, worked out once instead of in each."""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants, ancestors
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_constant

PASS_NAME = "pt2q.executorch_known_parts"
SMALL = 1 << 12
"""Bytes that a value may add to the file."""


def store_known_parts(model: GraphModule) -> bool:
    """Store what operators compute from constants alone, such as the embeddings of positions.

    Portable kernels would compute it in each call. What is dequantized stays, as kernels take it as
    it is stored, and so does what is larger than the constants that it is computed from.

    Args:
        model: a converted module; changed in place.

    Returns:
        Whether there were any.
    """
    constants = Constants(model)
    found = [node for node in model.graph.nodes if _is_worth_storing(node, constants)]
    emit = Emitter(model, PASS_NAME)
    for node in found:
        value = constants.value(node).contiguous()
        emit.before(node).replace_by(emit.constant(f"{node.name}_known", value))
    if found:
        model.graph.eliminate_dead_code()
        model.recompile()
    return bool(found)


def _is_worth_storing(node: Node, constants: Constants) -> bool:
    """Whether a value is known, read by what is not, and not much larger than where it is from."""
    value = node.meta.get("val")
    if node.op != "call_function" or not constants.is_constant(node):
        return False
    if not isinstance(value, Tensor) or all(map(constants.is_constant, node.users)):
        return False
    steps = ancestors(node)
    if any(ops.is_op(step, ops.QUANTIZE | ops.DEQUANTIZE) for step in steps):
        return False
    freed = [get_constant(constants.model, s).nbytes for s in steps if _is_only_in(s, steps)]
    return value.nbytes <= sum(freed) + SMALL


def _is_only_in(node: Node, steps: list[Node]) -> bool:
    """Whether a constant is read by these steps alone."""
    return is_constant(node) and set(node.users) <= set(steps)
