"""The search for the scale and zero point with the smallest squared error on a histogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pt2q.numerics.grid_candidates import (
    FEW_LEVELS,
    LOWEST_RATIO,
    around,
    every_zero_point,
    per_candidate,
    ranked_by_model,
    within_range,
)
from pt2q.numerics.grid_error import Grid, Seen

# Beyond this many levels a cell is narrower than a bin, and the model is all there is to know.
_MANY_LEVELS = 1024


def best_grid(
    seen: Seen, low: Tensor, high: Tensor, smallest: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return the scale in bins and the zero point, ``[N]`` each, with the smallest error.

    Args:
        seen: What the observers keep, in bins.
        low: ``[N]`` smallest value in bins, at most 0.
        high: ``[N]`` largest value in bins, at least 0.
        smallest: ``[N]`` smallest scale in bins.
        grid: The integers.
    """
    floor = smallest.unsqueeze(1)
    if grid.steps >= _MANY_LEVELS:
        scale, zero_point = ranked_by_model(seen, low, high, grid, kept=1)
        return torch.maximum(scale[:, 1], smallest), zero_point[:, 1]
    scale, zero_point = (
        every_zero_point(low, high, grid)
        if grid.steps < FEW_LEVELS
        else ranked_by_model(seen, low, high, grid, seen.candidates)
    )
    best = _best_of(seen, scale, zero_point, floor, grid)
    for part, count in seen.refinements:
        candidates = _neighbours(seen, *best, low, high, grid, part, count)
        best = _best_of(seen, *candidates, floor, grid)
    return best


def _neighbours(
    seen: Seen,
    scale: Tensor,
    zero_point: Tensor,
    low: Tensor,
    high: Tensor,
    grid: Grid,
    part: float,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Return candidates ``[N, C]`` around the best, within ``part`` of its distance to others."""
    spread = part * (-math.log(LOWEST_RATIO) / per_candidate(grid))
    if grid.steps < FEW_LEVELS:
        both_sides = torch.zeros_like(low, dtype=torch.bool)
        return around(scale, zero_point, spread, count, grid, both_sides)
    one_sided = (low == 0) | (high == 0)
    near = around(scale, zero_point, spread, count, grid, one_sided)
    return within_range(seen, *near, low, high, grid)


def _best_of(
    seen: Seen, scale: Tensor, zero_point: Tensor, floor: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    scale = torch.maximum(scale, floor)
    best = seen.errors(scale, zero_point, grid).argmin(1, keepdim=True)
    return scale.gather(1, best).squeeze(1), zero_point.gather(1, best).squeeze(1)
