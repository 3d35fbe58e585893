"""What is measured: tensors that share quantization, and layers with all that is theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.algorithms.engine import Program
from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.engine.rounding import is_static
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import holds_tensor, is_observer_call, module_path
from pt2q.observers import Form, form_of

WEIGHT, ACTIVATION, LAYER = "weight", "activation", "layer"


@dataclass(frozen=True)
class Subject:
    """Tensors that are quantized, or left in float, together.

    Args:
        kind: ``"weight"`` or ``"activation"`` for tensors with one set of parameters, ``"layer"``
            for an operator with its inputs, its weights and its output.
        nodes: whose values are rounded, or the operator; bodies' paths in front.
        modules: the qualified names of the modules that they were written in.
        observers: the identities of the observers that round.
        position: in the outermost graph, from where on the run differs from float.
    """

    kind: str
    nodes: tuple[str, ...]
    modules: tuple[str, ...]
    observers: frozenset[int]
    position: int

    @property
    def name(self) -> str:
        """What tells it from others of one model."""
        return f"{self.kind} {', '.join(self.nodes)}"


@dataclass(frozen=True)
class Rounded:
    """One call of an observer.

    Args:
        path: of the body that it is in, "" outside.
        owner: the module of that body.
        node: the call.
        observer: what is called.
        position: of the first node of the outermost graph that its rounding changes.
    """

    path: str
    owner: GraphModule
    node: Node
    observer: Any
    position: int

    @property
    def source(self) -> Node:
        """What is rounded."""
        found = self.node.args[0]
        assert isinstance(found, Node)
        return found

    @property
    def is_weight(self) -> bool:
        """Whether it is a constant."""
        if self.source.op == "get_attr":
            return True
        return bool(getattr(self.observer, "constant_input", False))


def rounded_tensors(program: Program) -> list[Rounded]:
    """Every call of an observer that will round, in the order of the graphs.

    Args:
        program: a prepared model.
    """
    start = _starts(program)
    found = []
    for path, module in named_graph_modules(program.model):
        schedule = program.schedules[module]
        for node in schedule.nodes:
            if not is_observer_call(module, node):
                continue
            observer = module.get_submodule(str(node.target))
            if form_of(observer) in (Form.NOTHING, Form.OWN) or not node.users:
                continue
            at = start[path] if path else _first_effect(program, node)
            found.append(Rounded(path, module, node, observer, at))
    return found


def _first_effect(program: Program, node: Node) -> int:
    """Where a node, or the first of those computed from it that is no constant, stands."""
    schedule = program.schedule
    if node not in schedule.constants:
        return schedule.position[node]
    return min(_first_effect(program, user) for user in node.users)


def _starts(program: Program) -> dict[str, int]:
    """By path of each body, the first operator of the outermost graph that runs it."""
    found: dict[str, int] = {"": 0}
    paths = {id(module): path for path, module in named_graph_modules(program.model)}
    for path, module in named_graph_modules(program.model):
        for node in program.schedules[module].nodes:
            body = paths.get(id(module._modules.get(str(node.target))))
            if node.op != "get_attr" or body is None:
                continue
            first = found[path] if path else _first_effect(program, node)
            found[body] = min(first, found.get(body, first))
    return found


def groups(rounded: Iterable[Rounded]) -> list[Subject]:
    """The tensors that share one set of parameters, group by group.

    Args:
        rounded: all calls of observers.
    """
    by_observer: dict[int, list[Rounded]] = {}
    for item in rounded:
        by_observer.setdefault(id(item.observer), []).append(item)
    return [
        Subject(
            _kind(items),
            tuple(dict.fromkeys(i.path + i.source.name for i in items)),
            _modules(items),
            frozenset((key,)),
            min(i.position for i in items),
        )
        for key, items in by_observer.items()
    ]


def _kind(items: list[Rounded]) -> str:
    return WEIGHT if all(i.is_weight for i in items) else ACTIVATION


def _modules(items: list[Rounded]) -> tuple[str, ...]:
    """Where values are computed; of weights and inputs, where they are read."""
    found: dict[str, None] = {}
    for item in items:
        computed = item.source.op == "call_function"
        places = [item.source] if computed else list(item.node.users)
        found.update(dict.fromkeys(map(module_path, places)))
    return tuple(name for name in found if name)


def layers(rounded: Iterable[Rounded]) -> list[Subject]:
    """Every operator that reads a quantized weight, with its inputs and its output.

    Args:
        rounded: all calls of observers.
    """
    calls = list(rounded)
    by_node = {(i.path, i.node): i for i in calls}
    by_source: dict[tuple[str, Node], list[Rounded]] = {}
    for item in calls:
        by_source.setdefault((item.path, item.source), []).append(item)
    found = []
    for path, node in _readers_of_weights(calls):
        given = [by_node[path, n] for n in node.all_input_nodes if (path, n) in by_node]
        items = [*given, *by_source.get((path, _last(node)), ())]
        observers = frozenset(id(i.observer) for i in items)
        start = min(i.position for i in calls if id(i.observer) in observers)
        module = module_path(node)
        found.append(
            Subject(LAYER, (path + node.name,), (module,) if module else (), observers, start)
        )
    return found


def _readers_of_weights(calls: Iterable[Rounded]) -> Iterator[tuple[str, Node]]:
    seen: dict[tuple[str, Node], None] = {}
    for item in calls:
        if item.is_weight:
            users = (user for user in item.node.users if user.op == "call_function")
            seen.update(dict.fromkeys((item.path, user) for user in users))
    yield from seen


def _last(node: Node) -> Node:
    """The end of what is fused with an operator: the one reader that is rounded, or itself."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_function" or len(user.all_input_nodes) != 1:
            break
        node = user
    return node


def weights_alone(rounded: Iterable[Rounded], program: Program) -> dict[Place, Rounded]:
    """The constants that one observer alone reads, which can be rounded once for many runs.

    Args:
        rounded: all calls of observers.
        program: the model.
    """
    reads: Counter[Place] = Counter(
        (module, str(node.target))
        for module, schedule in program.schedules.items()
        for node in schedule.nodes
        if node.op == "get_attr" and holds_tensor(module, node)
    )
    calls = list(rounded)
    whole = {id(i.observer) for i in calls} - {
        id(i.observer) for i in calls if not _is_read_alone(i, program, reads)
    }
    return {(i.owner, str(i.source.target)): i for i in calls if id(i.observer) in whole}


def _is_read_alone(item: Rounded, program: Program, reads: Counter[Place]) -> bool:
    source = item.source
    return (
        source.op == "get_attr"
        and source not in program.schedules[item.owner].state
        and len(source.users) == 1
        and is_static(item.observer)
        and reads[item.owner, str(source.target)] == 1
    )
