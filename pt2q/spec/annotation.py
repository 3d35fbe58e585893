"""How a node is quantized, as its metadata says."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Node

from pt2q.ir.graph import QUANT_ANNOTATION_KEY as QUANT_ANNOTATION_KEY
from pt2q.spec.specs import QuantizationSpecBase


@dataclass
class QuantizationAnnotation:
    """How a node's inputs and output are quantized; lives in ``node.meta``.

    Args:
        input_qspec_map: a spec for each input node to be quantized on its edge to this node;
            None, or no entry, leaves the edge in float.
        output_qspec: the spec of the node's output, or None.
        allow_implicit_sharing: an edge of this node, or its output, whose spec equals the one
            already on the same value uses that one's parameters. False gives each its own.
    """

    input_qspec_map: dict[Node, QuantizationSpecBase | None] = field(default_factory=dict)
    output_qspec: QuantizationSpecBase | None = None
    allow_implicit_sharing: bool = True
    _annotated: bool = False


def annotation_of(node: Node) -> QuantizationAnnotation | None:
    """The annotation of a node, or None."""
    found: QuantizationAnnotation | None = node.meta.get(QUANT_ANNOTATION_KEY)
    return found
