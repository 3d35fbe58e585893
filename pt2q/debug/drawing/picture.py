"""What is drawn of a graph: its nodes, what they read, what is quantized, a figure for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.errors import NotExportedError
from pt2q.ir import ops
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import is_observer_call, module_path

INPUT, OUTPUT, CONSTANT, OPERATOR = "input", "output", "constant", "operator"
BORDER = "border"
"""The kinds of boxes; a border is where values become integers, or will."""


@dataclass(frozen=True)
class Box:
    """One node of a graph.

    Args:
        name: with the path of its body in front.
        label: a short name of what it does.
        operator: its target.
        module: that it was written in, "" for the root.
        kind: one of the kinds above.
        quantized: it reads a value that is, or will be, integers.
        reads: names of boxes.
        value: a figure, such as its error in dB; None where there is none.
        body: the path of the body that it is in, "" outside.
    """

    name: str
    label: str
    operator: str
    module: str
    kind: str
    quantized: bool
    reads: tuple[str, ...]
    value: float | None = None
    body: str = ""


def picture(
    model: ExportedProgram | GraphModule,
    values: Mapping[str, float] | None = None,
    *,
    constants: bool = False,
) -> tuple[Box, ...]:
    """The boxes of a model, and of the bodies of its control flow.

    Args:
        model: float, prepared or converted.
        values: a figure by name of the node.
        constants: also weights and what is computed from them alone.

    Raises:
        NotExportedError: something else was given.
    """
    if not isinstance(model, ExportedProgram | GraphModule):
        raise NotExportedError(f"a graph is drawn of a program, found {type(model).__name__}")
    module = model.module(check_guards=False) if isinstance(model, ExportedProgram) else model
    boxes: list[Box] = []
    for path, body in named_graph_modules(module):
        hidden = set() if constants else _constant(body)
        nodes = [node for node in body.graph.nodes if node not in hidden]
        boxes += (_box(body, path, node, hidden, values or {}) for node in nodes)
    return tuple(boxes)


def _constant(module: GraphModule) -> set[Node]:
    """What no input has a part in."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        computed = node.op in ("call_function", "call_module") and node.all_input_nodes
        if node.op == "get_attr" or (computed and all(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def _box(
    module: GraphModule, path: str, node: Node, hidden: set[Node], values: Mapping[str, float]
) -> Box:
    name = path + node.name
    return Box(
        name,
        _label(module, node),
        str(node.target),
        module_path(node),
        _kind(module, node),
        _kind(module, node) == OPERATOR
        and any(_is_integer(module, n) for n in node.all_input_nodes),
        tuple(path + n.name for n in node.all_input_nodes if n not in hidden),
        values.get(name),
        path,
    )


def _is_integer(module: GraphModule, node: Node) -> bool:
    return is_observer_call(module, node) or ops.is_op(node, ops.DEQUANTIZE)


def _kind(module: GraphModule, node: Node) -> str:
    if node.op in ("placeholder", "output"):
        return INPUT if node.op == "placeholder" else OUTPUT
    if node.op == "get_attr":
        return CONSTANT
    border = ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE | ops.CHOOSE_QPARAMS)
    return BORDER if border or is_observer_call(module, node) else OPERATOR


def _label(module: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        observer: Any = module.get_submodule(str(node.target))
        return str(getattr(observer, "dtype", type(observer).__name__)).removeprefix("torch.")
    if node.op != "call_function":
        return node.name
    name = getattr(node.target, "__name__", str(node.target))
    return str(name).split(".")[0]
