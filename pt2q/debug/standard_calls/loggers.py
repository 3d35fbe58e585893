"""Loggers of values: put into a copy of a model, and read after some calls.

`pt2q.debug.compare` does more with less memory; this keeps every logged tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.debug.identity import Key, handles_of, value_nodes
from pt2q.debug.own_copy import own_copy
from pt2q.debug.standard_calls.results import Logged
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.emit import Emitter
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.torch_private import pytree

LOGGER_NAME = "numeric_debug_logger"


class OutputLogger(torch.nn.Module):
    """Lets a value pass and keeps a copy of it.

    Args:
        debug_handle: the identity of the value: a handle, or an `Origin`.
        node_name: the node that gives it.
        nn_module_stack: where that was traced.
    """

    def __init__(
        self, debug_handle: Key, node_name: str | None = None, nn_module_stack: object = None
    ) -> None:
        super().__init__()
        self.debug_handle, self.node_name = debug_handle, node_name or ""
        self.nn_module_stack = nn_module_stack
        self.stats: list[Any] = []

    def forward(self, x: Any) -> Any:
        """Return ``x``; its value is kept, detached and copied."""
        self.stats.append(pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), x))
        return x

    def extra_repr(self) -> str:
        """Whose values, and how many."""
        return f"{self.debug_handle}, node={self.node_name}, {len(self.stats)} value(s)"


def prepare_for_propagation_comparison(
    model: ExportedProgram | GraphModule,
) -> QuantGraphModule:
    """A copy of a model that logs the value of each operator when it is called.

    With handles (`generate_numeric_debug_handle` on the float model, before it is prepared), the
    values of nodes that have one are logged; without, those of all operators, by their origin.
    Control flow is logged at every call of a body.

    Args:
        model: float, prepared or converted; it is not changed, nor are buffers that it writes.

    Returns:
        The copy. Call it with some inputs, then use `extract_results_from_loggers`.

    Raises:
        NotExportedError: the model was not captured with ``torch.export``.
    """
    result, _ = own_copy(model, evaluation=False)
    handles = handles_of(result)
    modules = dict(named_graph_modules(result))
    emitters = {path: Emitter(module, "pt2q.debug") for path, module in modules.items()}
    for (path, node), key in value_nodes(result, handles).items():
        if node.op != "call_function" or (handles and not isinstance(key, int)):
            continue
        emit = emitters[path].after(node)
        name = emit.names.numbered(LOGGER_NAME)
        logger = OutputLogger(key, path + node.name, node.meta.get("nn_module_stack"))
        modules[path].add_module(name, logger)
        emit.observe(name, node)
    for module in modules.values():
        module.recompile()
    return result


def extract_results_from_loggers(model: GraphModule) -> dict[Key, Logged]:
    """What the loggers of a model have seen.

    Args:
        model: what `prepare_for_propagation_comparison` returned, after some calls.

    Returns:
        By handle or origin: the node's name, its module stack, and one value per call.
    """
    found: dict[Key, Logged] = {}
    for _, module in model.named_modules():
        if isinstance(module, OutputLogger):
            found[module.debug_handle] = (
                module.node_name,
                module.nn_module_stack,
                list(module.stats),
            )
    return found
