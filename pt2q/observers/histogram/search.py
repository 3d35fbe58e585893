"""Scale and zero point of least squared error for the histograms of several observers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.numerics.grid_error import Grid, HistogramTable, Seen, ValueTable
from pt2q.numerics.grid_search import best_grid
from pt2q.numerics.qparams import choose_qparams, normal_scale
from pt2q.observers.histogram.estimates import estimated_counts, few_length, few_values
from pt2q.observers.histogram.streaming import StreamingHistogram

# Searched at once: so many that the cost of a call is shared, so few that they stay in the cache.
_AT_ONCE = 32


def searched_qparams(observers: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """Return scale and zero point ``[1]`` of each observer; the same alone and among others.

    Args:
        observers: `HistogramObserver`s with data, of one grid, dtype, scheme and number of bins.
    """
    grid = observers[0].grid
    ranges = torch.stack([torch.stack([o.min_val, o.max_val]).cpu() for o in observers])
    eps = torch.cat([o.eps.cpu() for o in observers])
    scale, zero_point = _of_full_range(observers[0], ranges, eps, grid)
    # A range that the smallest scale covers leaves nothing to search.
    wide = (scale > eps).nonzero().view(-1).tolist()
    for at, length in _batches({i: observers[i].histogram for i in wide}, grid):
        chosen = [observers[i].histogram for i in at]
        low, high = ranges[at].double().unbind(1)
        scale[at], zero_point[at] = _least_error(chosen, low, high, eps[at], grid, length)
    devices = [o.min_val.device for o in observers]
    found = zip(scale.split(1), zero_point.split(1), devices, strict=True)
    return [(s.to(device), z.to(device)) for s, z, device in found]


def _batches(
    histograms: dict[int, StreamingHistogram], grid: Grid
) -> Iterator[tuple[list[int], int]]:
    """Yield the keys of histograms that are searched at once, and how many values each keeps."""
    kinds: dict[int, list[int]] = {}
    for key, histogram in histograms.items():
        # The others count when it is their turn: a table of counts is as large as all that waits.
        length = few_length(histogram, grid) if histogram.flush_few() else 0
        kinds.setdefault(length, []).append(key)
    for length, members in kinds.items():
        for start in range(0, len(members), _AT_ONCE):
            yield members[start : start + _AT_ONCE], length


def _of_full_range(like: Any, ranges: Tensor, eps: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    return choose_qparams(
        ranges[:, 0],
        ranges[:, 1],
        quant_min=grid.quant_min,
        quant_max=grid.quant_max,
        dtype=like.dtype,
        qscheme=like.qscheme,
        eps=eps,
    )


def _least_error(
    histograms: list[StreamingHistogram],
    low: Tensor,
    high: Tensor,
    eps: Tensor,
    grid: Grid,
    length: int,
) -> tuple[Tensor, Tensor]:
    """Return scales (float32) and zero points (int64), ``[N]`` each, in units of the values."""
    histograms = histograms if length else [h.all_counted() for h in histograms]
    exponent = torch.stack([h.exponent.cpu() for h in histograms])
    seen: Seen = (
        ValueTable(few_values(histograms, exponent, length))
        if length
        else HistogramTable(estimated_counts(histograms, low, high))
    )
    width = torch.ldexp(torch.ones_like(low), exponent)
    low, high, floor = low.clamp(max=0) / width, high.clamp(min=0) / width, eps / width
    scale, zero_point = best_grid(seen, low, high, floor, grid)
    return normal_scale((scale * width).to(torch.float32)), zero_point.to(torch.int64)
