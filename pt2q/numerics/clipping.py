"""The search for the scale and zero point with the smallest squared error on a histogram.

Everything is in double precision and in units of one bin, and runs over many histograms at once.
A histogram of ``2 * half`` bins covers ``[-half, half)``, zero at the middle edge; within a bin
the values count as evenly spread.

The error of a grid ``v_q = (q - z) * s`` with cell borders ``b_q`` halfway between neighbours is
summed by parts. With ``K(b)`` the integral of the cumulated counts up to ``b``, that is
``K(b) = sum(max(b - x, 0))``::

    sum((x - grid(x)) ** 2) = sum((x - v_last) ** 2) - 2 * s * sum_q(K(b_q))

so one lookup for each border gives the exact error, rounding and clipping together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Grids up to this many levels are tried with every zero point; finer grids are first ranked by
# the model below, whose assumption (values spread evenly within a cell) they meet.
_FEW_LEVELS = 32
# Beyond this many levels a cell is narrower than a bin, and the model is all there is to know.
_MANY_LEVELS = 1024
# Scales tried between full range and the lowest ratio to it: for each end of the range, for each
# zero point, and where there is nothing else to choose.
_LOWEST_RATIO = 2.0**-9
_PER_END, _PER_POINT, _PER_SCALE = 96, 48, 192
# Candidates of the model that are evaluated exactly.
_KEPT = 24
_KEPT_OF_FEW = 160
# How far from the last integer a value still rounds to it.
_ROUNDED_TO_LAST = 0.499
# Two refinements: how far around the best, as a part of the spacing before, and how many scales.
_REFINEMENTS = ((1.0, 9), (0.25, 9))


@dataclass(frozen=True)
class Grid:
    """The integers of a quantized type.

    Args:
        quant_min: Smallest integer in use.
        quant_max: Largest integer in use.
        zero_point: The zero point if it is given (symmetric), ``None`` if it is to be found.
    """

    quant_min: int
    quant_max: int
    zero_point: int | None = None

    @property
    def steps(self) -> int:
        """The number of steps from the smallest to the largest integer."""
        return self.quant_max - self.quant_min


class _Table:
    """Cumulated counts of histograms ``[N, bins]``, for lookups at any position."""

    def __init__(self, counts: Tensor) -> None:
        self.size, bins = counts.shape
        self.half = bins // 2
        zero = counts.new_zeros(self.size, 1)
        below = torch.cat([zero, counts.cumsum(1)], 1)
        integral = torch.cat([zero, (below[:, :-1] + counts / 2).cumsum(1)], 1)
        # Nothing lies above the last edge: one more bin, empty, keeps lookups there in the table.
        density = torch.cat([counts, zero], 1)
        self.rows = torch.stack([integral, below, density], -1).view(-1, 3)
        self.first_row = (torch.arange(self.size) * (bins + 1)).view(-1, 1, 1)
        centre = torch.arange(bins, dtype=torch.float64) - (self.half - 0.5)
        self.total = below[:, -1]
        self.moment = counts @ centre
        self.square = counts @ (centre.square() + 1 / 12)

    def integral(self, position: Tensor) -> Tensor:
        """Return ``K(position)`` for positions ``[N, ...]``."""
        shape = position.shape
        position = (position.reshape(self.size, -1, 1) + self.half).clamp_(min=0)
        index = position.clamp(max=2 * self.half).to(torch.int64)
        rest = (position - index).view(-1)
        rows = self.rows.index_select(0, index.add_(self.first_row).view(-1))
        slope = rows[:, 2].mul(rest).mul_(0.5).add_(rows[:, 1])
        return slope.mul_(rest).add_(rows[:, 0]).view(shape)


class _ValueTable:
    """The same lookups on the values themselves, where there are few.

    ``values`` is ``[N, n]`` in bins, each row in rising order; rows of fewer values end in ``inf``.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        known = torch.where(torch.isinf(values), 0.0, values)
        self.sums = torch.cat([torch.zeros_like(known[:, :1]), known.cumsum(1)], 1)
        self.total = (~torch.isinf(values)).sum(1).double()
        self.moment, self.square = known.sum(1), known.square().sum(1)

    def integral(self, position: Tensor) -> Tensor:
        """Return ``K(position)`` for positions ``[N, ...]``."""
        flat = position.reshape(position.shape[0], -1)
        index = torch.searchsorted(self.values, flat)
        return (flat * index - self.sums.gather(1, index)).view(position.shape)


