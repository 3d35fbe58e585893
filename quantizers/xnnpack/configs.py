"""The configurations that XNNPACK's kernels take."""

from __future__ import annotations

from dataclasses import replace

from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.scales_of_weights import divided
from pt2q.quantizers.toolkit.table.usual_specs import activation_spec, weight_spec
from pt2q.quantizers.xnnpack import kernels
from pt2q.spec import PerAxis


def get_symmetric_quantization_config(
    is_per_channel: bool | None = None,
    is_qat: bool = False,
    is_dynamic: bool = False,
    act_qmin: int = -128,
    act_qmax: int = 127,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
) -> QuantizationConfig:
    """int8 activations, affine and per tensor, with symmetric int8 weights.

    Args:
        is_per_channel: weights have a scale per output channel, not one per tensor; if not said,
            with ``is_dynamic``, whose kernels take no others.
        is_qat: for `prepare_qat_pt2e`.
        is_dynamic: activations are quantized at run time, per token; outputs stay in float.
        act_qmin, act_qmax: the integers used by activations.
        weight_qmin, weight_qmax: the integers used by weights; [-8, 7] is stored in 4 bits.
    """
    mode = Mode.QAT if is_qat else Mode.STATIC
    limits = kernels.ACTIVATION
    if is_dynamic:
        mode, limits = Mode.DYNAMIC, kernels.TOKENS
    activation = activation_spec(limits, mode, act_qmin, act_qmax)
    return QuantizationConfig(
        input_activation=activation,
        output_activation=None if is_dynamic else activation,
        weight=weight_spec(
            kernels.WEIGHT,
            per_channel=is_dynamic if is_per_channel is None else is_per_channel,
            is_qat=is_qat,
            low=weight_qmin,
            high=weight_qmax,
        ),
        is_qat=is_qat,
    )


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
        input_activation=activation_spec(
            kernels.TOKENS, Mode.DYNAMIC, activation.quant_min, activation.quant_max
        ),
        output_activation=None,
        weight=divided(weight, PerAxis(0)),
    )
