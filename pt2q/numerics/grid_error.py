"""The squared error of a grid on a histogram, exactly.

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

from dataclasses import dataclass

import torch
from torch import Tensor


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


class HistogramTable:
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


class ValueTable:
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
    table: HistogramTable | ValueTable, scale: Tensor, zero_point: Tensor, grid: Grid
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
