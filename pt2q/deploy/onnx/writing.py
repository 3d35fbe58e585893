"""From a converted model to an ONNX file."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.deploy.agreement import Call, check_agreement
from pt2q.deploy.export import export_rewritten, require_graph, why_not_groups
from pt2q.deploy.onnx.file_info import OnnxProgramInfo, stored_bytes
from pt2q.deploy.onnx.graph import for_onnx
from pt2q.deploy.onnx.judging import judging_runtime
from pt2q.deploy.onnx.names import output_names, rename
from pt2q.deploy.onnx.opsets import WIDE_OPSET, choose_opset
from pt2q.deploy.onnx.session import FLOAT8_KEY
from pt2q.deploy.onnx.state import KEY as STATE_KEY
from pt2q.deploy.onnx.state import State, without_state
from pt2q.deploy.provenance import KEY as PROVENANCE
from pt2q.deploy.provenance import provenance_text
from pt2q.errors import LoweringError
from pt2q.files import ensure_writable, final_path, outdated, replacing
from pt2q.ir import ops
from pt2q.ir.dtypes import FLOAT8_DTYPES
from pt2q.ir.qparams import read_qparams
from pt2q.ir.torch_private import composites_looked_up_once, translations_read_once
from pt2q.library_output import cause_line, quiet_python
from pt2q.optional import optional_modules

EXTERNAL_BYTES = 1 << 30
"""Constants beyond this go to a file of their own; a single file ends at 2 GiB."""


def export(
    model: GraphModule | ExportedProgram,
    args: tuple[Any, ...],
    path: str | PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    opset: int | None = None,
    dynamic_shapes: Any = None,
    external_data: bool | None = None,
    check: bool = True,
) -> OnnxProgramInfo:
    """Write a converted model as an ONNX file.

    Args:
        model: what `pt2q.convert_pt2e` gave, or any exported float model.
        args, kwargs: example inputs.
        path: the ``.onnx`` file to write. State of the model becomes inputs and outputs of the
            file; see `pt2q.deploy.onnx.state`. `load` carries it from call to call.
        opset: at least 18; None takes 20, or 21 where the model needs it (16-bit activations,
            weights in groups).
        dynamic_shapes: as for ``torch.export.export``.
        external_data: store constants in a file beside it, ``<path>.<digest>.data``; None does so
            beyond 1 GiB. It is in place before the graph, and that of an older graph goes after it.
        check: run the file, and compare it with a converted model on the example inputs before it
            is put in place: in OpenVINO, where the quantizer was for it and it is installed; else
            in ONNX Runtime, where that is.

    Returns:
        What was written.

    Raises:
        NotExportedError, FlowError: the model has no graph, or is prepared and not converted.
        LoweringError: the model cannot be exported, or not with this opset.
        DisagreementError: the file does not compute what the converted model does.
        SaveError: the file cannot be written there.
        MissingDependencyError: onnx, onnxscript or onnx_ir is not installed.
    """
    require_graph(model)
    path = Path(path)
    ensure_writable(path)
    optional_modules("onnx", "onnx_ir", "onnxscript", "ml_dtypes", extra="onnx")
    program = export_rewritten(model, for_onnx, args, kwargs, dynamic_shapes)
    names = output_names(model)
    program, state, carried = without_state(program)
    version = choose_opset(program.graph_module, opset)
    written = _translated(program, version)
    if (origin := provenance_text(model, "onnx", "onnxscript")) is not None:
        written.metadata_props[PROVENANCE] = origin
    _name(written, names, state, carried)
    call = Call.of(model, args, kwargs or {})

    def compare(draft: Path) -> None:
        session, runtime = judging_runtime(model)
        check_agreement(model, call, lambda call: session(draft)(*call.tensors()), runtime)

    data = _save(written, path, external_data, compare if check else None)
    return OnnxProgramInfo.of(written, path, version, data)


def _translated(program: ExportedProgram, opset: int) -> Any:
    rewrites, translation = optional_modules(
        "pt2q.deploy.onnx.rewrites", "pt2q.deploy.onnx.translation", extra="onnx"
    )
    try:
        with quiet_python(), _quiet_exporter(), _read_once(), torch.no_grad():
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                custom_translation_table=translation.translations(),
            )
            _check_opset(written.model, opset)
            rewrites.rewrite(written.model, four_bits=opset >= WIDE_OPSET)
        if any(_is_float8(node) for node in program.graph.nodes):
            written.model.metadata_props[FLOAT8_KEY] = "1"
    except LoweringError:
        raise
    except Exception as error:
        raise LoweringError(
            f"torch.onnx could not write the model: {cause_line(error).rstrip('.')}"
            f"{why_not_groups(program.graph)}"
        ) from error
    return written.model


@contextmanager
def _read_once() -> Iterator[None]:
    """Nothing that torch knows is gathered again: it takes longer than writing a small file."""
    with composites_looked_up_once(), translations_read_once():
        yield


def _name(model: Any, names: tuple[str, ...], state: State, carried: tuple[str, ...]) -> None:
    """Call outputs, and what carries state, as the float program does."""
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    results = outputs[: len(outputs) - len(carried)]
    if len(names) == len(results):
        rename(model.graph, results, names)
    if state:
        rename(model.graph, inputs[len(inputs) - len(state.initial) :], list(state.initial))
        rename(model.graph, outputs[len(results) :], carried)
        model.metadata_props[STATE_KEY] = state.text()


def _check_opset(model: Any, asked: int) -> None:
    """The exporter leaves its own opset where it knows no way to the one asked for."""
    found = model.opset_imports.get("", asked)
    if found != asked:
        raise LoweringError(f"torch.onnx cannot write opset {asked}, only {found}; leave opset out")


def _is_float8(node: Node) -> bool:
    return ops.is_op(node, ops.DEQUANTIZE) and read_qparams(node).dtype in FLOAT8_DTYPES


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


def _save(
    model: Any, path: Path, external: bool | None, compare: Callable[[Path], None] | None
) -> Path | None:
    """Write a model, check what was written, and put it in place; returns its data file."""
    onnx, ir = optional_modules("onnx", "onnx_ir", extra="onnx")
    if external is None:
        external = sum(stored_bytes(model).values()) > EXTERNAL_BYTES
    with replacing(path) as draft:
        name = f"{path.name}.{_digest(model)}.data" if external else None
        ir.save(model, str(draft), external_data=name)
        _check(onnx, draft)
        if compare is not None:
            compare(draft)
        for old in _data_files(onnx, final_path(draft)):
            outdated(draft, old)
        stored = name is not None and draft.with_name(name).exists()
    return path.with_name(name) if stored and name is not None else None


def _digest(model: Any) -> str:
    """Of the constants: data of other content has another name, and old graphs keep theirs."""
    found = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        found.update(name.encode())
        found.update(value.const_value.tobytes())
    return found.hexdigest()[:12]


def _data_files(onnx: Any, path: Path) -> set[Path]:
    """The data files that a graph of ours reads, if there is one."""
    ours = re.compile(rf"{re.escape(path.name)}(\.[0-9a-f]+)?\.data")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception:  # none, or no model: nothing is known of it
        return set()
    places = (e.value for t in graph.initializer for e in t.external_data if e.key == "location")
    return {path.with_name(place) for place in places if ours.fullmatch(place)}


def _check(onnx: Any, draft: Path) -> None:
    try:
        onnx.checker.check_model(str(draft), full_check=True)
    except Exception as error:
        raise LoweringError(f"the model written is no valid ONNX: {cause_line(error)}") from error
