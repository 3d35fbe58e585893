"""What contradicts itself in a spec."""

from __future__ import annotations

import torch

from pt2q.errors import SpecError
from pt2q.ir.dtypes import CAST_DTYPES, FLOAT8_DTYPES, INTEGER_DTYPES, is_per_channel

_STORED = (*INTEGER_DTYPES, *FLOAT8_DTYPES, *CAST_DTYPES)


def dtype_limits(dtype: torch.dtype) -> tuple[float, float]:
    """Return the smallest and the largest number of any dtype."""
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return info.min, info.max


def check_range(name: str, dtype: torch.dtype, low: int | None, high: int | None) -> None:
    """Raise SpecError if a dtype is not quantized to, or does not hold a range.

    Args:
        name: of the spec, for the message.
        dtype: what is stored.
        low, high: the integers used; both None for all of the dtype.
    """
    if dtype not in _STORED:
        raise SpecError(
            f"{name}: dtype {dtype} cannot be quantized to; use one of "
            f"{sorted(str(d) for d in _STORED)}"
        )
    if (low is None) != (high is None):
        raise SpecError(f"{name}: give both quant_min and quant_max or neither, not {low}, {high}")
    if low is None or high is None:
        return
    if low >= high:
        raise SpecError(f"{name}: quant_min must be below quant_max, found [{low}, {high}]")
    least, greatest = dtype_limits(dtype)
    if low < least or high > greatest:
        raise SpecError(
            f"{name}: [{low}, {high}] does not fit {dtype}, which holds [{least}, {greatest}]"
        )


def check_axis(name: str, qscheme: torch.qscheme | None, ch_axis: int | None) -> None:
    """Raise SpecError if a scheme and an axis contradict each other."""
    per_channel = is_per_channel(qscheme)
    if per_channel and ch_axis is None:
        raise SpecError(f"{name}: {qscheme} needs ch_axis, the dimension that has its own scales")
    if not per_channel and ch_axis is not None:
        raise SpecError(f"{name}: ch_axis={ch_axis} needs a per-channel qscheme, found {qscheme}")
