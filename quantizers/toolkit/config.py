"""`QuantizationConfig`: the specs of the four roles that a tensor can have at an operator."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from pt2q import observers
from pt2q.errors import ObserverReplacedWarning
from pt2q.observers import FusedMovingAvgObsFakeQuantize, constructor_for
from pt2q.spec import PerAxis, PerGroup, PerTensor, QuantizationSpec, granularity_of
from pt2q.spec.constructor import unwrapped

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
        return self.weight is not None and has_channels(self.weight)


def has_channels(spec: QuantizationSpec) -> bool:
    """Whether a spec asks for scales along an axis, or for groups in it, and not for one."""
    return isinstance(granularity_of(spec), PerAxis | PerGroup)


def per_channel_at(spec: QuantizationSpec | None, axis: int) -> QuantizationSpec | None:
    """The same weight spec with its channels along another axis; per-tensor specs stay."""
    if spec is None or spec.ch_axis is None or spec.ch_axis == axis:
        return spec
    return replace(spec, ch_axis=axis)


def dynamic_form(config: QuantizationConfig) -> QuantizationConfig:
    """The configuration that quantizes the same inputs and weights, but at run time.

    There is nothing to observe of an activation then: its constructor becomes a placeholder.

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
        weight=divided(weight, PerAxis(0)),
    )


def per_tensor(spec: QuantizationSpec | None) -> QuantizationSpec | None:
    """The same weight spec with one scale, for operators that take no scale per channel."""
    return None if spec is None else divided(spec, PerTensor())


def divided(spec: QuantizationSpec, granularity: PerTensor | PerAxis) -> QuantizationSpec:
    """The same spec with another granularity, and with its own observer where that can serve.

    Args:
        spec: of a weight; one that is divided already stays if it is to be divided.
        granularity: the one asked for.
    """
    per_channel = isinstance(granularity, PerAxis)
    if has_channels(spec) is per_channel:
        return spec
    constructor = constructor_for(spec.observer_or_fake_quant_ctr, granularity)
    if constructor is None:
        constructor = _stand_in(spec.observer_or_fake_quant_ctr, granularity)
    return replace(
        spec,
        qscheme=None if spec.qscheme is None else _OTHER_SCHEME.get(spec.qscheme, spec.qscheme),
        ch_axis=granularity.axis if isinstance(granularity, PerAxis) else None,
        observer_or_fake_quant_ctr=constructor,
    )


_OTHER_SCHEME = {
    torch.per_channel_symmetric: torch.per_tensor_symmetric,
    torch.per_channel_affine: torch.per_tensor_affine,
    torch.per_channel_affine_float_qparams: torch.per_tensor_affine,
    torch.per_tensor_symmetric: torch.per_channel_symmetric,
    torch.per_tensor_affine: torch.per_channel_affine,
}


def _stand_in(constructor: Any, granularity: PerTensor | PerAxis) -> Any:
    """The usual weight observer, and a word about the one that cannot serve."""
    cls, _ = unwrapped(constructor)
    is_qat = isinstance(cls, type) and issubclass(cls, observers.FakeQuantizeBase)
    other = _weight_constructor(isinstance(granularity, PerAxis), is_qat)
    warnings.warn(
        f"an operator takes weights with {granularity} alone, for which {constructor!r} has no "
        f"form: {other!r} stands in; enter yours as an ObserverFamily in pt2q.observers, or give "
        "the operator a configuration of its own",
        ObserverReplacedWarning,
        stacklevel=2,
    )
    return other


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
