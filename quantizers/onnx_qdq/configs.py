"""The configurations that runtimes which read ONNX take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pt2q.observers import (
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MovingAverageMinMaxObserver,
)
from pt2q.quantizers.toolkit.config import (
    EPS,
    QuantizationConfig,
    get_symmetric_quantization_config,
)
from pt2q.quantizers.x86_inductor.configs import get_default_x86_inductor_quantization_config
from pt2q.spec import QuantizationSpec


def get_onnxruntime_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
) -> QuantizationConfig:
    """uint8 activations, affine and per tensor; int8 weights, symmetric and per channel.

    Args:
        is_qat: for `prepare_qat_pt2e`.
        is_dynamic: activations are quantized at run time; results stay in float.
        reduce_range: weights use 7 bits, for processors without VNNI instructions, whose 16-bit
            sums of products would overflow.
    """
    config = get_default_x86_inductor_quantization_config(is_qat, is_dynamic)
    if not reduce_range or config.weight is None:
        return config
    return replace(config, weight=replace(config.weight, quant_min=-64, quant_max=63))


def get_tensorrt_quantization_config(is_qat: bool = False) -> QuantizationConfig:
    """Symmetric int8 throughout: activations per tensor, weights per channel, all zero points 0.

    Args:
        is_qat: for `prepare_qat_pt2e`.
    """
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=_symmetric_constructor(is_qat),
    )
    weight = get_symmetric_quantization_config(is_per_channel=True, is_qat=is_qat).weight
    return QuantizationConfig(activation, activation, weight, is_qat=is_qat)


def _symmetric_constructor(is_qat: bool) -> Any:
    if not is_qat:
        return HistogramObserver.with_args(eps=EPS)
    return FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=EPS)
