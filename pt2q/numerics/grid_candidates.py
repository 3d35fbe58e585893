"""Scales and zero points worth trying on a histogram; see `pt2q.numerics.grid_error` for units."""

from __future__ import annotations

import torch
from torch import Tensor

from pt2q.numerics.grid_error import Grid, Seen

# Grids up to this many levels are tried with every zero point; finer grids are first ranked by
# the model below, whose assumption (values spread evenly within a cell) they meet.
FEW_LEVELS = 32
# Scales tried between full range and the lowest ratio to it: for each end of the range, for each
# zero point, and where there is nothing else to choose.
LOWEST_RATIO = 2.0**-9
_PER_END, _PER_POINT, _PER_SCALE = 96, 48, 192
# How far from the last integer a value still rounds to it.
_ROUNDED_TO_LAST = 0.499


def _ratios(count: int) -> Tensor:
    """Return ``count`` factors from 1 down, evenly spaced in the logarithm."""
    return torch.logspace(0, 1, count, base=LOWEST_RATIO, dtype=torch.float64)


def per_candidate(grid: Grid) -> int:
    """Return how many scales are tried for each zero point or end."""
    if grid.zero_point is not None:
        return _PER_SCALE
    return _PER_POINT if grid.steps < FEW_LEVELS else _PER_END


def every_zero_point(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return scales and zero points ``[N, C]``: each zero point, with scales below full range."""
    first, last = (
        (grid.quant_min, grid.quant_max)
        if grid.zero_point is None
        else (grid.zero_point, grid.zero_point)
    )
    zero_point = torch.arange(first, last + 1, dtype=torch.float64)
    below = (low.unsqueeze(1) / (grid.quant_min - zero_point)).nan_to_num(0, 0, 0)
    above = (high.unsqueeze(1) / (grid.quant_max - zero_point)).nan_to_num(0, 0, 0)
    full = torch.maximum(below, above) * 1.05
    scale = full.unsqueeze(2) * _ratios(per_candidate(grid))
    return scale.flatten(1), zero_point.view(1, -1, 1).expand_as(scale).flatten(1)


def ranked_by_model(
    seen: Seen, low: Tensor, high: Tensor, grid: Grid, kept: int
) -> tuple[Tensor, Tensor]:
    """Return the ``kept`` best scales and zero points ``[N, C]`` by the model, full range first.

    The model: ``s ** 2 / 12`` for each value, plus what clipping costs at either end.
    """
    rank = _pairs_of_ends if grid.zero_point is None else _scales_about_a_point
    scale, zero_point = rank(seen, low, high, grid, kept)
    zero_point = zero_point.nan_to_num(0).round().clamp(grid.quant_min, grid.quant_max)
    return scale, zero_point


def _best_by_cost(cost: Tensor, kept: int) -> Tensor:
    """Return the places of the first and of the ``kept`` cheapest candidates, of ``[N, C]``."""
    best = cost.topk(min(kept, cost.shape[1]), dim=1, largest=False).indices
    return torch.cat([torch.zeros_like(best[:, :1]), best], 1)


def _pairs_of_ends(
    seen: Seen, low: Tensor, high: Tensor, grid: Grid, kept: int
) -> tuple[Tensor, Tensor]:
    """Return scales and zero points that each pair of a low and a high end gives, the best."""
    ratios = torch.cat([_ratios(_PER_END - 1), torch.zeros(1).double()])
    lows, highs = low.unsqueeze(1) * ratios, high.unsqueeze(1) * ratios
    below, above = (cost.float() for cost in seen.clipped(lows, highs))
    # An end at zero has one candidate, not all of them equal.
    below[:, 1:].masked_fill_((low == 0).unsqueeze(1), torch.inf)
    above[:, 1:].masked_fill_((high == 0).unsqueeze(1), torch.inf)
    # Nor is there a grid without a width.
    below[:, -1].masked_fill_(high == 0, torch.inf)
    above[:, -1].masked_fill_(low == 0, torch.inf)
    # Which pairs are worth an exact error can be told in single precision.
    cost = highs.float().unsqueeze(1) - lows.float().unsqueeze(2)
    cost.square_().mul_((seen.total / (12 * grid.steps**2)).float().view(-1, 1, 1))
    cost.add_(below.unsqueeze(2)).add_(above.unsqueeze(1))
    cost[:, -1, -1] = torch.inf
    best = _best_by_cost(cost.flatten(1), kept)
    lows, highs = lows.gather(1, best // _PER_END), highs.gather(1, best % _PER_END)
    scale = (highs - lows) / grid.steps
    return scale, grid.quant_min - lows / scale


def _scales_about_a_point(
    seen: Seen, low: Tensor, high: Tensor, grid: Grid, kept: int
) -> tuple[Tensor, Tensor]:
    """Return the same for a given zero point, where the scale gives both ends."""
    assert grid.zero_point is not None
    first, last = grid.quant_min - grid.zero_point, grid.quant_max - grid.zero_point
    reach = torch.maximum(low / first, high / last)
    scale = reach.unsqueeze(1) * _ratios(_PER_SCALE)
    below, above = seen.clipped(first * scale, last * scale)
    cost = torch.addcmul(below + above, scale.square(), seen.total.view(-1, 1) / 12)
    scale = scale.gather(1, _best_by_cost(cost.masked_fill_(~(scale > 0), torch.inf), kept))
    return scale, torch.full_like(scale, grid.zero_point)


def around(
    scale: Tensor,
    zero_point: Tensor,
    spread: float,
    count: int,
    grid: Grid,
    one_sided: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return scales and zero points ``[N, C]`` in the neighbourhood of one each ``[N]``.

    Where values lie on one side of zero there is one zero point, and three times the scales.
    """
    factors = torch.linspace(-1, 1, count, dtype=torch.float64).mul_(spread).exp_()
    shifts = torch.tensor([0.0] if grid.zero_point is not None else [-1.0, 0.0, 1.0])
    between = (shifts * (2 * spread / (3 * (count - 1)))).exp().view(1, 1, -1)
    fine = torch.where(one_sided.view(-1, 1, 1), between, 1.0)
    scales = scale.view(-1, 1, 1) * factors.view(1, -1, 1) * fine
    points = (zero_point.view(-1, 1, 1) + shifts.view(1, 1, -1)).expand_as(scales)
    return scales.flatten(1), points.flatten(1).clamp(grid.quant_min, grid.quant_max)


def within_range(
    seen: Seen, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return the candidates ``[N, C]``, none so wide that an end of the integers stays unused.

    Values on one side of zero keep zero at the end of the integers, and a bounded activation its
    bound at the other end: backends recognise by that what they can fuse. What is known to have no
    bound may leave the other end unused.
    """
    if grid.zero_point is None:
        zero_point = torch.where(low.unsqueeze(1) == 0, float(grid.quant_min), zero_point)
        zero_point = torch.where(high.unsqueeze(1) == 0, float(grid.quant_max), zero_point)
    below = low.unsqueeze(1) / (grid.quant_min + _ROUNDED_TO_LAST - zero_point)
    above = high.unsqueeze(1) / (grid.quant_max - _ROUNDED_TO_LAST - zero_point)
    # An end without integers is given in full by the other one.
    below = torch.where(zero_point == grid.quant_min, 0.0, below)
    above = torch.where(zero_point == grid.quant_max, 0.0, above)
    widest = torch.maximum(below, above).masked_fill_(seen.boundless.unsqueeze(1), torch.inf)
    return torch.minimum(scale, widest), zero_point
