"""Weights alone, weights in 4 bits, and activations in 16 bits or float8."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Node

from pt2q.errors import SpecError
from pt2q.ir.graph import value_of
from pt2q.ir.ops import CONV, CONV_TRANSPOSE, LINEAR, is_op
from pt2q.observers import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PerGroupMinMaxObserver,
    PlaceholderObserver,
)
from pt2q.quantizers.toolkit import checks
from pt2q.quantizers.toolkit.annotate import annotate_weighted, annotate_with
from pt2q.quantizers.toolkit.config import QuantizationConfig, per_channel_at
from pt2q.quantizers.toolkit.engine import TableQuantizer
from pt2q.quantizers.toolkit.roles import roles_of
from pt2q.quantizers.toolkit.rules import Match, Rule
from pt2q.spec import QuantizationSpec

FOUR_BITS = (-8, 7)
EIGHT_BITS = (-127, 127)


# ------------------------------------------------------------------ configurations


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
        PerChannelMinMaxObserver
        if group_size is None
        else PerGroupMinMaxObserver.with_args(group_size=group_size)
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
        torch.int16, MinMaxObserver, -32768, 32767, torch.per_tensor_symmetric
    )
    return QuantizationConfig(activation, activation, _weight(8, None))


def get_float8_quantization_config(
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> QuantizationConfig:
    """float8 activations and weights, one scale per tensor.

    Args:
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.
    """
    spec = QuantizationSpec(dtype, MinMaxObserver, qscheme=torch.per_tensor_symmetric)
    return QuantizationConfig(spec, None, spec)


# ------------------------------------------------------------------ rules


def _groups_fit(match: Match) -> str | None:
    spec = match.config.weight
    given = getattr(spec.observer_or_fake_quant_ctr, "keywords", {}) if spec is not None else {}
    weight = roles_of(match.head).weight
    size = given.get("group_size")
    if size is None or weight is None:
        return None
    columns = value_of(weight).shape[1]
    return None if columns % size == 0 else f"its {columns} inputs do not divide by {size}"


def _annotate_transposed(match: Match) -> None:
    annotate_with(match, replace(match.config, weight=per_channel_at(match.config.weight, 1)))


def _is_grouped(config: QuantizationConfig) -> bool:
    constructor = getattr(config.weight, "observer_or_fake_quant_ctr", None)
    return getattr(constructor, "cls", None) is PerGroupMinMaxObserver


_WEIGHTED = (checks.constant_weight, checks.float32_only, checks.writes_nothing_shared)
_LINEAR = Rule("linear", LINEAR, annotate_weighted, (), (*_WEIGHTED, _groups_fit))
_CONVOLUTIONS = (
    Rule("convolution", CONV - CONV_TRANSPOSE, annotate_weighted, (), _WEIGHTED),
    Rule("transposed convolution", CONV_TRANSPOSE, _annotate_transposed, (), _WEIGHTED),
)


class WeightQuantizer(TableQuantizer):
    """Quantizes linear layers, and convolutions unless asked for groups, by their weights.

    ``WeightQuantizer()`` stores weights in int8 and computes in float. Other configurations of
    this module add activations, or store fewer bits::

        quantizer = WeightQuantizer(get_dynamic_activation_4bit_weight_config(group_size=32))

    Args:
        default: how to quantize.
    """

    def __init__(self, default: QuantizationConfig | None = None) -> None:
        super().__init__(default or get_weight_only_quantization_config())

    def rules(self, config: QuantizationConfig) -> tuple[Rule, ...]:
        """Groups and dynamic activations are for linear layers."""
        if config.is_dynamic or _is_grouped(config):
            return (_LINEAR,)
        return (_LINEAR, *_CONVOLUTIONS)

    def why_float(self, node: Node, config: QuantizationConfig) -> str:
        """The reason for an operator that no rule names."""
        if is_op(node, CONV):
            return "groups and dynamic activations are for linear layers"
        return "it has no weight"
