"""`QuantizationConfig`: the specs of the four roles that a tensor can have at an operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from pt2q import observers
from pt2q.ir.dtypes import PER_CHANNEL_SCHEMES
from pt2q.observers import FusedMovingAvgObsFakeQuantize
from pt2q.spec import QuantizationSpec

EPS = 2**-12
"""Smallest scale: the runtime's requantization multipliers cannot be arbitrarily large."""


class Mode(Enum):
    """When the parameters of activations are found.

    STATIC: by calibration; also where activations stay in float.
    QAT: in training, where batch norms are still in the graph.
    DYNAMIC: at run time, from each input.
    """

    STATIC = "static"
    QAT = "training"
    DYNAMIC = "dynamic"


@dataclass(frozen=True)
class QuantizationConfig:
    """How an operator is quantized, by the role of each tensor.

    Args:
        input_activation: what is computed from the model's input, on its way into the operator.
        output_activation: the operator's result.
        weight: a constant that the operator multiplies with.
        bias: a constant that the operator adds; None leaves it to the backend.
        is_qat: the specs make fake-quantizers, and batch norms are still in the graph.
    """

    input_activation: QuantizationSpec | None
    output_activation: QuantizationSpec | None
    weight: QuantizationSpec | None
    bias: QuantizationSpec | None = None
    is_qat: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether the parameters of inputs are computed from each input at run time."""
        return self.input_activation is not None and self.input_activation.is_dynamic

    @property
    def mode(self) -> Mode:
        """When the parameters of its activations are found."""
        if self.is_dynamic:
            return Mode.DYNAMIC
        return Mode.QAT if self.is_qat else Mode.STATIC

    @property
    def is_per_channel(self) -> bool:
        """Whether weights have a scale per output channel."""
        return self.weight is not None and self.weight.qscheme in PER_CHANNEL_SCHEMES


def per_channel_at(spec: QuantizationSpec | None, axis: int) -> QuantizationSpec | None:
    """The same weight spec with its channels along another axis; per-tensor specs stay."""
    if spec is None or spec.ch_axis is None or spec.ch_axis == axis:
        return spec
    return replace(spec, ch_axis=axis)


def dynamic_form(config: QuantizationConfig) -> QuantizationConfig:
    """The configuration that quantizes the same inputs and weights, but at run time.

    Args:
        config: a static configuration for inference.
    """
    activation, weight = config.input_activation, config.weight
    assert activation is not None and activation.quant_min is not None and weight is not None
    assert activation.quant_max is not None
    return replace(
        config,
        input_activation=_activation_spec(False, True, activation.quant_min, activation.quant_max),
        output_activation=None,
        weight=_weight_spec(True, False, weight.quant_min, weight.quant_max, weight.dtype),
    )


def per_tensor(spec: QuantizationSpec | None, is_qat: bool) -> QuantizationSpec | None:
    """The same weight spec with one scale, for operators that take no scale per channel.

    Args:
        spec: a symmetric weight spec.
        is_qat: whether its constructor makes fake-quantizers.
    """
    if spec is None or spec.ch_axis is None:
        return spec
    return _weight_spec(False, is_qat, spec.quant_min, spec.quant_max, spec.dtype)


def get_symmetric_quantization_config(
    is_per_channel: bool = False,
    is_qat: bool = False,
    is_dynamic: bool = False,
    act_qmin: int = -128,
    act_qmax: int = 127,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
) -> QuantizationConfig:
    """int8 activations, affine and per tensor, with symmetric int8 weights.

    Args:
        is_per_channel: weights have a scale per output channel, not one per tensor.
        is_qat: for `prepare_qat_pt2e`.
        is_dynamic: activations are quantized at run time, per token; outputs stay in float.
        act_qmin, act_qmax: the integers used by activations.
        weight_qmin, weight_qmax: the integers used by weights; [-8, 7] is stored in 4 bits.
    """
    activation = _activation_spec(is_qat, is_dynamic, act_qmin, act_qmax)
    return QuantizationConfig(
        input_activation=activation,
        output_activation=None if is_dynamic else activation,
        weight=_weight_spec(is_per_channel, is_qat, weight_qmin, weight_qmax, torch.int8),
        is_qat=is_qat,
    )


def _activation_spec(is_qat: bool, is_dynamic: bool, qmin: int, qmax: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=qmin,
        quant_max=qmax,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
        observer_or_fake_quant_ctr=_activation_constructor(is_qat, is_dynamic),
    )


def _activation_constructor(is_qat: bool, is_dynamic: bool) -> Any:
    if is_dynamic:
        return observers.PlaceholderObserver.with_args(per_token=True, eps=EPS)
    if not is_qat:
        return observers.HistogramObserver.with_args(eps=EPS)
    return FusedMovingAvgObsFakeQuantize.with_args(
        observer=observers.MovingAverageMinMaxObserver, eps=EPS
    )


def _weight_spec(
    is_per_channel: bool, is_qat: bool, qmin: int | None, qmax: int | None, dtype: torch.dtype
) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=dtype,
        quant_min=qmin,
        quant_max=qmax,
        qscheme=torch.per_channel_symmetric if is_per_channel else torch.per_tensor_symmetric,
        ch_axis=0 if is_per_channel else None,
        observer_or_fake_quant_ctr=_weight_constructor(is_per_channel, is_qat),
    )


def _weight_constructor(is_per_channel: bool, is_qat: bool) -> Any:
    if not is_qat:
        kind = observers.PerChannelMinMaxObserver if is_per_channel else observers.MinMaxObserver
        return kind.with_args(eps=EPS)
    # Weights change with every step, and their range is known exactly: nothing is averaged.
    moving = (
        observers.MovingAveragePerChannelMinMaxObserver
        if is_per_channel
        else observers.MovingAverageMinMaxObserver
    )
    return FusedMovingAvgObsFakeQuantize.with_args(observer=moving, averaging_constant=1.0, eps=EPS)
