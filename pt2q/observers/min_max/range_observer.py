"""Observers of a smallest and a largest value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.ir.dtypes import FLOAT8_DTYPES
from pt2q.numerics.extremes import INF, MASK_LIMITS, extremes, extremes_without_masks
from pt2q.observers.base.statistics import StatisticsObserver


class RangeObserver(StatisticsObserver):
    """An observer whose statistics are a smallest and a largest value, per tensor or channel.

    ``inf`` and ``-inf`` stand for "nothing seen yet": they are the neutral elements of minimum
    and maximum, so that no step has to ask, which on an accelerator would stall it.
    """

    per_channel = False
    min_val: Tensor
    max_val: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.quant_min is None:
            raise TypeError(
                f"{type(self).__name__} cannot convert to {self.dtype}; use a PlaceholderObserver"
            )
        self.register_buffer("min_val", torch.tensor(INF))
        self.register_buffer("max_val", torch.tensor(-INF))

    def _observe(self, x: Tensor) -> None:
        self._take_range(*self._range_of(x))

    def _take_range(self, low: Tensor, high: Tensor) -> None:
        low, high = low.to(torch.float32), high.to(torch.float32)
        old_low, old_high = self.min_val, self.max_val
        if old_low.device != low.device:
            old_low, old_high = old_low.to(low.device), old_high.to(low.device)
        self._buffers["min_val"] = self._merge(old_low, low, torch.minimum)
        self._buffers["max_val"] = self._merge(old_high, high, torch.maximum)

    def _merge(self, old: Tensor, new: Tensor, extreme: Any) -> Tensor:
        merged: Tensor = extreme(old, new)
        return merged

    def _range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value in float32, masks left out."""
        if x.dtype in FLOAT8_DTYPES:
            x = x.to(torch.float32)
        ends = self._ends_of(x)
        return extremes_without_masks(x, self._reduced_dims(x)) if ends is None else ends

    def _ends_of(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the smallest and the largest value; None if there are masks, or may be.

        On an accelerator, which would have to be asked, there may be.
        """
        if x.device.type != "cpu":
            return None
        limit, dims = MASK_LIMITS[x.dtype], self._reduced_dims(x)
        low, high = extremes(x, dims)
        least, greatest = (low.amin(), high.amax()) if dims else (low, high)
        if float(least) > -limit and float(greatest) < limit:
            return low, high
        if bool(torch.isnan(least)):
            raise self._nan_error()
        return None

    def _reduced_dims(self, x: Tensor) -> tuple[int, ...]:
        if self.ch_axis is None or not self.per_channel:
            return ()
        if not -x.dim() <= self.ch_axis < x.dim():
            raise ValueError(
                f"{self._where()} ch_axis={self.ch_axis} is no axis of a tensor of shape "
                f"{tuple(x.shape)}"
            )
        axis = self.ch_axis % x.dim()
        return tuple(dim for dim in range(x.dim()) if dim != axis)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """See :meth:`ObserverBase.calculate_qparams`."""
        self.check_data()
        # A channel that saw nothing but masks is as good as all zero.
        seen = self.min_val <= self.max_val
        low = torch.where(seen, self.min_val, 0.0).reshape(-1)
        high = torch.where(seen, self.max_val, 0.0).reshape(-1)
        return self._calculate_qparams(low, high)

    def check_data(self) -> None:
        """Raise what ``calculate_qparams`` raises when there is no usable data."""
        if bool(torch.isnan(self.min_val).any()):
            raise self._nan_error()
        if not self.has_data:
            raise self._no_data_error()

    @property
    def has_data(self) -> bool:
        """See :attr:`ObserverBase.has_data`."""
        return bool((~(self.min_val > self.max_val)).any())

    def merge(self, found: Sequence[dict[str, Any]]) -> None:
        """See :meth:`ObserverBase.merge`."""
        # One that saw nothing has one infinite value, which broadcasts.
        low, high = ([one[name] for one in found] for name in ("min_val", "max_val"))
        device = self.min_val.device
        self.min_val = torch.stack(torch.broadcast_tensors(*low)).amin(0).to(device)
        self.max_val = torch.stack(torch.broadcast_tensors(*high)).amax(0).to(device)

    def reset(self) -> None:
        """See :meth:`ObserverBase.reset`."""
        super().reset()
        device = self.min_val.device
        self._buffers["min_val"] = torch.tensor(INF, device=device)
        self._buffers["max_val"] = torch.tensor(-INF, device=device)
