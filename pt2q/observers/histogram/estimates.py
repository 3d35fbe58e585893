"""What streaming histograms say about all values, samples weighed with block extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor, nn

from pt2q.numerics.sampling import tail_counts
from pt2q.observers.histogram.streaming import StreamingHistogram


def estimated_counts(
    histograms: Sequence[StreamingHistogram], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the counts of all values but exact zeros, and the exponents, on the host.

    Zeros are exact on every grid and so have no say in the search.

    Args:
        histograms: N histograms of one number of bins.
        low: ``[N]`` smallest values.
        high: ``[N]`` largest values.

    Returns:
        float64 ``[N, bins]``, even bins covering ``[-bins / 2, bins / 2)``, and int32 ``[N]``.
    """
    for histogram in histograms:
        histogram.flush()
    zeros = torch.stack([h.zeros.cpu() for h in histograms]).double()
    exponent = torch.stack([h.exponent.cpu() for h in histograms])
    counts = torch.stack([h.counts[0].cpu() for h in histograms]).double()
    result = _even(counts, zeros[:, 0], low, high)
    large = [i for i, h in enumerate(histograms) if h.counts.shape[0] > 1]
    if not large:
        return result, exponent
    chosen = [histograms[i] for i in large]
    rows = torch.stack([h.counts[1:].cpu() for h in chosen]).double()
    sampled = _even(rows[:, 0], zeros[large, 1], low[large], high[large])
    elements, samples, blocks = (
        torch.tensor([astuple(h.totals)[1:4] for h in chosen]).double().unsqueeze(2).unbind(1)
    )
    half = counts.shape[1] // 2
    none = torch.zeros_like(blocks)
    below = torch.cat([none, rows[:, 1, 1:half].flip(1)], 1)
    above = torch.cat([none, rows[:, 2, half + 1 :]], 1)
    fraction = samples / elements
    lower = tail_counts(sampled[:, :half].flip(1), below, fraction, blocks).flip(1)
    upper = tail_counts(sampled[:, half:], above, fraction, blocks)
    result[large] += torch.cat([lower, upper], 1)
    return result, exponent


def few_values(
    histograms: Sequence[StreamingHistogram], exponent: Tensor
) -> tuple[list[int], Tensor | None]:
    """Return which of the histograms still hold all values, and those in bins, in rising order.

    Rows ``[M, n]`` of fewer values end in ``inf``.
    """
    chosen = [i for i, h in enumerate(histograms) if h.few.shape[0] > 0]
    if not chosen:
        return chosen, None
    rows = [torch.ldexp(histograms[i].few.cpu().double(), -exponent[i]) for i in chosen]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.inf)
    return chosen, padded.sort(1).values


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
