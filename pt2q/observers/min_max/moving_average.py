"""Moving averages of the smallest and the largest value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pt2q.observers.min_max.range_observer import RangeObserver


class MovingAverageObserver(RangeObserver):
    """Running range ``r += c * (batch - r)``; the first batch is taken as it is.

    Args:
        averaging_constant: ``c``, in ``(0, 1]``; 1 keeps the last batch alone.
        **kwargs: As :class:`UniformQuantizationObserverBase`.
    """

    def __init__(self, *, averaging_constant: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < averaging_constant <= 1:
            raise ValueError(
                f"expected an averaging_constant in (0, 1], found {averaging_constant}"
            )
        self.averaging_constant = averaging_constant

    def _merge(self, old: Tensor, new: Tensor, extreme: Any) -> Tensor:
        averaged = old + self.averaging_constant * (new - old)
        averaged = torch.where(torch.isinf(old), new, averaged)
        return torch.where(torch.isinf(new), old, averaged)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"{super().extra_repr()}, averaging_constant={self.averaging_constant}"


class MovingAverageMinMaxObserver(MovingAverageObserver):
    """Moving averages of the smallest and the largest value of each batch."""


class MovingAveragePerChannelMinMaxObserver(MovingAverageObserver):
    """Moving averages of the smallest and the largest value of each batch, per channel."""

    default_qscheme = torch.per_channel_affine
    per_channel = True
