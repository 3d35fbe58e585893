"""Read quantization parameters from the arguments of quantize and dequantize calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.passes.reference.values import QParams


def quantization_of(node: Node, constants: Constants) -> QParams | None:
    """The parameters of a quantize or dequantize call.

    Args:
        node: the call.
        constants: tells parameters that are known from those computed at run time.

    Returns:
        None where they are not those of integers: float8, floating point zero points.
    """
    low, high, dtype = (ops.argument(node, name) for name in ("quant_min", "quant_max", "dtype"))
    if isinstance(low, Node) or isinstance(high, Node) or dtype.is_floating_point:
        return None
    scale = _number(_either(node, "scale", "scales"), constants, torch.float64)
    zero_point = _number(_either(node, "zero_point", "zero_points"), constants, torch.int64)
    if isinstance(zero_point, Tensor) and zero_point.is_floating_point():
        return None
    axis = ops.argument(node, "axis") if ops.has_argument(node, "axis") else None
    group = ops.argument(node, "group_size") if ops.has_argument(node, "group_size") else None
    return QParams(scale, zero_point, int(low), int(high), dtype, axis, group)


def _either(node: Node, one: str, other: str) -> Any:
    return ops.argument(node, one if ops.has_argument(node, one) else other)


def _number(value: Any, constants: Constants, dtype: torch.dtype) -> Any:
    """A Python number, a tensor of several known ones, or the node that computes it."""
    if value is None:
        return 0
    if not isinstance(value, Node):
        return float(value) if dtype.is_floating_point else int(value)
    if not constants.is_constant(value):
        return value
    known = constants.value(value)
    if known.is_floating_point() and not dtype.is_floating_point:
        return known
    known = known.to(dtype)
    return known.item() if known.dim() == 0 else known
