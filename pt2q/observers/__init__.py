"""Collectors of statistics, and their forms for training."""

from pt2q.observers.base import ObserverBase, ObserverConstructor
from pt2q.observers.standard import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    NoopObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)

__all__ = [
    "FixedQParamsObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "ObserverBase",
    "ObserverConstructor",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
]
