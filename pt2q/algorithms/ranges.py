"""The ranges of a prepared model's activations: whose they are, and what reads the values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.algorithms.engine import Program
from pt2q.algorithms.engine.rounding import is_integer
from pt2q.algorithms.layers import Passed
from pt2q.ir import ops
from pt2q.ir.control_flow import graph_modules
from pt2q.ir.graph import is_float_tensor, is_observer_call, value_of
from pt2q.observers import (
    DerivedObserverOrFakeQuantize,
    FixedQParamsObserver,
    PlaceholderObserver,
    has_data,
)
from pt2q.spec import PerTensor, granularity_of

_GIVEN = (DerivedObserverOrFakeQuantize, FixedQParamsObserver, PlaceholderObserver)
"""Whose parameters are not found by calibration."""


@dataclass(frozen=True)
class ValueRange:
    """A range that calibration has found, of one value or of several that share it.

    Args:
        observer: that of all of them.
        nodes: its calls, in the order of the graph.
        targets: the operators that compute with the values, in the order of the graph; where a
            value is only moved or handed out, its observer's call.
    """

    observer: Any
    nodes: tuple[Node, ...]
    targets: tuple[Node, ...]

    @property
    def name(self) -> str:
        """That of the first value."""
        return str(self.nodes[0].all_input_nodes[0].name)


def find_ranges(program: Program) -> tuple[list[ValueRange], list[Passed]]:
    """The ranges of a prepared model that can be moved, and those that are passed over.

    Args:
        program: the model; a range of a body of control flow is passed over.
    """
    owner, calls = program.model, _calls(program)
    inside = {
        id(module.get_submodule(str(node.target)))
        for module in graph_modules(owner)
        if module is not owner
        for node in module.graph.nodes
        if is_observer_call(module, node)
    }
    found, passed = [], []
    for nodes in calls.values():
        observer = owner.get_submodule(str(nodes[0].target))
        if not _is_calibrated(observer, nodes[0]):
            continue
        made = ValueRange(observer, tuple(nodes), _targets(program, nodes))
        if id(observer) in inside:
            passed.append(Passed(made.name, "its range is also that of a body of control flow"))
        else:
            found.append(made)
    return found, passed


def _calls(program: Program) -> dict[int, list[Node]]:
    """The calls of each observer in the outermost graph, but those of weights."""
    found: dict[int, list[Node]] = {}
    for node in program.schedule.nodes:
        if is_observer_call(program.model, node):
            observer = program.model.get_submodule(str(node.target))
            found.setdefault(id(observer), []).append(node)
    values = program.schedule.is_value
    return {key: nodes for key, nodes in found.items() if all(map(values, nodes))}


def _is_calibrated(observer: Any, node: Node) -> bool:
    """Whether an observer stands for one scale that data has decided."""
    if isinstance(observer, _GIVEN) or not is_float_tensor(node.all_input_nodes[0]):
        return False
    rank = int(value_of(node.all_input_nodes[0]).dim())
    if not is_integer(observer, rank) or not has_data(observer):
        return False
    return isinstance(granularity_of(observer), PerTensor)


def _targets(program: Program, nodes: list[Node]) -> tuple[Node, ...]:
    found = {target for node in nodes for target in _readers(program.model, node, node)}
    return tuple(sorted(found or nodes[:1], key=program.schedule.position.__getitem__))


def _readers(owner: GraphModule, node: Node, origin: Node) -> Iterator[Node]:
    """What computes with a value; ``origin`` where that cannot be compared."""
    for user in node.users:
        if ops.is_op(user, ops.SIZE):
            continue
        if is_observer_call(owner, user) or ops.is_op(user, ops.SHAPE):
            yield from _readers(owner, user, origin)
        elif user.op == "call_function" and is_float_tensor(user) and not ops.is_mutating(user):
            yield user
        else:
            yield origin
