"""What tensors are quantized to: dtypes, what each holds, and torch's quantization schemes."""

from __future__ import annotations

import torch

INTEGER_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
QUANTIZABLE = frozenset({torch.float32, torch.float16, torch.bfloat16})
"""The types of real numbers that quantize operators take."""
CAST_DTYPES = (torch.float16, torch.bfloat16)
"""Dtypes that are converted to: they have no scale."""

STORED_AS = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}
"""Plain dtypes for those of torch's older quantized tensors."""

PER_CHANNEL_SCHEMES = (
    torch.per_channel_affine,
    torch.per_channel_symmetric,
    torch.per_channel_affine_float_qparams,
)
SYMMETRIC_SCHEMES = (torch.per_tensor_symmetric, torch.per_channel_symmetric)


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


def is_per_channel(qscheme: torch.qscheme | None) -> bool:
    """Return whether ``qscheme`` has one scale and zero point per channel."""
    return qscheme in PER_CHANNEL_SCHEMES


def is_symmetric(qscheme: torch.qscheme | None) -> bool:
    """Return whether ``qscheme`` fixes the zero point in the middle of the integers."""
    return qscheme in SYMMETRIC_SCHEMES
