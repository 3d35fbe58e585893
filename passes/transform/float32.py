"""Compute in float32 what is written in half precision, for runtimes that compute in nothing else.

Inputs and outputs keep their types: they are converted where they enter and leave. Constants
become float32 once; written buffers start as float32 and stay it. Numbers that are merely stored in
half precision (a weight behind a cast) stay stored that way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from pt2q.errors import LoweringError
from pt2q.ir import ops
from pt2q.ir.control_flow import graph_modules
from pt2q.ir.dtypes import CAST_DTYPES
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import fake_like, get_constant, is_constant, replace_tensor, value_of
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import StorageMap, storage_of
from pt2q.ir.torch_private import pytree

PASS_NAME = "pt2q.compute_in_float32"


@dataclass(frozen=True)
class ComputeInFloat32:
    """Rewrite a model that computes in bfloat16 or float16 to compute in float32.

    The function differs by what is no longer rounded on the way. Values in the metadata of nodes
    are of the new types.
    """

    whole_model = True

    keeps: tuple[torch.dtype, ...] = CAST_DTYPES

    def __call__(self, model: QuantGraphModule) -> bool:
        """Rewrite in place; returns whether anything computed in half precision."""
        if not half_types(model):
            return False
        wide: dict[Any, Tensor] = {}
        inputs = [node for node in model.graph.nodes if node.op == "placeholder"]
        types = [self._kept(_types_of(values)) for values in (inputs, _results(model))]
        for module in graph_modules(model):
            stored = [node for node in module.graph.nodes if _only_stored(node)]
            _widen(module, frozenset(stored), wide)
        _convert_inputs(model, inputs, types[0])
        _convert_results(model, types[1])
        return True

    def _kept(self, types: list[torch.dtype | None]) -> list[torch.dtype | None]:
        return [dtype if dtype in self.keeps else None for dtype in types]


def half_types(model: GraphModule) -> tuple[torch.dtype, ...]:
    """The types of half precision that a model computes in, in the order in which they occur.

    Args:
        model: an exported or converted module.
    """
    found: dict[torch.dtype, None] = {}
    for module in graph_modules(model):
        for node in module.graph.nodes:
            value = value_of(node)
            if isinstance(value, Tensor) and value.dtype in CAST_DTYPES and not _only_stored(node):
                found[value.dtype] = None
    return tuple(found)


def _only_stored(node: Node) -> bool:
    """Whether a value in half precision is a constant, or a cast, that only casts read."""
    if not is_constant(node) and not ops.is_op(node, ops.CASTS):
        return False
    readers = [user for user in node.users if not ops.is_op(user, ops.ASSERT_METADATA)]
    if not readers or not all(ops.is_op(user, ops.CASTS) for user in readers):
        return False
    return is_constant(node) or not any(map(_is_half, readers))


def _is_half(node: Node) -> bool:
    value = value_of(node)
    return isinstance(value, Tensor) and value.dtype in CAST_DTYPES


def _widen(model: GraphModule, stored: frozenset[Node], wide: dict[Any, Tensor]) -> None:
    storage = StorageMap.of(model.graph)
    for node in list(model.graph.nodes):
        if ops.is_op(node, ops.ASSERT_METADATA):
            model.graph.erase_node(node)
        elif node not in stored:
            _widen_node(model, node, wide)
            if ops.is_op(node, ops.CASTS):
                _drop_cast(node, storage)


def _widen_node(model: GraphModule, node: Node, wide: dict[Any, Tensor]) -> None:
    if is_constant(node) and _is_half(node):
        _widen_constant(model, node, wide)
    elif node.op == "call_function":
        node.args = map_aggregate(node.args, _wide_type)
        node.kwargs = _without_default(node, map_aggregate(node.kwargs, _wide_type))
    if node.op != "output":
        node.meta["val"] = pytree.tree_map(_wide_value, node.meta.get("val"))


def _wide_type(argument: Any) -> Any:
    return torch.float32 if argument in CAST_DTYPES else argument


def _wide_value(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in CAST_DTYPES
    return fake_like(value, torch.float32) if half else value


def _without_default(node: Node, kwargs: Any) -> dict[str, Any]:
    """A dequantize that gives float32 is not told to: delegates know it in that form."""
    is_told = ops.is_op(node, ops.DEQUANTIZE) and kwargs.get("out_dtype") is torch.float32
    return {k: v for k, v in kwargs.items() if not is_told or k != "out_dtype"}


def _widen_constant(model: GraphModule, node: Node, wide: dict[Any, Tensor]) -> None:
    """One storage is converted once: tied weights stay tied, and views stay views."""
    tensor = get_constant(model, node)
    if tensor.dtype not in CAST_DTYPES:
        return
    key = storage_of(tensor)
    with torch.no_grad():
        if key not in wide:
            flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            wide[key] = flat.set_(tensor.untyped_storage()).to(torch.float32)
        view = wide[key].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    new = torch.nn.Parameter(view, requires_grad=tensor.requires_grad) if is_parameter else view
    replace_tensor(model, str(node.target), new)


def _drop_cast(node: Node, storage: StorageMap) -> None:
    """A cast that changes nothing any more goes; where storage is written it made a copy."""
    source = node.args[0]
    if not isinstance(source, Node) or not isinstance(value_of(source), Tensor):
        return
    if value_of(source).dtype != value_of(node).dtype or len(node.args) > 2 or node.kwargs:
        return
    if storage.is_mutated(node) or storage.is_mutated(source):
        node.target, node.args = ops.aten.clone.default, (source,)
        return
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _results(model: GraphModule) -> list[Any]:
    (output,) = (node for node in model.graph.nodes if node.op == "output")
    return pytree.tree_leaves(output.args, is_leaf=lambda leaf: isinstance(leaf, Node))


def _types_of(values: list[Any]) -> list[torch.dtype | None]:
    """The type of each value in half precision; None for others."""
    return [value_of(v).dtype if isinstance(v, Node) and _is_half(v) else None for v in values]


def _convert_inputs(
    model: GraphModule, inputs: list[Node], types: list[torch.dtype | None]
) -> None:
    storage = StorageMap.of(model.graph)
    emit = Emitter(model, PASS_NAME)
    for node, dtype in zip(inputs, types, strict=True):
        if dtype is None:
            continue
        if storage.is_mutated(node):
            raise LoweringError(
                f"the model writes into its input {node.name}, which is {dtype}, and the target "
                "computes in float32 alone; export the model in float32: model.float()"
            )
        users = list(node.users)
        emit.after(inputs[-1], origin=node)
        cast = emit.call_giving(value_of(node), ops.TO_DTYPE, node, torch.float32)
        node.meta["val"] = fake_like(value_of(node), dtype)
        for user in users:
            user.replace_input_with(node, cast)


def _convert_results(model: GraphModule, types: list[torch.dtype | None]) -> None:
    (output,) = (node for node in model.graph.nodes if node.op == "output")
    emit, places = Emitter(model, PASS_NAME), iter(types)

    def converted(value: Any) -> Any:
        dtype = next(places)
        if dtype is None:
            return value
        emit.before(output, origin=value)
        return emit.call_giving(fake_like(value_of(value), dtype), ops.TO_DTYPE, value, dtype)

    output.args = pytree.tree_map(
        converted, output.args, is_leaf=lambda leaf: isinstance(leaf, Node)
    )
