"""The values inside a file that ONNX Runtime computes, after its fusions."""

from __future__ import annotations

import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pt2q.deploy.onnx.session import OnnxSession
from pt2q.errors import DataError
from pt2q.optional import optional_modules

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class InnerValues:
    """Runs a file and gives the values that it stores as integers, as real numbers.

    The integers are made outputs of the file, not what they are made from: so kernels are fused as
    ever, and what is seen is what they compute. A file that carries state is not looked into.

    Args:
        path: what `pt2q.deploy.onnx.export` wrote of a converted model.

    Raises:
        DataError: the file cannot be read, or carries state.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        (onnx,) = optional_modules("onnx", extra="onnx")
        session = OnnxSession(Path(path))
        if session.state:
            raise DataError(f"{path}: it carries state from call to call and is not looked into")
        model = onnx.load(str(path))
        self._quantized = _quantized(onnx, model.graph)
        self._given = len(session.outputs)
        known = {output.name for output in model.graph.output}
        self._names = [name for _, name, _, _ in self._quantized if name not in known]
        model.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name) for name in self._names
        )
        self._folder = tempfile.TemporaryDirectory(prefix="pt2q-values-")
        changed = Path(self._folder.name) / "values.onnx"
        onnx.save(model, str(changed), save_as_external_data=_is_large(model))
        self._session = OnnxSession(changed)

    def kernels(self) -> dict[str, int]:
        """The operators that run, after fusions; see `OnnxSession.kernels`."""
        return self._session.kernels()

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The values of one run, by the names of the nodes that compute them.

        Args:
            inputs: in the order of the exported inputs.
        """
        results = self._session(*inputs)
        stored = dict(zip(self._session.outputs, results, strict=True))
        return {
            source: (stored[name].to(torch.float32) - zero) * scale
            for source, name, scale, zero in self._quantized
            if name in stored
        }


def _is_large(model: Any) -> bool:
    return bool(model.ByteSize() > 1 << 30)


def _quantized(onnx: Any, graph: Any) -> list[tuple[str, str, float, float]]:
    """Source, name, scale and zero point of each value that is stored with one scale."""
    constants = {t.name: t for t in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type != QUANTIZE or not all(n in constants for n in node.input[1:]):
            continue
        numbers = [
            onnx.numpy_helper.to_array(constants[n]).astype("float32") for n in node.input[1:]
        ]
        if all(array.size == 1 for array in numbers):
            zero = float(numbers[1].reshape(())) if len(numbers) > 1 else 0.0
            found.append((node.input[0], node.output[0], float(numbers[0].reshape(())), zero))
    return found
