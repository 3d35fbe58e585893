"""Which node of one model gives the value that a node of another gives.

Two things say so. A *handle*, a number in ``node.meta["custom"]`` that the user has put there with
`generate_numeric_debug_handle`; else the *origin*, the name of the node of the exported program
that a node goes back to, which ``from_node`` keeps through preparing, converting, decompositions
and exporting anew. An operator that was taken apart gives its value with the last of its parts; a
convolution that a batch norm was folded into gives that of the batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.errors import NotExportedError
from pt2q.ir import ops
from pt2q.ir.control_flow import is_control_flow, named_graph_modules
from pt2q.ir.graph import handle_of, origin_name, set_handle, value_of

# What belongs to the border of an operator, not to what it computes.
BORDER = ops.QUANTIZE | ops.DEQUANTIZE | ops.CHOOSE_QPARAMS


@dataclass(frozen=True)
class Origin:
    """The node of the exported program that a value goes back to.

    Args:
        name: its name.
        path: of the control-flow body that it is in, such as ``true_graph_0.``; "" outside.
    """

    name: str
    path: str = ""

    def __str__(self) -> str:
        return self.path + self.name


Key = int | Origin
"""What identifies a value: a handle, or an origin."""


def bfs_trace_with_node_process(
    model: ExportedProgram | GraphModule, node_op: Callable[[Node], None]
) -> None:
    """Call a function with every node but inputs and outputs, the outermost graph first.

    Args:
        model: an exported program, or a graph module; bodies of control flow are gone through too.
        node_op: what to call.

    Raises:
        NotExportedError: something else was given.
    """
    for module in _graphs(model):
        for node in list(module.graph.nodes):
            if node.op not in ("placeholder", "output"):
                node_op(node)


def _graphs(model: object) -> list[GraphModule]:
    if not isinstance(model, ExportedProgram | GraphModule):
        raise NotExportedError(
            f"expected an ExportedProgram or its module, found {type(model).__name__}"
        )
    outermost = model.graph_module if isinstance(model, ExportedProgram) else model
    return [module for _, module in named_graph_modules(outermost)]


def generate_numeric_debug_handle(model: ExportedProgram | GraphModule) -> None:
    """Number the nodes of a float model, control-flow bodies included, for comparing later.

    Handles sit at ``node.meta["custom"]["numeric_debug_handle"]``, from 1, and pass through
    preparing, converting and exporting anew. Nodes that have one keep it; inputs, constants and
    outputs get none. Models can be compared without handles, too: by the origin of each node.

    Args:
        model: an exported program, which is changed (also in the modules that it makes from now
            on), or its module.

    Raises:
        NotExportedError: something else was given.
    """
    nodes = [node for module in _graphs(model) for node in module.graph.nodes]
    last = max((handle_of(n) or 0 for n in nodes), default=0)
    for node in nodes:
        if node.op == "call_function" and handle_of(node) is None:
            last += 1
            set_handle(node, last)


def handles_of(model: GraphModule) -> frozenset[int]:
    """All handles in a model and its control-flow bodies."""
    nodes = (n for _, gm in named_graph_modules(model) for n in gm.graph.nodes)
    return frozenset(h for n in nodes if (h := handle_of(n)) is not None)


def value_nodes(
    model: GraphModule, handles: frozenset[int] = frozenset()
) -> dict[tuple[str, Node], Key]:
    """The nodes that give the values of a model, each with its identity.

    Args:
        model: float, prepared or converted.
        handles: those to go by; other nodes go by their origin.

    Returns:
        By path of the body and node, in the order of the graphs; of the nodes with one identity
        only the last.
    """
    last: dict[Key, tuple[str, Node]] = {}
    for path, module in named_graph_modules(model):
        for node in _computing(module):
            handle = handle_of(node) if node.op == "call_function" else None
            known = handle is not None and handle in handles
            last[handle if known else Origin(origin_name(node), path)] = (path, node)  # type: ignore[index]
    return {place: key for key, place in last.items()}


def _computing(module: GraphModule) -> Iterator[Node]:
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "call_function") or is_control_flow(node):
            continue
        if ops.is_op(node, BORDER) or _is_of_qparams(node):
            continue
        if "val" not in node.meta or _holds_tensor(value_of(node)):
            yield node


def _is_of_qparams(node: Node) -> bool:
    return node.target is ops.GETITEM and ops.is_op(node.args[0], ops.CHOOSE_QPARAMS)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_tensor, value))
    return isinstance(value, torch.Tensor)
