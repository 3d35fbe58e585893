"""From what ``torch.export`` gave to the module that passes work on."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.errors import FlowError, NotExportedError
from pt2q.ir.module.copying import copy_module
from pt2q.ir.module.graph_module import QuantGraphModule
from pt2q.ir.module.input_check import InputCheck
from pt2q.ir.module.tied_inputs import warn_of_tied_inputs
from pt2q.ir.record import Stage
from pt2q.ir.torch_private import GUARDS, guard_texts

EXPORT_HINT = (
    "capture it first:\n"
    "    exported = torch.export.export(model.eval(), example_inputs)\n"
    "    prepared = prepare_pt2e(exported.module(), quantizer)"
)


def import_exported(model: ExportedProgram | GraphModule) -> QuantGraphModule:
    """Take an exported model as given by the user and make the copy that passes work on.

    Args:
        model: an ``ExportedProgram`` or its ``.module()``.

    Returns:
        A copy that shares the model's tensors; the model itself is never changed.

    Raises:
        NotExportedError: the module was not captured with ``torch.export``.
        FlowError: the module was prepared or converted already.
    """
    guards = guard_texts(model)
    if isinstance(model, ExportedProgram):
        warn_of_tied_inputs(model)
        model = model.module(check_guards=False)
    if isinstance(model, QuantGraphModule) and model.record.stage is not Stage.FLOAT:
        raise FlowError(
            f"this model is already {model.record.stage.value}; "
            "prepare the module that torch.export returned, once"
        )
    _check_exported(model)
    result = copy_module(model)
    _drop_guards(result)
    InputCheck.of(result.graph, guards).install(result)
    return result


def _check_exported(model: object) -> None:
    if not isinstance(model, GraphModule):
        kind = type(model).__name__
        raise NotExportedError(f"{kind} was never captured with torch.export; {EXPORT_HINT}")
    for node in model.graph.nodes:
        if node.op == "call_method" or (node.op == "call_module" and not _is_guard(model, node)):
            raise NotExportedError(
                f"the graph calls {node.target!r} at node {node.name}, so it was traced by "
                f"torch.fx and not captured with torch.export; {EXPORT_HINT}"
            )


def _is_guard(model: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and str(node.target) == GUARDS


def _drop_guards(model: QuantGraphModule) -> None:
    """Replace export's guard call, which cannot be pickled, by `InputCheck`."""
    for node in list(model.graph.nodes):
        if _is_guard(model, node):
            model.graph.erase_node(node)
            delattr(model, GUARDS)
            model.recompile()
