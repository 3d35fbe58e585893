"""Collectors of statistics, and their forms for training."""

from pt2q.observers.base import ObserverBase, UniformQuantizationObserverBase
from pt2q.observers.batched import batched_qparams
from pt2q.observers.bounded_histogram import BoundedHistogramObserver
from pt2q.observers.derived import DerivedObserverOrFakeQuantize
from pt2q.observers.fake_quantizer import FakeQuantize
from pt2q.observers.fake_quantizer_base import FakeQuantizeBase
from pt2q.observers.fixed import FixedQParamsObserver
from pt2q.observers.fixed_fake_quantizer import FixedQParamsFakeQuantize
from pt2q.observers.fused_fake_quantizer import FusedMovingAvgObsFakeQuantize
from pt2q.observers.group_fake_quantizer import GroupFakeQuantize
from pt2q.observers.histogram import HistogramObserver
from pt2q.observers.learnable_fake_quantizer import LearnableFakeQuantize
from pt2q.observers.make import make_observer, make_observers
from pt2q.observers.min_max import MinMaxObserver, PerChannelMinMaxObserver
from pt2q.observers.moving_average import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from pt2q.observers.per_group import PerGroupMinMaxObserver
from pt2q.observers.placeholder import NoopObserver, PlaceholderObserver
from pt2q.observers.switches import (
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_learning,
    enable_observer,
)

__all__ = [
    "BoundedHistogramObserver",
    "DerivedObserverOrFakeQuantize",
    "FakeQuantize",
    "FakeQuantizeBase",
    "FixedQParamsFakeQuantize",
    "FixedQParamsObserver",
    "FusedMovingAvgObsFakeQuantize",
    "GroupFakeQuantize",
    "HistogramObserver",
    "LearnableFakeQuantize",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "ObserverBase",
    "PerChannelMinMaxObserver",
    "PerGroupMinMaxObserver",
    "PlaceholderObserver",
    "UniformQuantizationObserverBase",
    "batched_qparams",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_learning",
    "enable_observer",
    "make_observer",
    "make_observers",
]
