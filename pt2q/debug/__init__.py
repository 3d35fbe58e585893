"""Where accuracy drops: a quantized model beside its float model, operator by operator."""

from pt2q.debug.compare import compare
from pt2q.debug.identity import Origin, generate_numeric_debug_handle
from pt2q.debug.loggers import (
    NodeAccuracySummary,
    OutputLogger,
    QuantizationComparisonResult,
    compare_results,
    extract_results_from_loggers,
    prepare_for_propagation_comparison,
)
from pt2q.debug.report import Comparison, ComparisonRow, Unmatched
from pt2q.debug.rounding import RoundingRow
from pt2q.debug.stats import Error
from pt2q.debug.weights import WeightRow
from pt2q.errors import ComparisonError

__all__ = [
    "Comparison",
    "ComparisonError",
    "ComparisonRow",
    "Error",
    "NodeAccuracySummary",
    "Origin",
    "OutputLogger",
    "QuantizationComparisonResult",
    "RoundingRow",
    "Unmatched",
    "WeightRow",
    "compare",
    "compare_results",
    "extract_results_from_loggers",
    "generate_numeric_debug_handle",
    "prepare_for_propagation_comparison",
]
