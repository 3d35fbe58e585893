"""The quantizers that ExecuTorch ships, each in the settings that it is measured in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def _export(net: torch.nn.Module, inputs: tuple[Tensor, ...], quantizer: Any) -> Any:
    # The guard call that .module() adds by default stops the transformations of some quantizers.
    return torch.export.export(net, inputs).module(check_guards=False)


def _decomposed(net: torch.nn.Module, inputs: tuple[Tensor, ...], quantizer: Any) -> Any:
    """Cadence's patterns are written in core operators, but for those it asks to keep."""
    from executorch.backends.cadence.aot.compiler_funcs import trace

    kept = quantizer.get_ops_to_preserve_from_decomposition()
    program = trace(net, inputs, is_qat=net.training, strict=True, ops_to_keep=kept)
    return program.module(check_guards=False)


@dataclass(frozen=True)
class Case:
    """A quantizer in one setting.

    Args:
        name: for the table.
        module: where it lives under ``executorch.backends``.
        make: builds it from that module.
        is_qat: its specs make fake quantizers.
        export: captures a model as this quantizer wants it.
    """

    name: str
    module: str
    make: Callable[[Any], Any]
    is_qat: bool = False
    export: Callable[..., Any] = _export


def _tosa(**settings: Any) -> Callable[[Any], Any]:
    def make(arm: Any) -> Any:
        from executorch.backends.arm.tosa.specification import TosaSpecification

        spec = TosaSpecification.create_from_string("TOSA-1.0+INT")
        return arm.TOSAQuantizer(spec, **settings.get("init", {})).set_global(
            arm.get_symmetric_quantization_config(**settings.get("config", {}))
        )

    return make


def _ethos(arm: Any) -> Any:
    from executorch.backends.arm.ethosu import EthosUCompileSpec

    quantizer = arm.EthosUQuantizer(EthosUCompileSpec("ethos-u55-128"))
    return quantizer.set_global(arm.get_symmetric_quantization_config())


def _tosa_16x8(arm: Any) -> Any:
    from executorch.backends.arm.tosa.specification import TosaSpecification

    spec = TosaSpecification.create_from_string("TOSA-1.0+INT+int16")
    return arm.TOSAQuantizer(spec).set_global(arm.get_symmetric_a16w8_quantization_config())


def _coreml(**settings: Any) -> Callable[[Any], Any]:
    def make(coreml: Any) -> Any:
        from coremltools.optimize.torch.quantization.quantization_config import (
            LinearQuantizerConfig,
        )

        given = {
            "quantization_scheme": "symmetric",
            "activation_dtype": torch.quint8,
            "weight_dtype": torch.qint8,
            "weight_per_channel": True,
            **settings,
        }
        return coreml.CoreMLQuantizer(LinearQuantizerConfig.from_dict({"global_config": given}))

    return make


def _openvino(mode: str) -> Callable[[Any], Any]:
    return lambda m: m.OpenVINOQuantizer(mode=getattr(m.QuantizationMode, mode))


def _vulkan(**settings: Any) -> Callable[[Any], Any]:
    return lambda m: m.VulkanQuantizer().set_global(m.get_symmetric_quantization_config(**settings))


def _qualcomm(dtype: str | None = None, **settings: Any) -> Callable[[Any], Any]:
    def make(m: Any) -> Any:
        quantizer = m.QnnQuantizer()
        if dtype is not None:
            quantizer.set_default_quant_config(getattr(m.QuantDtype, dtype), **settings)
        return quantizer

    return make


def _qualcomm_blocks(m: Any) -> Any:
    quantizer = _qualcomm("use_16a4w_block", is_conv_per_channel=True, is_linear_per_channel=True)(
        m
    )
    quantizer.set_block_size_map({})
    return quantizer


def _xnnpack(**settings: Any) -> Callable[[Any], Any]:
    return lambda m: m.XNNPACKQuantizer().set_global(
        m.get_symmetric_quantization_config(**settings)
    )


def _samsung(precision: str) -> Callable[[Any], Any]:
    def make(m: Any) -> Any:
        quantizer = m.EnnQuantizer()
        quantizer.setup_quant_params(getattr(m.Precision, precision))
        return quantizer

    return make


