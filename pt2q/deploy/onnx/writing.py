"""Write a converted model as ONNX with QuantizeLinear / DequantizeLinear, and run it.

The file is what ONNX Runtime, OpenVINO and TensorRT fuse into their int8 kernels. Weights are
stored in the integers they have. `export` checks and writes the file whole or not at all; `load`
opens it in ONNX Runtime.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.deploy.export import require_graph
from pt2q.deploy.library_output import quiet_python
from pt2q.errors import DataError, InputShapeError, LoweringError, MissingDependencyError
from pt2q.files import SaveError, ensure_writable
from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_constant, set_constant
from pt2q.ir.module import QuantGraphModule, copy_module
from pt2q.spec.specs import FLOAT8_DTYPES

LEAST_OPSET = 18
DEFAULT_OPSET = 20
WIDE_OPSET = 21
"""The first with 4-bit and 16-bit integers and with scales per group."""

EXTERNAL_BYTES = 1 << 30
"""Constants beyond this go to a file of their own; a single file ends at 2 GiB."""

_CHANNELWISE = frozenset(
    {
        ops.qd.quantize_per_channel.default,
        ops.qd.dequantize_per_channel.default,
        ops.qd.dequantize_per_channel_group.default,
    }
)
FLOAT8_KEY = "pt2q.float8"
"""Metadata of files that ONNX Runtime must not optimize: it leaves out a relu before float8."""

_WIDE_DTYPES = (torch.int16, torch.uint16)


@dataclass(frozen=True)
class OnnxProgramInfo:
    """What was written.

    Attributes:
        path: the model file.
        opset: the version of ONNX's operators.
        operators: (operator, count), most frequent first.
        size: bytes of the model file and its data file.
        constants: (type, bytes) of what the file stores, largest first.
        data: the file beside it that holds the constants, or None.
    """

    path: Path
    opset: int
    operators: tuple[tuple[str, int], ...]
    size: int
    constants: tuple[tuple[str, int], ...]
    data: Path | None = None

    def count(self, operator: str) -> int:
        """How often the graph calls an operator, 0 if it does not."""
        return dict(self.operators).get(operator, 0)

    def __str__(self) -> str:
        """A few lines for a terminal."""
        stored = ", ".join(f"{kind} {_bytes(size)}" for kind, size in self.constants)
        calls = ", ".join(f"{count} {name}" for name, count in self.operators)
        constants = f" ({stored})" if stored else ""
        return f"{self.path}: opset {self.opset}, {_bytes(self.size)}{constants}\n  {calls}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.2f} kB"


# ------------------------------------------------------------------ writing


def export(
    model: GraphModule | ExportedProgram,
    args: tuple[Any, ...],
    path: str | PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    opset: int | None = None,
    dynamic_shapes: Any = None,
    external_data: bool | None = None,
) -> OnnxProgramInfo:
    """Write a converted model as an ONNX file.

    Args:
        model: what `pt2q.convert_pt2e` gave, or any exported float model.
        args, kwargs: example inputs.
        path: the ``.onnx`` file to write.
        opset: at least 18; None takes 20, or 21 where the model needs it (16-bit activations,
            weights in groups).
        dynamic_shapes: as for ``torch.export.export``.
        external_data: store constants in ``<path>.data``; None does so beyond 1 GiB.

    Returns:
        What was written.

    Raises:
        NotExportedError, FlowError: the model has no graph, or is prepared and not converted.
        LoweringError: the model cannot be exported, or not with this opset.
        SaveError: the file cannot be written there.
        MissingDependencyError: onnx, onnxscript or onnx_ir is not installed.
    """
    require_graph(model)
    path = Path(path)
    ensure_writable(path)
    _import("onnx", "onnxscript", "onnx_ir", "ml_dtypes")
    program = _exported(model, args, kwargs, dynamic_shapes)
    version = _opset(program.graph_module, opset)
    written = _translated(program, version)
    return _save(written, path, version, external_data)


def _import(*names: str) -> list[Any]:
    import importlib

    try:
        with quiet_python():
            return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise MissingDependencyError(
            f'{error.name} is not installed: pip install "pt2q[onnx]"'
        ) from error


def _exported(
    model: GraphModule | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    module: Any = model
    if isinstance(model, ExportedProgram):
        module = model.module(check_guards=False)
    try:
        with quiet_python(), torch.no_grad():
            return torch.export.export(
                for_onnx(module), tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes
            )
    except Exception as error:
        raise LoweringError(
            f"torch.export could not capture the model with the given inputs: {_brief(error)}"
        ) from error


def for_onnx(model: GraphModule) -> QuantGraphModule:
    """A copy whose scales are float32 and whose zero points have the type of their tensor.

    Args:
        model: a converted model; it shares its other tensors with the copy.
    """
    result = copy_module(model, model.record if isinstance(model, QuantGraphModule) else None)
    for node in list(result.graph.nodes):
        if not ops.is_op(node, _CHANNELWISE):
            continue
        _retype(result, node, "scales", torch.float32)
        _retype(result, node, "zero_points", ops.argument(node, "dtype"))
    return copy_module(result, result.record)


def _retype(model: QuantGraphModule, node: Node, name: str, dtype: torch.dtype) -> None:
    source = ops.argument(node, name)
    if not is_constant(source):
        return
    target = f"{source.target}_{str(dtype).removeprefix('torch.')}"
    value = get_constant(model, source)
    if value.dtype is dtype:
        return
    set_constant(model, target, value.detach().to(dtype))
    new = Emitter(model, "pt2q.for_onnx").before(node, origin=source).read(target)
    node.replace_input_with(source, new)


def _opset(model: GraphModule, asked: int | None) -> int:
    wide = next((n for n in model.graph.nodes if _needs_wide(n)), None)
    needed = LEAST_OPSET if wide is None else WIDE_OPSET
    if asked is None:
        return max(DEFAULT_OPSET, needed)
    if type(asked) is not int:
        raise LoweringError(f"opset is a whole number such as {DEFAULT_OPSET}, found {asked!r}")
    if asked < needed:
        why = "torch.onnx writes no older one"
        if wide is not None:
            grouped = wide.target is ops.qd.dequantize_per_channel_group.default
            why = f"{wide.name} has {'a scale per group' if grouped else '16-bit integers'}"
        raise LoweringError(f"opset {asked} is too old: give opset={needed} or later, as {why}")
    return asked


def _needs_wide(node: Node) -> bool:
    if not ops.is_op(node, ops.DEQUANTIZE):
        return False
    grouped = node.target is ops.qd.dequantize_per_channel_group.default
    return grouped or ops.argument(node, "dtype") in _WIDE_DTYPES


def _is_float8(node: Node) -> bool:
    return ops.is_op(node, ops.DEQUANTIZE) and ops.argument(node, "dtype") in FLOAT8_DTYPES


def _translated(program: ExportedProgram, opset: int) -> Any:
    from pt2q.deploy.onnx.rewrites import rewrite
    from pt2q.deploy.onnx.translation import translations

    try:
        with quiet_python(), _quiet_exporter(), torch.no_grad():
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                custom_translation_table=translations(),
            )
            _check_opset(written.model, opset)
            rewrite(written.model, four_bits=opset >= WIDE_OPSET)
        if any(_is_float8(node) for node in program.graph.nodes):
            written.model.metadata_props[FLOAT8_KEY] = "1"
    except LoweringError:
        raise
    except Exception as error:
        raise LoweringError(f"torch.onnx could not write the model: {_brief(error)}") from error
    return written.model


def _check_opset(model: Any, asked: int) -> None:
    """The exporter leaves its own opset where it knows no way to the one asked for."""
    found = model.opset_imports.get("", asked)
    if found != asked:
        raise LoweringError(f"torch.onnx cannot write opset {asked}, only {found}; leave opset out")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about every optional package that is not installed."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        exporter.setLevel(level)


def _save(model: Any, path: Path, opset: int, external: bool | None) -> OnnxProgramInfo:
    """Write beside the target, check what was written, and put it in place in one step."""
    onnx, ir = _import("onnx", "onnx_ir")
    constants = Counter[str]()
    for value in model.graph.initializers.values():
        constants[str(value.dtype).lower()] += value.const_value.nbytes
    if external is None:
        external = sum(constants.values()) > EXTERNAL_BYTES
    data = path.with_name(f"{path.name}.data") if external else None
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        draft = folder / path.name
        ir.save(model, str(draft), external_data=data.name if data is not None else None)
        _check(onnx, draft)
        if data is not None and (folder / data.name).exists():
            os.replace(folder / data.name, data)
        os.replace(draft, path)
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    counts = Counter(node.op_type for node in model.graph)
    size = sum(file.stat().st_size for file in (path, data) if file is not None and file.exists())
    return OnnxProgramInfo(
        path, opset, tuple(counts.most_common()), size, tuple(constants.most_common()), data
    )


def _check(onnx: Any, draft: Path) -> None:
    try:
        onnx.checker.check_model(str(draft), full_check=True)
    except Exception as error:
        raise LoweringError(f"the model written is no valid ONNX: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"


# ------------------------------------------------------------------ running


class OnnxSession:
    """An ONNX file in ONNX Runtime on the CPU; called with tensors, gives a tuple of tensors.

    Its threads do not spin while they wait: beside a busy neighbour that costs many times what
    it wins.
    """

    def __init__(self, path: Path, threads: int | None = None, fuse: bool = True) -> None:
        (self._runtime,) = _import("onnxruntime")
        self.path = path
        self._fuse = fuse
        self._session = self._open(self._session_options(threads))
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

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
            raise DataError(f"ONNX Runtime cannot load {self.path}: {_brief(error)}") from error

    def _start(self, options: Any) -> Any:
        return self._runtime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model.

        Args:
            inputs: tensors in the order of the exported inputs.

        Raises:
            InputShapeError: the number, type or shape of the inputs does not fit.
        """
        if len(inputs) != len(self.inputs):
            raise InputShapeError(f"the model takes {len(self.inputs)} input(s), got {len(inputs)}")
        feed = {
            name: x.detach().contiguous().numpy()
            for name, x in zip(self.inputs, inputs, strict=True)
        }
        try:
            results = self._session.run(None, feed)
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise InputShapeError(
                f"ONNX Runtime failed on inputs of shapes {shapes}: {_brief(error)}"
            ) from error
        return tuple(torch.from_numpy(result) for result in results)

    def kernels(self) -> dict[str, int]:
        """The operators ONNX Runtime runs after its fusions, most frequent first.

        ``QLinearConv``, ``QLinearAdd``, ``MatMulIntegerToFloat`` and the like compute in int8.
        """
        (onnx,) = _import("onnx")
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
