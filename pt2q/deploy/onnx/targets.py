"""The runtimes that read ONNX files as backends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pt2q.deploy.backend import ActivationMode, Backend, Deployed, Example, Model
from pt2q.deploy.onnx.file_info import OnnxProgramInfo
from pt2q.deploy.onnx.inner_values import InnerValues
from pt2q.deploy.onnx.openvino_session import OpenVinoSession
from pt2q.deploy.onnx.session import load
from pt2q.deploy.onnx.writing import export
from pt2q.errors import MissingDependencyError
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    QuantizationConfig,
    get_embedding_quantization_config,
    get_onnxruntime_quantization_config,
    get_tensorrt_quantization_config,
    get_weight_only_quantization_config,
    with_weights_alone,
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
    if mode == "weights":
        return get_weight_only_quantization_config()
    return get_onnxruntime_quantization_config(is_dynamic=mode == "dynamic")


def _onnxruntime_quantizer() -> OnnxQDQQuantizer:
    return with_weights_alone(OnnxQDQQuantizer.onnxruntime())


def _openvino_quantizer() -> OnnxQDQQuantizer:
    return with_weights_alone(OnnxQDQQuantizer.openvino())


def _tensorrt_config(mode: ActivationMode) -> QuantizationConfig:
    return get_tensorrt_quantization_config()


def _written(model: Model, example: Example, path: Path) -> OnnxProgramInfo:
    shapes = example.dynamic_shapes
    kwargs = example.kwargs
    return export(model, example.args, path, kwargs=kwargs, dynamic_shapes=shapes, check=False)


def _rows(written: OnnxProgramInfo) -> tuple[tuple[str, str], ...]:
    return (("opset", str(written.opset)),)


def _deploy_to_onnxruntime(model: Model, example: Example, path: Path) -> Deployed:
    written, session = _written(model, example, path), load(path)
    counts = session.kernels().items()
    integers = ", ".join(f"{count} {name}" for name, count in counts if name.startswith(_INTEGER))
    rows = (*_rows(written), ("integer kernels", integers or "none"))
    return Deployed(written.size, lambda batch: session(*batch), rows)


def _inner_values(model: Model, example: Example) -> InnerValues:
    with tempfile.TemporaryDirectory(prefix="pt2q-values-") as folder:
        path = Path(folder) / "model.onnx"
        _written(model, example, path)
        return InnerValues(path)


def _deploy_to_openvino(model: Model, example: Example, path: Path) -> Deployed:
    written = _written(model, example, path)
    try:
        session: Callable[..., Sequence[Any]] = OpenVinoSession(path)
    except MissingDependencyError:
        return _in_onnxruntime(written, path)
    return Deployed(written.size, lambda batch: session(*batch), _rows(written))


def _deploy_to_tensorrt(model: Model, example: Example, path: Path) -> Deployed:
    return _in_onnxruntime(_written(model, example, path), path)


def _in_onnxruntime(written: OnnxProgramInfo, path: Path) -> Deployed:
    """Run in another runtime than the one that it is for, as that is not here."""
    session, where = load(path), "ONNX Runtime: its own is not here"
    return Deployed(written.size, lambda batch: session(*batch), _rows(written), runtime=where)


ONNXRUNTIME = Backend(
    name="onnxruntime",
    title="ONNX Runtime on processors, an .onnx file",
    suffix=".onnx",
    quantizer=_onnxruntime_quantizer,
    modes=("static", "dynamic", "weights"),
    embeddings=get_embedding_quantization_config,
    config=_onnxruntime_config,
    deploy=_deploy_to_onnxruntime,
    runtime="ONNX Runtime",
    inner_values=_inner_values,
)

OPENVINO = Backend(
    name="openvino",
    title="OpenVINO, an .onnx file",
    suffix=".onnx",
    quantizer=_openvino_quantizer,
    embeddings=get_embedding_quantization_config,
    config=_onnxruntime_config,
    deploy=_deploy_to_openvino,
    runtime="OpenVINO",
    modes=("static", "weights"),
)

TENSORRT = Backend(
    name="tensorrt",
    title="TensorRT, an .onnx file",
    suffix=".onnx",
    quantizer=OnnxQDQQuantizer.tensorrt,
    config=_tensorrt_config,
    deploy=_deploy_to_tensorrt,
    runtime="TensorRT",
    modes=("static",),
)
