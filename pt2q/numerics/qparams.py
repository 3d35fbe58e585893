"""Scale and zero point for a range of numbers.

The integer ``q`` stands for the real number ``x = (q - zero_point) * scale`` (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
equation 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pt2q.ir.dtypes import FLOAT8_DTYPES, dtype_bounds, is_symmetric

DEFAULT_EPS = torch.finfo(torch.float32).eps

# A scale stays where both it and its reciprocal are normal float32 numbers.
_SCALE_FLOOR = torch.finfo(torch.float32).tiny
_SCALE_CEILING = 1.0 / torch.finfo(torch.float32).tiny
_FLOAT32_MAX = torch.finfo(torch.float32).max


def symmetric_zero_point(quant_min: int, quant_max: int, dtype: torch.dtype) -> int:
    """Return the zero point of a symmetric scheme: 0, or the middle of an unsigned range.

    The middle of a full unsigned range is 2 ** (bits - 1), that of a restricted range is rounded
    down.
    """
    if dtype not in (torch.uint8, torch.uint16):
        return 0
    if (quant_min, quant_max) == dtype_bounds(dtype):
        return (quant_max + 1) // 2
    return (quant_min + quant_max) // 2


def choose_qparams(
    min_val: Tensor,
    max_val: Tensor,
    *,
    quant_min: int | float,
    quant_max: int | float,
    dtype: torch.dtype,
    qscheme: torch.qscheme,
    eps: float | Tensor = DEFAULT_EPS,
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point with which the integers cover ``[min_val, max_val]``.

    With ``lo = min(min_val, 0)``, ``hi = max(max_val, 0)`` (zero is always exact, Jacob et al.
    2018, section 2.1)::

        symmetric  scale = max(-lo, hi) / ((quant_max - quant_min) / 2),  zero_point = middle
        affine     scale = (hi - lo) / (quant_max - quant_min)
                   zero_point = clamp(quant_min - round(lo / scale), quant_min, quant_max)
        float8     scale = max(-lo, hi) / quant_max,  zero_point = 0
        per_channel_affine_float_qparams
                   scale = (max_val - min_val) / (quant_max - quant_min)
                   zero_point = -min_val / scale, a float32

    The scale is at least ``eps`` and always a normal float32 with a normal reciprocal, whatever
    finite range is given; ranges beyond float32 count as its largest value.

    Args:
        min_val: Smallest value, of any floating dtype and any shape: ``[]``, ``[1]`` or ``[C]``.
        max_val: Largest value, of the same shape.
        quant_min: Smallest integer in use.
        quant_max: Largest integer in use, greater than ``quant_min``.
        dtype: Type of the quantized values.
        qscheme: Symmetric or affine; per tensor or per channel makes no difference here.
        eps: Smallest scale.

    Returns:
        ``(scale, zero_point)`` of the shape of ``min_val``: float32 and int64.

    Raises:
        ValueError: the range of integers is empty.
    """
    if quant_max <= quant_min:
        raise ValueError(f"expected quant_min < quant_max, found {quant_min} and {quant_max}")
    low = min_val.to(torch.float32).clamp(min=-_FLOAT32_MAX, max=_FLOAT32_MAX)
    high = max_val.to(torch.float32).clamp(min=-_FLOAT32_MAX, max=_FLOAT32_MAX)
    if qscheme == torch.per_channel_affine_float_qparams:
        scale = _span_over(low, high, float(quant_max - quant_min))
        scale = normal_scale(torch.where(scale > eps, scale, torch.ones_like(scale)))
        return scale, -low / scale
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if dtype in FLOAT8_DTYPES or is_symmetric(qscheme):
        half = quant_max if dtype in FLOAT8_DTYPES else float(quant_max - quant_min) / 2
        scale = _at_least(torch.maximum(-low, high) / half, eps)
        middle = symmetric_zero_point(int(quant_min), int(quant_max), dtype)
        return scale, torch.full_like(scale, middle, dtype=torch.int64)
    scale = _at_least(_span_over(low, high, float(quant_max - quant_min)), eps)
    zero_point = quant_min - torch.round(low / scale).to(torch.int64)
    return scale, zero_point.clamp(int(quant_min), int(quant_max))


def _span_over(low: Tensor, high: Tensor, steps: float) -> Tensor:
    """Return ``(high - low) / steps``, also where the difference overflows."""
    span = high - low
    return torch.where(torch.isinf(span), high / steps - low / steps, span / steps)


def _at_least(scale: Tensor, eps: float | Tensor) -> Tensor:
    floor = scale.new_tensor(eps) if isinstance(eps, float | int) else eps.to(scale)
    return normal_scale(torch.maximum(scale, floor))


def normal_scale(scale: Tensor) -> Tensor:
    """Return ``scale`` within the bounds in which it and its reciprocal are normal numbers."""
    return scale.clamp(min=_SCALE_FLOOR, max=_SCALE_CEILING)
