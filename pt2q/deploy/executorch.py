"""Lower a converted program to an ExecuTorch `.pte` with XNNPACK, save it, run it.

`lower` exports the converted module again, gives what XNNPACK can run to its delegate and packs
the rest with portable kernels. `Program.delegation` says which is which.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from pt2q import ops
from pt2q.deploy.quiet import captured_stderr, quiet_python
from pt2q.errors import DataError, InputShapeError, LoweringError, MissingDependencyError
from pt2q.io import write_bytes

logger = logging.getLogger(__name__)

# Compute that XNNPACK has int8 kernels for; one of these left to a portable kernel between
# a dequantize and a quantize runs in float and is slower than the float program.
_INT8_COMPUTE = (
    ops.CONV
    | ops.CONV_GENERIC
    | ops.LINEAR
    | ops.ADDMM
    | ops.MM
    | ops.BMM
    | ops.ADD
    | ops.SUB
    | ops.MUL
    | ops.CAT
)
_QUANTIZATION = ops.QUANTIZE | ops.DEQUANTIZE | ops.CHOOSE_QPARAMS


@dataclass(frozen=True)
class Delegation:
    """Who runs what in a lowered program.

    Attributes:
        delegated: number of operators given to XNNPACK, without the quantizes and dequantizes
            that it absorbs, so that a float and an int8 program compare.
        blobs: number of delegated subgraphs they are packed into.
        portable: (operator, count) of what portable kernels run, most frequent first.
        quantized_left: names of quantized compute operators that were not delegated.
    """

    delegated: int
    blobs: int
    portable: tuple[tuple[str, int], ...]
    quantized_left: tuple[str, ...]

    @property
    def left(self) -> int:
        """Number of operators that portable kernels run."""
        return sum(count for _, count in self.portable)

    def __str__(self) -> str:
        """A few lines for a terminal."""
        total = self.delegated + self.left
        lines = [
            f"{self.delegated} of {total} operators delegated to XNNPACK, {self.blobs} blob(s)"
        ]
        lines += [f"  portable: {count:4d} x {name}" for name, count in self.portable]
        lines += [f"  quantized but not delegated: {name}" for name in self.quantized_left]
        return "\n".join(lines)


@dataclass(frozen=True)
class Program:
    """A lowered program: the bytes of a `.pte` and who runs what in it."""

    buffer: bytes = field(repr=False)
    delegation: Delegation

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the `.pte`; an interrupted save leaves no half-written file behind.

        Args:
            path: the file to write; its folder is made when missing.

        Returns:
            The path written.

        Raises:
            SaveError: the file cannot be written there.
        """
        return write_bytes(path, self.buffer)

    def load(self) -> LoadedProgram:
        """Load the program into the ExecuTorch runtime."""
        return load(self.buffer)


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


def lower(
    converted: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """Lower a converted (or plain float) model to an ExecuTorch program that runs on XNNPACK.

    Args:
        converted: what `convert_pt2e` gave, any module that `torch.export` takes, or a program
            that is exported already (then the other arguments are not used).
        args: example inputs.
        kwargs: example keyword inputs.
        dynamic_shapes: as for `torch.export.export`. A model with convolutions that is exported
            with an example batch below 16 runs up to batch 15 only; give 16 or more.

    Returns:
        The program with its delegation.

    Raises:
        LoweringError: the model cannot be lowered; the message says why.
        MissingDependencyError: executorch is not installed.
    """
    exir, partitioner = _exir()
    program = _exported(converted, args, kwargs, dynamic_shapes)
    _refuse_uint8(program.graph)
    try:
        with quiet_python():
            edge = exir.to_edge_transform_and_lower(program, partitioner=[partitioner()])
            # Before packing, which rewrites the graph into allocations and out variants.
            delegation = _delegation(edge.exported_program().graph_module)
            buffer = bytes(edge.to_executorch().buffer)
    except Exception as error:
        raise LoweringError(f"ExecuTorch could not lower the model: {_brief(error)}") from error
    return Program(buffer, delegation)


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


def measure_latency(
    a: LoadedProgram, b: LoadedProgram, inputs: Sequence[Tensor], repeats: int = 50
) -> tuple[float, float]:
    """Median time of one run of each program, in milliseconds.

    The runs alternate, and so does which program goes first, so that a busy machine slows both
    alike. Trust the ratio more than the times.

    Args:
        a: the first program.
        b: the second program; it takes the same inputs.
        inputs: what both are called with.
        repeats: runs of each program, after a few that are not counted.
    """
    pair = (a.method(), b.method())
    for _ in range(3):
        for method in pair:
            method(*inputs)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            pair[which](*inputs)
            times[which].append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[0]), 1e3 * statistics.median(times[1])


