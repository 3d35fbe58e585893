"""Find the values whose channels can be scaled between what makes them and the layers that read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.channels import Reach, reach_of
from pt2q.algorithms.engine import Program
from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.engine.rounding import is_static
from pt2q.algorithms.layers import Layer, Layers, Use
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.transfer import Site, Source
from pt2q.ir import ops
from pt2q.ir.graph import (
    get_constant,
    holds_tensor,
    is_observer_call,
    observed_value,
    real_readers,
)

NORMS = ops.LAYER_NORM | ops.RMS_NORM | ops.GROUP_NORM | ops.BATCH_NORM


class Sites:
    """Finds the sites of a program.

    Args:
        program: the program.
        layers: its layers.
    """

    def __init__(self, program: Program, layers: Layers) -> None:
        self.program = program
        self.owner = program.model
        self.layer_of = {use: layer for layer in layers.found for use in layer.uses}
        self.uses = {use.node: use for use in self.layer_of if use.owner is self.owner}
        self.readers: dict[int, list[Node]] = {}
        self.calls = _calls_of_observers(program)
        for node in program.schedule.nodes:
            if node.op == "get_attr" and holds_tensor(self.owner, node):
                self.readers.setdefault(id(get_constant(self.owner, node)), []).append(node)

    def source(self, node: Node) -> Source | None:
        """A norm or a layer as what a factor can be taken out of, or None.

        Of several that read the same tensors, the first stands for all.
        """
        if node in self.uses:
            return self._layer_source(self.uses[node])
        if not ops.is_op(node, NORMS):
            return None
        names = [name for name in ("weight", "bias") if _has(node, name)]
        found = self._alike(node, names)
        if not found or found[0] is not node or not all(_is_vector(n, names[0]) for n in found):
            return None
        places = tuple(self._places(ops.argument(node, name)) for name in names)
        last = ops.is_op(node, ops.LAYER_NORM | ops.RMS_NORM)
        return Source(node, -1 if last else 1, places, others=tuple(found[1:]))

    def _layer_source(self, use: Use) -> Source | None:
        layer = self.layer_of[use]
        nodes = [each.node for each in layer.uses]
        first = min(nodes, key=self._position)
        alike = all(u.owner is self.owner and u.form == use.form for u in layer.uses)
        biases = [None if u.bias is None else observed_value(u.owner, u.bias) for u in layer.uses]
        own = all(bias is None for bias in biases) or self._are_read_by(biases, set(nodes))
        if first is not use.node or not alike or not own:
            return None
        convolution = ops.is_op(use.node, ops.CONV | ops.CONV_GENERIC)
        tensors = (layer.places,) if biases[0] is None else (layer.places, self._places(biases[0]))
        others = tuple(node for node in sorted(nodes, key=self._position) if node is not first)
        return Source(use.node, 1 if convolution else -1, tensors, layer, use.form, others)

    def _position(self, node: Node) -> int:
        return self.program.schedule.position.get(node, -1)

    def _alike(self, node: Node, names: list[str]) -> list[Node]:
        """All norms that read the same tensors in the same way; none where others read them."""
        if not names:
            return []
        readers = self._readers(ops.argument(node, names[0]))
        for name in names:
            if not all(ops.is_op(n, NORMS) and n.target is node.target for n in readers):
                return []
            held = [ops.argument(n, name) if _has(n, name) else None for n in readers]
            if not self._are_read_by(held, readers):
                return []
        return sorted(readers, key=self._position)

    def _are_read_by(self, constants: Sequence[Node | None], readers: set[Node]) -> bool:
        """Whether nodes read one constant, which these operators alone read."""
        if any(n is None or n.op != "get_attr" for n in constants):
            return False
        found = {id(get_constant(self.owner, n)) for n in constants if n is not None}
        return len(found) == 1 and self._readers(constants[0]) == readers

    def _readers(self, constant: Any) -> set[Node]:
        """The operators that read a constant, by any of its names; none where it is none."""
        if constant.op != "get_attr":
            return set()
        nodes = self.readers[id(get_constant(self.owner, constant))]
        return {user for n in nodes for user in real_readers(self.owner, n)}

    def _places(self, constant: Any) -> tuple[Place, ...]:
        """The names of a constant."""
        nodes = self.readers[id(get_constant(self.owner, constant))]
        return tuple((self.owner, str(n.target)) for n in nodes)

    def site(self, source: Source) -> Site:
        """Where the channels of a source go.

        Raises:
            Declined: nowhere where they could be scaled.
        """
        nodes = (source.node, *source.others)
        reach = reach_of(self.owner, self.program.schedule, nodes, source.axis, self.uses)
        layers = self._whole_layers(reach)
        if source.layer is not None and any(layer is source.layer for layer, _ in layers):
            raise Declined("it reads its own output")
        if not layers:
            raise Declined(_who(reach) or "no quantized layer reads it")
        if not bool(reach.free.any()):
            raise Declined(_who(reach))
        observers = tuple(n for n in reach.between if is_observer_call(self.owner, n))
        self._check_apart(observers)
        kept = {use.node for layer, _ in layers for use in layer.uses}
        return Site(
            source, reach, tuple(layers), observers, tuple(n for n in self.uses if n in kept)
        )

    def _whole_layers(self, reach: Reach) -> list[tuple[Layer, Tensor]]:
        """The layers all of whose calls read the value alike; what others read stays as it is."""
        by_layer: dict[str, list[tuple[Use, Tensor]]] = {}
        for use, labels in reach.consumers.items():
            by_layer.setdefault(self.layer_of[use].name, []).append((use, labels))
        found = []
        for calls in by_layer.values():
            layer, labels = self.layer_of[calls[0][0]], calls[0][1]
            alike = all(torch.equal(labels, other) for _, other in calls)
            if len(calls) == len(layer.uses) and alike:
                found.append((layer, labels))
                continue
            for use, other in calls:
                _make_foreign(reach, use, other)
        return found

    def _check_apart(self, observers: Iterable[Node]) -> None:
        inside = set(observers)
        for observer in {self.owner.get_submodule(str(n.target)) for n in inside}:
            outside = [n for n in self.calls[id(observer)] if n not in inside]
            if outside and is_static(observer):
                raise Declined(f"a value between shares its parameters with {outside[0].args[0]}")


def _calls_of_observers(program: Program) -> dict[int, list[Node]]:
    found: dict[int, list[Node]] = {}
    for module, schedule in program.schedules.items():
        for node in schedule.nodes:
            if is_observer_call(module, node):
                found.setdefault(id(module.get_submodule(str(node.target))), []).append(node)
    return found


def _make_foreign(reach: Reach, use: Use, labels: Tensor) -> None:
    del reach.consumers[use]
    for label in labels[labels >= 0].long().unique().tolist():
        reach.foreign.setdefault(label, use.node.name)


def _who(reach: Reach) -> str:
    names = sorted(set(reach.foreign.values()))
    return f"its channels are also read by {', '.join(names[:3])}" if names else ""


def _has(node: Node, name: str) -> bool:
    return ops.has_argument(node, name) and ops.argument(node, name) is not None


def _is_vector(node: Node, name: str) -> bool:
    value = ops.argument(node, name).meta.get("val")
    if ops.is_op(node, ops.BATCH_NORM) and ops.argument(node, "training"):
        return False
    return isinstance(value, Tensor) and value.dim() == 1


def nearest_sites(program: Program, layers: Layers, more: Iterable[Source] = ()) -> dict[str, Site]:
    """For each layer, by name, the last site that reaches it.

    Args:
        program: the program.
        layers: its layers.
        more: what can take a factor beside norms and layers.
    """
    finder = Sites(program, layers)
    sources = [*(finder.source(node) for node in program.schedule.nodes), *more]
    found: dict[str, Site] = {}
    for source in sources:
        try:
            site = None if source is None else finder.site(source)
        except Declined:
            continue
        if site is not None:
            found.update({layer.name: site for layer, _ in site.layers})
    return found


def in_order(program: Program, found: Mapping[str, Site]) -> list[Site]:
    """Sites in the order of the graph, each once.

    Args:
        program: the program.
        found: what `nearest_sites` gave.
    """
    unique = {site.source.node: site for site in found.values()}
    return [unique[node] for node in sorted(unique, key=program.schedule.position.__getitem__)]
