"""The squared error of grids on what an observer keeps, exactly, and what clipping costs.

Everything is in units of one bin and runs over many observers at once. A histogram of
``2 * half`` bins covers ``[-half, half)``, zero at the middle edge; within a bin the values count
as evenly spread.

The error of a grid ``v_q = (q - z) * s`` with cell borders ``b_q`` halfway between neighbours is
summed by parts. With ``K(b)`` the integral of the cumulated counts up to ``b``, that is
``K(b) = sum(max(b - x, 0))``::

    sum((x - grid(x)) ** 2) = sum((x - v_last) ** 2) - 2 * s * sum_q(K(b_q))

so one lookup for each border gives the exact error, rounding and clipping together. Where the
values themselves are kept, they are rounded as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


class Seen(Protocol):
    """What N observers keep of the values they saw."""

    total: Tensor
    """How many values, float64 ``[N]``."""

    candidates: int
    """How many grids are worth an exact error in a first round."""

    def errors(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
        """Return the summed squared error of each candidate.

        Args:
            scale: ``[N, C]`` scales in bins.
            zero_point: ``[N, C]`` whole numbers.
            grid: The integers.

        Returns:
            ``[N, C]`` errors in squared bins.
        """
        ...

    def clipped(self, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sum(max(low - x, 0) ** 2)`` and ``sum(max(x - high, 0) ** 2)``.

        Args:
            lows: ``[N, C]`` ends in bins, at most 0.
            highs: ``[N, C]`` ends in bins, at least 0.

        Returns:
            ``[N, C]`` each, in squared bins.
        """
        ...


class HistogramTable:
    """Histograms as cumulated counts ``[N, bins]``, for lookups at any position; see :class:`Seen`.

    Args:
        counts: float64 ``[N, bins]``.
    """

    candidates = 24

    def __init__(self, counts: Tensor) -> None:
        self.size, bins = counts.shape
        self.half = bins // 2
        centre = torch.arange(bins, dtype=torch.float64) - (self.half - 0.5)
        first = counts * centre
        second = torch.addcmul(counts / 12, first, centre)
        # [3, N, bins + 1]: count, sum and sum of squares of the values below each edge.
        self.below = torch.nn.functional.pad(torch.stack([counts, first, second]).cumsum(2), (1, 0))
        # Nothing lies above the last edge: one more bin, empty, keeps lookups there in the table.
        density = torch.nn.functional.pad(counts, (0, 1))
        self.rows = torch.stack([self.below[1], self.below[0], density], -1).view(-1, 3)
        self.first_row = (torch.arange(self.size) * (bins + 1)).view(-1, 1)
        self.total, self.moment, self.square = self.below[:, :, -1]

    def errors(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
        """See :meth:`Seen.errors`."""
        levels = torch.arange(grid.quant_min, grid.quant_max, dtype=torch.float64) + 0.5
        borders = (levels - zero_point.unsqueeze(-1)).mul_(scale.unsqueeze(-1))
        inner = self._integral(borders.view(self.size, -1)).view(borders.shape).sum(-1)
        last = (grid.quant_max - zero_point) * scale
        around_last = (
            self.square.unsqueeze(1)
            - 2 * last * self.moment.unsqueeze(1)
            + last.square() * self.total.unsqueeze(1)
        )
        error: Tensor = around_last - 2 * scale * inner
        return error

    def _integral(self, position: Tensor) -> Tensor:
        """Return ``K(position)``, the positions ``[N, P]``."""
        edge = (position + self.half).clamp_(0, 2 * self.half).floor_()
        row = edge.to(torch.int64).add_(self.first_row).view(-1)
        sums, count, density = self.rows.index_select(0, row).unbind(1)
        rest = (position + self.half).sub_(edge).clamp_(min=0).view(-1)
        integral: Tensor = (position.view(-1) * count).sub_(sums)
        integral.addcmul_(rest.square_(), density, value=0.5)
        return integral

    def clipped(self, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Seen.clipped`: exact at the edges of bins, the root interpolated between."""
        from_above = torch.stack([self.total, self.moment, self.square]).unsqueeze(2) - self.below
        return self._beyond(self.below, lows), self._beyond(from_above, highs)

    def _beyond(self, sums: Tensor, ends: Tensor) -> Tensor:
        position = (ends + self.half).clamp_(0, 2 * self.half)
        edge = position.floor().clamp_(max=2 * self.half - 1)
        left, right = (self._root_beyond(sums, at) for at in (edge, edge + 1))
        return torch.lerp(left, right, position - edge).square_()

    def _root_beyond(self, sums: Tensor, edge: Tensor) -> Tensor:
        count, first, second = (part.gather(1, edge.to(torch.int64)) for part in sums)
        end = edge - self.half
        cost: Tensor = second - 2 * end * first + end.square() * count
        return cost.clamp_(min=0).sqrt_()


class ValueTable:
    """The values themselves, where there are few; see :class:`Seen`.

    So few fit a grid by luck, which the model behind the first round does not know of: more of them
    are tried.

    Args:
        values: float32 ``[N, n]`` in bins; rows of fewer values are filled with zeros, which are on
            every grid. What is found depends on ``n`` by the order of additions.
    """

    candidates = 64

    def __init__(self, values: Tensor) -> None:
        self.values = values.unsqueeze(1)
        self.total = torch.count_nonzero(values, 1).double()

    def errors(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
        """See :meth:`Seen.errors`."""
        step, point = scale.float().unsqueeze(2), zero_point.float().unsqueeze(2)
        rounded = (self.values / step).round_()
        rounded.clamp_(grid.quant_min - point, grid.quant_max - point)
        return rounded.mul_(step).sub_(self.values).square_().sum(2).double()

    def clipped(self, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Seen.clipped`."""
        below = (lows.float().unsqueeze(2) - self.values).clamp_(min=0).square_().sum(2)
        above = (self.values - highs.float().unsqueeze(2)).clamp_(min=0).square_().sum(2)
        return below.double(), above.double()
