"""A weight between the neighbours of its grid, to learn which of them it is rounded to.

    w~ = s clamp(floor(w / s) + z + h(v), low, high) - s z,
    h(v) = clamp(sigmoid(v) (1.2) - 0.1, 0, 1)

(Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", equation 23.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pt2q.algorithms.engine.rounding import Grid

STRETCH, SHIFT = 1.2, 0.1


@dataclass(frozen=True)
class SoftRounding:
    """A weight between the neighbours of its grid.

    Args:
        floor: ``floor(w / s) + z``.
        scale, zero_point: of each element.
        low, high: the integers in use.
    """

    floor: Tensor
    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    @classmethod
    def of(cls, weight: Tensor, grid: Grid) -> tuple[SoftRounding, Tensor]:
        """The neighbours below, and the ``v`` with which the weight is what it is."""
        scale = grid.spread(grid.scale, weight)
        zero_point = grid.spread(grid.zero_point.to(weight.dtype), weight)
        ratio = weight * (1.0 / scale)
        below = ratio.floor()
        share = ((ratio - below + SHIFT) / STRETCH).clamp(1e-4, 1 - 1e-4)
        made = cls(below + zero_point, scale, zero_point, grid.quant_min, grid.quant_max)
        return made, torch.log(share / (1 - share))

    def soft(self, v: Tensor) -> Tensor:
        """``w~``."""
        return self._at(upward(v))

    def hard(self, v: Tensor) -> Tensor:
        """The neighbour that ``v`` is nearer to."""
        return self._at((v >= 0).to(self.floor.dtype))

    def _at(self, share: Tensor) -> Tensor:
        levels = (self.floor + share).clamp(self.low, self.high)
        return (levels - self.zero_point) * self.scale


def upward(v: Tensor) -> Tensor:
    """``h(v)``: how far up a weight is rounded, 0 to 1."""
    return (torch.sigmoid(v) * STRETCH - SHIFT).clamp(0, 1)


def indecision(v: Tensor, exponent: float) -> Tensor:
    """``mean (1 - |2 h(v) - 1|^b)``: 0 where every weight is at a neighbour.

    Args:
        v: see `SoftRounding`.
        exponent: ``b``.
    """
    return (1 - (2 * upward(v) - 1).abs().pow(exponent)).mean()


def exponent(step: int, steps: int, warm: float, high: float, low: float) -> float:
    """``b`` at a step: after the warm part it falls from ``high`` to ``low`` along a cosine."""
    done = (step - warm * steps) / max(steps * (1 - warm), 1)
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
