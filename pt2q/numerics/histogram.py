"""The bins of a streaming histogram: pure functions on counts.

A value ``x`` falls into bin ``trunc(x / 2 ** exponent)``. Truncation divides evenly: doubling
the width sends bin ``i`` to ``trunc(i / 2)``, so a growing range adds neighbouring bins and loses
nothing, and the result does not depend on when the range grew. Counts are whole numbers, so it
does not depend on the order of additions either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DEFAULT_BINS = 4096
SMALLEST_EXPONENT = -126


def exponent_for(largest: float, bins: int) -> int:
    """Return the smallest exponent whose bins hold magnitudes up to ``largest``."""
    return max(math.frexp(largest)[1] - (bins // 2).bit_length() + 1, SMALLEST_EXPONENT)


def exponent_tensor(largest: Tensor, bins: int) -> Tensor:
    """Return :func:`exponent_for` of a tensor, on its device, as int32."""
    exponent = torch.frexp(largest)[1] - (bins // 2).bit_length() + 1
    return exponent.to(torch.int32).clamp(min=SMALLEST_EXPONENT)


def widened(counts: Tensor, doublings: Tensor | int) -> Tensor:
    """Return counts ``[rows, bins]`` for bins ``2 ** doublings`` times as wide."""
    if counts.shape[0] == 0:  # nothing is counted yet
        return counts
    half = counts.shape[1] // 2
    index = torch.arange(-half, half, device=counts.device)
    # Past 62 doublings every bin has long fallen into the middle one.
    width = 1 << torch.as_tensor(doublings, device=counts.device).to(torch.int64).clamp(max=62)
    index = torch.div(index, width, rounding_mode="trunc") + half
    return torch.zeros_like(counts).index_add_(1, index, counts)


def counted(
    values: Tensor, ends: Sequence[int], inverse_width: Tensor | float, bins: int
) -> Tensor:
    """Return how many values fall into each bin, part by part, int64 ``[len(ends), bins]``.

    Args:
        values: ``[n]`` parts, one after the other; written over if they are float32.
        ends: Where each part ends; the last is ``n``.
        inverse_width: One over the width of a bin.
        bins: Number of bins.
    """
    index = values.to(torch.float32).mul_(inverse_width).to(torch.int32).add_(bins // 2)
    if index.device.type != "cpu":
        # After a NaN, which the range remembers, the width is not to be relied on.
        index.clamp_(0, bins - 1)
    for end in ends[:-1]:
        index[end:].add_(bins)
    size = bins * len(ends)
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=size).view(-1, bins)
    # bincount asks for the largest index first, which would stall the device.
    counts = torch.zeros(size, dtype=torch.int64, device=index.device)
    return counts.index_add_(0, index, torch.ones_like(index, dtype=torch.int64)).view(-1, bins)


def nonzeros(values: Tensor) -> Tensor:
    """Return how many values are not zero, int64.

    A count that branches on each value costs twenty times as much where half of them are zero.
    """
    if values.shape[0] >= 1 << 24:  # beyond that, sums of ones are not exact in float32
        return torch.count_nonzero(values)
    return values.to(torch.float32).sign().abs_().sum().to(torch.int64)


def with_rows(counts: Tensor, found: Tensor, row: int) -> Tensor:
    """Return counts ``[rows, bins]`` with those found added from ``row`` on, in place if they fit.

    Args:
        counts: int64 ``[rows, bins]``; without rows nothing was counted yet.
        found: int64 ``[n, bins]``; may become the result.
        row: Where its first row belongs.
    """
    missing = row + found.shape[0] - counts.shape[0]
    if counts.shape[0] == 0:
        return torch.cat([found.new_zeros(row, found.shape[1]), found]) if row else found
    if missing > 0:
        counts = torch.cat([counts, counts.new_zeros(missing, counts.shape[1])])
    counts[row : row + found.shape[0]] += found
    return counts
