"""Look at a model before there is any data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.debug.inspection.inspection import BackendView, Inspection, Operator, Value
from pt2q.debug.inspection.macs import macs
from pt2q.flow import prepare_pt2e
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import module_path, named_tensors, value_of
from pt2q.ir.module import QuantGraphModule, import_exported
from pt2q.ir.ops import GETITEM
from pt2q.ir.torch_private import pytree
from pt2q.quantizers import TableQuantizer


def inspect(
    model: ExportedProgram | GraphModule, quantizers: Mapping[str, TableQuantizer] | None = None
) -> Inspection:
    """Say what a model is made of, and what quantizers would do with it.

    Args:
        model: what ``torch.export.export`` gave, or its ``.module()``. It is not changed.
        quantizers: by name of the backend; each decides on the model as it will when it prepares.

    Raises:
        NotExportedError: the model was not captured with ``torch.export``.
    """
    module = import_exported(model)
    counted = macs(module)
    tensors = {id(t): t for t in named_tensors(module).values()}.values()
    views = [_view(model, name, q) for name, q in (quantizers or {}).items()]
    return Inspection(
        inputs=_inputs(module),
        outputs=_outputs(module),
        operators=tuple(_operators(module, counted)),
        parameters=sum(t.numel() for t in tensors),
        parameter_bytes=sum(t.nbytes for t in tensors),
        backends=tuple(views),
    )


def _inputs(module: QuantGraphModule) -> tuple[Value, ...]:
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    return tuple(_value(str(node.target), value_of(node)) for node in nodes)


def _outputs(module: QuantGraphModule) -> tuple[Value, ...]:
    end: Node = next(iter(reversed(module.graph.nodes)))
    leaves = pytree.tree_leaves(end.args)
    return tuple(
        _value(leaf.name, value_of(leaf)) if isinstance(leaf, Node) else _value("", leaf)
        for leaf in leaves
    )


def _value(name: str, value: Any) -> Value:
    if not isinstance(value, Tensor):
        return Value(name, type(value).__name__, ())
    sizes = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return Value(name, str(value.dtype).removeprefix("torch."), sizes)


def _operators(module: GraphModule, counted: Mapping[str, int]) -> Iterable[Operator]:
    for path, body in named_graph_modules(module):
        for node in body.graph.nodes:
            if node.op == "call_function" and node.target is not GETITEM:
                name = path + node.name
                place = module_path(node)
                yield Operator(name, str(node.target), place, counted.get(name, 0))


def _view(
    model: ExportedProgram | GraphModule, name: str, quantizer: TableQuantizer
) -> BackendView:
    """What one quantizer decides; operators may have been taken apart for it."""
    prepared = prepare_pt2e(model, quantizer)
    counted = Counter(macs(prepared))
    return BackendView(name, quantizer.report(), dict(counted))
