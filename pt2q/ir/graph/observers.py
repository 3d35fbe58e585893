"""Observers in a graph: modules that can say a scale and a zero point, and the calls of them."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from pt2q.ir.graph.attributes import find_attribute


def is_observer(module: object) -> bool:
    """Whether a module observes or fake-quantizes: it can say scale and zero point."""
    return isinstance(module, torch.nn.Module) and hasattr(module, "calculate_qparams")


def is_observer_call(model: GraphModule, node: Node) -> bool:
    """Whether a node calls an observer.

    Args:
        model: the module that owns the graph.
        node: any node of it.
    """
    return node.op == "call_module" and is_observer(find_attribute(model, str(node.target)))


def observed_value(model: GraphModule, node: Node) -> Node:
    """What was computed, seen through the observers behind it.

    Args:
        model: the module that owns the graph.
        node: any node of it.
    """
    at = node
    while is_observer_call(model, at):
        at = at.all_input_nodes[0]
    return at


def real_readers(model: GraphModule, node: Node) -> set[Node]:
    """What reads a value, seen through the observers behind it.

    Args:
        model: the module that owns the graph.
        node: any node of it.
    """
    found: set[Node] = set()
    calls = [node]
    while calls:
        for user in calls.pop().users:
            (calls.append if is_observer_call(model, user) else found.add)(user)
    return found
