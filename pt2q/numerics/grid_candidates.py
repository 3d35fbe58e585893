"""Scales and zero points worth trying on a histogram; see `pt2q.numerics.grid_error` for units."""

from __future__ import annotations

import torch
from torch import Tensor

from pt2q.numerics.grid_error import Grid

# Grids up to this many levels are tried with every zero point; finer grids are first ranked by
# the model below, whose assumption (values spread evenly within a cell) they meet.
FEW_LEVELS = 32
# Scales tried between full range and the lowest ratio to it: for each end of the range, for each
# zero point, and where there is nothing else to choose.
LOWEST_RATIO = 2.0**-9
_PER_END, _PER_POINT, _PER_SCALE = 96, 48, 192
# How far from the last integer a value still rounds to it.
_ROUNDED_TO_LAST = 0.499


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
    counts: Tensor, low: Tensor, high: Tensor, grid: Grid, kept: int
) -> tuple[Tensor, Tensor]:
    """Return the ``kept`` best scales and zero points ``[N, C]`` by the model, full range first.

    The model: ``s ** 2 / 12`` for each value, plus what clipping costs at either end.
    """
    price = _clipping_of_both_ends if grid.zero_point is None else _clipping_of_scales
    scale, zero_point, below, above = price(counts, low, high, grid)
    total = counts.sum(1).view(-1, 1, 1)
    cost = (scale.square() * total / 12 + below + above).flatten(1)
    cost = torch.where(scale.flatten(1) > 0, cost, torch.inf)
    best = cost.topk(kept, dim=1, largest=False).indices
    best = torch.cat([torch.zeros_like(best[:, :1]), best], 1)
    zero_point = zero_point.flatten(1).gather(1, best).nan_to_num(0)
    zero_point = zero_point.round().clamp(grid.quant_min, grid.quant_max)
    return scale.flatten(1).gather(1, best), zero_point


def _clipping_of_both_ends(
    counts: Tensor, low: Tensor, high: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scales, zero points and costs of clipping below and above, ``[N, L, H]``.

    There are ``L`` low ends and ``H`` high ends.
    """
    half = counts.shape[1] // 2
    ratios = torch.cat([_ratios(_PER_END - 1), torch.zeros(1).double()])
    lows, highs = low.unsqueeze(1) * ratios, high.unsqueeze(1) * ratios
    scale = (highs.unsqueeze(1) - lows.unsqueeze(2)) / grid.steps
    zero_point = grid.quant_min - lows.unsqueeze(2) / scale
    below = _clipped(counts[:, :half].flip(1), -lows).unsqueeze(2)
    above = _clipped(counts[:, half:], highs).unsqueeze(1)
    # An end at zero has one candidate, not all of them equal.
    repeated_low, repeated_high = (
        (end == 0).unsqueeze(1).repeat(1, _PER_END) for end in (low, high)
    )
    repeated_low[:, 0], repeated_high[:, 0] = False, False
    repeated = repeated_low.unsqueeze(2) | repeated_high.unsqueeze(1)
    return scale, zero_point, torch.where(repeated, torch.inf, below), above


def _clipping_of_scales(
    counts: Tensor, low: Tensor, high: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same ``[N, C, 1]`` for a given zero point, where the scale gives both ends."""
    assert grid.zero_point is not None
    half, first, last = counts.shape[1] // 2, grid.quant_min, grid.quant_max
    reach = torch.maximum(low / (first - grid.zero_point), high / (last - grid.zero_point))
    scale = (reach.unsqueeze(1) * _ratios(_PER_SCALE)).unsqueeze(2)
    below = _clipped(counts[:, :half].flip(1), (grid.zero_point - first) * scale.squeeze(2))
    above = _clipped(counts[:, half:], (last - grid.zero_point) * scale.squeeze(2))
    zero_point = torch.full_like(scale, grid.zero_point)
    return scale, zero_point, below.unsqueeze(2), above.unsqueeze(2)


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
