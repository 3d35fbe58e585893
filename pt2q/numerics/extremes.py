"""The range of a tensor, attention masks left out.

What never enters a range: infinities, and values within 1/256 of the largest magnitude of the
dtype (``MASK_LIMITS``), because ``torch.finfo(dtype).min``, alone or with scores added to it, is
how attention masks are written.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WIDE_LIMIT = (1 - 2**-8) * 2.0**128
MASK_LIMITS = {
    torch.float16: (1 - 2**-8) * 2.0**16,
    torch.bfloat16: _WIDE_LIMIT,
    torch.float32: _WIDE_LIMIT,
    torch.float64: _WIDE_LIMIT,
    torch.float8_e4m3fn: _WIDE_LIMIT,
    torch.float8_e5m2: _WIDE_LIMIT,
}
"""Smallest magnitude, per dtype, that counts as a mask and not as a value."""

INF = float("inf")


def extremes(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value over ``dims``, over all if there are none."""
    if dims:
        return x.amin(dims), x.amax(dims)
    low, high = torch.aminmax(x)
    return low, high


def extremes_without_masks(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the same without a look at any value: masks left out, NaN kept.

    Where nothing is left, the smallest is ``inf`` and the largest ``-inf``.
    """
    masked = x.abs() >= MASK_LIMITS[x.dtype]
    return x.masked_fill(masked, INF).amin(dims), x.masked_fill(masked, -INF).amax(dims)