def exact_error(
    table: _Table | _ValueTable, scale: Tensor, zero_point: Tensor, grid: Grid
) -> Tensor:
    """Return the summed squared error of each candidate.

    Args:
        table: N histograms.
        scale: ``[N, C]`` scales in bins.
        zero_point: ``[N, C]`` whole numbers.
        grid: The integers.

    Returns:
        ``[N, C]`` errors in squared bins.
    """
    levels = torch.arange(grid.quant_min, grid.quant_max, dtype=torch.float64) + 0.5
    borders = (levels - zero_point.unsqueeze(-1)) * scale.unsqueeze(-1)
    inner = table.integral(borders).sum(-1)
    last = (grid.quant_max - zero_point) * scale
    around_last = (
        table.square.unsqueeze(1)
        - 2 * last * table.moment.unsqueeze(1)
        + last.square() * table.total.unsqueeze(1)
    )
    return around_last - 2 * scale * inner


def _clipped(counts: Tensor, ends: Tensor) -> Tensor:
    """Return ``sum(max(x - end, 0) ** 2)`` for ends ``[N, C]`` from 0 up, on counts above zero.

    ``counts`` is ``[N, half]``; between bin edges the square root is interpolated.
    """
    zero = counts.new_zeros(counts.shape[0], 1)
    reversed_counts = counts.flip(1)
    above = reversed_counts.cumsum(1)
    integral = (above - reversed_counts / 2).cumsum(1)
    area = (2 * integral - above + reversed_counts / 3).cumsum(1)
    table = torch.cat([zero, area], 1).flip(1).clamp_(min=0).sqrt_()
    ends = ends.clamp(0, counts.shape[1])
    index = ends.to(torch.int64).clamp_(max=counts.shape[1] - 1)
    left, right = table.gather(1, index), table.gather(1, index + 1)
    return torch.lerp(left, right, ends - index).square_()


def _ratios(count: int) -> Tensor:
    """Return ``count`` factors from 1 down, evenly spaced in the logarithm."""
    return torch.logspace(0, 1, count, base=_LOWEST_RATIO, dtype=torch.float64)


def _per_candidate(grid: Grid) -> int:
    if grid.zero_point is not None:
        return _PER_SCALE
    return _PER_POINT if grid.steps < _FEW_LEVELS else _PER_END


