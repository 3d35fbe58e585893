"""Real factors as integers: ``factor ~ multiplier * 2 ** -shift``.

Accumulators ``a_i`` with real scales ``s_i`` and a real constant ``c`` are brought to the scale
``s_y`` and zero point ``z_y`` of the output by 64-bit integer arithmetic (after Jacob et al. 2018,
section 2.2, with one shift for several addends and rounding half to even)::

    P  = sum_i a_i * multiplier_i + offset
    y  = clamp(z_y + ((P + 2 ** (shift - 1) - 1 + ((P >> shift) & 1)) >> shift), low, high)

    multiplier_i = rint(s_i / s_y * 2 ** shift)        32 bits with sign, at most 2 ** 31 - 1
    offset       = rint(c / s_y * 2 ** shift)          64 bits
    shift        = the largest integer in [1, 62] with
                     |s_i / s_y| * 2 ** shift < 2 ** 31 and
                     (sum_i bound_i * |s_i / s_y| + |c / s_y|) * 2 ** shift < 2 ** 61

Ratios are computed in float64. ``bound_i`` is the largest magnitude that ``a_i`` can take, so no
product and no sum overflows 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INT32_LIMIT = 2**31
SUM_BITS = 61
MULTIPLIER_BITS = 31


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """The integers of the equations above, per element of the output or for all.

    Args:
        multipliers: one per addend, int32 values in int64.
        offset: int64; None where it is zero everywhere.
        shift: int64, in [1, 62].
    """

    multipliers: tuple[Tensor, ...]
    offset: Tensor | None
    shift: Tensor

    @property
    def is_identity(self) -> bool:
        """Whether one addend is already at the scale of the output."""
        if len(self.multipliers) != 1 or self.offset is not None:
            return False
        return bool((self.multipliers[0] == torch.ones_like(self.shift) << self.shift).all())


def fixed_point(
    ratios: list[Tensor],
    bounds: list[int],
    constant: Tensor,
    reduced: list[int | None] | None = None,
) -> FixedPoint:
    """Find multipliers, offset and shift.

    Args:
        ratios: ``s_i / s_y``, float64.
        bounds: ``bound_i``.
        constant: ``c / s_y``, float64.
        reduced: per addend the dimension that is summed after multiplication, or None; there
            all entries have one shift.
    """
    dims = reduced or [None] * len(ratios)
    tops = [_over(r.abs(), d, "amax") for r, d in zip(ratios, dims, strict=True)]
    sums = [_over(r.abs(), d, "sum") * b for r, d, b in zip(ratios, dims, bounds, strict=True)]
    largest = _total(tops, torch.maximum)
    total = _total([*sums, constant.abs()], torch.add)
    shift = torch.minimum(MULTIPLIER_BITS - _bits(largest), SUM_BITS - _bits(total)).clamp(
        1, SUM_BITS + 1
    )
    # Where even the shift of 1 is too large the output saturates anyway.
    room = (2.0 ** (SUM_BITS + 1)) / max(sum(bounds), 1)
    most = min(float(INT32_LIMIT - 1), room)
    multipliers = tuple(
        _rint(r, _under(shift, d)).clamp(-most, most).to(torch.int64)
        for r, d in zip(ratios, dims, strict=True)
    )
    offset = _rint(constant, shift).clamp(-(2.0**SUM_BITS), 2.0**SUM_BITS).to(torch.int64)
    return FixedPoint(multipliers, offset if bool((offset != 0).any()) else None, shift)


def _over(value: Tensor, dim: int | None, how: str) -> Tensor:
    if dim is None:
        return value
    return value.amax(dim) if how == "amax" else value.sum(dim)


def _under(shift: Tensor, dim: int | None) -> Tensor:
    return shift if dim is None or shift.dim() == 0 else shift.unsqueeze(dim)


def _total(values: list[Tensor], combine: object) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = combine(result, value)  # type: ignore[operator]
    return result


def _bits(value: Tensor) -> Tensor:
    """The smallest integer ``n`` with ``value < 2 ** n``; -64 for zero."""
    exponent = torch.frexp(value).exponent.to(torch.int64)
    return torch.where(value > 0, exponent, torch.full_like(exponent, -64))


def _rint(value: Tensor, shift: Tensor) -> Tensor:
    power = torch.ldexp(torch.ones_like(shift, dtype=torch.float64), shift)
    return torch.round(value * power)


def integer_bias(bias: Tensor, scale: Tensor, ratio: Tensor, bound: int) -> Tensor | None:
    """The bias in steps of the accumulator, or None where those are too coarse or too fine.

    ``rint(bias / scale)`` as int32. It is off by up to half an accumulator step, that is
    ``ratio / 2`` of an output step, so it is used where ``ratio <= 1/2`` and where accumulator
    and bias together fit 32 bits. Elsewhere the bias becomes the 64-bit offset of `fixed_point`.

    Args:
        bias: real numbers, float64.
        scale: of the accumulator, float64.
        ratio: ``scale`` over the scale of the output.
        bound: the largest magnitude of the accumulator.
    """
    steps = torch.round(bias / scale)
    if not bool(torch.isfinite(steps).all()):
        return None
    fits = float(steps.abs().amax()) + bound < INT32_LIMIT
    if not fits or float(ratio.abs().amax()) > 0.5:
        return None
    return steps.to(torch.int32)
