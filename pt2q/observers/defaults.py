"""Constructors that go by a name in the field: observers and fake quantizers of the usual kind."""

from __future__ import annotations

import torch

from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.fake_quantizers.fixed import FixedQParamsFakeQuantize
from pt2q.observers.fake_quantizers.fused import FusedMovingAvgObsFakeQuantize
from pt2q.observers.histogram.histogram import HistogramObserver
from pt2q.observers.min_max.min_max import MinMaxObserver, PerChannelMinMaxObserver
from pt2q.observers.min_max.moving_average import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from pt2q.observers.without_statistics.fixed import FixedQParamsObserver
from pt2q.observers.without_statistics.placeholder import PlaceholderObserver
from pt2q.observers.without_statistics.recording import RecordingObserver, ReuseInputObserver

_UINT8 = {"dtype": torch.uint8, "quant_min": 0, "quant_max": 255}
_SEVEN_BITS = {"dtype": torch.uint8, "quant_min": 0, "quant_max": 127}
_INT8 = {"dtype": torch.int8, "quant_min": -128, "quant_max": 127}
_NARROW = {"dtype": torch.int8, "quant_min": -127, "quant_max": 127, "eps": 2**-12}
_TENSOR = {"qscheme": torch.per_tensor_symmetric}
_CHANNEL = {"qscheme": torch.per_channel_symmetric}
_HALF_OPEN = {"scale": 1 / 256, "zero_point": 0, **_UINT8}
_AROUND_ZERO = {"scale": 2 / 256, "zero_point": 128, **_UINT8}

default_observer = MinMaxObserver.with_args(**_SEVEN_BITS)
default_histogram_observer = HistogramObserver.with_args(**_SEVEN_BITS)
default_weight_observer = MinMaxObserver.with_args(**_INT8, **_TENSOR)
default_per_channel_weight_observer = PerChannelMinMaxObserver.with_args(**_INT8, **_CHANNEL)
weight_observer_range_neg_127_to_127 = MinMaxObserver.with_args(**_NARROW, **_TENSOR)
per_channel_weight_observer_range_neg_127_to_127 = PerChannelMinMaxObserver.with_args(
    **_NARROW, **_CHANNEL
)
default_dynamic_quant_observer = PlaceholderObserver.with_args(**_UINT8, is_dynamic=True)
default_float_qparams_observer = PerChannelMinMaxObserver.with_args(
    **_UINT8, qscheme=torch.per_channel_affine_float_qparams, ch_axis=0
)
default_fixed_qparams_range_0to1_observer = FixedQParamsObserver.with_args(**_HALF_OPEN)
default_fixed_qparams_range_neg1to1_observer = FixedQParamsObserver.with_args(**_AROUND_ZERO)
default_placeholder_observer = PlaceholderObserver
default_debug_observer = RecordingObserver
default_reuse_input_observer = ReuseInputObserver

default_fake_quant = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, **_UINT8)
"""Rounds to uint8, with a scale and a zero point from a moving average of the range."""
default_dynamic_fake_quant = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, **_UINT8, is_dynamic=True, averaging_constant=1
)
"""Rounds to uint8, with a scale and a zero point from the range of each batch."""
default_weight_fake_quant = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, **_INT8, **_TENSOR
)
default_per_channel_weight_fake_quant = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver, **_INT8, **_CHANNEL, ch_axis=0
)
default_histogram_fake_quant = FakeQuantize.with_args(observer=HistogramObserver, **_UINT8)
default_fused_act_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, **_UINT8
)
default_fused_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, **_INT8, **_TENSOR
)
default_fused_per_channel_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver, **_INT8, **_CHANNEL
)
default_fixed_qparams_range_0to1_fake_quant = FixedQParamsFakeQuantize.with_args(**_HALF_OPEN)
default_fixed_qparams_range_neg1to1_fake_quant = FixedQParamsFakeQuantize.with_args(**_AROUND_ZERO)
default_embedding_fake_quant = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    **_UINT8,
    qscheme=torch.per_channel_affine_float_qparams,
    ch_axis=0,
    averaging_constant=1,
)
fused_wt_fake_quant_range_neg_127_to_127 = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, **_NARROW, **_TENSOR
)
fused_per_channel_wt_fake_quant_range_neg_127_to_127 = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver, **_NARROW, **_CHANNEL
)
