"""What one rounding of an activation did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RoundingRow:
    """What one rounding of an activation did, over all batches and calls.

    Args:
        node: the quantize operator, or the call of a fake quantizer.
        of: the node whose value is rounded.
        dtype: of the integers.
        quant_min, quant_max: the integers in use.
        scale: the smallest and the largest.
        zero_point: likewise.
        clipped: the share of numbers beyond the range of integers.
        levels: the share of the integers that occurred; None for more than 65,536.
        dynamic: whether the parameters are computed from each input.
    """

    node: str
    of: str
    dtype: str
    quant_min: int
    quant_max: int
    scale: tuple[float, float]
    zero_point: tuple[float, float]
    clipped: float
    levels: float | None
    dynamic: bool = False
