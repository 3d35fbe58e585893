"""What annotations ask for, tensor by tensor, before sharing is resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.fx import Graph, Node

from pt2q.errors import AnnotationError
from pt2q.ir.dtypes import QUANTIZABLE
from pt2q.ir.graph import EdgeOrNode, edge_name, is_float_tensor
from pt2q.ir.integers_in_float import integers_in_float
from pt2q.ir.storage import StorageMap
from pt2q.ir.torch_private import FakeTensor
from pt2q.spec.annotation import annotation_of
from pt2q.spec.specs import QuantizationSpec, QuantizationSpecBase


@dataclass
class Requests:
    """The spec of each annotated tensor, whether it may share, and what is left alone and why."""

    specs: dict[EdgeOrNode, QuantizationSpecBase] = field(default_factory=dict)
    implicit: dict[EdgeOrNode, bool] = field(default_factory=dict)
    skipped: dict[EdgeOrNode, str] = field(default_factory=dict)

    def add(self, key: EdgeOrNode, spec: QuantizationSpecBase, implicit: bool) -> None:
        """Ask for a spec; ``implicit`` as the annotation's ``allow_implicit_sharing``."""
        self.specs[key] = spec
        self.implicit[key] = implicit

    def skip(self, key: EdgeOrNode, reason: str) -> None:
        """Leave a tensor alone, whatever it asked for."""
        self.specs.pop(key, None)
        self.implicit.pop(key, None)
        self.skipped[key] = reason


def read_requests(graphs: Sequence[Graph]) -> Requests:
    """Read the annotations of graphs; none of them is changed.

    Raises:
        AnnotationError: an annotation names an edge that does not exist, or is no spec of ours.
    """
    found = Requests()
    for graph in graphs:
        _read_graph(found, graph, StorageMap.of(graph))
        _skip_integers(found, graph)
        for node in graph.nodes:
            _unite_observers(found, node)
    return found


def _skip_integers(found: Requests, graph: Graph) -> None:
    """Leave alone what counts in floating point, and what it is made of."""
    for node in integers_in_float(graph):
        edges: list[EdgeOrNode] = [node]
        edges += [(source, node) for source in node.all_input_nodes]
        edges += [(node, reader) for reader in node.users]
        for key in edges:
            if key in found.specs:
                found.skip(key, "integers are made of it: rounded, they would be others")


def _unite_observers(found: Requests, node: Node) -> None:
    """Give specs of one value that differ in their observer alone the first one's.

    They ask for the same integers: a second quantize would cost steps and time. The output's
    comes first, then those of the readers.
    """
    keys: list[EdgeOrNode] = [node, *((node, user) for user in node.users)]
    asked = {
        key: spec
        for key in keys
        if isinstance(spec := found.specs.get(key), QuantizationSpec) and found.implicit[key]
    }
    if len({id(spec) for spec in asked.values()}) < 2:
        return
    first: dict[QuantizationSpec, QuantizationSpec] = {}
    for key, spec in asked.items():
        form = replace(spec, observer_or_fake_quant_ctr=_any_observer)
        found.specs[key] = first.setdefault(form, spec)


def _any_observer(**_: object) -> None:
    return None


def _read_graph(found: Requests, graph: Graph, storage: StorageMap) -> None:
    for node in graph.nodes:
        annotation = annotation_of(node)
        if annotation is None:
            continue
        implicit = annotation.allow_implicit_sharing
        readers = set(node.all_input_nodes)
        for producer, spec in annotation.input_qspec_map.items():
            if producer not in readers:
                raise AnnotationError(
                    f"{node.name} is annotated on an edge from {producer}, which it does not "
                    f"read; its inputs are {[n.name for n in node.all_input_nodes]}"
                )
            if spec is not None:
                _read_one(found, (producer, node), producer, spec, implicit, storage)
        if annotation.output_qspec is not None:
            _read_one(found, node, node, annotation.output_qspec, implicit, storage)


def _read_one(
    found: Requests,
    key: EdgeOrNode,
    value: Node,
    spec: QuantizationSpecBase,
    implicit: bool,
    storage: StorageMap,
) -> None:
    if not isinstance(spec, QuantizationSpecBase):
        raise AnnotationError(
            f"{edge_name(key)} is annotated with a {type(spec).__name__}; use QuantizationSpec, "
            "SharedQuantizationSpec, DerivedQuantizationSpec or FixedQParamsQuantizationSpec"
        )
    reason = _why_not(value) or _asks_for_float(spec)
    if reason is not None:
        found.skip(key, reason)
    elif not isinstance(key, Node) and storage.must_write_through(*key):
        found.skip(key, "written in place: the write has to reach the original tensor")
    else:
        found.add(key, spec, implicit)


def _asks_for_float(spec: QuantizationSpecBase) -> str | None:
    in_float = isinstance(spec, QuantizationSpec) and spec.stays_in_float
    return "left in float, as its spec's float32 asks" if in_float else None


def _why_not(value: Node) -> str | None:
    """Why a value cannot be quantized, whatever its annotation says."""
    if not is_float_tensor(value):
        return "not a floating point tensor"
    tensor = value.meta["val"]
    if tensor.dtype not in QUANTIZABLE:
        return f"{tensor.dtype}, which the quantize operators do not take"
    if tensor.layout is not torch.strided:
        return f"a {str(tensor.layout).removeprefix('torch.')} tensor, which is not strided"
    # A plain meta tensor stands for one whose device is not on record.
    if isinstance(tensor, FakeTensor) and tensor.device.type == "meta":
        return "on the meta device: it has no data to find parameters from"
    return None
