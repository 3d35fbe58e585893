"""Run nodes of a program, in one lane, on the values of one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pt2q.algorithms.engine.lane import Lane
from pt2q.algorithms.engine.program import Program, Schedule, is_random

Values = dict[Node, Any]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, random numbers are those of a seed; afterwards they go on as before."""
    generator = torch.default_generator  # torch.manual_seed asks every accelerator, which is slow
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


@dataclass(frozen=True)
class Call:
    """One call of a watched node.

    Args:
        args, kwargs: what it was called with, tensors in the place of nodes.
        result: what it gave.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclass(frozen=True)
class Taps:
    """Nodes to watch, in the outermost graph or in a body, and the calls that were seen.

    Args:
        nodes: whose calls are recorded.
        calls: for each of them, in the order of the run.
    """

    nodes: frozenset[Node]
    calls: dict[Node, list[Call]] = field(default_factory=dict)

    @classmethod
    def on(cls, nodes: Iterable[Node]) -> Taps:
        """Watch some nodes."""
        return cls(frozenset(nodes))

    def take(self) -> dict[Node, list[Call]]:
        """What was seen since the last time."""
        found = dict(self.calls)
        self.calls.clear()
        return found


class Runner:
    """Runs nodes of a program in one lane; keeps the constants that they read.

    Args:
        program: the program.
        lane: says what observers do and which tensors are read.
        taps: what to watch.
    """

    def __init__(self, program: Program, lane: Lane, taps: Taps | None = None) -> None:
        self.program = program
        self.lane = lane
        self.taps = taps
        self.seed = 0
        self.most = 0
        self._constants: Values = {}

    def run(
        self,
        owner: GraphModule,
        nodes: Iterable[Node],
        values: Values,
        kept: Iterable[Node] = (),
        others: int = 0,
    ) -> None:
        """Run nodes in order; a value goes once its last reader is done.

        Args:
            owner: the module whose graph they are in.
            nodes: in the order of the graph.
            values: what they read, and where their results are put.
            kept: values that stay, whoever has read them.
            others: how many values of the same batch are held elsewhere; counted in ``most``.
        """
        schedule, kept = self.program.schedules[owner], set(kept)
        for node in nodes:
            if node.op == "placeholder" or not (schedule.is_value(node) or node.op == "output"):
                continue
            values[node] = self._call(owner, node, values)
            if owner is self.program.model:
                self.most = max(self.most, len(values) + others)
            _release(schedule, node, values, kept)

    def constant(self, owner: GraphModule, node: Node) -> Any:
        """The value of a constant, in this lane."""
        return self._value(owner, node, {})

    def _call(self, owner: GraphModule, node: Node, values: Values) -> Any:
        def read(n: Node) -> Any:
            return self._value(owner, n, values)

        args, kwargs = map_arg((node.args, node.kwargs), read)
        result = self._result(owner, node, args, kwargs)
        if self.taps is not None and node in self.taps.nodes:
            self.taps.calls.setdefault(node, []).append(Call(args, kwargs, result))
        return result

    def _result(self, owner: GraphModule, node: Node, args: Any, kwargs: Any) -> Any:
        if node.op == "output":
            return args[0]
        if node.op == "call_module":
            constant = node in self.program.schedules[owner].constants
            return self.lane.observed(
                owner.get_submodule(str(node.target)), *args, constant=constant
            )
        if not is_random(node):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        with seeded(self.seed + self.program.schedules[owner].position[node]):
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, owner: GraphModule, node: Node, values: Values) -> Any:
        if node in values:
            return values[node]
        if node.op == "get_attr":
            found = self.lane.tensor(owner, str(node.target))
            return _Body(self, found) if isinstance(found, GraphModule) else found
        if node not in self._constants:
            self._constants[node] = self._call(owner, node, values)
        return self._constants[node]


def _release(schedule: Schedule, node: Node, values: Values, kept: set[Node]) -> None:
    """Drop what has been read for the last time, and a result that nobody reads."""
    at = schedule.position[node]
    for read in (*node.all_input_nodes, node):
        if schedule.last_read[read] == at and read not in kept:
            values.pop(read, None)


class _Body:
    """A graph inside a control-flow operator, run in the same lane."""

    def __init__(self, runner: Runner, module: GraphModule) -> None:
        self.runner = runner
        self.module = module

    def __call__(self, *operands: Any) -> Any:
        nodes = self.runner.program.schedules[self.module].nodes
        inputs = [node for node in nodes if node.op == "placeholder"]
        values = dict(zip(inputs, operands, strict=True))
        self.runner.run(self.module, nodes, values, kept=nodes[-1:])
        return values[nodes[-1]]
