"""What contradicts itself in a spec."""

from __future__ import annotations

from typing import Any

import torch

from pt2q.errors import SpecError
from pt2q.ir.dtypes import (
    CAST_DTYPES,
    FLOAT8_DTYPES,
    INTEGER_DTYPES,
    is_per_channel,
    is_symmetric,
)
from pt2q.spec.constructor import unwrapped

_STORED = (*INTEGER_DTYPES, *FLOAT8_DTYPES, *CAST_DTYPES)
LEFT_IN_FLOAT = torch.float32
"""The dtype of a spec that asks for nothing to be done."""


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


def check_symmetric(
    name: str, dtype: torch.dtype, qscheme: torch.qscheme | None, low: int | None, high: int | None
) -> None:
    """Raise SpecError if a symmetric scheme of a signed dtype uses integers of one sign alone.

    Its zero point is 0: all numbers of the other sign would become 0.

    Args:
        name: of the spec, for the message.
        dtype: what is stored.
        qscheme: None leaves it to the observer.
        low, high: the integers used; None for all of the dtype.
    """
    if low is None or high is None or not is_symmetric(qscheme) or dtype not in INTEGER_DTYPES:
        return
    if torch.iinfo(dtype).min < 0 and not low < 0 < high:
        raise SpecError(
            f"{name}: {qscheme} of {dtype} has its zero point at 0, and [{low}, {high}] holds no "
            "integers on one side of it; use a range around 0, an affine scheme, or an unsigned "
            "dtype"
        )


def axis_in_use(
    qscheme: torch.qscheme | None, ch_axis: int | None, constructor: Any = None
) -> int | None:
    """Return the channel axis that a scheme means, so that equal specs are equal.

    Args:
        qscheme: None leaves the choice, and so the axis, to the observer.
        ch_axis: as given; it means nothing beside a per-tensor scheme.
        constructor: of the observer; a per-channel scheme without an axis takes the one among its
            arguments, else 0.
    """
    if qscheme is None:
        return ch_axis
    if not is_per_channel(qscheme):
        return None
    if ch_axis is None:
        ch_axis = unwrapped(constructor)[1].get("ch_axis")
    return 0 if ch_axis is None else ch_axis
