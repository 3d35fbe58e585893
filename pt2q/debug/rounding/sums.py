"""What is seen of one rounding, call by call: only sums are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.debug.rounding.calls import is_dynamic_call
from pt2q.debug.rounding.row import RoundingRow
from pt2q.ir.qparams import QParams, read_qparams

MOST_LEVELS = 1 << 16  # of types whose used levels are counted


@dataclass
class RoundingSums:
    """What is seen of one rounding.

    Args:
        node: the call.
        module: whose graph it is in.
        numbers: how many were rounded.
        clipped: how many of them beyond the range of integers.
        scale, zero_point: the smallest and the largest.
        used: which integers occurred.
        params: those of the last call; None before the first.
    """

    node: Node
    module: GraphModule
    numbers: int = 0
    clipped: int = 0
    scale: tuple[float, float] = (math.inf, -math.inf)
    zero_point: tuple[float, float] = (math.inf, -math.inf)
    used: Tensor | None = None
    params: QParams | None = None

    def add(self, args: tuple[Any, ...]) -> None:
        """Take in one call, by its arguments."""
        x, params = args[0], self._parameters(args)
        if params.dtype.is_floating_point or not isinstance(x, Tensor) or not x.numel():
            return
        self.params = params
        self.scale = _widened(self.scale, params.scale)
        self.zero_point = _widened(self.zero_point, params.zero_point)
        low, high = params.quant_min, params.quant_max
        levels = _levels(x.detach().float(), params)
        self.numbers += levels.numel()
        least, most = (float(v) for v in torch.aminmax(levels))
        if not (low <= least and most <= high):  # also where they are NaN
            self.clipped += int(((levels < low) | (levels > high)).sum())
            levels = levels.nan_to_num_(low, high, low).clamp_(low, high)
        if high - low < MOST_LEVELS:
            self._mark(levels, low, high)

    def _mark(self, levels: Tensor, low: int, high: int) -> None:
        counts = levels.sub_(low).to(torch.int32).flatten().bincount(minlength=high - low + 1)
        used = (counts > 0).cpu()
        self.used = used if self.used is None else self.used | used

    def _parameters(self, args: tuple[Any, ...]) -> QParams:
        if self.node.op == "call_module":
            return _of_fake_quantizer(self.module.get_submodule(str(self.node.target)))
        given = dict(zip(self.node.args, args, strict=True))
        params = read_qparams(self.node, given.__getitem__)
        return replace(params, quant_min=int(params.quant_min), quant_max=int(params.quant_max))

    def row(self, path: str) -> RoundingRow | None:
        """What was seen; None if nothing was.

        Args:
            path: of the body that the call is in.
        """
        source, params = self.node.args[0], self.params
        if params is None:
            return None
        assert isinstance(source, Node)
        return RoundingRow(
            node=path + self.node.name,
            of=path + source.name,
            dtype=str(params.dtype).removeprefix("torch."),
            quant_min=params.quant_min,
            quant_max=params.quant_max,
            scale=self.scale,
            zero_point=self.zero_point,
            clipped=self.clipped / self.numbers,
            levels=None if self.used is None else float(self.used.float().mean()),
            dynamic=is_dynamic_call(self.module, self.node),
        )


def _of_fake_quantizer(module: Any) -> QParams:
    scale, zero_point = module.calculate_qparams()
    axis = getattr(module, "ch_axis", None) if torch.as_tensor(scale).numel() > 1 else None
    return QParams(scale, zero_point, module.quant_min, module.quant_max, module.dtype, axis)


def _levels(x: Tensor, params: QParams) -> Tensor:
    """The integers before they are clipped, as float32."""
    scale, zero_point = (_along(v, params, x) for v in (params.scale, params.zero_point))
    return (x * (1.0 / scale)).round_().add_(zero_point)


def _along(value: Any, params: QParams, x: Tensor) -> Tensor:
    numbers = torch.as_tensor(value, dtype=torch.float32)
    return numbers.reshape(()) if numbers.numel() == 1 else params.along(numbers, x.dim())


def _widened(bounds: tuple[float, float], value: Any) -> tuple[float, float]:
    numbers = torch.as_tensor(value, dtype=torch.float64)
    return min(bounds[0], float(numbers.min())), max(bounds[1], float(numbers.max()))