def _every_zero_point(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
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
    scale = full.unsqueeze(2) * _ratios(_per_candidate(grid))
    return scale.flatten(1), zero_point.view(1, -1, 1).expand_as(scale).flatten(1)


def _ranked_by_model(
    counts: Tensor, low: Tensor, high: Tensor, grid: Grid, kept: int
) -> tuple[Tensor, Tensor]:
    """Return the ``kept`` best scales and zero points ``[N, C]`` by the model, full range first.

    The model: ``s ** 2 / 12`` for each value, plus what clipping costs at either end.
    """
    half = counts.shape[1] // 2
    total = counts.sum(1).view(-1, 1, 1)
    if grid.zero_point is None:
        lows = low.unsqueeze(1) * torch.cat([_ratios(_PER_END - 1), torch.zeros(1).double()])
        highs = high.unsqueeze(1) * torch.cat([_ratios(_PER_END - 1), torch.zeros(1).double()])
        scale = (highs.unsqueeze(1) - lows.unsqueeze(2)) / grid.steps
        cost_low = _clipped(counts[:, :half].flip(1), -lows).unsqueeze(2)
        cost_high = _clipped(counts[:, half:], highs).unsqueeze(1)
        zero_point = grid.quant_min - lows.unsqueeze(2) / scale
        # An end at zero has one candidate, not all of them equal.
        lows[:, 1:].masked_fill_(low.unsqueeze(1) == 0, torch.nan)
        highs[:, 1:].masked_fill_(high.unsqueeze(1) == 0, torch.nan)
        distinct = ~(lows.isnan().unsqueeze(2) | highs.isnan().unsqueeze(1))
        cost_low = torch.where(distinct, cost_low, torch.inf)
    else:
        reach = torch.maximum(
            low / (grid.quant_min - grid.zero_point), high / (grid.quant_max - grid.zero_point)
        )
        scale = (reach.unsqueeze(1) * _ratios(_PER_SCALE)).unsqueeze(2)
        zero_point = torch.full_like(scale, grid.zero_point)
        below = (grid.zero_point - grid.quant_min) * scale.squeeze(2)
        above = (grid.quant_max - grid.zero_point) * scale.squeeze(2)
        cost_low = _clipped(counts[:, :half].flip(1), below).unsqueeze(2)
        cost_high = _clipped(counts[:, half:], above).unsqueeze(2)
    cost = (scale.square() * total / 12 + cost_low + cost_high).flatten(1)
    cost = torch.where(scale.flatten(1) > 0, cost, torch.inf)
    best = cost.topk(kept, dim=1, largest=False).indices
    best = torch.cat([torch.zeros_like(best[:, :1]), best], 1)
    zero_point = zero_point.flatten(1).gather(1, best).nan_to_num(0)
    zero_point = zero_point.round().clamp(grid.quant_min, grid.quant_max)
    return scale.flatten(1).gather(1, best), zero_point


def _around(
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


def best_grid(
    counts: Tensor,
    low: Tensor,
    high: Tensor,
    smallest: Tensor,
    grid: Grid,
    values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the scale in bins and the zero point, ``[N]`` each, with the smallest error.

    Args:
        counts: ``[N, bins]`` float64 histograms centred on zero.
        low: ``[N]`` smallest value in bins, at most 0.
        high: ``[N]`` largest value in bins, at least 0.
        smallest: ``[N]`` smallest scale in bins.
        grid: The integers.
        values: Where there are few: the values in bins, ``[N, n]``, see :class:`_ValueTable`.
    """
    floor = smallest.unsqueeze(1)
    if grid.steps >= _MANY_LEVELS:
        scale, zero_point = _ranked_by_model(counts, low, high, grid, kept=1)
        scale, zero_point = scale[:, 1], zero_point[:, 1]
        return torch.maximum(scale, smallest), zero_point
    if grid.steps < _FEW_LEVELS:
        scale, zero_point = _every_zero_point(low, high, grid)
    else:
        scale, zero_point = _ranked_by_model(
            counts, low, high, grid, _KEPT if values is None else _KEPT_OF_FEW
        )
    table = _Table(counts) if values is None else _ValueTable(values)
    best_scale, best_point = _best_of(table, scale, zero_point, floor, grid)
    spacing = -math.log(_LOWEST_RATIO) / _per_candidate(grid)
    bounded = grid.steps >= _FEW_LEVELS
    one_sided = ((low == 0) | (high == 0)) if bounded else torch.zeros_like(low, dtype=torch.bool)
    for part, count in _REFINEMENTS:
        scale, zero_point = _around(best_scale, best_point, part * spacing, count, grid, one_sided)
        if bounded:
            scale, zero_point = _within_range(scale, zero_point, low, high, grid)
        best_scale, best_point = _best_of(table, scale, zero_point, floor, grid)
    return best_scale, best_point


def _within_range(
    scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return the candidates ``[N, C]``, none so wide that an end of the integers stays unused.

    Values on one side of zero keep zero at the end of the integers, and a bounded activation its
    bound at the other end: backends recognise by that what they can fuse.
    """
    if grid.zero_point is None:
        zero_point = torch.where(low.unsqueeze(1) == 0, float(grid.quant_min), zero_point)
        zero_point = torch.where(high.unsqueeze(1) == 0, float(grid.quant_max), zero_point)
    below = low.unsqueeze(1) / (grid.quant_min + _ROUNDED_TO_LAST - zero_point)
    above = high.unsqueeze(1) / (grid.quant_max - _ROUNDED_TO_LAST - zero_point)
    # An end without integers is given in full by the other one.
    below = torch.where(zero_point == grid.quant_min, 0.0, below)
    above = torch.where(zero_point == grid.quant_max, 0.0, above)
    return torch.minimum(scale, torch.maximum(below, above)), zero_point


def _best_of(
    table: _Table | _ValueTable, scale: Tensor, zero_point: Tensor, floor: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    scale = torch.maximum(scale, floor)
    best = exact_error(table, scale, zero_point, grid).argmin(1, keepdim=True)
    return scale.gather(1, best).squeeze(1), zero_point.gather(1, best).squeeze(1)
