"""Let a quantizer say what it wants, and resolve that to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.fx import Node

from pt2q.errors import FlowError
from pt2q.flow.transforming import take, transform
from pt2q.ir.control_flow import boundary_links, graph_modules
from pt2q.ir.graph import is_constant
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.record import record_of
from pt2q.ir.shared_tensors import one_value
from pt2q.observers.foreign import replacement_for
from pt2q.passes.batch_norm.qat_record import fused_pairs
from pt2q.spec import Quantizer, annotated_apart
from pt2q.spec.foreign import adopt_annotations
from pt2q.spec.plan import Plan, build_plan


def annotate(model: QuantGraphModule, quantizer: Quantizer) -> Plan:
    """Let a quantizer transform, annotate and validate a model, and resolve what it says.

    Args:
        model: changed in place by ``transform_for_annotation`` and by the annotations.
        quantizer: the backend's, or the user's own.

    Returns:
        The plan; printing it shows every sharing group.
    """
    ask(model, quantizer)
    return resolve(model)


def resolve(model: QuantGraphModule) -> Plan:
    """The plan that the annotations of a model amount to.

    Args:
        model: annotated; it is not changed.

    Raises:
        AnnotationError, SharingError: they contradict the graph or each other.
    """
    graphs = [module.graph for module in graph_modules(model)]
    return build_plan(*graphs, links=boundary_links(model))


def resolve_together(models: Mapping[str, QuantGraphModule]) -> Plan:
    """The plan for several programs, in which a tensor that they have in common is one value.

    Args:
        models: annotated, by name; they are not changed.

    Raises:
        AnnotationError, SharingError: as `resolve` does.
    """
    graphs = [m.graph for model in models.values() for m in graph_modules(model)]
    links = [link for model in models.values() for link in boundary_links(model)]
    return build_plan(*graphs, links=[*links, *one_value(models), *_one_folded_weight(models)])


def _one_folded_weight(models: Mapping[str, QuantGraphModule]) -> Iterator[tuple[Node, Node]]:
    """Pairs of nodes that scale the same weight for the same batch norm, fused for training."""
    first: dict[tuple[str, ...], Node] = {}
    for model in models.values():
        for module in graph_modules(model):
            nodes = {node.name: node for node in module.graph.nodes}
            for pair in fused_pairs(record) if (record := record_of(module)) is not None else ():
                scaled, norm = nodes[pair.weight], nodes[pair.norm]
                read = filter(is_constant, (*scaled.all_input_nodes, *norm.all_input_nodes))
                key = tuple(str(node.target) for node in read)
                one = first.setdefault(key, scaled)
                if one is not scaled:
                    yield one, scaled


def ask(model: QuantGraphModule, quantizer: Quantizer) -> None:
    """Let a quantizer transform, annotate and validate a model.

    Args:
        model: changed in place.
        quantizer: the backend's, or the user's own.

    Raises:
        FlowError: it is no quantizer, or gave back something else than a model.
    """
    _check_quantizer(quantizer)
    for module in graph_modules(model):
        transform(module, quantizer)
    for module in annotated_apart(quantizer, model):
        take(module, quantizer.annotate(module))
    for module in graph_modules(model):
        quantizer.validate(module)
        adopt_annotations(module.graph, replacement_for)


def _check_quantizer(quantizer: object) -> None:
    missing = [
        name
        for name in ("transform_for_annotation", "annotate", "validate")
        if not callable(getattr(quantizer, name, None))
    ]
    if missing or isinstance(quantizer, type):
        what = quantizer.__name__ if isinstance(quantizer, type) else type(quantizer).__name__
        raise FlowError(
            f"{what} is no quantizer instance (it lacks {missing or 'being instantiated'}); "
            "pass an object such as XNNPACKQuantizer()"
        )
