"""The configuration that Inductor's int8 kernels take."""

from __future__ import annotations

import torch

from pt2q.observers import PlaceholderObserver
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.table.usual_specs import activation_spec, weight_spec
from pt2q.quantizers.x86_inductor import kernels
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
    mode = Mode.QAT if is_qat else Mode.STATIC
    limits = kernels.ACTIVATION
    if is_dynamic:
        mode, limits = Mode.DYNAMIC, kernels.ACTIVATION_AT_RUN_TIME
    activation = activation_spec(limits, mode, high=127 if reduce_range else None)
    weight = weight_spec(kernels.WEIGHT, is_qat=is_qat)
    output = None if is_dynamic else activation
    return QuantizationConfig(activation, output, weight, is_qat=is_qat)


def get_x86_inductor_linear_dynamic_fp16_config() -> QuantizationConfig:
    """Weights of linear layers stored in float16; inputs, products and results stay in float32."""
    weight = QuantizationSpec(dtype=torch.float16, observer_or_fake_quant_ctr=PlaceholderObserver)
    return QuantizationConfig(None, None, weight)
