"""Annotations on the nodes of a graph, and which graphs a quantizer annotates."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir.control_flow import graph_modules
from pt2q.spec.specs import QUANT_ANNOTATION_KEY, QuantizationAnnotation


def annotation_of(node: Node) -> QuantizationAnnotation | None:
    """The annotation of a node, or None."""
    found: QuantizationAnnotation | None = node.meta.get(QUANT_ANNOTATION_KEY)
    return found


def annotated_apart(quantizer: Any, model: GraphModule) -> list[GraphModule]:
    """The modules to call ``quantizer.annotate`` with.

    Quantizers that go into control flow themselves (``annotates_bodies`` is true) are given the
    outermost module; others, which know one graph only, each module in turn.
    """
    if getattr(quantizer, "annotates_bodies", False):
        return [model]
    return list(graph_modules(model))
