"""Replace every observer by the quantize and dequantize operators it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import is_observer
from pt2q.ir.module import QuantGraphModule
from pt2q.passes.convert.observed_parameters import (
    ObservedParameters,
    OnNoData,
    bodies_not_run,
    found_parameters,
)
from pt2q.passes.convert.qdq_operators import QDQWriter


def observer_nodes(model: QuantGraphModule) -> list[tuple[Node, Any]]:
    """The calls of observers in a prepared graph, each with its observer."""
    found = []
    for node in model.graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if is_observer(module):
                found.append((node, module))
    return found


@dataclass(frozen=True)
class KnownParameters:
    """What the observers of one or several programs found.

    Args:
        parameters: scale and zero point by the identity of the observer.
        blind: observers without data.
        idle: bodies of control flow that calibration never took.
    """

    parameters: ObservedParameters
    blind: frozenset[int]
    idle: tuple[QuantGraphModule, ...]


def parameters_of(
    models: Mapping[str, QuantGraphModule], on_no_data: OnNoData = "error"
) -> KnownParameters:
    """Ask the observers of several programs, each once.

    Args:
        models: prepared, by name; "" for one alone.
        on_no_data: as of `ObserversToQDQ`.

    Raises:
        NoDataError: as `ObserversToQDQ` does.
    """
    asked: list[tuple[str, QuantGraphModule, list[tuple[Node, Any]]]] = []
    idle: list[QuantGraphModule] = []
    for name, model in models.items():
        found = _places(model)
        not_run = bodies_not_run(found, on_no_data)
        idle += (module for path, module, _ in found if path in not_run)
        lead = f"{name}." if name else ""
        asked += ((lead + path, m, calls) for path, m, calls in found if path not in not_run)
    return KnownParameters(*found_parameters(asked, on_no_data), tuple(idle))


def _places(model: QuantGraphModule) -> list[tuple[str, QuantGraphModule, list[tuple[Node, Any]]]]:
    """Of each graph of a model its path, its module, and its calls of observers."""
    modules = [(p, m) for p, m in named_graph_modules(model) if isinstance(m, QuantGraphModule)]
    return [(path, module, observer_nodes(module)) for path, module in modules]


def _leave_out(node: Node) -> None:
    """Let the readers of an observer read what it watched."""
    watched = node.args[0]
    assert isinstance(watched, Node)
    node.replace_all_uses_with(watched)
    node.graph.erase_node(node)


@dataclass(frozen=True)
class ObserversToQDQ:
    """Write q/dq operators with the parameters that the observers found.

    Per-tensor parameters become literals, per-channel ones buffers; dynamic ones are computed
    in the graph by ``choose_qparams``; float16 and bfloat16 specs become a pair of casts.

    Args:
        on_no_data: what to do about a static activation observer that never saw data: ``error``,
            or ``warn`` and leave its tensor in float.
        known: what `parameters_of` found for several programs; None asks this model's observers.
    """

    on_no_data: OnNoData = "error"
    known: KnownParameters | None = field(default=None, repr=False)

    whole_model = True

    def __call__(self, model: QuantGraphModule) -> bool:
        """Replace all observers of the model.

        Raises:
            NoDataError: a static activation observer never saw data, or a body of control flow
                never ran, and that is an error.
        """
        known = self.known or parameters_of({"": model}, self.on_no_data)
        found = _places(model)
        for _, module, calls in found:
            unseen = known.blind
            if any(module is body for body in known.idle):
                unseen = frozenset(id(observer) for _, observer in calls)
            _replace_all(module, calls, known.parameters, unseen)
        return any(calls for _, _, calls in found)


def _replace_all(
    model: QuantGraphModule,
    found: list[tuple[Node, Any]],
    qparams: ObservedParameters,
    blind: frozenset[int],
) -> None:
    writer = QDQWriter(model, qparams)
    for node, observer in found:
        if id(observer) in blind:
            _leave_out(node)
        else:
            writer.replace(node, observer)
    for target in {str(node.target) for node, _ in found}:
        model.delete_submodule(target)
