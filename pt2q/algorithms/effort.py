"""Which algorithms are worth their time, by what a quantizer asks for."""

from __future__ import annotations

from typing import Any

from pt2q.algorithms.engine import Program
from pt2q.algorithms.engine.rounding import grid_of
from pt2q.algorithms.gptq import GPTQ
from pt2q.algorithms.layers import Layer, find_layers
from pt2q.algorithms.scale_search import ScaleSearch
from pt2q.algorithms.smooth_quant import SmoothQuant
from pt2q.errors import SpecError
from pt2q.ir.module import QuantGraphModule
from pt2q.spec import PerToken, granularity_of

EFFORTS = ("fast", "balanced", "best")


def algorithms_for(model: QuantGraphModule, effort: str) -> tuple[Any, ...]:
    """Algorithms in the order in which they are applied.

    Args:
        model: prepared; its observers say how many bits weights have, and whether inputs are
            quantized.
        effort: ``"fast"``, ``"balanced"`` or ``"best"``.

    Raises:
        SpecError: there is no such effort.
    """
    if effort not in EFFORTS:
        raise SpecError(f"effort: expected one of {', '.join(EFFORTS)}, found {effort!r}")
    layers = find_layers(Program(model)).found
    chosen: list[Any] = []
    if any(map(_has_quantized_input, layers)):
        chosen.append(SmoothQuant())
    few_bits = any(grid_of(layer.observer, layer.weight.dim()).bits <= 4 for layer in layers)
    if few_bits and effort == "fast":
        chosen.append(ScaleSearch())
    if effort == "best" or (few_bits and effort == "balanced"):
        chosen.append(GPTQ())
    return tuple(chosen)


def _has_quantized_input(layer: Layer) -> bool:
    """Whether a layer's input has one scale for all of it."""
    for use in layer.uses:
        if use.x.op == "call_module":
            observer = use.owner.get_submodule(str(use.x.target))
            return not isinstance(granularity_of(observer), PerToken)
    return False
