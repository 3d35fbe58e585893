"""pt2q: quantization of models captured with ``torch.export``.

The main calls are `prepare_pt2e` and `convert_pt2e`; a `Quantizer` says what a backend wants.
"""

from pt2q.debug import (
    compare_results,
    extract_results_from_loggers,
    generate_numeric_debug_handle,
    prepare_for_propagation_comparison,
)
from pt2q.errors import Pt2qError, Pt2qWarning
from pt2q.flow import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from pt2q.ir.modes import (
    allow_exported_model_train_eval,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.verify import VerifyReport, Violation, verify
from pt2q.numerics.sqnr import sqnr
from pt2q.observers import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    FusedMovingAvgObsFakeQuantize,
    GroupFakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    NoopObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_learning,
    enable_observer,
)
from pt2q.spec import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

__version__ = "0.1.0"

__all__ = [
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "FakeQuantize",
    "FixedQParamsFakeQuantize",
    "FixedQParamsObserver",
    "FixedQParamsQuantizationSpec",
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
    "PlaceholderObserver",
    "Pt2qError",
    "Pt2qWarning",
    "QuantGraphModule",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "VerifyReport",
    "Violation",
    "allow_exported_model_train_eval",
    "compare_results",
    "convert_pt2e",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_learning",
    "enable_observer",
    "extract_results_from_loggers",
    "generate_numeric_debug_handle",
    "move_exported_model_to_eval",
    "move_exported_model_to_train",
    "prepare_for_propagation_comparison",
    "prepare_pt2e",
    "prepare_qat_pt2e",
    "sqnr",
    "verify",
]
