"""Which version of ONNX's operators a model needs."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from pt2q.errors import LoweringError
from pt2q.ir import ops
from pt2q.ir.qparams import read_qparams

LEAST_OPSET = 18
DEFAULT_OPSET = 20
WIDE_OPSET = 21
"""The first with 4-bit and 16-bit integers and with scales per group."""

_WIDE_DTYPES = (torch.int16, torch.uint16)


def choose_opset(model: GraphModule, asked: int | None) -> int:
    """The version to write.

    Args:
        model: a converted model.
        asked: what the user wants; None takes the default, or what the model needs beyond it.

    Raises:
        LoweringError: the model cannot be written in the version asked for.
    """
    wide = next((n for n in model.graph.nodes if _needs_wide(n)), None)
    needed = LEAST_OPSET if wide is None else WIDE_OPSET
    if asked is None:
        return max(DEFAULT_OPSET, needed)
    if type(asked) is not int:
        raise LoweringError(f"opset is a whole number such as {DEFAULT_OPSET}, found {asked!r}")
    if asked < needed:
        why = "torch.onnx writes no older one"
        if wide is not None:
            grouped = read_qparams(wide).group is not None
            why = f"{wide.name} has {'a scale per group' if grouped else '16-bit integers'}"
        raise LoweringError(f"opset {asked} is too old: give opset={needed} or later, as {why}")
    return asked


def _needs_wide(node: Node) -> bool:
    if not ops.is_op(node, ops.DEQUANTIZE):
        return False
    params = read_qparams(node)
    return params.group is not None or params.dtype in _WIDE_DTYPES
