"""`StateQuantizer`: quantize what a model remembers, such as the keys and values of attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from pt2q.ir.control_flow import graph_modules
from pt2q.ir.graph import is_constant, is_float_tensor
from pt2q.ir.ops import is_mutating
from pt2q.ir.storage import StorageMap
from pt2q.observers import MinMaxObserver
from pt2q.spec import (
    QUANT_ANNOTATION_KEY,
    EdgeOrNode,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
    annotation_of,
)

INT8_STATE = QuantizationSpec(
    torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine, is_dynamic=False
)


class StateQuantizer(Quantizer):
    """Annotates as another quantizer does, and all that enters or leaves a written buffer.

    What is written into a buffer and what is read from it gets one set of parameters, so that
    `pt2q.passes.StoreStateQuantized` can keep the buffer itself in integers::

        prepared = prepare_pt2e(exported, StateQuantizer(XNNPACKQuantizer()))
        ...
        converted = convert_pt2e(prepared)
        run_passes(converted, [StoreStateQuantized()])

    Args:
        rest: quantizes everything else.
        spec: static, one scale for the tensor.
    """

    annotates_bodies = True

    def __init__(self, rest: Quantizer, spec: QuantizationSpec = INT8_STATE) -> None:
        self.rest = rest
        self.spec = spec

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """What the other quantizer does."""
        return self.rest.transform_for_annotation(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Let the other quantizer annotate, then share parameters around each written buffer."""
        if getattr(self.rest, "annotates_bodies", False):
            model = self.rest.annotate(model)
        else:
            for module in graph_modules(model):
                self.rest.annotate(module)
        for edges in state_edges(model.graph):
            spec: QuantizationSpecBase = self.spec
            for edge in edges:
                _annotate_edge(edge, spec)
                spec = SharedQuantizationSpec(edges[0])
        return model

    def validate(self, model: GraphModule) -> None:
        """What the other quantizer does."""
        self.rest.validate(model)

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        """What the other quantizer does."""
        self.rest.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)

    def report(self) -> Any:
        """The other quantizer's report."""
        return self.rest.report()  # type: ignore[attr-defined]


def state_edges(graph: Graph) -> list[list[tuple[Node, Node]]]:
    """For each written buffer the edges that what is written, and what is read, passes.

    Args:
        graph: of an exported module.
    """
    storage = StorageMap.of(graph)
    found: dict[Node, list[tuple[Node, Node]]] = {}
    for node in graph.nodes:
        root = storage.root[node]
        if is_constant(root) and storage.is_mutated(root) and is_float_tensor(node):
            found.setdefault(root, []).extend(_edges_at(node, root, storage))
    return [edges for edges in found.values() if edges]


def _edges_at(node: Node, root: Node, storage: StorageMap) -> list[tuple[Node, Node]]:
    """What is written at a node that belongs to the buffer, and who reads the node's values."""
    written = [
        s for s in node.all_input_nodes if storage.root[s] is not root and is_float_tensor(s)
    ]
    edges = [(source, node) for source in written] if is_mutating(node) else []
    readers = (user for user in node.users if user.op != "output")
    return edges + [(node, user) for user in readers if storage.root[user] is not root]


def _annotate_edge(edge: tuple[Node, Node], spec: QuantizationSpecBase) -> None:
    source, reader = edge
    old = annotation_of(reader) or QuantizationAnnotation()
    reader.meta[QUANT_ANNOTATION_KEY] = QuantizationAnnotation(
        {**old.input_qspec_map, source: spec},
        old.output_qspec,
        old.allow_implicit_sharing,
        old._annotated,
    )