ARM = "arm.quantizer.arm_quantizer"
CADENCE = "cadence.aot.quantizer.quantizer"
VULKAN = "vulkan.quantizer.vulkan_quantizer"
QUALCOMM = "qualcomm.quantizer.quantizer"
OPENVINO = "openvino.quantizer.quantizer"
COREML = "apple.coreml.quantizer"
XNNPACK = "xnnpack.quantizer.xnnpack_quantizer"
SAMSUNG = "samsung.quantizer.quantizer"

CASES = (
    Case("Arm TOSA int8", ARM, _tosa()),
    Case("Arm TOSA int8, composable", ARM, _tosa(init={"use_composable_quantizer": True})),
    Case("Arm TOSA int8, per tensor", ARM, _tosa(config={"is_per_channel": False})),
    Case("Arm TOSA int16 x 8", ARM, _tosa_16x8),
    Case("Arm Ethos-U int8", ARM, _ethos),
    Case("Arm TOSA int8, QAT", ARM, _tosa(config={"is_qat": True}), is_qat=True),
    Case("Cadence default", CADENCE, lambda m: m.CadenceDefaultQuantizer(), export=_decomposed),
    Case(
        "Cadence fused conv-relu",
        CADENCE,
        lambda m: m.CadenceFusedConvReluQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence with layer norm",
        CADENCE,
        lambda m: m.CadenceWithLayerNormQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence with softmax",
        CADENCE,
        lambda m: m.CadenceWithSoftmaxQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence 16-bit linear inputs",
        CADENCE,
        lambda m: m.CadenceWith16BitLinearActivationsQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence weights 8, float inputs",
        CADENCE,
        lambda m: m.CadenceW8A32MixedQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence default, QAT",
        CADENCE,
        lambda m: m.CadenceDefaultQuantizer(is_qat=True),
        True,
        _decomposed,
    ),
    Case("Core ML int8", COREML, _coreml()),
    Case("Core ML weights only", COREML, _coreml(activation_dtype=torch.float32)),
    Case("Core ML int8, QAT", COREML, _coreml(milestones=[0, 100, 100, 100]), True),
    Case("Cortex-M", "cortex_m.quantizer.quantizer", lambda m: m.CortexMQuantizer()),
    Case("Example", "example.example_quantizer", lambda m: m.ExampleQuantizer()),
    Case("MediaTek", "mediatek.quantizer", lambda m: m.NeuropilotQuantizer()),
    Case("NXP Neutron", "nxp.quantizer.neutron_quantizer", lambda m: m.NeutronQuantizer(None)),
    Case("OpenVINO int8", OPENVINO, _openvino("INT8_SYM")),
    Case("OpenVINO int8 mixed", OPENVINO, _openvino("INT8_MIXED")),
    Case("OpenVINO int8 transformer", OPENVINO, _openvino("INT8_TRANSFORMER")),
    Case("OpenVINO int8 weights only", OPENVINO, _openvino("INT8WO_SYM")),
    Case("OpenVINO int4 weights only", OPENVINO, _openvino("INT4WO_SYM")),
    Case("Qualcomm 8a8w", QUALCOMM, _qualcomm()),
    Case("Qualcomm 8a8w per channel", QUALCOMM, _qualcomm("use_8a8w", is_conv_per_channel=True)),
    Case("Qualcomm 16a8w", QUALCOMM, _qualcomm("use_16a8w")),
    Case("Qualcomm 16a4w", QUALCOMM, _qualcomm("use_16a4w")),
    Case("Qualcomm 8a8w, QAT", QUALCOMM, _qualcomm("use_8a8w", is_qat=True), True),
    Case("Samsung A8W8", SAMSUNG, _samsung("A8W8")),
    Case("Vulkan int8 weights", VULKAN, _vulkan()),
    Case("Vulkan dynamic", VULKAN, _vulkan(is_dynamic=True)),
    Case("Vulkan int4 weights", VULKAN, _vulkan(weight_bits=4)),
    Case("XNNPACK static", XNNPACK, _xnnpack(is_per_channel=True)),
    Case("XNNPACK dynamic", XNNPACK, _xnnpack(is_per_channel=True, is_dynamic=True)),
    Case("XNNPACK QAT", XNNPACK, _xnnpack(is_per_channel=True, is_qat=True), True),
)
