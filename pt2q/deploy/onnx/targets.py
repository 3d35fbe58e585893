"""The runtimes that read ONNX files as backends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pt2q.deploy.backend import ActivationMode, Backend, Deployed, Example, Model
from pt2q.deploy.onnx.session import load
from pt2q.deploy.onnx.writing import export
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    QuantizationConfig,
    get_onnxruntime_quantization_config,
    get_tensorrt_quantization_config,
)

_INTEGER = (
    "QLinear",
    "QGemm",
    "QAttention",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
)
"""How the names of ONNX Runtime's integer kernels begin."""


def _onnxruntime_config(mode: ActivationMode) -> QuantizationConfig:
    return get_onnxruntime_quantization_config(is_dynamic=mode == "dynamic")


def _tensorrt_config(mode: ActivationMode) -> QuantizationConfig:
    return get_tensorrt_quantization_config()


def _deploy(model: Model, example: Example, path: Path) -> Deployed:
    shapes = example.dynamic_shapes
    written = export(model, example.args, path, kwargs=example.kwargs, dynamic_shapes=shapes)
    session = load(path)
    rows = (("opset", str(written.opset)), ("compared in", "ONNX Runtime"))
    return Deployed(written.size, lambda batch: session(*batch), rows)


def _deploy_to_onnxruntime(model: Model, example: Example, path: Path) -> Deployed:
    deployed = _deploy(model, example, path)
    counts = load(path).kernels().items()
    integers = ", ".join(f"{count} {name}" for name, count in counts if name.startswith(_INTEGER))
    return replace(deployed, rows=(deployed.rows[0], ("integer kernels", integers or "none")))


ONNXRUNTIME = Backend(
    name="onnxruntime",
    title="ONNX Runtime on processors, an .onnx file",
    suffix=".onnx",
    quantizer=OnnxQDQQuantizer.onnxruntime,
    config=_onnxruntime_config,
    deploy=_deploy_to_onnxruntime,
)

OPENVINO = Backend(
    name="openvino",
    title="OpenVINO, an .onnx file",
    suffix=".onnx",
    quantizer=OnnxQDQQuantizer.openvino,
    config=_onnxruntime_config,
    deploy=_deploy,
    modes=("static",),
)

TENSORRT = Backend(
    name="tensorrt",
    title="TensorRT, an .onnx file",
    suffix=".onnx",
    quantizer=OnnxQDQQuantizer.tensorrt,
    config=_tensorrt_config,
    deploy=_deploy,
    modes=("static",),
)
