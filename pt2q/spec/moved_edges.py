"""Specs refer to edges of the graph; when an edge moves, they have to follow."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Graph

from pt2q.ir.graph import EdgeOrNode
from pt2q.spec.annotation import annotation_of
from pt2q.spec.resolution import as_key
from pt2q.spec.specs import (
    DerivedQuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)

Moves = dict[EdgeOrNode, EdgeOrNode]


def move_edges(graph: Graph, moves: Moves) -> None:
    """Make all annotations of a graph refer to the new places.

    Args:
        graph: annotated; its annotations are changed.
        moves: the new edge or node of each that moved.
    """
    if not moves:
        return
    for node in graph.nodes:
        annotation = annotation_of(node)
        if annotation is None:
            continue
        for producer, spec in annotation.input_qspec_map.items():
            annotation.input_qspec_map[producer] = _moved(spec, moves)
        annotation.output_qspec = _moved(annotation.output_qspec, moves)


def _moved(spec: QuantizationSpecBase | None, moves: Moves) -> QuantizationSpecBase | None:
    if isinstance(spec, SharedQuantizationSpec):
        old = as_key(spec.edge_or_node)
        return replace(spec, edge_or_node=moves[old]) if old in moves else spec
    if isinstance(spec, DerivedQuantizationSpec):
        sources = [as_key(source) for source in spec.derived_from]
        if not any(source in moves for source in sources):
            return spec
        return replace(spec, derived_from=tuple(moves.get(s, s) for s in sources))
    return spec
