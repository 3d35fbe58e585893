"""Histograms of the tensors that are rounded, with the ranges that were chosen for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.engine import Program
from pt2q.algorithms.engine.rounding import grid_of, is_integer
from pt2q.debug.comparison.batches import own_inputs
from pt2q.debug.graph_runner import GraphRunner
from pt2q.debug.own_copy import own_copy
from pt2q.debug.sensitivities.subjects import Rounded, rounded_tensors
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.module.batch_call import placed
from pt2q.observers.protocol import has_data

BINS = 48


@dataclass
class Histogram:
    """How often numbers occur.

    Args:
        low, high: of the bins.
        counts: one for each of `BINS` bins of equal width.
        range: the smallest and the largest number that can be stored; None where that depends on
            the input.
        bits: how many bits tell the integers apart; 0 where it is not known.
    """

    low: float
    high: float
    counts: Tensor
    range: tuple[float, float] | None = None
    bits: float = 0.0

    def add(self, value: Tensor) -> None:
        """Count numbers; those outside of the bins count at their ends."""
        inside = value.clamp(self.low, self.high)
        self.counts += torch.histc(inside, BINS, self.low, self.high)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with few digits."""
        return {
            "low": _short(self.low),
            "high": _short(self.high),
            "counts": [int(count) for count in self.counts],
            "range": None if self.range is None else [_short(v) for v in self.range],
            "bits": round(self.bits, 1),
        }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


@torch.no_grad()
def histograms(prepared: QuantGraphModule, batches: Iterable[Any]) -> dict[str, Histogram]:
    """A histogram for each tensor that is rounded, of its values in float.

    Args:
        prepared: prepared and calibrated; it is not changed.
        batches: calls of it. The first one says where the bins are.

    Returns:
        By name of the node whose value is rounded, bodies' paths in front.
    """
    calls = rounded_tensors(Program(prepared))
    by_place = {(call.path, call.node.name): call for call in calls}
    found: dict[str, Histogram] = {}
    runner = GraphRunner(own_copy(prepared)[0])

    def visit(path: str, index: int, node: Node, args: tuple[Any, ...], value: Any) -> Any:
        call = by_place.get((path, node.name))
        if call is not None and isinstance(value, Tensor) and value.numel():
            _add(found, call, args[0])
        return args[0] if call is not None else value

    for batch in batches:
        runner(own_inputs(list(placed(prepared, batch).values())), visit)
    return found


def _add(found: dict[str, Histogram], call: Rounded, value: Tensor) -> None:
    flat = value.detach().float().flatten()
    flat = flat[torch.isfinite(flat)]
    name = call.path + call.source.name
    if not flat.numel() or (call.is_weight and name in found):
        return  # a weight is the same in every batch
    if name not in found:
        found[name] = _empty(call, value, flat)
    found[name].add(flat)


def _empty(call: Rounded, value: Tensor, flat: Tensor) -> Histogram:
    limits, bits = _limits(call, value)
    ends = [float(flat.min()), float(flat.max()), *(limits or ())]
    low, high = min(ends), max(ends)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return Histogram(low, high, torch.zeros(BINS), limits, bits)


def _limits(call: Rounded, value: Tensor) -> tuple[tuple[float, float] | None, float]:
    """The smallest and the largest number of a grid, over all its scales, and its bits."""
    observer = call.observer
    if not is_integer(observer, value.dim()) or not has_data(observer):
        return None, 0.0
    grid = grid_of(observer, value.dim())
    low = (grid.quant_min - grid.zero_point) * grid.scale
    high = (grid.quant_max - grid.zero_point) * grid.scale
    return (float(low.min()), float(high.max())), grid.bits
