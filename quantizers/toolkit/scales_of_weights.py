"""The same weight spec with its scales elsewhere: along another axis, one for all, or one each."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch

from pt2q import observers
from pt2q.errors import ObserverReplacedWarning
from pt2q.observers import OBSERVERS, constructor_for
from pt2q.quantizers.toolkit.config import has_channels
from pt2q.quantizers.toolkit.usual_observers import weight_constructor
from pt2q.spec import PartialWrapper, PerAxis, PerGroup, PerTensor, QuantizationSpec
from pt2q.spec.constructor import accepted, unwrapped


def per_channel_at(spec: QuantizationSpec | None, axis: int) -> QuantizationSpec | None:
    """The same weight spec with its channels along another axis; per-tensor specs stay."""
    if spec is None or spec.ch_axis is None or spec.ch_axis == axis:
        return spec
    return replace(spec, ch_axis=axis)


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


def grouped(spec: QuantizationSpec, group_size: int) -> QuantizationSpec:
    """The same weight spec with a scale for each group of neighbours along a row.

    Args:
        spec: of a weight.
        group_size: how many share a scale.
    """
    spec = divided(spec, PerAxis(0))
    _, arguments = unwrapped(spec.observer_or_fake_quant_ctr)
    observer = OBSERVERS["minmax"].member(PerGroup(group_size))
    assert observer is not None, "it observes groups"
    kept = accepted(observer, {**arguments, "group_size": group_size})
    return replace(spec, observer_or_fake_quant_ctr=PartialWrapper(observer).with_args(**kept))


_OTHER_SCHEME = {
    torch.per_channel_symmetric: torch.per_tensor_symmetric,
    torch.per_channel_affine: torch.per_tensor_affine,
    torch.per_channel_affine_float_qparams: torch.per_tensor_affine,
    torch.per_tensor_symmetric: torch.per_channel_symmetric,
    torch.per_tensor_affine: torch.per_channel_affine,
}


def _stand_in(constructor: Any, granularity: PerTensor | PerAxis) -> Any:
    """The usual weight observer, and a word about the one that cannot serve."""
    cls, arguments = unwrapped(constructor)
    is_qat = isinstance(cls, type) and issubclass(cls, observers.FakeQuantizeBase)
    per_channel, floor = isinstance(granularity, PerAxis), arguments.get("eps", 0.0)
    other = weight_constructor(per_channel=per_channel, is_qat=is_qat, min_scale=floor)
    warnings.warn(
        f"an operator takes weights with {granularity} alone, for which {constructor!r} has no "
        f"form: {other!r} stands in; enter yours as an ObserverFamily in pt2q.observers, or give "
        "the operator a configuration of its own",
        ObserverReplacedWarning,
        stacklevel=2,
    )
    return other
