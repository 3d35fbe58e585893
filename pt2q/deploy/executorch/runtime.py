"""Load `.pte` programs into the ExecuTorch runtime and call them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pt2q.deploy.library_output import captured_stderr
from pt2q.deploy.optional import optional_modules
from pt2q.errors import DataError, InputShapeError, LoweringError

logger = logging.getLogger(__name__)


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
        self._inputs = tuple(_input_meta(meta, index) for index in range(meta.num_inputs()))

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
        for index, (x, (dtype, bounds)) in enumerate(zip(inputs, self._inputs, strict=True)):
            if dtype is None:
                continue
            if not isinstance(x, Tensor):
                raise InputShapeError(
                    f"input {index} of method {self.name!r} has to be a tensor, "
                    f"got {type(x).__name__}"
                )
            if x.dtype != dtype:
                raise InputShapeError(
                    f"input {index} of method {self.name!r} has to be {dtype}, got {x.dtype}"
                )
            # A dynamic dimension reports its upper bound; the runtime checks static ones.
            fits = x.dim() == len(bounds) and all(map(int.__le__, x.shape, bounds))
            if not fits:
                raise InputShapeError(
                    f"input {index} of method {self.name!r} takes shapes up to {bounds}, "
                    f"got {tuple(x.shape)}"
                )


class LoadedProgram:
    """A program in the ExecuTorch runtime; calling it runs `forward`."""

    def __init__(self, data: bytes) -> None:
        runtime = _runtime()
        with captured_stderr() as log:
            program = _load_native(runtime, data)
        logger.debug("ExecuTorch: %s", log.text)
        if isinstance(program, Exception):
            raise DataError(
                f"{len(data)} bytes are not a complete ExecuTorch program: "
                f"{log.last_line or program}. Write it again with Program.save()."
            ) from program
        self._runtime, self._data, self._program = runtime, data, program
        self._methods: dict[str, LoadedMethod] = {}

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods of the program, sorted."""
        return tuple(sorted(self._program.method_names))

    def method(self, name: str = "forward") -> LoadedMethod:
        """A method by name, safe to keep when the program object is gone.

        Raises:
            LoweringError: there is no such method, or it needs a kernel the runtime lacks.
        """
        if name not in self._program.method_names:
            raise LoweringError(f"no method {name!r}; the program has {list(self.method_names)}")
        if name not in self._methods:
            loaded = LoadedMethod(self._runtime, self._data, self._program, name)
            self._methods[name] = loaded
        return self._methods[name]

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run `forward`; see `LoadedMethod`."""
        return self.method()(*inputs)


def load(source: str | PathLike[str] | bytes) -> LoadedProgram:
    """Load a `.pte` into the ExecuTorch runtime.

    Args:
        source: a path, or the bytes themselves. A file is read whole, so it may be replaced or
            deleted afterwards.

    Raises:
        DataError: the file is missing, truncated or no ExecuTorch program.
        MissingDependencyError: executorch is not installed.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return LoadedProgram(bytes(source))
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error
    try:
        return LoadedProgram(data)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _runtime() -> Any:
    with captured_stderr():
        (runtime,) = optional_modules("executorch.runtime", extra="executorch")
        return runtime.Runtime.get()


def _load_native(runtime: Any, data: bytes) -> Any:
    """The native program, or the error: it is raised once the captured log is complete."""
    try:
        return runtime.load_program(data)
    except RuntimeError as error:
        return error


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


def _input_meta(meta: Any, index: int) -> tuple[torch.dtype | None, tuple[int, ...]]:
    try:
        with captured_stderr():
            tensor = meta.input_tensor_meta(index)
    except (IndexError, RuntimeError):  # a number, not a tensor
        return None, ()
    return _DTYPES.get(tensor.dtype()), tuple(tensor.sizes())


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
