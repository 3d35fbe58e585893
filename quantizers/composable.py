"""`ComposableQuantizer`: several quantizers on one model, the first of them with priority."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.errors import AnnotationError
from pt2q.graph import annotation_of
from pt2q.quantizers.report import Report, Row
from pt2q.spec import EdgeOrNode, QuantizationAnnotation, Quantizer


class ComposableQuantizer(Quantizer):
    """Lets each quantizer annotate in turn what those before it have left.

    Args:
        quantizers: in the order of their priority. Each has to pass over annotated nodes, as the
            quantizers of this package do.

    Raises:
        AnnotationError: from `annotate`, if a quantizer changes what another has annotated.
    """

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        self.quantizers = tuple(quantizers)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Apply every quantizer's transformation, in order."""
        for quantizer in self.quantizers:
            model = quantizer.transform_for_annotation(model)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate with every quantizer, in order.

        Raises:
            AnnotationError: a quantizer changed what another has annotated.
        """
        owners: dict[Node, Quantizer] = {}
        for quantizer in self.quantizers:
            before = {node: _content(annotation_of(node)) for node in model.graph.nodes}
            model = quantizer.annotate(model)
            for node in model.graph.nodes:
                self._check(node, before.get(node), quantizer, owners)
                if annotation_of(node) is not None:
                    owners.setdefault(node, quantizer)
        return model

    def _check(
        self, node: Node, before: object, quantizer: Quantizer, owners: dict[Node, Quantizer]
    ) -> None:
        if before is None or node not in owners or before == _content(annotation_of(node)):
            return
        raise AnnotationError(
            f"{_name(quantizer)} changes the annotation that {_name(owners[node])} made at node "
            f"{node.name}; make it pass over annotated nodes, or change the order"
        )

    def validate(self, model: GraphModule) -> None:
        """Validate with every quantizer."""
        for quantizer in self.quantizers:
            quantizer.validate(model)

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        """Let every quantizer look at the observers, in order."""
        for quantizer in self.quantizers:
            quantizer.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)

    def report(self) -> Report:
        """The quantizers' reports in one: a node is quantized if one of them quantizes it."""
        rows: dict[str, Row] = {}
        for quantizer in self.quantizers:
            report = getattr(quantizer, "report", None)
            for row in report() if callable(report) else ():
                if row.node not in rows or (row.quantized and not rows[row.node].quantized):
                    rows[row.node] = row
        return Report(tuple(rows.values()))


def _content(annotation: QuantizationAnnotation | None) -> object:
    if annotation is None:
        return None
    return tuple(annotation.input_qspec_map.items()), annotation.output_qspec


def _name(quantizer: Quantizer) -> str:
    return type(quantizer).__name__
