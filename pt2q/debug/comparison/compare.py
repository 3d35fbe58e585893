"""Run a float and a quantized model side by side and say where they part.

Four runs per batch. The float model and the quantized one, each on its own values: their
difference at a node is the *total* error, in which all that comes before has its part. Then both
again with every value that they have in common replaced by the float model's value, rounded as the
quantized model rounds it: what an operator then adds is its *local* error. Both operators read the
same numbers, so the rounding of a value counts for the operator that made the value and for nobody
after it; what remains is the rounding of weights and results, and integer arithmetic.
"""

from __future__ import annotations

from typing import Any

from pt2q.debug.comparison.batches import batches_of
from pt2q.debug.comparison.comparison import Comparison
from pt2q.debug.comparison.findings import comparison_of
from pt2q.debug.comparison.four_runs import FourRuns
from pt2q.debug.comparison.matching import match_values
from pt2q.debug.comparison.subjects import Model, subjects_of
from pt2q.ir.module.batch_call import placed


def compare(float_model: Model, quantized_model: Model, inputs: Any) -> Comparison:
    """Say, operator by operator, where a quantized model departs from its float model.

    Neither model is changed, buffers that they write included; both start from the buffers that
    the float model has now, and run in evaluation mode. The values of one batch are held at a
    time; of those before only sums remain.

    Args:
        float_model: what ``torch.export.export`` gave, or its ``.module()``.
        quantized_model: made of it by `prepare_pt2e`, `prepare_qat_pt2e` or `convert_pt2e`
            (in the reference representation, too), or exported anew since then.
        inputs: the positional arguments of one call as a tuple (one tensor alone is fine), or an
            iterable of batches, each of which is a tensor, a tuple of positional arguments or a
            dict of keyword arguments.

    Returns:
        The report. Printing it gives a table; ``worst()`` gives the culprits.

    Raises:
        NotExportedError: a model was not captured with ``torch.export``.
        ComparisonError: the two have nothing in common, or there is no batch.
        DataError, InputShapeError: a batch is not one call of the model.
    """
    subjects = subjects_of(float_model, quantized_model)
    runs = FourRuns(subjects, match_values(subjects.floating, subjects.quantized))
    for batch in batches_of(inputs):
        runs.add(list(placed(subjects.floating, batch).values()))
    return comparison_of(runs)
