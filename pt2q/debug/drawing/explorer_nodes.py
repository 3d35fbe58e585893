"""The nodes of an exported program as Model Explorer shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.debug.drawing.overlay import GRAPH
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import module_stack, value_of
from pt2q.ir.torch_private import pytree, schema_of


@dataclass(frozen=True)
class ExplorerNode:
    """One node.

    Args:
        id: its name, as in the graph.
        label: what it does.
        namespace: the modules that it is in, from the outside in, between slashes.
        reads: names of nodes.
        attributes: its other arguments, by name or position.
        outputs: type and shape of each value that it gives.
        bodies: the graphs that it runs.
    """

    id: str
    label: str
    namespace: str
    reads: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    bodies: tuple[str, ...] = ()


def explorer_nodes(program: ExportedProgram) -> dict[str, list[ExplorerNode]]:
    """The nodes of a program by graph: the outermost, and each body by its path.

    Args:
        program: of any kind.
    """
    return {
        path.rstrip(".") or GRAPH: [_node(module, path, node) for node in module.graph.nodes]
        for path, module in named_graph_modules(program.graph_module)
    }


def _node(module: GraphModule, path: str, node: Node) -> ExplorerNode:
    stack = [_component(name, kind) for name, kind in module_stack(node)]
    return ExplorerNode(
        node.name,
        _label(node),
        "inputs" if node.op == "placeholder" else "/".join(filter(None, stack)),
        tuple(read.name for read in node.all_input_nodes),
        _attributes(node),
        tuple(map(_text, pytree.tree_leaves(value_of(node)))),
        tuple(_bodies(module, path, node)),
    )


def _component(name: str, kind: str) -> str:
    last = name.rpartition(".")[2]
    return f"{kind.rpartition('.')[2]}_{last}" if last else kind.rpartition(".")[2]


def _label(node: Node) -> str:
    if node.op != "call_function":
        return node.op
    return str(
        getattr(node.target, "overloadpacket", getattr(node.target, "__name__", node.target))
    )


def _attributes(node: Node) -> tuple[tuple[str, str], ...]:
    schema = schema_of(node.target)
    names = [a.name for a in schema.arguments] if schema is not None else []
    given = {
        names[i] if i < len(names) else str(i): value for i, value in enumerate(node.args)
    } | node.kwargs
    return tuple((name, str(value)) for name, value in given.items())


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        sizes = ", ".join(map(str, value.shape))
        return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
    return f"{type(value).__name__}"


def _bodies(module: GraphModule, path: str, node: Node) -> list[str]:
    names = [str(read.target) for read in node.all_input_nodes if read.op == "get_attr"]
    return [path + n for n in names if isinstance(getattr(module, n, None), GraphModule)]
