"""A graph as text."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, GraphModule, Node

from pt2q.ir.torch_private import OpOverload


def _short(value: Any) -> str:
    if isinstance(value, Node):
        return f"%{value.name}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _label(node: Node) -> str:
    if isinstance(node.target, OpOverload):
        return str(node.target)
    return (
        str(node.target)
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )


def dump(model: GraphModule | Graph) -> str:
    """The graph as text, one node a line: what golden tests compare.

    Args:
        model: a graph or the module that owns one.

    Returns:
        Lines such as ``%relu = aten.relu.default(%conv2d)``.
    """
    graph = model.graph if isinstance(model, GraphModule) else model
    lines = []
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"return {_short(node.args[0])}")
            continue
        if node.op in ("placeholder", "get_attr"):
            lines.append(f"%{node.name} = {node.op}({node.target})")
            continue
        arguments = [_short(a) for a in node.args]
        arguments += [f"{key}={_short(value)}" for key, value in node.kwargs.items()]
        lines.append(f"%{node.name} = {_label(node)}({', '.join(arguments)})")
    return "\n".join(lines)
