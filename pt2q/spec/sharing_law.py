"""The law of sharing: tensors that share parameters are watched by one observer."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir.graph import EdgeOrNode, edge_name, find_attribute, is_observer_call, observed_value
from pt2q.ir.verify import law
from pt2q.ir.verify.laws import Found
from pt2q.spec.annotation import annotation_of
from pt2q.spec.specs import SharedQuantizationSpec


@law("sharing")
def sharing(model: GraphModule) -> Found:
    """Tensors that share parameters are watched by one observer."""
    for node in model.graph.nodes:
        annotation = annotation_of(node)
        if annotation is None:
            continue
        specs: list[tuple[EdgeOrNode, Any]] = [(node, annotation.output_qspec)]
        specs += [((source, node), spec) for source, spec in annotation.input_qspec_map.items()]
        for key, spec in specs:
            if isinstance(spec, SharedQuantizationSpec):
                yield from _sharing_faults(model, key, spec.edge_or_node)


def _sharing_faults(model: GraphModule, key: EdgeOrNode, other: EdgeOrNode) -> Found:
    mine, theirs = _observer_at(model, key), _observer_at(model, other)
    if mine is not None and theirs is not None and mine is not theirs:
        name = key.name if isinstance(key, Node) else key[1].name
        yield name, f"{edge_name(key)} and {edge_name(other)} share, but have two observers"


def _observer_at(model: GraphModule, key: EdgeOrNode) -> Any:
    """The observer of an edge or node; None where it cannot be told."""
    if isinstance(key, Node):
        calls = [n for n in key.users if is_observer_call(model, n)]
    else:
        producer, consumer = key
        if consumer.graph is not model.graph:
            return None
        calls = [
            n
            for n in consumer.all_input_nodes
            if is_observer_call(model, n) and observed_value(model, n) is producer
        ]
    if len(calls) != 1 or calls[0].graph is not model.graph:
        return None
    return find_attribute(model, str(calls[0].target))
