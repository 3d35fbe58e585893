"""Parameters that are known beforehand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pt2q.observers.base.uniform import UniformQuantizationObserverBase


class FixedQParamsObserver(UniformQuantizationObserverBase):
    """Scale and zero point known beforehand, as for a sigmoid; needs no data.

    Args:
        scale: The scale.
        zero_point: The zero point.
        **kwargs: As :class:`UniformQuantizationObserverBase`.
    """

    stateless = True
    per_channel = False
    scale: Tensor
    zero_point: Tensor

    def __init__(self, *, scale: float, zero_point: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.quant_min is None or self.quant_max is None:
            raise TypeError(f"expected a dtype to quantize to, found {self.dtype}")
        if not (0 < scale < float("inf") and self.quant_min <= zero_point <= self.quant_max):
            raise ValueError(
                f"expected a positive scale and a zero point in [{self.quant_min}, "
                f"{self.quant_max}], found {scale} and {zero_point}"
            )
        self.register_buffer("scale", torch.tensor([float(scale)]))
        self.register_buffer("zero_point", torch.tensor([int(zero_point)]))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` and take no notice."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point given."""
        return self.scale, self.zero_point
