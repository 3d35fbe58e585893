"""What a rounding does to a value, as a function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.graph import get_constant
from pt2q.ir.qparams import QParams

Rounding = Callable[[Tensor], Tensor]


def rounding_of(module: GraphModule, call: Node) -> Rounding:
    """The function that a quantize with its dequantize, or a fake quantizer, applies."""
    if call.op == "call_module":
        return module.get_submodule(str(call.target))
    args = [get_constant(module, a) if isinstance(a, Node) else a for a in call.args[1:]]
    back = next((u for u in call.users if ops.is_op(u, ops.DEQUANTIZE)), None)
    if back is None:
        return lambda x: x
    outs = [get_constant(module, a) if isinstance(a, Node) else a for a in back.args[1:]]

    def rounded(x: Tensor) -> Tensor:
        stored = call.target(x, *args, **call.kwargs)  # type: ignore[operator]
        return back.target(stored, *outs, **back.kwargs)  # type: ignore[no-any-return, operator]

    return rounded


def to_integers(x: Tensor, params: QParams) -> Tensor:
    """Real numbers as the integers that stand for them in the reference representation."""
    scale, zero_point = _numbers(params, x)
    levels = (x.double() / scale).round() + zero_point
    return levels.clamp(params.quant_min, params.quant_max).to(params.dtype)


def to_reals(q: Tensor, params: QParams) -> Tensor:
    """The real numbers that integers of the reference representation stand for, in float32."""
    scale, zero_point = _numbers(params, q)
    return ((q.double() - zero_point) * scale).float()


def _numbers(params: QParams, like: Tensor) -> tuple[Tensor, Tensor]:
    pair = (torch.as_tensor(v, dtype=torch.float64) for v in (params.scale, params.zero_point))
    scale, zero_point = (params.along(v, like.dim()) for v in pair)
    return scale, zero_point
