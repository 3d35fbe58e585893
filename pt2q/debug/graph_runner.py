"""Run a graph node by node, going into control flow, and show every value to a function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pt2q.algorithms.engine.program import Schedule
from pt2q.ir.constants import ancestors
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import find_attribute, get_constant
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.torch_private import pytree

Visit = Callable[[str, int, Node, tuple[Any, ...], Any], Any]
"""Given the body's path, the number of its call, a node, its arguments and its value, returns the
value that readers get."""


class GraphRunner:
    """Runs a model; see `Visit`.

    Args:
        model: what `own_copy` gave.
    """

    def __init__(self, model: QuantGraphModule) -> None:
        self.model = model
        self.calls: Counter[str] = Counter()
        self._paths: dict[int, str] = {}
        self._last: dict[str, dict[Node, list[Node]]] = {}
        self._constant: set[Node] = set()
        self._known: dict[Node, Any] = {}
        for path, module in named_graph_modules(model):
            self._paths[id(module)] = path
            constants = Schedule.of(module).constants
            self._constant |= {node for node in constants if node.op == "call_function"}
            self._last[path] = _last_reads(module)

    def __call__(self, leaves: Sequence[Any], visit: Visit) -> list[Any]:
        """Run once.

        Args:
            leaves: the inputs, flat.
            visit: sees, and may replace, the value of every node.

        Returns:
            The outputs, flat. ``calls`` says how often each body ran.
        """
        self.calls = Counter()
        with torch.no_grad():
            return list(pytree.tree_leaves(self._graph("", self.model, visit, *leaves)))

    def _graph(self, path: str, module: GraphModule, visit: Visit, *inputs: Any) -> Any:
        call, given = self.calls[path], iter(inputs)
        values: dict[Node, Any] = {}
        self.calls[path] += 1
        for node in module.graph.nodes:
            args = map_arg(node.args, values.__getitem__)
            if node.op == "output":
                return args[0]
            kwargs = map_arg(node.kwargs, values.__getitem__)
            if node.op == "placeholder":
                value = next(given)
            elif node.op == "get_attr":
                value = self._attribute(module, str(node.target), visit)
            elif node in self._known:
                value = self._known[node]
            else:
                value = _called(module, node)(*args, **kwargs)
                if node in self._constant:  # such as a weight: the same in every call
                    self._known[node] = value
            values[node] = visit(path, call, node, args, value)
            for dead in self._last[path].get(node, ()):
                del values[dead]
        raise AssertionError("a graph ends with its output")

    def _attribute(self, module: GraphModule, target: str, visit: Visit) -> Any:
        found = find_attribute(module, target)
        path = self._paths.get(id(found))
        return found if path is None else partial(self._graph, path, found, visit)


def evaluate(module: GraphModule, node: Node) -> Tensor:
    """The value of a node that no input of the graph has a part in.

    Args:
        module: whose graph the node is in; observers that it is computed with are called.
        node: gives a tensor.
    """
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for at in ancestors(node):
            if at.op == "get_attr":
                values[at] = get_constant(module, at).detach()
                continue
            args, kwargs = map_arg((at.args, at.kwargs), values.__getitem__)
            values[at] = _called(module, at)(*args, **kwargs)
    found: Tensor = values[node]
    return found


def _called(module: GraphModule, node: Node) -> Callable[..., Any]:
    if node.op == "call_module":
        return module.get_submodule(str(node.target))
    return node.target  # type: ignore[return-value]


def _last_reads(module: GraphModule) -> dict[Node, list[Node]]:
    """By node, those whose values nobody reads after it."""
    last: dict[Node, Node] = {}
    for node in module.graph.nodes:
        last[node] = node
        for read in node.all_input_nodes:
            last[read] = node
    found: dict[Node, list[Node]] = {}
    for read, node in last.items():
        found.setdefault(node, []).append(read)
    return found
