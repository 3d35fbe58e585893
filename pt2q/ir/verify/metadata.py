"""Laws of metadata: nodes say what they compute and where they come from."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.graph import OWN_PASSES, is_observer_call
from pt2q.ir.torch_private import schema_of
from pt2q.ir.verify.laws import Found, law

ORIGIN = ("nn_module_stack", "stack_trace")


@law("metadata")
def metadata(model: GraphModule) -> Found:
    """Nodes say what they compute and where they come from."""
    calls = [n for n in model.graph.nodes if n.op in ("call_function", "call_module")]
    general, inserted = _recorded_keys(model, calls)
    for node in calls:
        if "val" not in node.meta and _gives_something(node):
            yield node.name, "has no recorded value"
        for key in inserted if _is_inserted(model, node) else general:
            if not node.meta.get(key) and _near_calls(node):
                yield node.name, f"has no {key}"


def _gives_something(node: Node) -> bool:
    """Assertions give nothing, and export records nothing for some of them."""
    schema = schema_of(node.target)
    return schema is None or bool(schema.returns)


def _recorded_keys(model: GraphModule, calls: list[Node]) -> tuple[list[str], list[str]]:
    """What all operators of a graph should carry, and what those inserted by passes should.

    Export gives a stack trace to the operators that it finds in a file, a module to those that it
    traced and not to those that unpack a subclass of tensors, and no operator inside a body of
    control flow gets a ``from_node``.
    """
    exported = [n for n in calls if not (_is_made_by_passes(n) or _is_inserted(model, n))]
    keys = [k for k in ORIGIN if exported and all(n.meta.get(k) for n in exported)]
    from_export = any(map(_is_from_export, calls))
    from_passes = any(n.meta.get("from_node") for n in calls)
    general = [*keys, "from_node"] if from_export else keys
    return general, [*keys, "from_node"] if from_passes else general


def _is_made_by_passes(node: Node) -> bool:
    sources: Any = node.meta.get("from_node") or ()
    return len(sources) > 0 and str(sources[-1].pass_name).startswith(OWN_PASSES)


def _is_from_export(node: Node) -> bool:
    """Whether ``from_node`` goes back to the exported program.

    Export says of no operator inside a body of control flow where it comes from: there only what
    passes made for such an operator has a ``from_node``.
    """
    sources: Any = node.meta.get("from_node")
    if not sources:
        return False
    while sources[-1].from_node:
        sources = sources[-1].from_node
    return not str(sources[-1].pass_name).startswith(OWN_PASSES)


def _is_inserted(model: GraphModule, node: Node) -> bool:
    return ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE) or is_observer_call(model, node)


def _near_calls(node: Node) -> bool:
    """Whether there is an operator of the user's to take an origin from."""
    return any(n.op == "call_function" for n in (*node.all_input_nodes, *node.users))


@law("dtypes", always=True)
def dtypes(model: GraphModule) -> Found:
    """The recorded values of quantize and dequantize are integers and real numbers."""
    for node in model.graph.nodes:
        if not ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE):
            continue
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        stored = ops.is_op(node, ops.QUANTIZE)
        dtype = ops.argument(node, "dtype")
        if stored and value.dtype != dtype:
            yield node.name, f"is recorded as {value.dtype}, it makes {dtype}"
        if not stored and not value.dtype.is_floating_point:
            yield node.name, f"is recorded as {value.dtype}, it makes floating point numbers"
