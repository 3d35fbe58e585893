"""Scale and zero point, quantize, dequantize: the numbers of quantization as pure functions.

The integer ``q`` stands for the real number ``x = (q - zero_point) * scale`` (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
equation 1). ``quantize``, ``dequantize`` and ``fake_quantize`` give, bit for bit, what the
``quantized_decomposed`` operators of a converted graph give.
"""

from __future__ import annotations

import torch
from torch import Tensor

INTEGER_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)

PER_CHANNEL_SCHEMES = (
    torch.per_channel_affine,
    torch.per_channel_symmetric,
    torch.per_channel_affine_float_qparams,
)
SYMMETRIC_SCHEMES = (torch.per_tensor_symmetric, torch.per_channel_symmetric)

DEFAULT_EPS = torch.finfo(torch.float32).eps

# A scale stays where both it and its reciprocal are normal float32 numbers.
_SCALE_FLOOR = torch.finfo(torch.float32).tiny
_SCALE_CEILING = 1.0 / torch.finfo(torch.float32).tiny
_FLOAT32_MAX = torch.finfo(torch.float32).max


def is_quantized_dtype(dtype: torch.dtype) -> bool:
    """Return whether tensors of ``dtype`` hold quantized values (an integer or a float8 type)."""
    return dtype in INTEGER_DTYPES or dtype in FLOAT8_DTYPES


def dtype_bounds(dtype: torch.dtype) -> tuple[int, int] | tuple[float, float]:
    """Return the smallest and the largest value that ``dtype`` holds.

    Raises:
        TypeError: ``dtype`` is not a type of quantized values.
    """
    if dtype in INTEGER_DTYPES:
        info = torch.iinfo(dtype)
        return int(info.min), int(info.max)
    if dtype in FLOAT8_DTYPES:
        return torch.finfo(dtype).min, torch.finfo(dtype).max
    expected = ", ".join(str(d) for d in INTEGER_DTYPES + FLOAT8_DTYPES)
    raise TypeError(f"expected a quantized dtype ({expected}), found {dtype}")


def is_per_channel(qscheme: torch.qscheme) -> bool:
    """Return whether ``qscheme`` has one scale and zero point per channel."""
    return qscheme in PER_CHANNEL_SCHEMES


def is_symmetric(qscheme: torch.qscheme) -> bool:
    """Return whether ``qscheme`` fixes the zero point in the middle of the integers."""
    return qscheme in SYMMETRIC_SCHEMES


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


def _broadcastable(value: Tensor | float, x: Tensor, ch_axis: int | None) -> Tensor | float:
    """Shape per-channel parameters ``[C]`` to line up with axis ``ch_axis`` of ``x``."""
    if not isinstance(value, Tensor):
        return value
    if ch_axis is None:
        return value.reshape(())
    shape = [1] * x.dim()
    shape[ch_axis] = -1
    return value.to(x.device).view(shape)


