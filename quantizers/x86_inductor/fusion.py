"""What Inductor's kernels take in beside the operator they start at, and why not."""

from __future__ import annotations

from torch.fx import Node

from pt2q.ir.ops import (
    BATCH_NORM,
    CONV1D,
    CONV2D,
    GELU,
    HARDSWISH,
    HARDTANH,
    LINEAR,
    RELU,
    RELU6,
    SILU,
    is_op,
)
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.reading.residual_additions import residual_of, why_no_residual
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table.annotate import annotate_chain
from pt2q.quantizers.toolkit.table.rule import Match

CONVOLUTIONS = CONV1D | CONV2D
CONVOLUTION_FUSED = RELU | RELU6 | HARDTANH | HARDSWISH | SILU
LINEAR_FUSED = RELU | GELU


def adds_to_convolution(match: Match) -> Reason | None:
    """The later convolution takes the addition in: by then the other operand is there."""
    if residual_of(match.head, CONVOLUTIONS, prefer_last=True) is None:
        return why_no_residual(match.head, CONVOLUTIONS, "a convolution")
    return None


def same_shape(match: Match) -> Reason | None:
    """The operands of an addition have one shape."""
    # As text: symbolic sizes have no hash.
    shapes = {str(tuple(source.meta["val"].shape)) for source in match.activations}
    return None if len(shapes) == 1 else reasons.OPERAND_SHAPES_DIFFER


def annotate_residual(match: Match) -> None:
    """The operand that the convolution's kernel adds to its own result."""
    found = residual_of(match.head, CONVOLUTIONS, prefer_last=True)
    assert found is not None
    annotate_chain(match, {found.other: match.config.input_activation}, None)


def why_not_fused(node: Node) -> Reason:
    """Why an activation is not part of the operator before it.

    Args:
        node: a call that kernels take in elsewhere.
    """
    before = node.args[0]
    if not isinstance(before, Node) or not is_op(before, CONVOLUTIONS | LINEAR | BATCH_NORM):
        return reasons.BEHIND_OTHERS
    if is_op(before, BATCH_NORM):
        return reasons.BEHIND_BATCH_NORM.filled(node=before.name)
    if len(before.users) > 1:
        return reasons.BEHIND_SHARED_RESULT.filled(node=before.name)
    if is_op(before, LINEAR) and not is_op(node, LINEAR_FUSED):
        return reasons.NOT_FUSED.filled(kind="linear layers", fused="relu and gelu")
    if is_op(before, CONVOLUTIONS) and not is_op(node, CONVOLUTION_FUSED):
        names = "relu, relu6, hardtanh, hardswish and silu"
        return reasons.NOT_FUSED.filled(kind="convolutions", fused=names)
    return reasons.BEHIND_FLOAT.filled(node=before.name)
