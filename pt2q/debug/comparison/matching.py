"""Which values two models have in common, and which only one of them has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from pt2q.debug.comparison.common_value import CommonValue
from pt2q.debug.comparison.places import Place
from pt2q.debug.identity import Key, Origin, handles_of, value_nodes
from pt2q.debug.rounding.calls import own_roundings
from pt2q.debug.rounding.functions import rounding_of
from pt2q.errors import ComparisonError
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.qparams import QParams
from pt2q.ir.storage import StorageMap
from pt2q.passes.reference import ReferenceReport


@dataclass(frozen=True)
class Matching:
    """The values of two models, paired.

    Args:
        common: the values that both have.
        only_float, only_quantized: where one of the models computes a value of its own.
        rounded_value: by the place of a rounding call, the value whose own rounding it is.
    """

    common: tuple[CommonValue, ...]
    only_float: tuple[Place, ...]
    only_quantized: tuple[Place, ...]
    rounded_value: dict[Place, Place]


def match_values(floating: QuantGraphModule, quantized: QuantGraphModule) -> Matching:
    """Pair the values of two models by their handles, else by their origins.

    Args:
        floating, quantized: what `own_copy` gave.

    Raises:
        ComparisonError: they have no operator in common.
    """
    handles = handles_of(floating) & handles_of(quantized)
    here = value_nodes(floating, handles)
    stored = _stored_integers(quantized, handles)
    there = {key: place for place, key in value_nodes(quantized, handles).items()}
    there |= {key: place for key, (place, _) in stored.items()}
    paired = {
        place: key
        for place, key in here.items()
        if key in there and (key in stored or not _are_sums(place[1], there[key][1]))
    }
    if not any(node.op == "call_function" for _, node in paired):
        raise ComparisonError(
            "the models have no operator in common: is the second made of the first?"
        )
    pairs = _Pairs(floating, quantized, {key: params for key, (_, params) in stored.items()})
    known = set(here.values())
    return Matching(
        tuple(pairs.common(key, place, there[key]) for place, key in paired.items()),
        tuple(place for place in here if place not in paired),
        tuple(place for key, place in there.items() if key not in known),
        pairs.rounded_value,
    )


class _Pairs:
    """Makes common values of pairs of places."""

    def __init__(
        self, floating: QuantGraphModule, quantized: QuantGraphModule, stored: dict[Key, QParams]
    ) -> None:
        self.stored = stored
        self.modules = dict(named_graph_modules(quantized))
        self.storage_here, self.storage_there = _storage(floating), _storage(quantized)
        self.rounded_value: dict[Place, Place] = {}

    def common(self, key: Key, here: Place, there: Place) -> CommonValue:
        path, node = there
        storage = self.storage_there[path]
        value = CommonValue(key, here, there, stored=self.stored.get(key))
        value.written_here = self.storage_here[here[0]].is_mutated(here[1])
        value.written_there = storage.is_mutated(node)
        calls = own_roundings(self.modules[path], node, storage)
        if calls and value.stored is None:
            value.rounding = rounding_of(self.modules[path], calls[0])
            self.rounded_value |= {(path, call): there for call in calls}
        return value


def _stored_integers(
    quantized: QuantGraphModule, handles: frozenset[int]
) -> dict[Key, tuple[Place, QParams]]:
    """Values that are integers in the reference representation, with what they stand for."""
    found: dict[Key, tuple[Place, QParams]] = {}
    for path, module in own_modules(quantized):
        report = module.record.get(ReferenceReport)
        nodes = {node.name: node for node in module.graph.nodes} if report is not None else {}
        for value in report.stored if report is not None else ():
            by_handle = value.handle is not None and value.handle in handles
            key: Key = value.handle if by_handle else Origin(value.origin, path)  # type: ignore[assignment]
            if value.node in nodes:
                found[key] = ((path, nodes[value.node]), value.params)
    return found


def own_modules(model: QuantGraphModule) -> list[tuple[str, QuantGraphModule]]:
    """A model and the bodies of its control flow, by path; all are ours in an own copy."""
    found = named_graph_modules(model)
    return [(path, module) for path, module in found if isinstance(module, QuantGraphModule)]


def _are_sums(here: Node, there: Node) -> bool:
    """Whether a real value is held as integers of which nothing is known."""
    one, other = here.meta.get("val"), there.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.is_floating_point() and not other.is_floating_point()


def _storage(model: QuantGraphModule) -> dict[str, StorageMap]:
    return {path: StorageMap.of(module.graph) for path, module in named_graph_modules(model)}
