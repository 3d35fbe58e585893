"""What an ONNX file is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pt2q.deploy.finished_file import FinishedFile, Method, Slot
from pt2q.deploy.onnx.file_info import stored_bytes
from pt2q.deploy.onnx.state import NEXT, State
from pt2q.deploy.provenance import read_provenance
from pt2q.errors import DataError
from pt2q.library_output import cause_line
from pt2q.optional import optional_modules


def describe(path: Path) -> FinishedFile:
    """Read what an ONNX file is, without its weights.

    Args:
        path: the file.

    Raises:
        DataError: it is no ONNX model.
        MissingDependencyError: onnx is not installed.
    """
    (ir,) = optional_modules("onnx_ir", extra="onnx")
    try:
        model = ir.load(str(path))
    except Exception as error:
        raise DataError(f"{path} is no ONNX model: {cause_line(error)}") from error
    stored = stored_bytes(model).most_common()
    size = path.stat().st_size + sum(file.stat().st_size for file in _data_files(model, path))
    rest = size - sum(count for _, count in stored)
    return FinishedFile(
        str(path),
        f"ONNX, opset {model.opset_imports.get('', '?')}",
        (_method(ir, model),),
        (*((f"constants, {kind}", count) for kind, count in stored), ("graph", max(rest, 0))),
        read_provenance(model.metadata_props),
    )


def _method(ir: Any, model: Any) -> Method:
    carried, graph = State.read(model.metadata_props), model.graph
    results = {f"{name}{NEXT}" for name in carried.initial}
    operators = Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(graph))
    return Method(
        "",
        tuple(_slot(value, value.name in carried.initial) for value in graph.inputs),
        tuple(_slot(value, value.name in results) for value in graph.outputs),
        tuple(operators.most_common()),
    )


def _slot(value: Any, is_state: bool) -> Slot:
    dtype = str(value.dtype).lower() if value.dtype is not None else "unknown"
    sizes = None
    if value.shape is not None:
        sizes = tuple(str(d) if isinstance(d, int) else str(d.value) for d in value.shape)
    return Slot(str(value.name), f"state {dtype}" if is_state else _torch_name(dtype), sizes)


def _torch_name(dtype: str) -> str:
    return {"float": "float32", "double": "float64"}.get(dtype, dtype)


def _data_files(model: Any, path: Path) -> set[Path]:
    places = (getattr(v.const_value, "location", None) for v in model.graph.initializers.values())
    beside = {path.with_name(str(place)) for place in places if place is not None}
    missing = next((file for file in beside if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{path} reads its weights from {missing}, which is missing")
    return beside
