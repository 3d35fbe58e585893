"""Scale and zero point of least squared error for the histograms of several observers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.numerics.grid_error import Grid
from pt2q.numerics.grid_search import best_grid
from pt2q.numerics.qparams import choose_qparams, normal_scale
from pt2q.observers.histogram.estimates import estimated_counts, few_values
from pt2q.observers.histogram.streaming import StreamingHistogram


def searched_qparams(observers: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """Return scale and zero point ``[1]`` of each observer.

    Args:
        observers: `HistogramObserver`s with data, of one grid, dtype, scheme and number of bins.
    """
    grid = observers[0].grid
    ranges = torch.stack([torch.stack([o.min_val, o.max_val]).cpu() for o in observers])
    eps = torch.cat([o.eps.cpu() for o in observers])
    scale, zero_point = _of_full_range(observers[0], ranges, eps, grid)
    # A range that the smallest scale covers leaves nothing to search.
    wide = (scale > eps).nonzero().view(-1)
    if wide.numel() > 0:
        chosen = [observers[i].histogram for i in wide.tolist()]
        scale[wide], zero_point[wide] = _least_error(
            chosen, ranges[wide].double(), eps[wide].double(), grid
        )
    devices = [o.min_val.device for o in observers]
    found = zip(scale.split(1), zero_point.split(1), devices, strict=True)
    return [(s.to(device), z.to(device)) for s, z, device in found]


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
    histograms: list[StreamingHistogram], ranges: Tensor, eps: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return scales (float32) and zero points (int64), ``[N]`` each, in units of the values."""
    low, high = ranges.unbind(1)
    counts, exponent = estimated_counts(histograms, low, high)
    width = torch.ldexp(torch.ones_like(low), exponent)
    low, high, floor = low.clamp(max=0) / width, high.clamp(min=0) / width, eps / width
    scale, zero_point = best_grid(counts, low, high, floor, grid)
    few, values = few_values(histograms, exponent)
    if few:
        scale[few], zero_point[few] = best_grid(
            counts[few], low[few], high[few], floor[few], grid, values
        )
    return normal_scale((scale * width).to(torch.float32)), zero_point.to(torch.int64)
