"""Collectors of statistics, and their forms for training."""

from pt2q.observers.base.affine import (
    AffineQuantizedObserverBase,
)
from pt2q.observers.base.observer_base import (
    ObserverBase,
)
from pt2q.observers.base.uniform import (
    UniformQuantizationObserverBase,
)
from pt2q.observers.batched import (
    batched_qparams,
)
from pt2q.observers.defaults import (
    default_debug_observer,
    default_dynamic_fake_quant,
    default_dynamic_quant_observer,
    default_embedding_fake_quant,
    default_fake_quant,
    default_fixed_qparams_range_0to1_fake_quant,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_fake_quant,
    default_fixed_qparams_range_neg1to1_observer,
    default_float_qparams_observer,
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant,
    default_histogram_fake_quant,
    default_histogram_observer,
    default_observer,
    default_per_channel_weight_fake_quant,
    default_per_channel_weight_observer,
    default_placeholder_observer,
    default_reuse_input_observer,
    default_weight_fake_quant,
    default_weight_observer,
    fused_per_channel_wt_fake_quant_range_neg_127_to_127,
    fused_wt_fake_quant_range_neg_127_to_127,
    per_channel_weight_observer_range_neg_127_to_127,
    weight_observer_range_neg_127_to_127,
)
from pt2q.observers.fake_quantizers.fake_quantizer import (
    FakeQuantize,
)
from pt2q.observers.fake_quantizers.fake_quantizer_base import (
    FakeQuantizeBase,
)
from pt2q.observers.fake_quantizers.fixed import (
    FixedQParamsFakeQuantize,
)
from pt2q.observers.fake_quantizers.fused import (
    FusedMovingAvgObsFakeQuantize,
)
from pt2q.observers.fake_quantizers.group import (
    GroupFakeQuantize,
)
from pt2q.observers.fake_quantizers.learnable import (
    LearnableFakeQuantize,
)
from pt2q.observers.families import (
    OBSERVERS,
    ObserverFamily,
    constructor_for,
)
from pt2q.observers.histogram.histogram import (
    HistogramObserver,
)
from pt2q.observers.make import (
    make_observer,
    make_observers,
)
from pt2q.observers.min_max.min_max import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
)
from pt2q.observers.min_max.moving_average import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from pt2q.observers.min_max.per_group import (
    PerGroupMinMaxObserver,
)
from pt2q.observers.protocol import (
    Form,
    ObserverOrFakeQuantize,
    form_of,
    has_data,
)
from pt2q.observers.switches import (
    disable_fake_quant,
    disable_observer,
    disable_range_learning,
    enable_fake_quant,
    enable_observer,
    enable_range_learning,
)
from pt2q.observers.without_statistics.derived import (
    DerivedObserverOrFakeQuantize,
)
from pt2q.observers.without_statistics.fixed import (
    FixedQParamsObserver,
)
from pt2q.observers.without_statistics.placeholder import (
    NoopObserver,
    PlaceholderObserver,
)
from pt2q.observers.without_statistics.recording import (
    RecordingObserver,
    ReuseInputObserver,
)

__all__ = [
    "OBSERVERS",
    "AffineQuantizedObserverBase",
    "DerivedObserverOrFakeQuantize",
    "FakeQuantize",
    "FakeQuantizeBase",
    "FixedQParamsFakeQuantize",
    "FixedQParamsObserver",
    "Form",
    "FusedMovingAvgObsFakeQuantize",
    "GroupFakeQuantize",
    "HistogramObserver",
    "LearnableFakeQuantize",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "ObserverBase",
    "ObserverFamily",
    "ObserverOrFakeQuantize",
    "PerChannelMinMaxObserver",
    "PerGroupMinMaxObserver",
    "PlaceholderObserver",
    "RecordingObserver",
    "ReuseInputObserver",
    "UniformQuantizationObserverBase",
    "batched_qparams",
    "constructor_for",
    "default_debug_observer",
    "default_dynamic_fake_quant",
    "default_dynamic_quant_observer",
    "default_embedding_fake_quant",
    "default_fake_quant",
    "default_fixed_qparams_range_0to1_fake_quant",
    "default_fixed_qparams_range_0to1_observer",
    "default_fixed_qparams_range_neg1to1_fake_quant",
    "default_fixed_qparams_range_neg1to1_observer",
    "default_float_qparams_observer",
    "default_fused_act_fake_quant",
    "default_fused_per_channel_wt_fake_quant",
    "default_fused_wt_fake_quant",
    "default_histogram_fake_quant",
    "default_histogram_observer",
    "default_observer",
    "default_per_channel_weight_fake_quant",
    "default_per_channel_weight_observer",
    "default_placeholder_observer",
    "default_reuse_input_observer",
    "default_weight_fake_quant",
    "default_weight_observer",
    "disable_fake_quant",
    "disable_observer",
    "disable_range_learning",
    "enable_fake_quant",
    "enable_observer",
    "enable_range_learning",
    "form_of",
    "fused_per_channel_wt_fake_quant_range_neg_127_to_127",
    "fused_wt_fake_quant_range_neg_127_to_127",
    "has_data",
    "make_observer",
    "make_observers",
    "per_channel_weight_observer_range_neg_127_to_127",
    "weight_observer_range_neg_127_to_127",
]
