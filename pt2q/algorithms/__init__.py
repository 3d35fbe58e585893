"""What wins accuracy back after quantization: one algorithm per file, over any quantizer.

Each is an object that is called with a prepared, calibrated model and batches, changes the model
and says what it did, layer by layer. `pt2q.quantize_pt2e` applies several.
"""

from pt2q.algorithms.adaround import AdaRound
from pt2q.algorithms.applied import Applied, report_of
from pt2q.algorithms.awq import AWQ
from pt2q.algorithms.batch_norms import BatchNormStatistics
from pt2q.algorithms.bias_correction import BiasCorrection
from pt2q.algorithms.equalization import CrossLayerEqualization
from pt2q.algorithms.gptq import GPTQ
from pt2q.algorithms.improving import (
    Improvement,
    apply_improvement,
    check_choice,
    improve,
    improve_and_convert,
)
from pt2q.algorithms.quantize import quantize_pt2e
from pt2q.algorithms.registry import ALGORITHMS, algorithm_named
from pt2q.algorithms.report import Report, Row
from pt2q.algorithms.scale_search import ScaleSearch
from pt2q.algorithms.smooth_quant import SmoothQuant

__all__ = [
    "ALGORITHMS",
    "AWQ",
    "GPTQ",
    "AdaRound",
    "Applied",
    "BatchNormStatistics",
    "BiasCorrection",
    "CrossLayerEqualization",
    "Improvement",
    "Report",
    "Row",
    "ScaleSearch",
    "SmoothQuant",
    "algorithm_named",
    "apply_improvement",
    "check_choice",
    "improve",
    "improve_and_convert",
    "quantize_pt2e",
    "report_of",
]
