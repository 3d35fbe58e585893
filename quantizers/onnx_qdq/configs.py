"""The configurations that runtimes which read ONNX take."""

from __future__ import annotations

from dataclasses import replace

from pt2q.quantizers.onnx_qdq import kernels
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.table.usual_specs import activation_spec, weight_spec
from pt2q.quantizers.x86_inductor.configs import get_default_x86_inductor_quantization_config


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
    mode = Mode.QAT if is_qat else Mode.STATIC
    activation = activation_spec(kernels.SYMMETRIC, mode)
    weight = weight_spec(kernels.WEIGHT, is_qat=is_qat)
    return QuantizationConfig(activation, activation, weight, is_qat=is_qat)
