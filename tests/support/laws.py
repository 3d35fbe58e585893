"""What must hold for the graph of any network, after every pass."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from pt2q.ir import ops
from pt2q.ir.module import QuantGraphModule
from support.nodes import nodes_of
from support.results import leaves


def parameters_of(model: GraphModule, node: Node) -> dict[str, Any]:
    """All arguments of a quantize or dequantize but the tensor, by name, constants as tensors."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [a.name for a in schema.arguments[1:] if a.name not in ("out_dtype", "output_dtype")]
    found = {}
    for name in names:
        value = ops.argument(node, name)
        if isinstance(value, Node) and value.op == "get_attr":
            value = attrgetter(str(value.target))(model)
        found[name.replace("scales", "scale").replace("zero_points", "zero_point")] = value
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other) if not isinstance(one, Node) else one is other


def assert_quantization_is_sound(model: GraphModule) -> None:
    """Finite, positive scales; integers in order and inside the dtype; dq mirrors q."""
    for node in nodes_of(model, ops.QUANTIZE | ops.DEQUANTIZE):
        _assert_parameters(node, parameters_of(model, node))
    for node in nodes_of(model, ops.DEQUANTIZE):
        stored = ops.data_input(node)
        if ops.is_op(stored, ops.QUANTIZE):
            one, other = parameters_of(model, stored), parameters_of(model, node)
            assert one.keys() == other.keys(), node.format_node()
            assert all(same(one[k], other[k]) for k in one), node.format_node()
        else:
            assert stored.op == "get_attr", node.format_node()
            tensor = attrgetter(str(stored.target))(model)
            mine = parameters_of(model, node)
            assert tensor.dtype == mine["dtype"] if "dtype" in mine else True
            low, high = mine["quant_min"], mine["quant_max"]
            assert low <= tensor.min() and tensor.max() <= high


def _assert_parameters(node: Node, found: dict[str, Any]) -> None:
    text = node.format_node()
    low, high = found["quant_min"], found["quant_max"]
    dtype = found.get("dtype", torch.int8)
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    assert info.min <= low < high <= info.max, text
    axis = found.get("axis")
    scale, zero_point = (_constant(node, found[name], axis) for name in ("scale", "zero_point"))
    assert scale is None or bool((scale > 0).all()), text
    if zero_point is not None:
        assert bool(((zero_point >= low) & (zero_point <= high)).all()), text


def _constant(node: Node, value: Any, axis: int | None) -> Tensor | None:
    """A finite parameter, one per channel where there is an axis; None if it is computed."""
    text = node.format_node()
    if isinstance(value, Node):
        assert value.op == "call_function", text
        return None
    tensor = torch.as_tensor(value)
    assert bool(torch.isfinite(tensor.double()).all()), text
    assert axis is None or tensor.shape == (node.meta["val"].shape[axis],), text
    return tensor


MODULE_META = ("nn_module_stack", "stack_trace")


def assert_metadata(model: GraphModule) -> None:
    """Every node has its value and origin; every operator its module path and stack trace."""
    for node in model.graph.nodes:
        if node.op == "output":
            continue
        assert "val" in node.meta, node.format_node()
        assert node.meta.get("from_node"), node.format_node()
        if node.op in ("call_function", "call_module") and _near_operators(node):
            missing = [key for key in MODULE_META if not node.meta.get(key)]
            assert not missing, (node.format_node(), missing)


def _near_operators(node: Node) -> bool:
    """Whether a node touches an operator of the user's: an input handed out untouched does not."""
    near = [*node.all_input_nodes, *node.users]
    return any(n.op == "call_function" for n in near)


class _ValueCheck(Interpreter):
    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op != "output":
            recorded = leaves(n.meta.get("val"))
            found = leaves(result)
            assert len(recorded) == len(found), n.format_node()
            for a, b in zip(recorded, found, strict=True):
                assert a.dtype == b.dtype, (n.format_node(), a.dtype, b.dtype)
                assert a.dim() == b.dim(), (n.format_node(), a.shape, b.shape)
                known = [(x, y) for x, y in zip(a.shape, b.shape, strict=True) if type(x) is int]
                assert all(x == y for x, y in known), (n.format_node(), a.shape, b.shape)
        return result


def assert_values_match(model: GraphModule, inputs: tuple[Any, ...]) -> None:
    """What is recorded as ``val`` is what the node computes: dtype, dimensions, sizes."""
    copies = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)
    saved = {k: v.clone() for k, v in model.named_buffers()}
    with torch.no_grad():
        _ValueCheck(model).run(*copies)
        for name, buffer in model.named_buffers():
            if name in saved and saved[name].shape == buffer.shape:
                buffer.copy_(saved[name])


def assert_no_dead_constants(model: GraphModule) -> None:
    """Everything in the module is read by the graph."""
    read = {str(n.target) for n in model.graph.nodes if n.op == "get_attr"}
    held = {k for k, _ in model.named_parameters(remove_duplicate=False)}
    held |= {k for k, _ in model.named_buffers(remove_duplicate=False)}
    assert held <= read, held - read


def assert_laws(model: QuantGraphModule, *, converted: bool) -> None:
    """All laws that a look at the module tells."""
    model.graph.lint()
    assert_metadata(model)
    if converted:
        assert_quantization_is_sound(model)
        assert_no_dead_constants(model)
        assert not [n for n in model.graph.nodes if n.op == "call_module"]
