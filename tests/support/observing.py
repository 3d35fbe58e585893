"""Observers that have seen batches, and their parameters compared."""

from __future__ import annotations

import torch
from torch import Tensor

from pt2q.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
)

PER_TENSOR = [MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver]


PER_CHANNEL = [PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver]


COLLECTING = PER_TENSOR + PER_CHANNEL


def seen(observer: ObserverBase, *batches: Tensor) -> tuple[Tensor, Tensor]:
    for batch in batches:
        assert observer(batch) is batch
    return observer.calculate_qparams()


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def batches() -> list[Tensor]:
    sizes = ((4, 20), (4, 9000), (4, 70), (4, 9001), (4, 9000))
    return [torch.randn(shape) * (1 + i) for i, shape in enumerate(sizes)]
