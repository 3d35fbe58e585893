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

# How many times a value that is kept is rounded at least, all values together.
_TRIED = 16384


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

    boundless: Tensor
    """Which are known not to be clipped already, bool ``[N]``."""

    refinements: tuple[tuple[float, int], ...]
    """How far around the best then, as a part of the spacing before, and how many scales."""

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
    refinements: tuple[tuple[float, int], ...] = ((1.0, 7), (0.25, 5))

    def __init__(self, counts: Tensor) -> None:
        self.size, bins = counts.shape
        self.half = bins // 2
        centre = torch.arange(bins, dtype=torch.float64) - (self.half - 0.5)
        first = counts * centre
        second = torch.addcmul(counts / 12, first, centre)
        # [3, N, bins + 1]: count, sum and sum of squares of the values below each edge.
        self.below = counts.new_zeros(3, self.size, bins + 1)
        for below, part in zip(self.below, (counts, first, second), strict=True):
            torch.cumsum(part, 1, out=below[:, 1:])
        self.parabola = self._parabolas(counts)
        self.first_row = (torch.arange(self.size, dtype=torch.int32) * (bins + 1)).view(-1, 1)
        self.total, self.moment, self.square = self.below[:, :, -1]
        self.boundless = torch.zeros(self.size, dtype=torch.bool)

    def errors(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
        """See :meth:`Seen.errors`."""
        levels = torch.arange(grid.quant_min, grid.quant_max, dtype=torch.float64) + 0.5
        first = (self.half - zero_point * scale).unsqueeze(-1)
        borders = torch.addcmul(first, levels, scale.unsqueeze(-1))
        inner = self._integral(borders.view(self.size, -1)).view(borders.shape).sum(-1)
        last = (grid.quant_max - zero_point) * scale
        around_last = (
            self.square.unsqueeze(1)
            - 2 * last * self.moment.unsqueeze(1)
            + last.square() * self.total.unsqueeze(1)
        )
        error: Tensor = around_last - 2 * scale * inner
        return error

    def _parabolas(self, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``a, b, c`` for each bin: ``K = a + b * p + c * p ** 2``.

        Here ``p`` counts from the left edge. Nothing lies above the last one: one more bin,
        empty, keeps lookups there in the table.
        """
        edge = torch.arange(counts.shape[1] + 1, dtype=torch.float64)
        count, total, _ = self.below
        c = torch.nn.functional.pad(counts, (0, 1)).mul_(0.5)
        b = torch.addcmul(count, c, edge, value=-2)
        a = torch.addcmul(-total, c, edge.square()).sub_(count, alpha=self.half)
        return a.view(-1), b.view(-1), c.view(-1)

    def _integral(self, position: Tensor) -> Tensor:
        """Return ``K``; positions ``[N, P]`` count from the left edge and are written over."""
        position.clamp_(min=0)
        edge = position.clamp(max=2 * self.half).to(torch.int32)
        row = edge.add_(self.first_row).view(-1)
        a, b, c = (part.index_select(0, row) for part in self.parabola)
        position = position.view(-1)
        return a.addcmul_(b.addcmul_(c, position), position)

    def clipped(self, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Seen.clipped`: exact at the edges of bins, the root interpolated between."""
        all_of_it = self.below[:, :, -1:]
        return self._beyond(lows, 0 * all_of_it, 1), self._beyond(highs, all_of_it, -1)

    def _beyond(self, ends: Tensor, start: Tensor, sign: int) -> Tensor:
        """Return the cost of what lies beyond: sums are ``start + sign *`` those below."""
        position = (ends + self.half).clamp_(0, 2 * self.half)
        edge = position.floor().clamp_(max=2 * self.half - 1)
        index = edge.to(torch.int64)
        index = torch.cat([index, index + 1], 1).expand(3, -1, -1)
        count, first, second = torch.add(start, self.below.gather(2, index), alpha=sign)
        at = torch.cat([edge, edge + 1], 1).sub_(self.half)
        cost = second - 2 * at * first + at.square() * count
        left, right = cost.clamp_(min=0).sqrt_().chunk(2, 1)
        result: Tensor = left.lerp(right, position.sub_(edge)).square_()
        return result


class ValueTable:
    """The values themselves, where there are few; see :class:`Seen`.

    So few fit a grid by luck, which the model behind the first round does not know of: more of them
    are tried.

    Args:
        values: float32 ``[N, n]`` in bins, rising; rows of fewer values are filled with zeros,
            which are on every grid. What is found depends on ``n`` by the order of additions.
    """

    def __init__(self, values: Tensor) -> None:
        self.candidates = max(_TRIED // values.shape[1], 64)
        scales = max(_TRIED // (4 * values.shape[1]) | 1, 9)
        around = 4.0 if scales > 32 else 1.0
        self.refinements: tuple[tuple[float, int], ...] = (
            (around, scales),
            (8 * around / scales, scales),
        )
        self.values = values.unsqueeze(1)
        self.total = torch.count_nonzero(values, 1).double()
        # What clips leaves its bound more than once.
        low, high = values[:, :1], values[:, -1:]
        self.boundless = ((values == low) & (low < 0)).sum(1) < 2
        self.boundless &= ((values == high) & (high > 0)).sum(1) < 2

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
