"""Copies of a model that can be run without a trace, and the state that they write."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.debug.rounding.calls import moving_nodes
from pt2q.errors import NotExportedError
from pt2q.ir.control_flow import graph_modules
from pt2q.ir.graph import find_owner, get_constant
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
from pt2q.passes import OpenControlFlow, run_passes


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
            setattr(owner, name, copy.deepcopy(getattr(owner, name), memo))


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


def read_state(model: QuantGraphModule, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies of buffers, by name."""
    return {name: get_constant(model, name).detach().clone() for name in names}


def load_state(model: QuantGraphModule, state: dict[str, torch.Tensor]) -> None:
    """Write values into buffers of the same names."""
    with torch.no_grad():
        for name, value in state.items():
            get_constant(model, name).copy_(value)
