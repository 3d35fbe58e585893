"""Quantized programs in runtimes, and the integer kernels that ran for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pt2q.deploy import executorch, inductor
from pt2q.deploy import onnx as onnx_road
from support.row_programs import Case, QuantizedPrograms


@dataclass(frozen=True)
class Outcome:
    """What became of one program."""

    case: Case
    rules: set[str]
    kernels: set[str]
    converted: Tensor
    found: Tensor

    def check(self, most: float, mean: float) -> None:
        """The row was taken, its kernel ran, and the result is the converted model's.

        Differences are in steps of 8 bits over the result's range: runtimes round once less, or
        a tie the other way.
        """
        rule = self.case.rule
        assert rule.name in self.rules
        assert rule.kernel is not None
        assert not rule.kernel.names or self.kernels & set(rule.kernel.names), self.kernels
        step = self.converted.abs().max() / 127
        steps = (self.found - self.converted).abs() / step
        assert steps.max() <= most and steps.mean() <= mean, (steps.max(), steps.mean())


def outcomes(
    programs: QuantizedPrograms, found: tuple[Tensor, ...], kernels: list[set[str]]
) -> dict[str, Outcome]:
    return {
        case.name: Outcome(
            case, programs.rules_at(index), kernels[index], programs.results[index], found[index]
        )
        for index, case in enumerate(programs.cases)
    }


# ------------------------------------------------------------------ ExecuTorch


def in_executorch(programs: QuantizedPrograms) -> dict[str, Outcome]:
    """Lowered to XNNPACK and run by ExecuTorch."""
    kernels: list[set[str]] = [set() for _ in programs.cases]

    def record(path: str, name: str) -> None:
        index = programs.index_of(path)
        if index is not None:
            kernels[index].add(name)

    with _watched_xnnpack(record):
        program = executorch.lower(programs.converted, programs.inputs)
    assert not program.delegation.quantized_left
    return outcomes(programs, program.load()(*programs.inputs), kernels)


@contextmanager
def _watched_xnnpack(record: Callable[[str, str], None]) -> Iterator[None]:
    """Tells the nodes that are made for XNNPACK and read integers, with the module they are of."""
    from executorch.backends.xnnpack import xnnpack_preprocess

    original = xnnpack_preprocess.get_node_visitors

    def watched(*args: Any) -> Any:
        visitors = original(*args)
        for visitor in visitors.values():
            visitor.define_node = _recording(visitor.define_node, record)
        return visitors

    xnnpack_preprocess.get_node_visitors = watched
    try:
        yield
    finally:
        xnnpack_preprocess.get_node_visitors = original


def _recording(define: Callable[..., None], record: Callable[[str, str], None]) -> Any:
    def recording(node: Any, graph: Any, ids: Any, handle: Any) -> None:
        before = len(graph.xnodes)
        define(node, graph, ids, handle)
        stack = list(node.meta.get("nn_module_stack", {}).values())
        for made in graph.xnodes[before:]:
            if stack and _reads_integers(made.xnode_union, graph):
                record(stack[-1][0], type(made.xnode_union).__name__)

    return recording


def _reads_integers(node: Any, graph: Any) -> bool:
    source = getattr(node, "input1_id", getattr(node, "input_id", None))
    for value in graph.xvalues:
        held = getattr(value.xvalue_union, "tensor_value", value.xvalue_union)
        if held.id_out == source:
            return held.datatype.name.startswith("xnn_datatype_q")
    return False


# ------------------------------------------------------------------ ONNX


def write(programs: QuantizedPrograms, folder: Path) -> Path:
    """The programs as a file."""
    return onnx_road.export(programs.converted, programs.inputs, folder / "rows.onnx").path


def in_onnxruntime(programs: QuantizedPrograms, path: Path) -> dict[str, Outcome]:
    """Run by ONNX Runtime from a file."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns that the optimized file is for this machine
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    kernels = [{node.op_type for node in _leading_to(graph, o.name)} for o in graph.output]
    return outcomes(programs, onnx_road.load(path)(*programs.inputs), kernels)


def in_openvino(programs: QuantizedPrograms, path: Path) -> dict[str, Outcome]:
    """Run by OpenVINO from a file."""
    import openvino

    # Where nothing is quantized it would compute in bfloat16, where the processor can.
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    results = compiled([x.numpy() for x in programs.inputs])
    found = tuple(torch.from_numpy(results[o]) for o in compiled.outputs)
    graph = compiled.get_runtime_model()
    kernels = [_integer_layers(result) for result in _in_order(graph, compiled)]
    return outcomes(programs, found, kernels)


def _in_order(graph: Any, compiled: Any) -> list[Any]:
    """The results of the graph that runs, in the order of the model's outputs."""
    named = {node.get_friendly_name(): node for node in graph.get_ordered_ops()}
    return [named[o.get_node().get_friendly_name()] for o in compiled.outputs]


def _integer_layers(result: Any) -> set[str]:
    """The kinds of layers in integers that a result depends on."""
    kinds, waiting, seen = set(), [result], set()
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        facts = node.get_rt_info()
        if str(facts["runtimePrecision"].astype(str)) in ("u8", "i8"):
            kinds.add(str(facts["layerType"].astype(str)))
        waiting += [value.get_node() for value in node.input_values()]
    return kinds


def in_tensorrt_file(programs: QuantizedPrograms, path: Path) -> dict[str, Outcome]:
    """Read off a file, which is run operator by operator as it says."""
    import onnx

    graph = onnx.load(path).graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    kernels = [
        {node.op_type for node in _leading_to(graph, o.name) if _reads_int8(node, graph, constants)}
        for o in graph.output
    ]
    session = onnx_road.load(path, fuse=False)
    return outcomes(programs, session(*programs.inputs), kernels)


def _leading_to(graph: Any, output: str) -> list[Any]:
    """The nodes that an output depends on."""
    makers = {name: node for node in graph.node for name in node.output}
    waiting, found = [output], {}
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.output[0] not in found:
            found[node.output[0]] = node
            waiting += node.input
    return list(found.values())


def _reads_int8(node: Any, graph: Any, constants: dict[str, np.ndarray]) -> bool:
    """Whether an operator reads a dequantize with zero point 0."""
    makers = {name: made for made in graph.node for name in made.output}
    sources = (makers.get(name) for name in node.input)
    points = [constants[s.input[2]] for s in sources if s and s.op_type == "DequantizeLinear"]
    return bool(points) and all(p.dtype == np.int8 and not p.any() for p in points)


# ------------------------------------------------------------------ Inductor


def fused_by_inductor(programs: QuantizedPrograms) -> dict[str, Outcome]:
    """Fused by Inductor, which generates no code: the results are the converted model's."""
    report = inductor.fusion_report(programs.converted, programs.inputs)
    return outcomes(programs, programs.results, _fused(programs, report))


def in_inductor(programs: QuantizedPrograms) -> dict[str, Outcome]:
    """Compiled by Inductor and run."""
    compiled = inductor.compile(programs.converted)
    found = compiled(*programs.inputs)
    return outcomes(programs, found, _fused(programs, compiled.fusion))


def _fused(programs: QuantizedPrograms, report: inductor.FusionReport) -> list[set[str]]:
    """The kernels that run the heads of each program's row."""
    kernels: list[set[str]] = [set() for _ in programs.cases]
    for row in report:
        index = programs.index_of(row.module)
        if index is None or not row.kernel:
            continue
        if row.operator in {str(head) for head in programs.cases[index].rule.heads}:
            kernels[index].add(row.kernel)
    return kernels