# -------------------------------------------------------------------------------------- lowering


def _exir() -> tuple[Any, Any]:
    try:
        with quiet_python():
            from executorch import exir
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
    except ImportError as error:
        raise _missing(error) from error
    return exir, XnnpackPartitioner


def _missing(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f'ExecuTorch is not installed ({error}): pip install "pt2q[executorch]"'
    )


def _exported(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    if isinstance(model, ExportedProgram):
        return model
    try:
        with quiet_python():
            return torch.export.export(
                model, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes
            )
    except Exception as error:
        raise LoweringError(
            f"torch.export could not capture the model with the given inputs: {_brief(error)}"
        ) from error


def _refuse_uint8(graph: Graph) -> None:
    for node in graph.nodes:
        if not ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE):
            continue
        if torch.uint8 in (*node.args, *node.kwargs.values()):
            raise LoweringError(
                f"{node.name} is uint8, and XNNPACK computes in int8 alone. Quantize with "
                "XNNPACKQuantizer; uint8 activations are for Inductor and ONNX Runtime."
            )


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


# ------------------------------------------------------------------------------------ delegation


def _delegation(module: GraphModule) -> Delegation:
    lowered = _lowered_modules(module)
    inside = [n for blob in lowered.values() for n in blob.original_module.graph.nodes]
    delegated = sum(_is_operator(n) and _overload(n) not in _QUANTIZATION for n in inside)
    left = [node for node in module.graph.nodes if _is_operator(node) and not _calls(node, lowered)]
    counts = Counter(_operator_name(node) for node in left)
    names = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    quantized = tuple(node.name for node in left if _is_quantized_compute(node))
    return Delegation(delegated, len(lowered), tuple(names), quantized)


def _lowered_modules(module: GraphModule) -> dict[str, Any]:
    named = {n.name: getattr(module, str(n.target), None) for n in module.graph.nodes}
    return {name: value for name, value in named.items() if hasattr(value, "original_module")}


def _is_operator(node: Node) -> bool:
    return node.op == "call_function" and node.target is not ops.GETITEM


def _calls(node: Node, lowered: Mapping[str, Any]) -> bool:
    return any(source.name in lowered for source in node.all_input_nodes)


def _overload(node: Node) -> Any:
    """The ATen overload behind a node; the edge dialect wraps overloads in a class of its own."""
    wrapped = getattr(node.target, "_op", None)
    return wrapped if isinstance(wrapped, torch._ops.OpOverload) else node.target


def _operator_name(node: Node) -> str:
    target = _overload(node)
    return str(target) if isinstance(target, torch._ops.OpOverload) else str(node.target)


def _is_quantized_compute(node: Node) -> bool:
    if _overload(node) not in _INT8_COMPUTE:
        return False
    dequantized = sum(_overload(source) in ops.DEQUANTIZE for source in node.all_input_nodes)
    quantized = any(_overload(user) in ops.QUANTIZE for user in node.users)
    return dequantized >= 2 or (dequantized == 1 and quantized)


# --------------------------------------------------------------------------------------- runtime


def _runtime() -> Any:
    try:
        with quiet_python(), captured_stderr():
            from executorch.runtime import Runtime

            return Runtime.get()
    except ImportError as error:
        raise _missing(error) from error


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
        tensor = meta.input_tensor_meta(index)
    except RuntimeError:  # a number, not a tensor
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
