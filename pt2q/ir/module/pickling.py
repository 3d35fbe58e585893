"""Graphs on disk: a row for each node, which refers to others by name."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from pt2q.ir.emit import restored
from pt2q.ir.graph import TRACE_META, handed_on
from pt2q.ir.module.frozen import (
    freeze_spec,
    freeze_target,
    freeze_value,
    map_specs,
    thaw_spec,
    thaw_target,
    thaw_value,
)
from pt2q.ir.torch_private import FakeTensorMode, codegen_of, pytree, set_codegen

PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype)


@dataclass(frozen=True)
class _Ref:
    name: str


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
        meta["val"] = freeze_value(node.meta.get("val"))
        rows.append((node.op, node.name, freeze_target(node.target), args, kwargs, meta))
    return map_specs(codegen_of(graph), freeze_spec), rows


def thaw_graph(codegen: Any, rows: list[Any]) -> Graph:
    """The graph that `freeze_graph` was given.

    Args:
        codegen, rows: what it gave.

    Raises:
        DataError: the graph calls an operator that is not registered here.
    """
    graph = Graph()
    set_codegen(graph, map_specs(codegen, thaw_spec))
    nodes: dict[str, Node] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for op, name, target, args, kwargs, meta in rows:
        args, kwargs = pytree.tree_map_only(_Ref, lambda r: nodes[r.name], (args, kwargs))
        meta["val"] = thaw_value(meta["val"], mode)
        nodes[name] = restored(graph, op, thaw_target(target), args, kwargs, name, meta)
    return graph
