"""What streaming histograms say about all values, samples weighed with block extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor

from pt2q.numerics.grid_error import Grid
from pt2q.numerics.sampling import tail_counts
from pt2q.observers.histogram.streaming import StreamingHistogram

# Rows of kept values are this long at least: fewer lengths, more of a kind.
_SHORTEST = 32
_FEW_PER_LEVEL = 8


def estimated_counts(histograms: Sequence[StreamingHistogram], low: Tensor, high: Tensor) -> Tensor:
    """Return the counts of all values but exact zeros, on the host.

    Zeros are exact on every grid and so have no say in the search.

    Args:
        histograms: N histograms of one number of bins, with everything counted.
        low: ``[N]`` smallest values.
        high: ``[N]`` largest values.

    Returns:
        float64 ``[N, bins]``, even bins covering ``[-bins / 2, bins / 2)``.
    """
    result = torch.zeros(len(histograms), histograms[0].bins, dtype=torch.float64)
    zeros = torch.stack([h.zeros.cpu() for h in histograms]).double()
    whole = [i for i, h in enumerate(histograms) if h.totals.whole > 0]
    if whole:
        counts = _as_double([histograms[i].counts[0] for i in whole])
        result[whole] = _even(counts, zeros[whole, 0], low[whole], high[whole])
    large = [i for i, h in enumerate(histograms) if h.counts.shape[0] > 1]
    if large:
        chosen = [histograms[i] for i in large]
        result[large] += _sampled(chosen, zeros[large, 1], low[large], high[large])
    return result


def _sampled(
    histograms: Sequence[StreamingHistogram], zeros: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return what samples and block extremes of large tensors say, ``[N, bins]``."""
    rows = _as_double([h.counts[1:] for h in histograms])
    sampled = _even(rows[:, 0], zeros, low, high)
    totals = torch.tensor([astuple(h.totals)[1:4] for h in histograms]).double()
    elements, samples, blocks = totals.unsqueeze(2).unbind(1)
    half = sampled.shape[1] // 2
    none = torch.zeros_like(blocks)
    # By falling magnitude: the lower side as it stands, the upper one turned round.
    sides = torch.cat([sampled[:, :half], sampled[:, half:].flip(1)])
    below, above = rows[:, 1, 1:half], rows[:, 2, half + 1 :].flip(1)
    extremes = torch.cat([torch.cat([below, none], 1), torch.cat([above, none], 1)])
    fraction = (samples / elements).repeat(2, 1)
    lower, upper = tail_counts(sides, extremes, fraction, blocks.repeat(2, 1)).chunk(2)
    return torch.cat([lower, upper.flip(1)], 1)


def _as_double(counts: Sequence[Tensor]) -> Tensor:
    """Return counts of one shape, stacked, on the host."""
    result = torch.empty(len(counts), *counts[0].shape, dtype=torch.float64)
    for row, part in zip(result, counts, strict=True):
        row.copy_(part)
    return result


def few_length(histogram: StreamingHistogram, grid: Grid) -> int:
    """Return how many values are searched as they are: a power of two; 0 to search the counts.

    Beyond a few values a level, their exact places in the bins make no difference.
    """
    count = histogram.few.shape[0]
    if not 0 < count <= _FEW_PER_LEVEL * (grid.steps + 1):
        return 0
    return 1 << max(count - 1, _SHORTEST - 1).bit_length()


def few_values(histograms: Sequence[StreamingHistogram], exponent: Tensor, length: int) -> Tensor:
    """Return the values that histograms still hold, in bins, each row filled with zeros.

    Rows rise, so that sums over them do not depend on the order in which the values came.

    Args:
        histograms: N histograms that hold their values.
        exponent: int32 ``[N]``: that of each.
        length: Their :func:`few_length`.

    Returns:
        float32 ``[N, n]``.
    """
    values = torch.zeros(len(histograms), length)
    for row, histogram in zip(values, histograms, strict=True):
        row[: histogram.few.shape[0]] = histogram.few
    return torch.ldexp(values, -exponent.unsqueeze(1)).sort(1).values


def _even(counts: Tensor, zeros: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return counts in bins of one width: the bin around zero, twice as wide, is split.

    Its values other than zeros go to the side that there is, or to both alike.
    """
    half = counts.shape[1] // 2
    centre = (counts[:, half] - zeros).clamp(min=0)
    share = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, 0.5))
    # Bin half - 1 + i is i on the negative side: each moves one place away from zero's old bin.
    below = torch.cat([counts[:, 1:half], (centre * (1 - share)).unsqueeze(1)], 1)
    above = torch.cat([(centre * share).unsqueeze(1), counts[:, half + 1 :]], 1)
    return torch.cat([below, above], 1)
