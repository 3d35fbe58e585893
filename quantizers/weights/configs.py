"""Configurations for weights alone, weights in 4 bits, activations in 16 bits and float8."""

from __future__ import annotations

import torch

from pt2q.errors import SpecError
from pt2q.observers import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PerGroupMinMaxObserver,
    PlaceholderObserver,
)
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.spec import QuantizationSpec

FOUR_BITS = (-8, 7)
EIGHT_BITS = (-127, 127)
MIN_SCALE = 2.0**-60
"""The smallest scale: products of two are normal float32 numbers."""


def _weight(bits: int, group_size: int | None) -> QuantizationSpec:
    if bits not in (4, 8):
        raise SpecError(f"weights are stored in 4 or 8 bits, not {bits}")
    if group_size is not None and (type(group_size) is not int or group_size < 1):
        raise SpecError(
            f"group_size is how many weights share a scale: a whole number from 1 up, or None for "
            f"one scale per row; found {group_size!r}"
        )
    low, high = FOUR_BITS if bits == 4 else EIGHT_BITS
    observer = (
        PerChannelMinMaxObserver.with_args(eps=MIN_SCALE)
        if group_size is None
        else PerGroupMinMaxObserver.with_args(group_size=group_size, eps=MIN_SCALE)
    )
    return QuantizationSpec(torch.int8, observer, low, high, torch.per_channel_symmetric, ch_axis=0)


def get_weight_only_quantization_config(
    bits: int = 8, group_size: int | None = None
) -> QuantizationConfig:
    """Symmetric weights; activations stay in float.

    Args:
        bits: 8 or 4.
        group_size: neighbours along a row that share a scale; None gives each row one scale.

    Raises:
        SpecError: other bits, or a group size that is no positive whole number.
    """
    return QuantizationConfig(None, None, _weight(bits, group_size))


def get_dynamic_activation_4bit_weight_config(group_size: int | None = 32) -> QuantizationConfig:
    """int8 activations quantized at run time per token, 4-bit weights in groups ("8da4w").

    Args:
        group_size: neighbours along a row that share a scale, a multiple of 32 for XNNPACK;
            None gives each row one scale.

    Raises:
        SpecError: the group size is no positive whole number.
    """
    activation = QuantizationSpec(
        torch.int8,
        PlaceholderObserver.with_args(per_token=True),
        -128,
        127,
        torch.per_tensor_affine,
        is_dynamic=True,
    )
    return QuantizationConfig(activation, None, _weight(4, group_size))


def get_int16_activation_config() -> QuantizationConfig:
    """Symmetric int16 activations with int8 weights: float's accuracy in integers."""
    activation = QuantizationSpec(
        torch.int16,
        MinMaxObserver.with_args(eps=MIN_SCALE),
        -32768,
        32767,
        torch.per_tensor_symmetric,
    )
    return QuantizationConfig(activation, activation, _weight(8, None))


def get_float8_quantization_config(
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> QuantizationConfig:
    """float8 activations and weights, one scale per tensor.

    Args:
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.
    """
    observer = MinMaxObserver.with_args(eps=MIN_SCALE)
    spec = QuantizationSpec(dtype, observer, qscheme=torch.per_tensor_symmetric)
    return QuantizationConfig(spec, None, spec)
