"""What a model can be quantized for, by name: a quantizer, a form to deploy in, and its limits.

The command line and recipes choose from `BACKENDS`. What a backend needs is imported when it is
used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.app.calibration import Batch, Signature
from pt2q.errors import DataError

if TYPE_CHECKING:
    from pt2q.quantizers import QuantizationConfig, TableQuantizer

Run = Callable[[Batch], Sequence[Any]]
"""Runs one batch; gives the outputs, flat."""


@dataclass(frozen=True)
class Example:
    """What export needs beside the model.

    Args:
        signature: how the model is called.
        batch: one batch of inputs.
        dynamic_shapes: as for ``torch.export.export``.
    """

    signature: Signature
    batch: Batch
    dynamic_shapes: Any = None


@dataclass(frozen=True)
class Deployed:
    """A model in the form that its backend runs, on disk.

    Attributes:
        size: bytes of the file.
        run: runs it, in the backend or in a runtime that reads the same file.
        rows: (name, text) for a summary: what runs where.
        warnings: what the user should know, a line each.
    """

    size: int
    run: Run
    rows: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backend:
    """One row of `BACKENDS`.

    Args:
        name: what the user says.
        title: what it is.
        suffix: of the file to deploy.
        modes: of ``static`` and ``dynamic``, those it runs.
        activation_dtype: what it takes activations in.
        config: its configuration for a mode.
        quantizer: a quantizer with no statement made.
        deploy: writes a converted model; the last argument is the path.
        deploys_float: a float model can be written in the same form in little time.
        scales: of ``channel`` and ``tensor``, what its weights may have a scale for.
    """

    name: str
    title: str
    suffix: str
    modes: tuple[str, ...]
    activation_dtype: str
    config: Callable[[str], QuantizationConfig]
    quantizer: Callable[[], TableQuantizer]
    deploy: Callable[[GraphModule | ExportedProgram, Example, Path], Deployed]
    deploys_float: bool = True
    scales: tuple[str, ...] = ("channel", "tensor")


# ------------------------------------------------------------------ ExecuTorch


def _xnnpack_config(mode: str) -> QuantizationConfig:
    from pt2q.quantizers import get_symmetric_quantization_config

    return get_symmetric_quantization_config(is_per_channel=True, is_dynamic=mode == "dynamic")


def _xnnpack() -> TableQuantizer:
    from pt2q.quantizers import XNNPACKQuantizer

    return XNNPACKQuantizer()


def _to_executorch(model: GraphModule | ExportedProgram, example: Example, path: Path) -> Deployed:
    from pt2q.deploy.executorch import lower

    if isinstance(model, ExportedProgram):
        program = lower(model)
    else:
        args, kwargs = example.signature.call(example.batch)
        program = lower(model, args, kwargs=kwargs, dynamic_shapes=example.dynamic_shapes)
    loaded = program.load()
    program.save(path)
    found = program.delegation
    portable = "\n".join(f"{count} x {name}" for name, count in found.portable) or "none"
    return Deployed(
        len(program.buffer),
        lambda batch: loaded(*example.signature.leaves(batch)),
        (
            ("runs on XNNPACK", f"{found.delegated} of {found.delegated + found.left} operators"),
            ("portable", portable),
        ),
        tuple(f"{name} is quantized but XNNPACK does not run it" for name in found.quantized_left),
    )


# ------------------------------------------------------------------ Inductor


def _x86_config(mode: str) -> QuantizationConfig:
    from pt2q.quantizers import get_default_x86_inductor_quantization_config

    return get_default_x86_inductor_quantization_config(is_dynamic=mode == "dynamic")


def _x86() -> TableQuantizer:
    from pt2q.quantizers import X86InductorQuantizer

    return X86InductorQuantizer()


def _to_inductor(model: GraphModule | ExportedProgram, example: Example, path: Path) -> Deployed:
    from torch.utils import _pytree as pytree

    from pt2q.deploy import inductor

    args, kwargs = example.signature.call(example.batch)
    inductor.package(model, args, path, kwargs=kwargs, dynamic_shapes=example.dynamic_shapes)
    loaded = inductor.load_package(path)

    def run(batch: Batch) -> Sequence[Any]:
        args, kwargs = example.signature.call(batch)
        return list(pytree.tree_leaves(loaded(*args, **kwargs)))

    report = inductor.fusion_report(model, args, kwargs=kwargs)  # type: ignore[arg-type]
    computes = len(report.fused) + len(report.not_fused)
    return Deployed(
        path.stat().st_size,
        run,
        (("int8 kernels", f"{len(report.fused)} of {computes} convolutions and products"),),
        tuple(
            f"{row.node} is quantized but computes in float: {row.detail}"
            for row in report.not_fused
        ),
    )


# ------------------------------------------------------------------ ONNX


def _onnxruntime_config(mode: str) -> QuantizationConfig:
    from pt2q.quantizers import get_onnxruntime_quantization_config

    return get_onnxruntime_quantization_config(is_dynamic=mode == "dynamic")


def _tensorrt_config(mode: str) -> QuantizationConfig:
    from pt2q.quantizers import get_tensorrt_quantization_config

    return get_tensorrt_quantization_config()


def _onnx(preset: str) -> Callable[[], TableQuantizer]:
    def make() -> TableQuantizer:
        from pt2q.quantizers import OnnxQDQQuantizer

        made: TableQuantizer = getattr(OnnxQDQQuantizer, preset)()
        return made

    return make


def _to_onnx(model: GraphModule | ExportedProgram, example: Example, path: Path) -> Deployed:
    from pt2q.deploy import onnx

    args, kwargs = example.signature.call(example.batch)
    written = onnx.export(model, args, path, kwargs=kwargs, dynamic_shapes=example.dynamic_shapes)
    session = onnx.load(path)
    rows = (("opset", str(written.opset)), ("compared in", "ONNX Runtime"))
    return Deployed(written.size, lambda batch: session(*batch), rows)


def _to_onnxruntime(model: GraphModule | ExportedProgram, example: Example, path: Path) -> Deployed:
    from pt2q.deploy import onnx

    deployed = _to_onnx(model, example, path)
    counts = onnx.load(path).kernels().items()
    integers = ", ".join(f"{count} {name}" for name, count in counts if name.startswith(_INTEGER))
    return replace(deployed, rows=(deployed.rows[0], ("integer kernels", integers or "none")))


_INTEGER = (
    "QLinear",
    "QGemm",
    "QAttention",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
)


# ------------------------------------------------------------------ the table

_BOTH = ("static", "dynamic")

BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "xnnpack",
            "ExecuTorch with XNNPACK, a .pte program",
            ".pte",
            _BOTH,
            "int8",
            _xnnpack_config,
            _xnnpack,
            _to_executorch,
        ),
        Backend(
            "x86",
            "Inductor on x86 processors, a compiled .pt2 package",
            ".pt2",
            _BOTH,
            "uint8",
            _x86_config,
            _x86,
            _to_inductor,
            deploys_float=False,
            scales=("channel",),
        ),
        Backend(
            "onnxruntime",
            "ONNX Runtime on processors, an .onnx file",
            ".onnx",
            _BOTH,
            "uint8",
            _onnxruntime_config,
            _onnx("onnxruntime"),
            _to_onnxruntime,
        ),
        Backend(
            "openvino",
            "OpenVINO, an .onnx file",
            ".onnx",
            ("static",),
            "uint8",
            _onnxruntime_config,
            _onnx("openvino"),
            _to_onnx,
        ),
        Backend(
            "tensorrt",
            "TensorRT, an .onnx file",
            ".onnx",
            ("static",),
            "int8",
            _tensorrt_config,
            _onnx("tensorrt"),
            _to_onnx,
        ),
    )
}


def backend_named(name: str) -> Backend:
    """Look a backend up.

    Raises:
        DataError: there is no such backend.
    """
    if name not in BACKENDS:
        raise DataError(f"unknown backend {name!r}: choose from {', '.join(BACKENDS)}")
    return BACKENDS[name]
