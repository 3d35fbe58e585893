"""The configuration that Inductor's int8 kernels take."""

from __future__ import annotations

from typing import Any

import torch

from pt2q.observers import (
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    PlaceholderObserver,
)
from pt2q.quantizers.toolkit.config import (
    EPS,
    QuantizationConfig,
    get_symmetric_quantization_config,
)
from pt2q.spec import QuantizationSpec


def get_default_x86_inductor_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
) -> QuantizationConfig:
    """uint8 activations, affine and per tensor; int8 weights, symmetric and per channel.

    Args:
        is_qat: for `prepare_qat_pt2e`.
        is_dynamic: activations are quantized at run time, one scale per tensor.
        reduce_range: activations use 7 bits, for processors without VNNI instructions, whose
            16-bit sums of products would overflow.
    """
    weight = get_symmetric_quantization_config(is_per_channel=True, is_qat=is_qat).weight
    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=127 if reduce_range else 255,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
        observer_or_fake_quant_ctr=_activation_constructor(is_qat, is_dynamic),
    )
    output = None if is_dynamic else activation
    return QuantizationConfig(activation, output, weight, is_qat=is_qat)


def _activation_constructor(is_qat: bool, is_dynamic: bool) -> Any:
    if is_dynamic:
        return PlaceholderObserver
    if not is_qat:
        return HistogramObserver.with_args(eps=EPS)
    return FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=EPS)
