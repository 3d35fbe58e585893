"""The smallest and the largest value of all that was seen."""

from __future__ import annotations

import torch
from torch import Tensor

from pt2q.observers.min_max.range_observer import RangeObserver


class MinMaxObserver(RangeObserver):
    """The smallest and the largest value of all that was seen, of the whole tensor."""


class PerChannelMinMaxObserver(RangeObserver):
    """The smallest and the largest value of all that was seen, for each index of ``ch_axis``."""

    default_qscheme = torch.per_channel_affine
    per_channel = True

    def _forward(self, x: Tensor) -> Tensor:
        """`forward`, where a class of one's own has overridden it."""
        return PerChannelMinMaxObserver.forward(self, x)
