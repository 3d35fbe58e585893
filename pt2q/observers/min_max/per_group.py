"""Ranges per group of weights: the finest scales, for 4 bits and fewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.errors import SpecError
from pt2q.numerics.extremes import MASK_LIMITS
from pt2q.observers.base.statistics import StatisticsObserver
from pt2q.spec.granularity import Granularity, PerGroup
from pt2q.spec.resolved_granularity import granularity_from


class PerGroupMinMaxObserver(StatisticsObserver):
    """The smallest and largest value of each ``group_size`` neighbours along the last axis.

    Watches a matrix ``[out, in]``; scales and zero points are ``[out, in / group_size]``.

    Args:
        group_size: how many values share a scale; it must divide ``in``.
        granularity: the same in other words: `PerGroup`.
        scale_dtype: round scales to it, the precision that kernels hold them in (many bfloat16), so
            that the converted model computes what they compute.
        **kwargs: as `UniformQuantizationObserverBase`; the scheme is symmetric per channel.
    """

    default_qscheme = torch.per_channel_symmetric
    per_channel = True
    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        *,
        group_size: int | None = None,
        granularity: Granularity | None = None,
        scale_dtype: torch.dtype = torch.bfloat16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        group = granularity_from(granularity=granularity, group_size=group_size)
        if not isinstance(group, PerGroup):
            raise SpecError(f"{type(self).__name__}: give group_size, or PerGroup as granularity")
        self.group_size = group.group_size
        self.scale_dtype = scale_dtype
        self.register_buffer("min_val", torch.empty(0))
        self.register_buffer("max_val", torch.empty(0))

    @property
    def granularity(self) -> Granularity:
        """How much of the tensor shares a scale."""
        return PerGroup(self.group_size)

    def _observe(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] % self.group_size:
            raise SpecError(
                f"{self._where()} expected a matrix [rows, columns] with columns a multiple of "
                f"{self.group_size}, the group size, found shape {tuple(x.shape)}"
            )
        if bool(torch.isnan(x).any()):
            raise self._nan_error()
        values = x.reshape(x.shape[0], -1, self.group_size)
        values = values.masked_fill(values.abs() >= MASK_LIMITS[x.dtype], 0.0)
        low, high = values.amin(-1).to(torch.float32), values.amax(-1).to(torch.float32)
        seen = self.min_val.shape == low.shape
        self.min_val = torch.minimum(self.min_val, low) if seen else low
        self.max_val = torch.maximum(self.max_val, high) if seen else high

    @property
    def has_data(self) -> bool:
        """See `ObserverBase.has_data`."""
        return self.min_val.numel() > 0

    def merge(self, found: Sequence[dict[str, Any]]) -> None:
        """See `ObserverBase.merge`."""
        seen = [one for one in found if one["min_val"].numel()]
        if seen:
            device = self.min_val.device
            self.min_val = torch.stack([one["min_val"] for one in seen]).amin(0).to(device)
            self.max_val = torch.stack([one["max_val"] for one in seen]).amax(0).to(device)

    def reset(self) -> None:
        """See `ObserverBase.reset`."""
        super().reset()
        self.min_val, self.max_val = self.min_val[:0], self.max_val[:0]

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point per row and group.

        Raises:
            NoDataError: nothing was observed.
        """
        if not self.has_data:
            raise self._no_data_error()
        shape = self.min_val.shape
        scale, zero_point = self._calculate_qparams(
            self.min_val.reshape(-1), self.max_val.reshape(-1)
        )
        scale = scale.to(self.scale_dtype).to(torch.float32)
        return scale.reshape(shape), zero_point.reshape(shape)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"{super().extra_repr()}, group_size={self.group_size}"
