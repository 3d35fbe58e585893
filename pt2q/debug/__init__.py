"""Where accuracy drops: a quantized model beside its float model, operator by operator."""

from pt2q.debug.comparison.compare import compare
from pt2q.debug.comparison.comparison import Comparison
from pt2q.debug.comparison.in_runtime import RuntimeComparison, compare_in_runtime
from pt2q.debug.comparison.row import ComparisonRow, Unmatched
from pt2q.debug.comparison.weights import WeightRow
from pt2q.debug.diagnosis.changes import Change, QuantizerSetup
from pt2q.debug.diagnosis.doctor import doctor
from pt2q.debug.diagnosis.findings import Diagnosis, Finding
from pt2q.debug.drawing.graphviz_text import draw, save_drawing
from pt2q.debug.drawing.overlay import errors_by_node, overlay
from pt2q.debug.error import Error
from pt2q.debug.identity import (
    Origin,
    bfs_trace_with_node_process,
    generate_numeric_debug_handle,
)
from pt2q.debug.inspection.inspect_model import inspect
from pt2q.debug.inspection.inspection import BackendView, Inspection
from pt2q.debug.language_models import chunks, perplexity
from pt2q.debug.recipe_search.result import SearchResult
from pt2q.debug.recipe_search.search import Bound, search
from pt2q.debug.report.page import report_page
from pt2q.debug.rounding.row import RoundingRow
from pt2q.debug.sensitivities.result import Sensitivity, SensitivityRow
from pt2q.debug.sensitivities.sensitivity import sensitivity
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
from pt2q.ir.graph import CUSTOM_KEY, FROM_NODE_KEY
from pt2q.ir.graph import HANDLE_KEY as NUMERIC_DEBUG_HANDLE_KEY

__all__ = [
    "CUSTOM_KEY",
    "FROM_NODE_KEY",
    "NUMERIC_DEBUG_HANDLE_KEY",
    "BackendView",
    "Bound",
    "Change",
    "Comparison",
    "ComparisonError",
    "ComparisonRow",
    "Diagnosis",
    "Error",
    "Finding",
    "Inspection",
    "NodeAccuracySummary",
    "Origin",
    "OutputLogger",
    "QuantizationComparisonResult",
    "QuantizerSetup",
    "RoundingRow",
    "RuntimeComparison",
    "SearchResult",
    "Sensitivity",
    "SensitivityRow",
    "Unmatched",
    "WeightRow",
    "bfs_trace_with_node_process",
    "chunks",
    "compare",
    "compare_in_runtime",
    "compare_results",
    "doctor",
    "draw",
    "errors_by_node",
    "extract_results_from_loggers",
    "generate_numeric_debug_handle",
    "inspect",
    "overlay",
    "perplexity",
    "prepare_for_propagation_comparison",
    "report_page",
    "save_drawing",
    "search",
    "sensitivity",
]
