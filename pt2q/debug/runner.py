"""Run a graph node by node, going into control flow, and show every value to a function."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from pt2q.errors import NotExportedError
from pt2q.ir.control_flow import graph_modules, named_graph_modules
from pt2q.ir.graph import find_attribute, find_owner, get_constant
from pt2q.ir.model_state import keep_state
from pt2q.ir.modes import switch_mode
from pt2q.ir.module import (
    EXPORT_HINT,
    QuantGraphModule,
    copy_module,
    deferred_code,
    import_exported,
)
from pt2q.observers import disable_observer
from pt2q.passes.base import run_passes
from pt2q.passes.bodies import OpenControlFlow

Visit = Callable[[str, int, Node, tuple[Any, ...], Any], Any]
"""Given the body's path, the number of its call, a node, its arguments and its value, returns the
value that readers get."""


def own_copy(
    model: ExportedProgram | GraphModule, *, evaluation: bool = True
) -> tuple[QuantGraphModule, tuple[str, ...]]:
    """A copy that can be run without a trace: it shares all tensors but those that are written.

    Args:
        model: float, prepared or converted. Observers are copied.
        evaluation: switch the copy to evaluation mode, its observers to look at nothing.

    Returns:
        The copy, with control flow run by Python, and the names of the buffers that it writes.

    Raises:
        NotExportedError: the model was not captured with ``torch.export``.
    """
    if not isinstance(model, ExportedProgram | GraphModule):
        raise NotExportedError(
            f"{type(model).__name__} was never captured with torch.export; {EXPORT_HINT}"
        )
    with deferred_code():
        result = _copied(model)
        _copy_observers(result)
        if evaluation:
            switch_mode(result, False)
            _settle_observers(result)
        written = keep_state(result)
        run_passes(result, [OpenControlFlow()])
    return result, written


def _copied(model: ExportedProgram | GraphModule) -> QuantGraphModule:
    if not isinstance(model, QuantGraphModule):
        return import_exported(model)
    return copy_module(model, model.record.at_stage(model.record.stage))


def _copy_observers(model: QuantGraphModule) -> None:
    memo: dict[int, Any] = {}  # an observer that several graphs call stays one
    for module in graph_modules(model):
        for target in {str(n.target) for n in module.graph.nodes if n.op == "call_module"}:
            owner, name = find_owner(module, target)
            owner._modules[name] = copy.deepcopy(owner._modules[name], memo)


def _settle_observers(model: QuantGraphModule) -> None:
    """Keep the ranges of activations as they are.

    Dynamic ones belong to each input, and those of weights follow the weight, as they do when the
    model is converted.
    """
    for module in graph_modules(model):
        moving = set(moving_nodes(module))
        for node in module.graph.nodes:
            if node.op != "call_module":
                continue
            called: Any = module.get_submodule(str(node.target))
            follows = node not in moving and getattr(called, "constant_input", False)
            if not follows and not getattr(called, "is_dynamic", False):
                called.apply(disable_observer)


def moving_nodes(module: GraphModule) -> Iterator[Node]:
    """The nodes that depend on an input of their graph; all else are weights."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found.add(node)
            yield node


def read_state(model: QuantGraphModule, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies of buffers, by name."""
    return {name: get_constant(model, name).detach().clone() for name in names}


def load_state(model: QuantGraphModule, state: dict[str, torch.Tensor]) -> None:
    """Write values into buffers of the same names."""
    with torch.no_grad():
        for name, value in state.items():
            get_constant(model, name).copy_(value)


class Runner:
    """Runs a model; see `Visit`.

    Args:
        model: what `own_copy` gave.
    """

    def __init__(self, model: QuantGraphModule) -> None:
        self.model = model
        self.calls: Counter[str] = Counter()
        self._paths: dict[int, str] = {}
        self._last: dict[str, dict[Node, list[Node]]] = {}
        for path, module in named_graph_modules(model):
            self._paths[id(module)] = path
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
            else:
                value = self._target(module, node)(*args, **kwargs)
            values[node] = visit(path, call, node, args, value)
            for dead in self._last[path].get(node, ()):
                del values[dead]
        raise AssertionError("a graph ends with its output")

    def _attribute(self, module: GraphModule, target: str, visit: Visit) -> Any:
        found = find_attribute(module, target)
        path = self._paths.get(id(found))
        return found if path is None else partial(self._graph, path, found, visit)

    def _target(self, module: GraphModule, node: Node) -> Callable[..., Any]:
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
