"""How many multiplications and additions each operator of a graph is."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from pt2q.ir import ops
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import get_constant, value_of
from pt2q.ir.torch_private import pytree

MULTIPLIES = (
    *(ops.LINEAR, ops.CONV, ops.CONV_GENERIC, ops.ADDMM, ops.MM, ops.BMM, ops.MATMUL, ops.SDPA),
    ops.EINSUM,
)
_KINDS: frozenset[Any] = frozenset().union(*MULTIPLIES)


def macs(model: GraphModule) -> dict[str, int]:
    """The multiply-accumulates of each operator that multiplies matrices or convolves.

    Half of what `torch.utils.flop_counter` counts, on tensors of the exported shapes that hold
    nothing; dimensions that vary count with the size of the example. A body of control flow counts
    once. Recurrent layers that are one operator are not counted.

    Args:
        model: an exported module, before or after preparing.

    Returns:
        By name of the node, with the body's path in front.
    """
    found = {}
    for path, module in named_graph_modules(model):
        for node in module.graph.nodes:
            if ops.is_op(node, _KINDS):
                found[path + node.name] = _of(module, node)
    return found


@torch.no_grad()
def _of(module: GraphModule, node: Node) -> int:
    """Of one operator, run on the meta device."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: _empty(module, n))
    with FlopCounterMode(display=False) as counter:
        node.target(*args, **kwargs)  # type: ignore[operator]
    return int(counter.get_total_flops()) // 2


def _empty(module: GraphModule, node: Node) -> Any:
    """The value of a node, its tensors on the meta device."""
    at = node
    while at.op == "call_module" and "val" not in at.meta:
        (at,) = at.all_input_nodes
    value = value_of(at)
    if value is None and at.op == "get_attr":
        value = get_constant(module, at)
    return pytree.tree_map(_placeholder, value)


def _placeholder(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        sizes = [_size(size) for size in value.shape]
        return torch.empty(sizes, dtype=value.dtype, device="meta")
    return _size(value) if isinstance(value, torch.SymInt) else value


def _size(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)
