"""Specs that a kernel takes, with the usual observers and the kernel's own floor of scales."""

from __future__ import annotations

import torch

from pt2q.quantizers.toolkit.config import Mode
from pt2q.quantizers.toolkit.table.kernel_limits import TensorLimits
from pt2q.quantizers.toolkit.usual_observers import activation_constructor, weight_constructor
from pt2q.spec import PerToken, QuantizationSpec


def activation_spec(
    limits: TensorLimits, mode: Mode, low: int | None = None, high: int | None = None
) -> QuantizationSpec:
    """An activation in the first form that a kernel takes.

    Args:
        limits: of the kernel.
        mode: when its range is found.
        low, high: the integers used; None takes the form's.
    """
    form = limits.stored[0]
    return QuantizationSpec(
        dtype=form.dtype,
        quant_min=form.low if low is None else low,
        quant_max=form.high if high is None else high,
        qscheme=torch.per_tensor_symmetric if limits.symmetric else torch.per_tensor_affine,
        is_dynamic=mode is Mode.DYNAMIC,
        observer_or_fake_quant_ctr=activation_constructor(
            mode, min_scale=limits.min_scale, per_token=PerToken in form.granularities
        ),
    )


def weight_spec(
    limits: TensorLimits,
    *,
    per_channel: bool = True,
    is_qat: bool = False,
    low: int = -127,
    high: int = 127,
) -> QuantizationSpec:
    """A symmetric weight in the first form that a kernel takes, its channels along axis 0.

    Args:
        limits: of the kernel.
        per_channel: a scale for each channel, not one for the tensor.
        is_qat: for `prepare_qat_pt2e`.
        low, high: the integers used.
    """
    return QuantizationSpec(
        dtype=limits.stored[0].dtype,
        quant_min=low,
        quant_max=high,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
        ch_axis=0 if per_channel else None,
        observer_or_fake_quant_ctr=weight_constructor(
            per_channel=per_channel, is_qat=is_qat, min_scale=limits.min_scale
        ),
    )
