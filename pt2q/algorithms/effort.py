"""Which algorithms are worth their time, by what a quantizer asks for.

| asked for | fast | balanced | best |
|---|---|---|---|
| weights with one scale for a whole tensor | equalization | equalization | equalization |
| quantized inputs | SmoothQuant | SmoothQuant | SmoothQuant |
| quantized inputs with one range for all | | ranges by output error | ranges by output error |
| weights alone, at most 4 bits | | AWQ | AWQ |
| weights of at most 4 bits | scale search | GPTQ | GPTQ |
| weights of more bits | | | GPTQ |
| weights of at most 3 bits | | | AdaRound, four layers together |
| batch norms that are not folded | | statistics | statistics |
| quantized inputs with one range for all | | bias correction | bias correction |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pt2q.algorithms.adaround import AdaRound
from pt2q.algorithms.awq import AWQ
from pt2q.algorithms.batch_norms import BatchNormStatistics
from pt2q.algorithms.bias_correction import BiasCorrection
from pt2q.algorithms.engine import Program
from pt2q.algorithms.engine.rounding import is_static
from pt2q.algorithms.equalization import CrossLayerEqualization
from pt2q.algorithms.gptq import GPTQ
from pt2q.algorithms.layers import Layer, find_layers
from pt2q.algorithms.scale_search import ScaleSearch
from pt2q.algorithms.smooth_quant import SmoothQuant
from pt2q.errors import SpecError
from pt2q.ir import ops
from pt2q.ir.module import QuantGraphModule
from pt2q.offers import EFFORTS
from pt2q.spec import PerTensor, PerToken, granularity_of

FEW, VERY_FEW = 4, 3
"""So many bits are few enough for what takes its time."""
BLOCK = 4
"""So many layers are learned together."""


def algorithms_for(model: QuantGraphModule, effort: str) -> tuple[Any, ...]:
    """Algorithms in the order in which they are applied; the file's text has the table.

    Args:
        model: prepared; its observers say how many bits weights have, and whether inputs are
            quantized.
        effort: ``"fast"``, ``"balanced"`` or ``"best"``.

    Raises:
        SpecError: there is no such effort.
    """
    if effort not in EFFORTS:
        raise SpecError(f"effort: expected one of {', '.join(EFFORTS)}, found {effort!r}")
    return tuple(_chosen(_Asked.of(model), effort))


@dataclass(frozen=True)
class _Asked:
    """What the layers of a model are asked to be."""

    bits: float
    per_tensor: bool
    inputs: bool
    static: bool
    norms: bool

    @classmethod
    def of(cls, model: QuantGraphModule) -> _Asked:
        layers = find_layers(Program(model)).found
        weights = [layer.observer for layer in layers]
        observers = [found for layer in layers for found in _of_inputs(layer)]
        return cls(
            min(map(_bits, weights), default=math.inf),
            any(isinstance(granularity_of(found), PerTensor) for found in weights),
            any(not isinstance(granularity_of(found), PerToken) for found in observers),
            any(is_static(found) for found in observers),
            any(ops.is_op(node, ops.BATCH_NORM) for node in model.graph.nodes),
        )


def _chosen(asked: _Asked, effort: str) -> Iterator[Any]:
    thorough = effort != "fast"
    if asked.per_tensor:
        yield CrossLayerEqualization()
    if asked.inputs:
        yield SmoothQuant()
    if asked.static and thorough:
        yield ScaleSearch(weights=False)
    if asked.bits <= FEW:
        if thorough and not asked.inputs:
            yield AWQ()
        yield GPTQ() if thorough else ScaleSearch(activations=False)
    elif effort == "best":
        yield GPTQ()
    if asked.bits <= VERY_FEW and effort == "best":
        yield AdaRound(block=BLOCK)
    if asked.norms and thorough:
        yield BatchNormStatistics()
    if asked.static and thorough:
        yield BiasCorrection()


def _bits(observer: Any) -> float:
    return math.log2(observer.quant_max - observer.quant_min + 1)


def _of_inputs(layer: Layer) -> Iterator[Any]:
    """The observers of a layer's inputs."""
    for use in layer.uses:
        if use.x.op == "call_module":
            yield use.owner.get_submodule(str(use.x.target))
