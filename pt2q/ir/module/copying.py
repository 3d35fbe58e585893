"""Copies of modules that share tensors with the original."""

from __future__ import annotations

import copy

from torch.fx import Graph, GraphModule, Node

from pt2q.ir.module.graph_copy import copy_graph, move_metadata
from pt2q.ir.module.graph_module import QuantGraphModule
from pt2q.ir.module.input_check import InputCheck
from pt2q.ir.record import FlowRecord, record_of
from pt2q.ir.torch_private import forward_pre_hooks


def copy_module(model: GraphModule, record: FlowRecord | None = None) -> QuantGraphModule:
    """A module with its own graph and module tree that shares the tensors of ``model``.

    Args:
        model: an exported, prepared or converted module.
        record: the history of the copy; None starts with an empty one.
    """
    memo: dict[Node, Node] = {}
    graphs: list[Graph] = []
    result = _copy(model, record, memo, graphs)
    move_metadata(graphs, memo)
    return result


def _copy(
    model: GraphModule, record: FlowRecord | None, memo: dict[Node, Node], graphs: list[Graph]
) -> QuantGraphModule:
    result = QuantGraphModule(model, copy_graph(model.graph, memo), record=record)
    graphs.append(result.graph)
    for hook in forward_pre_hooks(model).values():
        if isinstance(hook, InputCheck):
            hook.install(result)
    for name, body in _bodies(result).items():
        result.add_module(name, _copy(body, copy.copy(record_of(body)), memo, graphs))
    return result


def _bodies(model: GraphModule) -> dict[str, GraphModule]:
    """The graph modules that control-flow operators of the graph run, by name."""
    found = {}
    for node in model.graph.nodes:
        if node.op == "get_attr" and "." not in str(node.target):
            body = model._modules.get(str(node.target))
            if isinstance(body, GraphModule):
                found[str(node.target)] = body
    return found
