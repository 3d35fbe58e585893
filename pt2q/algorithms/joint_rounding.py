"""What is learned of the layers of a block: how weights are rounded, their scales, their biases.

Beside the roundings of `pt2q.algorithms.adaround`, a factor of every scale and a shift of every
bias are learned (Li et al. 2024, "TesseraQ: Ultra Low-Bit LLM Post-Training Quantization with Block
Reconstruction", section 3.3, for scales; Nagel et al. 2019 for why means shift). With two or three
bits the scale that rounds best is not the one that multiplies best:

    w~ = (1 + g) s (clamp(floor(w / s) + z + h(v), low, high) - z),    b~ = b + c sd(y)

with ``sd(y)`` the standard deviation of the layer's float outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pt2q.algorithms.bias_correction import fixed_bias
from pt2q.algorithms.block_rounding import Change
from pt2q.algorithms.engine.rounding import Grid
from pt2q.algorithms.layerwise import Proposal, Work
from pt2q.algorithms.soft_rounding import SoftRounding, indecision

LEAST_FACTOR = 0.05
"""A scale does not become smaller than this share of what it was."""


@dataclass(frozen=True)
class Learned:
    """A layer while it is learned.

    Args:
        work: the layer.
        grid: what it is rounded to.
        rounding: between its neighbours.
        v: the roundings, see `SoftRounding`.
        g: by how much the scales change, relatively; of the grid's shape.
        c: by how much the bias changes, in standard deviations of the output; None where the bias
            is not its own.
        deviation: that, ``sd(y)``.
    """

    work: Work
    grid: Grid
    rounding: SoftRounding
    v: Tensor
    g: Tensor
    c: Tensor | None
    deviation: float

    @classmethod
    def of(cls, work: Work, grid: Grid) -> Learned:
        """As it is before anything is learned."""
        rounding, v = SoftRounding.of(work.weight, grid)
        bias = work.rounded_bias
        own = bias is not None and not fixed_bias(work)
        c = torch.zeros_like(bias) if own and bias is not None else None
        g = torch.zeros_like(grid.scale)
        for value in (v, g, c):
            if value is not None:
                value.requires_grad_()
        outputs = torch.cat([y.flatten() for y in work.references])
        return cls(work, grid, rounding, v, g, c, float(outputs.float().std()))

    def weight(self, *, hard: bool = False) -> Tensor:
        """``w~``."""
        found = self.rounding.hard(self.v) if hard else self.rounding.soft(self.v)
        return found * self.grid.spread(self._factor(), found)

    def bias(self) -> Tensor | None:
        """``b~``; None where it is not learned."""
        if self.c is None or self.work.rounded_bias is None:
            return None
        return self.work.rounded_bias + self.c * self.deviation

    def change(self, *, hard: bool = False) -> Change:
        """What it multiplies by and adds while it is learned."""
        return Change(self.weight(hard=hard), self.bias())

    def indecision(self, exponent: float) -> Tensor:
        """See `soft_rounding.indecision`."""
        return indecision(self.v, exponent)

    def proposal(self) -> Proposal:
        """What was learned."""
        with torch.no_grad():
            grid = self.grid.scaled(self._factor())
            ratio = self.grid.spread(grid.scale / self.grid.scale, self.v)
            return Proposal(self.rounding.hard(self.v) * ratio, grid, self.bias())

    def _factor(self) -> Tensor:
        return (1 + self.g).clamp(min=LEAST_FACTOR)


def parameters(layers: Sequence[Learned], rate: float, others: float) -> list[dict[str, Any]]:
    """What Adam changes, by its rate.

    Args:
        layers: of a block.
        rate: of the roundings.
        others: of scales and biases.
    """
    shifts: Iterable[Tensor | None] = (layer.c for layer in layers)
    moving = [*(layer.g for layer in layers), *(c for c in shifts if c is not None)]
    found: list[dict[str, Any]] = [
        {"params": [layer.v for layer in layers], "lr": rate},
        {"params": moving, "lr": others},
    ]
    return found if others > 0 else found[:1]
