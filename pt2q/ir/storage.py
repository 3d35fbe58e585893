"""Which nodes share storage, and who writes into it.

An observer is an identity, but the quantize and dequantize that replace it make a new tensor at
one moment. Where storage is written later, that moment matters: this file says where.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from pt2q.ir import ops
from pt2q.ir.graph import find_attribute
from pt2q.ir.torch_private import schema_of, storage_address


def _written_arguments(node: Node) -> list[Node]:
    schema = schema_of(node.target)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    if node.target in ops.WRITES_NOTHING:
        return []
    found = []
    for argument, value in zip(schema.arguments, node.args, strict=False):
        alias = argument.alias_info
        if alias is not None and alias.is_write and isinstance(value, Node):
            found.append(value)
    return found


def _aliased_input(node: Node) -> Node | None:
    """The input whose storage the output may share, by the operator's schema."""
    schema = schema_of(node.target)
    if node.op != "call_function":
        return None
    if schema is None:  # getitem of a list of views, and the like
        first = node.args[0] if node.args else None
        return first if isinstance(first, Node) else None
    if node.target in ops.MAY_RETURN_INPUT:  # their schema does not say so
        return next(iter(node.all_input_nodes), None)
    if not any(result.alias_info is not None for result in schema.returns):
        return None
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and isinstance(value, Node):
            return value
    return None


def _constant_roots(graph: Graph) -> dict[str, Node]:
    """For each constant, by name, the node that stands for the memory it lies in.

    Constants overlap if one is a view of the other, as a buffer may be of another buffer.
    """
    root: dict[str, Node] = {}
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for node in graph.find_nodes(op="get_attr"):
        target = str(node.target)
        if target in root:
            continue
        root[target] = node
        tensor = _constant(graph, target)
        if tensor is not None and tensor.layout is torch.strided and tensor.numel() > 0:
            span = (*_span(tensor), target)
            spans.setdefault(storage_address(tensor), []).append(span)
    for overlapping in spans.values():
        reach, first = -1, ""
        for start, end, target in sorted(overlapping):
            first = target if start >= reach else first
            reach = max(reach, end)
            root[target] = root[first]
    return root


def _constant(graph: Graph, target: str) -> torch.Tensor | None:
    owner = graph.owning_module
    found = None if owner is None else find_attribute(owner, target)
    return found if isinstance(found, torch.Tensor) else None


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage between the first and the last element of a tensor."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((int(size) - 1) * int(step) for size, step in steps)
    start, item = int(tensor.storage_offset()), tensor.element_size()
    return start * item, (start + last + 1) * item


@dataclass(frozen=True)
class StorageMap:
    """Storage of every node of a graph, as the node or constant it began with.

    Args:
        root: for each node, the node its storage came from (itself if it made a new tensor).
            Constants that overlap have the same root.
        last_write: for each root that is written, the position of the last write.
        position: the position of each node in the graph.
    """

    root: dict[Node, Node]
    last_write: dict[Node, int]
    position: dict[Node, int]

    @classmethod
    def of(cls, graph: Graph) -> StorageMap:
        """Read the graph once."""
        root: dict[Node, Node] = {}
        constants = _constant_roots(graph)
        last_write: dict[Node, int] = {}
        position: dict[Node, int] = {}
        for index, node in enumerate(graph.nodes):
            position[node] = index
            aliased = _aliased_input(node)
            root[node] = node if aliased is None else root[aliased]
            if node.op == "get_attr":
                root[node] = constants[str(node.target)]
            for written in _written_arguments(node):
                last_write[root[written]] = index
        return cls(root, last_write, position)

    def written_later(self, node: Node) -> bool:
        """Whether the node's storage is written by a node that comes after it."""
        return self.last_write.get(self.root[node], -1) > self.position[node]

    def is_mutated(self, node: Node) -> bool:
        """Whether the node's storage is written anywhere in the graph."""
        return self.root[node] in self.last_write

    def is_external(self, node: Node) -> bool:
        """Whether the storage outlives the call: a constant's or an input's."""
        return self.root[node].op in ("get_attr", "placeholder")

    def must_write_through(self, producer: Node, consumer: Node) -> bool:
        """Whether ``consumer`` has to read the very tensor that ``producer`` made.

        It has to if it writes into that and somebody else can see it, or if it gives out a view
        of it and the storage is written after that. A dequantized copy would swallow the write.
        """
        if producer in _written_arguments(consumer):
            made_here = self.root[producer] is producer and not self.is_external(producer)
            return not made_here or len(producer.users) > 1
        return _aliased_input(consumer) is producer and self.written_later(consumer)


def written_constants(graph: Graph) -> set[str]:
    """Names of constants that the graph writes into, or into what shares their storage."""
    storage = StorageMap.of(graph)
    constants = (node for node in graph.find_nodes(op="get_attr") if storage.is_mutated(node))
    return {str(node.target) for node in constants}
