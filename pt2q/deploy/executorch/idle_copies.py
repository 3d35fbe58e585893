"""Expansions that expand nothing, which portable kernels would copy whole tensors for."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from pt2q.ir import ops


def without_idle_expansions(module: GraphModule) -> PassResult:
    """Let readers of an expansion to the sizes that are there read what it expands.

    Every product of more than two dimensions is taken apart into such expansions and a product.
    XNNPACK takes none of them, so each would end a blob and copy a tensor.

    Args:
        module: in the edge dialect, before it is partitioned; changed in place.
    """
    found = [node for node in module.graph.nodes if _is_idle(node)]
    for node in found:
        node.replace_all_uses_with(ops.data_input(node))
        module.graph.erase_node(node)
    return PassResult(module, bool(found))


def _is_idle(node: Node) -> bool:
    """Whether it gives what an operator gave; an input that is given back needs its copy."""
    overload = getattr(node.target, "_op", None)
    source: Any = node.args[0] if node.args else None
    if overload is not ops.aten.expand_copy.default or not _is_computed(source):
        return False
    before, after = source.meta["val"], node.meta["val"]
    return bool(before.dtype == after.dtype and before.shape == after.shape)


def _is_computed(source: Any) -> bool:
    return isinstance(source, Node) and source.op == "call_function"
