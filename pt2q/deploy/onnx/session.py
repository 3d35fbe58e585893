"""An ONNX file in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pt2q.deploy.onnx.state import Carrier, State
from pt2q.deploy.provenance import read_provenance
from pt2q.errors import DataError, InputShapeError
from pt2q.library_output import cause_line
from pt2q.optional import optional_modules

FLOAT8_KEY = "pt2q.float8"
"""Metadata of files that ONNX Runtime must not optimize: it leaves out a relu before float8."""


class OnnxSession:
    """An ONNX file in ONNX Runtime on the CPU; called with tensors, gives a tuple of tensors.

    Its threads do not spin while they wait: beside a busy neighbour that costs many times what
    it wins.
    """

    def __init__(self, path: Path, threads: int | None = None, fuse: bool = True) -> None:
        (self._runtime,) = optional_modules("onnxruntime", extra="onnx")
        self.path = path
        self._fuse = fuse
        self._session = self._open(self._session_options(threads))
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._carrier = Carrier(
            [i.name for i in self._session.get_inputs()],
            [o.name for o in self._session.get_outputs()],
            State.read(metadata),
        )
        self.provenance = read_provenance(metadata)
        self.inputs, self.outputs = self._carrier.inputs, self._carrier.outputs

    @property
    def state(self) -> dict[str, Any]:
        """What is carried to the next call, by name."""
        return self._carrier.state

    def reset(self) -> None:
        """Go back to the state that the file starts from."""
        self._carrier.reset()

    def _session_options(self, threads: int | None) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # By default products with stored 8- or 4-bit weights round their activations to int8.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.log_severity_level = 3
        if not self._fuse:
            options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options

    def _open(self, options: Any) -> Any:
        if not self.path.is_file():
            raise DataError(f"cannot read {self.path}: no such file")
        with suppress(Exception):  # of float8 its fusions make operators that it lacks
            session = self._start(options)
            if FLOAT8_KEY not in session.get_modelmeta().custom_metadata_map:
                return session
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return self._start(options)
        except Exception as error:
            raise DataError(f"ONNX Runtime cannot load {self.path}: {cause_line(error)}") from error

    def _start(self, options: Any) -> Any:
        return self._runtime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model; what it writes is carried to the next call, or into the inputs.

        Args:
            inputs: tensors in the order of the exported inputs.

        Raises:
            InputShapeError: the number, type or shape of the inputs does not fit.
        """
        feed = self._carrier.feed(inputs)
        try:
            results = self._session.run(self._carrier.results, feed)
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise InputShapeError(
                f"ONNX Runtime failed on inputs of shapes {shapes}: {cause_line(error)}"
            ) from error
        return self._carrier.take(inputs, results)

    def kernels(self) -> dict[str, int]:
        """The operators ONNX Runtime runs after its fusions, most frequent first.

        ``QLinearConv``, ``QLinearAdd``, ``MatMulIntegerToFloat`` and the like compute in int8.
        """
        (onnx,) = optional_modules("onnx", extra="onnx")
        with tempfile.TemporaryDirectory() as folder:
            options = self._session_options(1)
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            self._open(options)
            graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        return dict(Counter(node.op_type for node in graph.node).most_common())


def load(
    path: str | PathLike[str], *, threads: int | None = None, fuse: bool = True
) -> OnnxSession:
    """Open an ONNX file in ONNX Runtime.

    Args:
        path: the file.
        threads: how many it computes with; None takes torch's number.
        fuse: False runs the quantizes and dequantizes one by one, as the file says: slow, and
            what the converted model computes. Fused kernels round once less, which may shift a
            value by one step.

    Raises:
        DataError: the file is missing or no model.
        MissingDependencyError: onnxruntime is not installed.
    """
    return OnnxSession(Path(path), threads, fuse)
