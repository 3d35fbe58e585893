"""The roads: a quantizer, and how its converted model becomes a program of a runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor

from pt2q.deploy import executorch, inductor, onnx
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
)

Run = Callable[..., Any]


@dataclass
class Built:
    """A program of a runtime, its size in bytes, and what it says about its kernels."""

    run: Run
    size: int
    kernels: str = ""


def constants(model: torch.nn.Module) -> int:
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def to_xnnpack(model: Any, args: Any, kwargs: Any, folder: Path) -> Built:
    program = executorch.lower(model, args, kwargs=kwargs)
    loaded = program.load()
    return Built(loaded, len(program.buffer), str(program.delegation).splitlines()[0])


def to_inductor(model: Any, args: Any, kwargs: Any, folder: Path) -> Built:
    compiled = inductor.compile(model)
    compiled(*args, **kwargs)
    names = list(kwargs)

    def run(*flat: Tensor) -> Any:
        return compiled(**dict(zip(names, flat, strict=True))) if names else compiled(*flat)

    return Built(run, constants(compiled.model), str(compiled.fusion).splitlines()[0])


def to_onnxruntime(model: Any, args: Any, kwargs: Any, folder: Path) -> Built:
    info = onnx.export(model, args, folder / f"{time.time_ns()}.onnx", kwargs=kwargs)
    session = onnx.load(info.path, threads=1)
    names = sorted(session.kernels().items(), key=lambda item: -item[1])
    words = [f"{count} {name}" for name, count in names if "Q" in name or "Integer" in name]
    return Built(session, info.size, ", ".join(words))


def to_openvino(model: Any, args: Any, kwargs: Any, folder: Path) -> Built:
    info = onnx.export(model, args, folder / f"{time.time_ns()}.onnx", kwargs=kwargs)
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(info.path), "CPU", settings)

    def run(*flat: Tensor) -> Any:
        return torch.from_numpy(compiled([x.numpy() for x in flat])[0].copy())

    return Built(run, info.size)


def xnnpack(dynamic: bool = False) -> Any:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    return XNNPACKQuantizer().set_global(config)


def x86(dynamic: bool = False) -> Any:
    config = get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    return X86InductorQuantizer().set_global(config)


ROADS: dict[str, tuple[Callable[[], Any], Callable[..., Built]]] = {
    "xnnpack": (xnnpack, to_xnnpack),
    "xnnpack dynamic": (lambda: xnnpack(True), to_xnnpack),
    "inductor": (x86, to_inductor),
    "inductor dynamic": (lambda: x86(True), to_inductor),
    "onnxruntime": (OnnxQDQQuantizer.onnxruntime, to_onnxruntime),
    "onnxruntime dynamic": (lambda: OnnxQDQQuantizer.onnxruntime(is_dynamic=True), to_onnxruntime),
    "openvino": (OnnxQDQQuantizer.openvino, to_openvino),
    "tensorrt preset, onnxruntime": (OnnxQDQQuantizer.tensorrt, to_onnxruntime),
    "tensorrt preset, openvino": (OnnxQDQQuantizer.tensorrt, to_openvino),
}
