"""Names of what goes in and out of a file: those of the float program, and of the state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.torch_private import pytree

ROUNDING = ops.QUANTIZE | ops.DEQUANTIZE


def output_names(model: GraphModule | ExportedProgram) -> tuple[str, ...]:
    """What the float program calls the outputs: the names of the nodes before they are rounded.

    Args:
        model: what is to be written.

    Returns:
        One name per output; () where one is no value of the graph, or two have one name.
    """
    if isinstance(model, ExportedProgram):
        found = list(model.graph_signature.user_outputs)
    else:
        leaves = pytree.tree_leaves(model.graph.output_node().args[0])
        found = [_unrounded(leaf).name if isinstance(leaf, Node) else None for leaf in leaves]
    names = tuple(name for name in found if isinstance(name, str))
    return names if len(set(names)) == len(found) else ()


def _unrounded(node: Node) -> Node:
    while ops.is_op(node, ROUNDING) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def rename(graph: Any, values: Sequence[Any], names: Sequence[str]) -> None:
    """Give values of a graph other names; a value inside that has such a name gets a longer one.

    Args:
        graph: an ``onnx_ir.Graph``.
        values: inputs or outputs of it.
        names: one per value.
    """
    wanted = dict(zip(names, values, strict=True))
    for value in _inside(graph):
        if value.name in wanted and value is not wanted[value.name]:
            value.name = f"{value.name}.inside"
    for name, value in wanted.items():
        value.name = name


def _inside(graph: Any) -> Iterator[Any]:
    """Every value that a graph computes or stores."""
    computed: Iterable[Any] = (value for node in graph for value in node.outputs)
    yield from [*computed, *graph.initializers.values()]
