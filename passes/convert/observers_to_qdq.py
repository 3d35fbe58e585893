"""Replace every observer by the quantize and dequantize operators it stands for."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    on_no_data: OnNoData = "error"

    whole_model = True

    def __call__(self, model: QuantGraphModule) -> bool:
        """Replace all observers of the model.

        Raises:
            NoDataError: a static activation observer never saw data, or a body of control flow
                never ran, and that is an error.
        """
        modules = [(p, m) for p, m in named_graph_modules(model) if isinstance(m, QuantGraphModule)]
        found = [(path, module, observer_nodes(module)) for path, module in modules]
        idle = bodies_not_run(found, self.on_no_data)
        qparams, blind = found_parameters(
            [place for place in found if place[0] not in idle], self.on_no_data
        )
        for path, module, calls in found:
            unseen = frozenset(id(observer) for _, observer in calls) if path in idle else blind
            _replace_all(module, calls, qparams, unseen)
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
