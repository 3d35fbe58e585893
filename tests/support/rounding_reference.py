"""What a converted model must compute, from the prepared one and the definition of rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Interpreter


class _Rounding(Interpreter):
    """Runs a prepared graph with every observer rounding, written anew from the definition."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        observer = self.fetch_attr(str(target))
        (x,) = args
        scale, zero_point = observer.calculate_qparams()
        shape = [1] * x.dim()
        if observer.ch_axis is not None and scale.numel() > 1:
            shape[observer.ch_axis] = -1
        scale, zero_point = scale.float().reshape(shape), zero_point.float().reshape(shape)
        q = torch.round(x.float() * (1.0 / scale)) + zero_point
        q = torch.clamp(q, observer.quant_min, observer.quant_max)
        return ((q - zero_point) * scale).to(x.dtype)


def rounded(prepared: GraphModule, *inputs: Any) -> Any:
    """What a converted model must compute, from the prepared one."""
    with torch.no_grad():
        return _Rounding(prepared).run(*inputs)
