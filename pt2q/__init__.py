"""pt2q: quantization of models captured with ``torch.export``.

The main calls are `prepare_pt2e` and `convert_pt2e`; a `Quantizer` says what a backend wants.

Importing this registers the operators of quantized programs, so that saved ones load; the rest is
looked up when it is first asked for. On the command line torch, too, is loaded when it is needed:
``pt2q --help`` answers at once.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pt2q.errors import Pt2qError, Pt2qWarning

if TYPE_CHECKING:
    from pt2q.algorithms import quantize_pt2e
    from pt2q.debug import (
        compare_results,
        extract_results_from_loggers,
        generate_numeric_debug_handle,
        prepare_for_propagation_comparison,
    )
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
        AffineQuantizedObserverBase,
        DerivedObserverOrFakeQuantize,
        FakeQuantize,
        FakeQuantizeBase,
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
        ObserverOrFakeQuantize,
        PerChannelMinMaxObserver,
        PlaceholderObserver,
        RecordingObserver,
        ReuseInputObserver,
        UniformQuantizationObserverBase,
        default_dynamic_fake_quant,
        default_fake_quant,
        disable_fake_quant,
        disable_observer,
        disable_range_learning,
        enable_fake_quant,
        enable_observer,
        enable_range_learning,
    )
    from pt2q.spec import (
        DerivedQuantizationSpec,
        EdgeOrNode,
        FixedQParamsQuantizationSpec,
        Granularity,
        MappingType,
        ObserverOrFakeQuantizeConstructor,
        PartialWrapper,
        PerAxis,
        PerBlock,
        PerGroup,
        PerRow,
        PerTensor,
        PerToken,
        QuantizationAnnotation,
        QuantizationSpec,
        QuantizationSpecBase,
        Quantizer,
        SharedQuantizationSpec,
        ZeroPointDomain,
        get_block_size,
    )

__version__ = "0.1.0"

# Some of these names are those of a room: a list of names is no logic.
# pylint: disable=duplicate-code

# Where names are; type checkers read the same above.
_ROOMS: dict[str, tuple[str, ...]] = {
    "pt2q.algorithms": ("quantize_pt2e",),
    "pt2q.debug": (
        "compare_results",
        "extract_results_from_loggers",
        "generate_numeric_debug_handle",
        "prepare_for_propagation_comparison",
    ),
    "pt2q.flow": (
        "convert_pt2e",
        "prepare_pt2e",
        "prepare_qat_pt2e",
    ),
    "pt2q.ir.modes": (
        "allow_exported_model_train_eval",
        "move_exported_model_to_eval",
        "move_exported_model_to_train",
    ),
    "pt2q.ir.module": ("QuantGraphModule",),
    "pt2q.ir.verify": (
        "VerifyReport",
        "Violation",
        "verify",
    ),
    "pt2q.numerics.sqnr": ("sqnr",),
    "pt2q.observers": (
        "AffineQuantizedObserverBase",
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
        "ObserverOrFakeQuantize",
        "PerChannelMinMaxObserver",
        "PlaceholderObserver",
        "RecordingObserver",
        "ReuseInputObserver",
        "UniformQuantizationObserverBase",
        "default_dynamic_fake_quant",
        "default_fake_quant",
        "disable_fake_quant",
        "disable_observer",
        "disable_range_learning",
        "enable_fake_quant",
        "enable_observer",
        "enable_range_learning",
    ),
    "pt2q.spec": (
        "DerivedQuantizationSpec",
        "EdgeOrNode",
        "FixedQParamsQuantizationSpec",
        "Granularity",
        "MappingType",
        "ObserverOrFakeQuantizeConstructor",
        "PartialWrapper",
        "PerAxis",
        "PerBlock",
        "PerGroup",
        "PerRow",
        "PerTensor",
        "PerToken",
        "QuantizationAnnotation",
        "QuantizationSpec",
        "QuantizationSpecBase",
        "Quantizer",
        "SharedQuantizationSpec",
        "ZeroPointDomain",
        "get_block_size",
    ),
}
_WHERE = {name: room for room, names in _ROOMS.items() for name in names}


def _is_command() -> bool:
    """Whether ``pt2q`` or ``python -m pt2q`` is being started."""
    return Path((getattr(sys, "argv", None) or ["-"])[0]).name in {"pt2q", "pt2q.exe", "-m"}


if not _is_command():
    import_module("pt2q.ir.torch_private")


def __getattr__(name: str) -> Any:
    """Return a name of a room, or a room, that is loaded when it is first asked for."""
    if name in _WHERE:
        found = getattr(import_module(_WHERE[name]), name)
        globals()[name] = found
        return found
    if not name.startswith("_"):
        try:
            return import_module(f"pt2q.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"pt2q.{name}":
                raise
    raise AttributeError(f"module 'pt2q' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


__all__ = [
    "AffineQuantizedObserverBase",
    "DerivedObserverOrFakeQuantize",
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "FakeQuantize",
    "FakeQuantizeBase",
    "FixedQParamsFakeQuantize",
    "FixedQParamsObserver",
    "FixedQParamsQuantizationSpec",
    "FusedMovingAvgObsFakeQuantize",
    "Granularity",
    "GroupFakeQuantize",
    "HistogramObserver",
    "LearnableFakeQuantize",
    "MappingType",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "ObserverBase",
    "ObserverOrFakeQuantize",
    "ObserverOrFakeQuantizeConstructor",
    "PartialWrapper",
    "PerAxis",
    "PerBlock",
    "PerChannelMinMaxObserver",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "PlaceholderObserver",
    "Pt2qError",
    "Pt2qWarning",
    "QuantGraphModule",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "RecordingObserver",
    "ReuseInputObserver",
    "SharedQuantizationSpec",
    "UniformQuantizationObserverBase",
    "VerifyReport",
    "Violation",
    "ZeroPointDomain",
    "allow_exported_model_train_eval",
    "compare_results",
    "convert_pt2e",
    "default_dynamic_fake_quant",
    "default_fake_quant",
    "disable_fake_quant",
    "disable_observer",
    "disable_range_learning",
    "enable_fake_quant",
    "enable_observer",
    "enable_range_learning",
    "extract_results_from_loggers",
    "generate_numeric_debug_handle",
    "get_block_size",
    "move_exported_model_to_eval",
    "move_exported_model_to_train",
    "prepare_for_propagation_comparison",
    "prepare_pt2e",
    "prepare_qat_pt2e",
    "quantize_pt2e",
    "sqnr",
    "verify",
]
