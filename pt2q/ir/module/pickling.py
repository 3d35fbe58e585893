"""Graphs on disk: nodes by name, operators by schema, fake values by shape and dtype."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from pt2q.errors import DataError
from pt2q.ir import ops
from pt2q.ir.emit import restored
from pt2q.ir.graph import TRACE_META, handed_on
from pt2q.ir.torch_private import (
    FakeTensor,
    FakeTensorMode,
    OpOverload,
    PyTreeCodeGen,
    codegen_of,
    overload_name,
    pytree,
    schema_of,
    set_codegen,
)


@dataclass(frozen=True)
class _Ref:
    name: str


@dataclass(frozen=True)
class _Op:
    name: str
    overload: str


@dataclass(frozen=True)
class _Value:
    """A fake tensor on disk. Symbolic sizes are stored as their example value."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str


@dataclass(frozen=True)
class _Spec:
    """A ``TreeSpec``; without a type, a leaf."""

    type: Any
    context: Any
    children: tuple[_Spec, ...]


def _freeze_target(target: Any) -> Any:
    if isinstance(target, OpOverload):
        return _Op(schema_of(target).name, overload_name(target))
    return target


def _thaw_target(target: Any) -> Any:
    if not isinstance(target, _Op):
        return target
    found = ops.operator_named(f"{target.name}.{target.overload}")
    if found is None:
        raise DataError(
            f"the model calls the operator {target.name}.{target.overload}, which is not "
            "registered; import the library that defines it, then load the model"
        )
    return found


def _freeze_value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        sizes = tuple(int(_hint(s)) for s in value.shape)
        strides = tuple(int(_hint(s)) for s in value.stride())
        return _Value(sizes, strides, value.dtype, str(value.device))
    if isinstance(value, list | tuple):
        return type(value)(_freeze_value(v) for v in value)
    return value if isinstance(value, bool | int | float | str | None.__class__) else None


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return 2 if hint is None else int(hint)


def _thaw_value(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, _Value):
        element = torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
        return FakeTensor(mode, element, torch.device(value.device))
    if isinstance(value, list | tuple):
        return type(value)(_thaw_value(v, mode) for v in value)
    return value


def freeze_spec(value: Any) -> Any:
    """Specs of arguments by what they hold: torch warns when one of a leaf is loaded."""
    if not isinstance(value, pytree.TreeSpec):
        return value
    return _Spec(value.type, value.context, tuple(map(freeze_spec, value.children())))


def thaw_spec(value: Any) -> Any:
    """What `freeze_spec` was given."""
    if not isinstance(value, _Spec):
        return value
    if value.type is None:
        return pytree.treespec_leaf()
    return pytree.TreeSpec(value.type, value.context, list(map(thaw_spec, value.children)))


def _map_specs(codegen: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of what writes the code of a graph with its specs frozen or thawed."""
    result = copy.copy(codegen)
    if isinstance(result, PyTreeCodeGen):
        result.pytree_info = result.pytree_info._replace(
            **{k: change(v) for k, v in result.pytree_info._asdict().items()}
        )
    return result


PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype)


def _travels(key: str, value: Any) -> bool:
    """Whether metadata is pickled: all that can be, and does not refer to nodes."""
    if key in TRACE_META or isinstance(value, PLAIN):
        return True
    try:
        _Probe(io.BytesIO()).dump(value)
    except Exception:  # whatever the pickling of a user's object raises
        return False
    return True


class _Probe(pickle.Pickler):
    """Pickles what refers to no node: a node would bring its whole graph."""

    def persistent_id(self, obj: Any) -> None:
        if isinstance(obj, Node):
            raise pickle.PicklingError(f"{obj} is a node")


def freeze_graph(graph: Graph) -> tuple[Any, list[Any]]:
    """A graph as plain data.

    Returns:
        What writes its code, and a row for each node.
    """
    rows = []
    for node in graph.nodes:
        refer: Any = lambda n: _Ref(n.name)  # noqa: E731 - FX types it as returning an argument
        args, kwargs = map_arg((node.args, node.kwargs), refer)
        meta = {key: value for key, value in handed_on(node).items() if _travels(key, value)}
        meta.update({key: node.meta[key] for key in ("from_node",) if key in node.meta})
        meta["val"] = _freeze_value(node.meta.get("val"))
        rows.append((node.op, node.name, _freeze_target(node.target), args, kwargs, meta))
    return _map_specs(codegen_of(graph), freeze_spec), rows


def thaw_graph(codegen: Any, rows: list[Any]) -> Graph:
    """The graph that `freeze_graph` was given.

    Args:
        codegen, rows: what it gave.

    Raises:
        DataError: the graph calls an operator that is not registered here.
    """
    graph = Graph()
    set_codegen(graph, _map_specs(codegen, thaw_spec))
    nodes: dict[str, Node] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for op, name, target, args, kwargs, meta in rows:
        args, kwargs = pytree.tree_map_only(_Ref, lambda r: nodes[r.name], (args, kwargs))
        meta["val"] = _thaw_value(meta["val"], mode)
        nodes[name] = restored(graph, op, _thaw_target(target), args, kwargs, name, meta)
    return graph
