"""The parameters of quantize and dequantize calls as known numbers, where they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir.constants import Constants
from pt2q.ir.qparams import QParams, read_qparams


def quantization_of(node: Node, constants: Constants) -> QParams | None:
    """The parameters of a quantize or dequantize call.

    Args:
        node: the call.
        constants: tells parameters that are known from those computed at run time.

    Returns:
        Scale and zero point are each a Python number, a tensor of several known ones (float64 and
        int64), or the node that computes it. None where they are not those of integers: float8,
        floating point zero points.
    """
    found = read_qparams(node, lambda n: constants.value(n) if constants.is_constant(n) else n)
    bounds = (found.quant_min, found.quant_max)
    if not all(isinstance(b, int) for b in bounds) or found.dtype.is_floating_point:
        return None
    zero_point = found.zero_point
    if isinstance(zero_point, Tensor) and zero_point.is_floating_point():
        return None
    scale = _number(found.scale, torch.float64)
    return replace(found, scale=scale, zero_point=_number(zero_point, torch.int64))


def _number(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Node):
        return value
    if not isinstance(value, Tensor):
        return float(value) if dtype.is_floating_point else int(value)
    known = value.to(dtype)
    return known.item() if known.dim() == 0 else known
