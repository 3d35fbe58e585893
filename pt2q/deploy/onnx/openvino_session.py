"""An ONNX file in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pt2q.deploy.onnx.state import Carrier, State
from pt2q.errors import DataError, InputShapeError, LoweringError
from pt2q.library_output import cause_line
from pt2q.optional import optional_modules


class OpenVinoSession:
    """An ONNX file in OpenVINO on the CPU; called with tensors, gives a tuple of tensors.

    What is not quantized is computed in float32, as in the model: by default OpenVINO takes
    bfloat16 where the processor has it.

    Args:
        path: the file.
        threads: how many it computes with; None takes torch's number.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        onnx, openvino = optional_modules("onnx", "openvino", extra="openvino")
        if not path.is_file():
            raise DataError(f"cannot read {path}: no such file")
        count = torch.get_num_threads() if threads is None else threads
        options = {"INFERENCE_NUM_THREADS": count, "INFERENCE_PRECISION_HINT": "f32"}
        try:
            self._compiled: Any = openvino.Core().compile_model(str(path), "CPU", options)
        except Exception as error:
            raise LoweringError(f"OpenVINO cannot compile {path.name}: {_reason(error)}") from error
        model = onnx.load(str(path), load_external_data=False)
        self._carrier = Carrier(
            [value.name for value in model.graph.input],
            [value.name for value in model.graph.output],
            State.read({entry.key: entry.value for entry in model.metadata_props}),
        )

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model.

        Args:
            inputs: tensors in the order of the exported inputs.

        Raises:
            InputShapeError: the number, type or shape of the inputs does not fit.
        """
        try:
            results = self._compiled(self._carrier.feed(inputs))
        except InputShapeError:
            raise
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise InputShapeError(
                f"OpenVINO failed on inputs of shapes {shapes}: {cause_line(error)}"
            ) from error
        arrays = [np.array(results[o]) for o in self._compiled.outputs]
        return self._carrier.take(inputs, arrays)


def _reason(error: Exception) -> str:
    """The line of a message that says why, not where in the library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception from")]
    return (told or lines or ["no message"])[0][:300]