def _check_input(x: Tensor) -> Tensor:
    """Return ``x`` in float32, which is what the operators compute in."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.to(torch.float32)
    if x.dtype != torch.float32:
        raise TypeError(f"expected a float32, float16 or bfloat16 tensor, found {x.dtype}")
    return x


def _levels(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    quant_min: int | float,
    quant_max: int | float,
    ch_axis: int | None,
) -> Tensor:
    """Return ``clamp(round(x * (1 / scale)) + zero_point)`` as float32: a new tensor.

    The operators multiply by the reciprocal, which is not the same number as a division gives.
    """
    x = _check_input(x)
    inverse = 1.0 / _broadcastable(scale, x, ch_axis)
    offset = _broadcastable(zero_point, x, ch_axis)
    return (x * inverse).round_().add_(offset).clamp_(quant_min, quant_max)


def quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    quant_min: int | float,
    quant_max: int | float,
    dtype: torch.dtype,
    ch_axis: int | None = None,
) -> Tensor:
    """Return ``q = clamp(round(x / scale) + zero_point, quant_min, quant_max)`` as ``dtype``.

    Rounding is half to even. Bit-identical to ``quantized_decomposed.quantize_per_tensor`` and,
    with a ``ch_axis``, to ``quantize_per_channel``; so float8 values are rounded to integers too,
    and int32 saturates only below 2 ** 31 - 128, the largest such float32.

    Args:
        x: Real values of any shape, float32 (float16 and bfloat16 are converted).
        scale: One number, or ``[C]`` with ``ch_axis``.
        zero_point: One integer, or ``[C]`` with ``ch_axis``.
        quant_min: Smallest integer in use.
        quant_max: Largest integer in use.
        dtype: Type of the result.
        ch_axis: Axis of ``x`` that the parameters run along, or ``None`` for per tensor.

    Raises:
        TypeError: ``x`` is of another dtype.
    """
    return _levels(x, scale, zero_point, quant_min, quant_max, ch_axis).to(dtype)


def dequantize(
    q: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    quant_min: int | float,
    quant_max: int | float,
    dtype: torch.dtype,
    ch_axis: int | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return ``x = (q - zero_point) * scale`` as ``out_dtype``.

    Bit-identical to ``quantized_decomposed.dequantize_per_tensor`` and, with a ``ch_axis``, to
    ``dequantize_per_channel``. ``quant_min`` and ``quant_max`` are taken for symmetry with
    :func:`quantize` and have no influence.

    Args:
        q: Quantized values of any shape and of type ``dtype``.
        scale: One number, or ``[C]`` with ``ch_axis``.
        zero_point: One integer, or ``[C]`` with ``ch_axis``.
        quant_min: Not used.
        quant_max: Not used.
        dtype: Type of ``q``.
        ch_axis: Axis of ``q`` that the parameters run along, or ``None`` for per tensor.
        out_dtype: Type of the result.

    Raises:
        TypeError: ``q`` is not of type ``dtype``.
    """
    if q.dtype != dtype:
        raise TypeError(f"expected a tensor of {dtype}, found {q.dtype}")
    factor = _broadcastable(scale, q, ch_axis)
    offset = _broadcastable(zero_point, q, ch_axis)
    if ch_axis is None:
        # A number is multiplied in float32 even where the result is narrower; a tensor is not.
        factor = factor if out_dtype == torch.float32 else float(factor)
        return q.to(out_dtype, copy=True).sub_(offset).mul_(factor)
    if dtype == torch.int32:
        return ((q - offset) * factor).to(out_dtype)
    return q.to(torch.float32).sub_(offset).mul_(factor).to(out_dtype)


def fake_quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    quant_min: int | float,
    quant_max: int | float,
    dtype: torch.dtype,
    ch_axis: int | None = None,
) -> Tensor:
    """Return ``dequantize(quantize(x))`` as float32 without leaving the floating point numbers.

    Bit-identical to the pair of operators; arguments as in :func:`quantize`.
    """
    if dtype not in (torch.int8, torch.uint8, torch.int16, torch.uint16):
        q = quantize(x, scale, zero_point, quant_min, quant_max, dtype, ch_axis)
        return dequantize(q, scale, zero_point, quant_min, quant_max, dtype, ch_axis)
    levels = _levels(x, scale, zero_point, quant_min, quant_max, ch_axis)
    offset = _broadcastable(zero_point, x, ch_axis)
    return levels.sub_(offset).mul_(_broadcastable(scale, x, ch_axis))


def sqnr(reference: Tensor, value: Tensor) -> Tensor:
    """Return the signal to quantization noise ratio in dB, a float64 scalar tensor.

    ``10 * log10(sum(reference ** 2) / sum((reference - value) ** 2))``: infinite where the two
    are equal, minus infinite where the reference is zero and the value is not.
    """
    signal = reference.detach().to(torch.float64)
    noise = (signal - value.detach().to(torch.float64)).square().sum()
    ratio = 10.0 * torch.log10(signal.square().sum() / noise)
    return torch.where(noise == 0, torch.full_like(noise, torch.inf), ratio)
