"""The nodes that round activations, and whose rounding it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.graph import is_constant, is_observer
from pt2q.ir.qparams import qparams_key, read_qparams
from pt2q.ir.storage import StorageMap
from pt2q.observers.protocol import rounds


def moving_nodes(module: GraphModule) -> Iterator[Node]:
    """The nodes that depend on an input of their graph; all else are weights."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found.add(node)
            yield node


def rounding_calls(module: GraphModule) -> Iterator[Node]:
    """The nodes that round activations: quantize operators and calls of fake quantizers."""
    for node in moving_nodes(module):
        if ops.is_op(node, ops.QUANTIZE) or is_rounding_module(module, node):
            yield node


def is_rounding_module(module: GraphModule, node: Node) -> bool:
    """Whether a node calls a fake quantizer (an observer that only looks is none)."""
    if node.op != "call_module":
        return False
    called = module.get_submodule(str(node.target))
    return is_observer(called) and rounds(called)


def own_roundings(module: GraphModule, node: Node, storage: StorageMap) -> list[Node]:
    """The calls by which all that round a value do so in one way, with fixed parameters.

    Empty where several readers round it in different ways, where parameters are computed from
    each input, or where the value is written into later: then rounding is the readers'.
    """
    if storage.written_later(node):
        return []
    calls = list(rounding_calls_of(module, node))
    same = len({_parameters(call) for call in calls}) == 1
    return calls if same and not any(is_dynamic_call(module, call) for call in calls) else []


def rounding_calls_of(module: GraphModule, node: Node) -> Iterator[Node]:
    """Those that round the value of one node."""
    for user in node.users:
        if (ops.is_op(user, ops.QUANTIZE) and ops.data_input(user) is node) or is_rounding_module(
            module, user
        ):
            yield user


def is_dynamic_call(module: GraphModule, call: Node) -> bool:
    """Whether a call computes its parameters from each input."""
    if call.op == "call_module":
        return bool(getattr(module.get_submodule(str(call.target)), "is_dynamic", False))
    return not read_qparams(call, _name_of_constant).is_static


def _parameters(call: Node) -> tuple[Any, ...]:
    """Equal for calls that round in the same way."""
    return (call.target,) if call.op == "call_module" else qparams_key(call, _name_of_constant)


def _name_of_constant(node: Node) -> Any:
    """Its qualified name; what is computed stands for itself."""
    return str(node.target) if is_constant(node) else node
