"""A copy of a graph, whose metadata points at the copied nodes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
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
    mover = _Mover(memo)
    for graph in graphs:
        for node in graph.nodes:
            for key in node.meta.keys() - HOLDS_NO_NODES:
                node.meta[key] = mover.moved(node.meta[key])


@dataclass
class _Mover:
    """Puts copies in the place of nodes, wherever they are.

    Args:
        memo: the copy of each node.
        settled: by identity, frozen objects that refer to no node. Many annotations share a few
            specs; each is searched once.
    """

    memo: Mapping[Node, Node]
    settled: dict[int, Any] = field(default_factory=dict)

    def moved(self, value: Any) -> Any:
        if isinstance(value, Node):
            return self.memo.get(value, value)
        if isinstance(value, dict):
            return _of_kind(value, {self.moved(k): self.moved(v) for k, v in value.items()})
        if isinstance(value, list | tuple | set | frozenset):
            return _of_kind(value, [self.moved(item) for item in value])
        if is_dataclass(value) and not isinstance(value, type) and id(value) not in self.settled:
            return self.moved_object(value)
        return value

    def moved_object(self, value: Any) -> Any:
        """A dataclass instance with all it holds, fields or not; a frozen one only if it refers."""
        held = {key: getattr(value, key) for key in _attributes(value)}
        if value.__dataclass_params__.frozen and not any(map(_refers, held.values())):
            self.settled[id(value)] = value
            return value
        result = copy.copy(value)
        for key, item in held.items():
            object.__setattr__(result, key, self.moved(item))
        return result


def _refers(value: Any) -> bool:
    """Whether a value is a node or holds one."""
    if isinstance(value, dict):
        return any(map(_refers, value)) or any(map(_refers, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_refers, value))
    if is_dataclass(value) and not isinstance(value, type):
        return any(_refers(getattr(value, key)) for key in _attributes(value))
    return isinstance(value, Node)


def _of_kind(value: Any, items: Any) -> Any:
    """A container of the class of another one, with other items."""
    if isinstance(value, tuple | frozenset | immutable_dict | immutable_list):
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    result = copy.copy(value)  # with all that a subclass keeps besides
    result.clear()
    (result.extend if isinstance(value, list) else result.update)(items)
    return result


def _attributes(value: Any) -> Iterable[str]:
    named = [field.name for field in fields(value) if hasattr(value, field.name)]
    return dict.fromkeys([*named, *getattr(value, "__dict__", ())])
