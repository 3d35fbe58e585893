"""The algorithms by name."""

from __future__ import annotations

from typing import Any

from pt2q.algorithms.adaround import AdaRound
from pt2q.algorithms.awq import AWQ
from pt2q.algorithms.batch_norms import BatchNormStatistics
from pt2q.algorithms.bias_correction import BiasCorrection
from pt2q.algorithms.equalization import CrossLayerEqualization
from pt2q.algorithms.gptq import GPTQ
from pt2q.algorithms.scale_search import ScaleSearch
from pt2q.algorithms.smooth_quant import SmoothQuant
from pt2q.errors import UnknownNameError

_ALL: tuple[Any, ...] = (
    CrossLayerEqualization,
    SmoothQuant,
    AWQ,
    ScaleSearch,
    GPTQ,
    AdaRound,
    BatchNormStatistics,
    BiasCorrection,
)
ALGORITHMS: dict[str, Any] = {found.name: found for found in _ALL}
"""Classes by name, in the order in which they are best applied."""


def algorithm_named(name: str) -> Any:
    """The class of an algorithm.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in ALGORITHMS:
        raise UnknownNameError(f"unknown algorithm {name!r}: choose from {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
