"""What convolutions, linear layers and matrix products share.

All multiply ``q - zero_point`` of one operand by that of the other and add up; the scale of the
accumulator is the product of the scales. (A device that multiplies the stored integers instead
subtracts ``zero_point_x * sum(w)`` per output channel: the same number.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.ir.qparams import QParams
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.fixed_point import INT32_LIMIT
from pt2q.passes.reference.values import NoIntegerForm, Quantized

aten = ops.aten
ONE = torch.ones((), dtype=torch.float64)


def known_factor(params: QParams, axis: int | None) -> tuple[Tensor, tuple[Node, ...]]:
    """Known and computed part of a scale; per channel only along ``axis``."""
    if params.axis is not None and isinstance(params.scale, Node):
        raise NoIntegerForm("scales per channel that are computed at run time")
    if isinstance(params.scale, Node):
        return ONE, (params.scale,)
    if params.axis is not None and params.axis != axis:
        raise NoIntegerForm(f"scales along dimension {params.axis} of an operand")
    return torch.as_tensor(params.scale, dtype=torch.float64), ()


def magnitude(call: Call, weight: Quantized, summed: tuple[int, ...], count: Any) -> int:
    """The largest ``sum |q - zero_point|`` over what one output adds up."""
    params = weight.params
    if not call.constants.is_constant(weight.node) or not isinstance(params.zero_point, int):
        return params.steps * (count if isinstance(count, int) else INT32_LIMIT)
    integers = call.constants.value(weight.node).to(torch.int64) - params.zero_point
    return int(integers.abs().sum(summed).amax()) if integers.numel() else 0


def width_for(bound: int) -> torch.dtype:
    """The accumulator: 32 bits where the sum provably fits."""
    return torch.int32 if bound < INT32_LIMIT else torch.int64


def known_bias(call: Call, name: str, shape: tuple[int, ...]) -> Tensor:
    """A bias as float64 in a shape that broadcasts with the result; zero without one.

    Raises:
        NoIntegerForm: it is computed.
    """
    bias = call.argument(name)
    if bias is None:
        return torch.zeros((), dtype=torch.float64)
    known = call.known(bias)
    if known is None:
        raise NoIntegerForm(f"its {name} is computed")
    return known.reshape(shape)


def reject_per_channel(x: Quantized) -> None:
    """An activation has one scale.

    Raises:
        NoIntegerForm: it has several.
    """
    if x.params.axis is not None or x.params.group is not None:
        raise NoIntegerForm("an activation with scales per channel")


def is_tensor_of_many(node: Node) -> bool:
    """Whether a computed scale is one per token."""
    value = value_of(node)
    return not isinstance(value, Tensor) or value.dim() > 1
