"""One method of a program in the ExecuTorch runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pt2q.deploy.given_tensors import why_no_memory
from pt2q.errors import InputShapeError, LoweringError
from pt2q.library_output import captured_stderr

# ExecuTorch numbers its scalar types as c10::ScalarType does.
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}


@dataclass(frozen=True)
class MethodInput:
    """What a method takes in one place.

    Args:
        dtype: of a tensor; None for a number, which is not checked.
        bounds: the largest sizes of a tensor. A dynamic dimension has its upper bound here; the
            runtime checks static ones.
    """

    dtype: torch.dtype | None
    bounds: tuple[int, ...] = ()

    def why_not(self, x: Any) -> str:
        """What is wrong with a value; "" if it fits."""
        if isinstance(x, Tensor) and (wrong := why_no_memory(x)):
            return wrong
        if self.dtype is None:
            return ""
        if not isinstance(x, Tensor):
            return f"has to be a tensor, got {type(x).__name__}"
        if x.dtype != self.dtype:
            return f"has to be {self.dtype}, got {x.dtype}"
        if x.dim() != len(self.bounds) or not all(map(int.__le__, x.shape, self.bounds)):
            return f"takes shapes up to {self.bounds}, got {tuple(x.shape)}"
        return ""


class LoadedMethod:
    """One method of a loaded program, callable.

    The native method points into its program and the program into the bytes, and neither keeps
    the other alive; this object holds all of them, so it is safe to keep by itself.
    """

    def __init__(self, runtime: Any, data: bytes, program: Any, name: str) -> None:
        self.name = name
        self._runtime, self._data, self._program = runtime, data, program
        self._method = _load_method(program, name)
        meta = self._method.metadata
        self._inputs = tuple(_method_input(meta, i) for i in range(meta.num_inputs()))

    @property
    def bounds(self) -> tuple[tuple[int, ...], ...]:
        """The largest sizes of each input; none for one that is no tensor."""
        return tuple(item.bounds for item in self._inputs)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the method.

        Args:
            inputs: tensors (and constants) as the program was exported for, in order.

        Returns:
            The outputs, as tensors of their own memory.

        Raises:
            InputShapeError: the number, dtype or shape of the inputs does not fit.
            LoweringError: the runtime failed.
        """
        self._check(inputs)
        try:
            return tuple(self._method.execute(tuple(map(_dense, inputs))))
        except RuntimeError as error:
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in inputs]
            raise LoweringError(
                f"ExecuTorch failed to run method {self.name!r} on inputs of shapes {shapes}: "
                f"{error}. The runtime's own log on standard error says why."
            ) from error

    def _check(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self._inputs):
            raise InputShapeError(
                f"method {self.name!r} takes {len(self._inputs)} input(s), got {len(inputs)}"
            )
        for index, (x, expected) in enumerate(zip(inputs, self._inputs, strict=True)):
            wrong = expected.why_not(x)
            if wrong:
                raise InputShapeError(f"input {index} of method {self.name!r} {wrong}")


def _load_method(program: Any, name: str) -> Any:
    failure: RuntimeError | None = None
    with captured_stderr() as log:
        try:
            return program.load_method(name)
        except RuntimeError as error:
            failure = error
    raise LoweringError(
        f"ExecuTorch could not load method {name!r}: {log.last_line or failure}"
    ) from failure


def _dense(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


def _method_input(meta: Any, index: int) -> MethodInput:
    try:
        with captured_stderr():
            tensor = meta.input_tensor_meta(index)
    except (IndexError, RuntimeError):  # a number, not a tensor
        return MethodInput(None)
    return MethodInput(_DTYPES.get(tensor.dtype()), tuple(tensor.sizes()))
