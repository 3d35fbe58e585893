"""A histogram observer whose grid does not reach beyond known bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pt2q.observers.histogram import HistogramObserver
from pt2q.observers.statistics import StatisticsObserver


class BoundedHistogramObserver(StatisticsObserver):
    """`HistogramObserver` for values between bounds, such as what a relu gives.

    The grid with the least error may reach a little beyond the values, to have a point where most
    of them are. A runtime that wants to leave out the relu, because rounding to the grid does the
    same, needs a grid that ends where the relu does. The scale is that of the search, made
    smaller if need be.

    Args:
        low: no value is below; 0 or less.
        high: no value is above; 0 or more.
        **kwargs: as `HistogramObserver`.
    """

    per_channel = False

    def __init__(
        self, *, low: float = -float("inf"), high: float = float("inf"), **kwargs: Any
    ) -> None:
        bins = {"bins": kwargs.pop("bins")} if "bins" in kwargs else {}
        super().__init__(**kwargs)
        if not low <= 0 <= high or low == high:
            raise ValueError(f"expected bounds around 0, found {low} and {high}")
        self.low, self.high = low, high
        self.inner = HistogramObserver(**kwargs, **bins)

    def _observe(self, x: Tensor) -> None:
        self.inner._observe(x)

    @property
    def has_data(self) -> bool:
        """See `ObserverBase.has_data`."""
        return self.inner.has_data

    def reset(self) -> None:
        """See `ObserverBase.reset`."""
        super().reset()
        self.inner.reset()

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The parameters of the search, the grid cut off at the bounds."""
        self.inner.node_name = self.node_name
        scale, zero_point = self.inner.calculate_qparams()
        assert self.quant_min is not None and self.quant_max is not None
        least = ((self.quant_min - zero_point) * scale).clamp(min=self.low)
        greatest = ((self.quant_max - zero_point) * scale).clamp(max=self.high)
        inside = torch.equal(least, (self.quant_min - zero_point) * scale) and torch.equal(
            greatest, (self.quant_max - zero_point) * scale
        )
        return (scale, zero_point) if inside else self._calculate_qparams(least, greatest)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"{super().extra_repr()}, low={self.low}, high={self.high}"
