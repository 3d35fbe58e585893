"""`ComposableQuantizer`: several quantizers on one model, the first of them with priority."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.errors import AnnotationChangedError, AnnotationError
from pt2q.ir.control_flow import graph_modules, named_graph_modules
from pt2q.ir.graph import module_path
from pt2q.quantizers.toolkit.report.decision_report import Report
from pt2q.quantizers.toolkit.report.decisions import Row
from pt2q.spec import EdgeOrNode, QuantizationAnnotation, Quantizer, annotated_apart, annotation_of

_CALLS = ("transform_for_annotation", "annotate", "validate")


class ComposableQuantizer(Quantizer):
    """Lets each quantizer annotate in turn what those before it have left.

    Args:
        quantizers: in the order of their priority. Each has to pass over annotated nodes, as the
            quantizers of this package do.

    Raises:
        AnnotationError: something that is no quantizer is among them.
    """

    annotates_bodies = True
    # On the class: a class of one's own may keep its quantizers in a way of its own.
    quantizers: Sequence[Quantizer] = ()
    _annotated: Mapping[str, Row] = MappingProxyType({})

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        if not isinstance(quantizers, Iterable):
            raise AnnotationError(
                f"ComposableQuantizer takes a list of quantizers, found {quantizers!r}"
            )
        self.quantizers = tuple(quantizers)
        for position, quantizer in enumerate(self.quantizers):
            _check_quantizer(position, quantizer)

    def statements(self) -> tuple[str, ...]:
        """Its quantizers, in order, with what each was told."""
        found: list[str] = []
        for quantizer in self.quantizers:
            said = getattr(quantizer, "statements", tuple)
            found += [type(quantizer).__name__, *(f"  {line}" for line in said())]
        return tuple(found)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Apply every quantizer's transformation, in order."""
        for quantizer in self.quantizers:
            result = quantizer.transform_for_annotation(model)
            model = model if result is None else result
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate with every quantizer, in order.

        Raises:
            AnnotationChangedError: a quantizer changed what another has annotated.
        """
        owners: dict[Node, str] = {}
        for name, quantizer in self._by_name():
            before = {node: _content(annotation_of(node)) for node in _nodes(model)}
            for module in annotated_apart(quantizer, model):
                model = _annotated(quantizer, module, model)
            for node in _nodes(model):
                self._check(node, before.get(node), name, owners)
                if annotation_of(node) is not None:
                    owners.setdefault(node, name)
        self._annotated = {
            path + node.name: _row(path, node, owners[node])
            for path, module in named_graph_modules(model)
            for node in module.graph.nodes
            if node in owners and node.op == "call_function"
        }
        return model

    def _by_name(self) -> list[tuple[str, Quantizer]]:
        return list(zip(_distinct_names(self.quantizers), self.quantizers, strict=True))

    def _check(self, node: Node, before: object, name: str, owners: dict[Node, str]) -> None:
        if before is None or node not in owners or before == _content(annotation_of(node)):
            return
        raise AnnotationChangedError(
            f"{name} changes the annotation that {owners[node]} made at node {node.name}; make "
            "it pass over annotated nodes, or change the order"
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
        """The quantizers' reports in one, each row with the quantizer that annotated it.

        A node is quantized if one of them quantizes it. One that makes no report of its own is
        there with what it annotated.
        """
        rows: dict[str, Row] = {}
        for name, quantizer in self._by_name():
            report = getattr(quantizer, "report", None)
            for row in report() if callable(report) else ():
                if row.node not in rows or (row.quantized and not rows[row.node].quantized):
                    rows[row.node] = replace(row, by=row.by or (name if row.quantized else ""))
        for node, row in self._annotated.items():
            if node not in rows or not rows[node].quantized:
                rows[node] = row
        return Report(tuple(rows.values()))


def _check_quantizer(position: int, quantizer: object) -> None:
    if isinstance(quantizer, type):
        raise AnnotationError(
            f"ComposableQuantizer: entry {position} is the class {quantizer.__name__}, not a "
            f"quantizer; write {quantizer.__name__}()"
        )
    missing = [name for name in _CALLS if not callable(getattr(quantizer, name, None))]
    if missing:
        raise AnnotationError(
            f"ComposableQuantizer: entry {position} is no quantizer: {quantizer!r} has no "
            f"{', '.join(missing)}"
        )


def _distinct_names(quantizers: Sequence[object]) -> tuple[str, ...]:
    """Class names, with their position where a class is there twice."""
    names = [type(quantizer).__name__ for quantizer in quantizers]
    counts = Counter(names)
    return tuple(f"{n} [{i}]" if counts[n] > 1 else n for i, n in enumerate(names))


def _nodes(model: GraphModule) -> list[Node]:
    return [node for module in graph_modules(model) for node in module.graph.nodes]


def _annotated(quantizer: Quantizer, module: GraphModule, model: GraphModule) -> GraphModule:
    """Annotate one module; a quantizer may give back another in place of the outermost one."""
    result = quantizer.annotate(module)
    return result if module is model and result is not None else model


def _row(path: str, node: Node, name: str) -> Row:
    found = annotation_of(node)
    specs = [] if found is None else [*found.input_qspec_map.values(), found.output_qspec]
    # Specs of any origin: they are ours only after all have annotated.
    dtypes = dict.fromkeys(
        str(dtype) for s in specs if (dtype := getattr(s, "dtype", None)) is not None
    )
    words = ("annotated", *(dtype.removeprefix("torch.") for dtype in dtypes))
    return Row(
        node=path + node.name,
        module=module_path(node),
        operator=str(node.target),
        words=", ".join(words),
        by=name,
    )


def _content(annotation: QuantizationAnnotation | None) -> object:
    if annotation is None:
        return None
    return tuple(annotation.input_qspec_map.items()), annotation.output_qspec
