"""A copy of a graph, whose metadata points at the copied nodes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch.fx import Graph, Node
from torch.fx.immutable_collections import immutable_dict, immutable_list

from pt2q.ir.emit import copied
from pt2q.ir.graph import CUSTOM_KEY, OWN_META, QUANT_ANNOTATION_KEY, TRACE_META
from pt2q.ir.torch_private import codegen_of, set_codegen, tracer_class

HOLDS_NO_NODES = (OWN_META - {QUANT_ANNOTATION_KEY}) | {
    *TRACE_META,
    CUSTOM_KEY,
    *("source_fn_stack", "original_aten", "seq_nr"),
}
"""Metadata of export, which is shared with the copy as it is."""


def copy_graph(graph: Graph, memo: dict[Node, Node]) -> Graph:
    """Copy a graph node by node.

    Args:
        graph: stays as it is.
        memo: gets the copy of each node.

    Returns:
        The copy. Metadata that refers to nodes, annotations say, still refers to the old ones;
        see `move_metadata`.
    """
    result = Graph(tracer_cls=tracer_class(graph))
    set_codegen(result, copy.copy(codegen_of(graph)))
    for node in graph.nodes:
        memo[node] = copied(node, result, memo.__getitem__)
    return result


def move_metadata(graphs: Iterable[Graph], memo: Mapping[Node, Node]) -> None:
    """Make the metadata of copied graphs refer to the copied nodes.

    Whatever its class: an annotation of another library, or with more fields than ours, keeps them
    all. What can be changed is copied, so that changing the copy leaves the original alone.

    Args:
        graphs: copies, all made before: an annotation may name a node of another graph.
        memo: the copy of each node.
    """
    for graph in graphs:
        for node in graph.nodes:
            for key in node.meta.keys() - HOLDS_NO_NODES:
                node.meta[key] = _moved(node.meta[key], memo)


def _moved(value: Any, memo: Mapping[Node, Node]) -> Any:
    if isinstance(value, Node):
        return memo.get(value, value)
    if isinstance(value, dict):
        moved = {_moved(key, memo): _moved(item, memo) for key, item in value.items()}
        return _of_kind(value, moved)
    if isinstance(value, list | tuple | set | frozenset):
        return _of_kind(value, [_moved(item, memo) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _moved_object(value, memo)
    return value


def _of_kind(value: Any, items: Any) -> Any:
    """A container of the class of another one, with other items."""
    if isinstance(value, tuple | frozenset | immutable_dict | immutable_list):
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    result = copy.copy(value)  # with all that a subclass keeps besides
    result.clear()
    (result.extend if isinstance(value, list) else result.update)(items)
    return result


def _moved_object(value: Any, memo: Mapping[Node, Node]) -> Any:
    """A dataclass instance with all it holds, fields or not; a frozen one only if it refers."""
    held = {key: getattr(value, key) for key in _attributes(value)}
    moved = {key: _moved(item, memo) for key, item in held.items()}
    changed = {key: item for key, item in moved.items() if item is not held[key]}
    if not changed and value.__dataclass_params__.frozen:
        return value
    result = copy.copy(value)
    for key, item in changed.items():
        object.__setattr__(result, key, item)
    return result


def _attributes(value: Any) -> Iterable[str]:
    fields = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    return dict.fromkeys([*fields, *getattr(value, "__dict__", ())])
