"""Where accuracy drops: a quantized model beside its float model, operator by operator."""

from pt2q.debug.comparison.compare import compare
from pt2q.debug.comparison.comparison import Comparison
from pt2q.debug.comparison.row import ComparisonRow, Unmatched
from pt2q.debug.comparison.weights import WeightRow
from pt2q.debug.error import Error
from pt2q.debug.identity import Origin, generate_numeric_debug_handle
from pt2q.debug.rounding.row import RoundingRow
from pt2q.debug.standard_calls.loggers import (
    OutputLogger,
    extract_results_from_loggers,
    prepare_for_propagation_comparison,
)
from pt2q.debug.standard_calls.results import (
    NodeAccuracySummary,
    QuantizationComparisonResult,
    compare_results,
)
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
