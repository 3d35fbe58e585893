"""Several programs of one model as one program, and apart again.

Prefill and decode share their weights, what they remember and its observers. As one program, a
call of which is a call of each, they are calibrated, walked through and improved as any other
program is; a weight that both read is one layer with two uses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from pt2q.errors import DataError
from pt2q.ir.emit import restored
from pt2q.ir.graph import find_attribute, is_persistent, set_constant
from pt2q.ir.joined.order import in_order
from pt2q.ir.model_state import KeptState
from pt2q.ir.module import FlowRecord, InputCheck, QuantGraphModule, Stage
from pt2q.ir.module.batch_call import placed
from pt2q.ir.module.graph_copy import move_metadata
from pt2q.ir.storage import place_of
from pt2q.ir.torch_private import codegen_of, forward_pre_hooks, pytree, set_codegen, tracer_class

Programs = Mapping[str, QuantGraphModule]


@dataclass(frozen=True)
class JoinedPrograms:
    """Programs of one model as one.

    Args:
        module: takes the inputs of all, flat, and gives their outputs, flat.
        programs: what it was made of; tensors and observers are theirs.
        nodes: by the name of each of its nodes, the program and the node's name there.
        targets: by program, the names of its attributes under those of the module.
    """

    module: QuantGraphModule
    programs: Programs
    nodes: Mapping[str, tuple[str, str]]
    targets: Mapping[str, Mapping[str, str]]

    def call(self, batch: Any) -> tuple[Any, ...]:
        """The inputs of the module in a batch.

        Args:
            batch: by the name of each program, a call of it.

        Raises:
            DataError: a program has no call, or what it has is none.
            InputShapeError: a size that was exported as a constant differs.
        """
        names = list(self.programs)
        if not isinstance(batch, Mapping) or set(batch) != set(names):
            found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise DataError(
                f"a batch of several programs is a dict with a call of each of {names}, which "
                f"are made in this order; found {found}"
            )
        calls = (placed(model, batch[name]) for name, model in self.programs.items())
        return tuple(value for values in calls for value in values.values())

    def calls(self, batches: Iterable[Any]) -> Iterable[tuple[Any, ...]]:
        """Batches as the module takes them, see `call`; read when they are gone through."""
        return _Calls(self, batches)

    def apart(self, module: QuantGraphModule) -> dict[str, QuantGraphModule]:
        """The programs again, as a changed copy of the module has them.

        Args:
            module: a copy of ``module``: its tensors and observers may be others, and nodes may
                have been added.
        """
        owners = self._owners(module.graph)
        results = dict(zip(self.programs, self._results(module.graph), strict=True))
        return {
            name: self._program(name, module, (n for n in owners if owners[n] == name), found)
            for name, found in results.items()
        }

    def _owners(self, graph: Graph) -> dict[Node, str]:
        """The program of each node, in the order of the graph; what was added is its reader's."""
        found: dict[Node, str] = {}
        for node in reversed(graph.nodes):
            if node.op != "output":
                known = self.nodes.get(node.name)
                found[node] = next(found[u] for u in node.users) if known is None else known[0]
        return dict(reversed(found.items()))

    def _results(self, graph: Graph) -> Iterator[Any]:
        """What each program gives, in its own structure."""
        values = iter(pytree.tree_leaves(_output(graph).args[0]))
        for model in self.programs.values():
            leaves, structure = pytree.tree_flatten(_output(model.graph).args[0])
            yield pytree.tree_unflatten([next(values) for _ in leaves], structure)

    def _program(
        self, name: str, module: QuantGraphModule, nodes: Iterable[Node], result: Any
    ) -> QuantGraphModule:
        source, own, root = self.programs[name], self.targets[name], nn.Module()
        graph = Graph(tracer_cls=tracer_class(source.graph))
        memo: dict[Node, Node] = {}
        set_codegen(graph, copy.copy(codegen_of(source.graph)))
        for node in nodes:
            target = own.get(str(node.target), node.target)
            if node.op in ("get_attr", "call_module"):
                _attach(root, str(target), module, str(node.target))
            _, called = self.nodes.get(node.name, ("", node.name))
            memo[node] = _renamed(graph, node, target, memo, called)
        _finish(graph, _output(source.graph), map_arg(result, memo.__getitem__))
        move_metadata([graph], memo)
        record = source.record.at_stage(source.record.stage)
        made = QuantGraphModule(root, graph, record=record)
        for hook in forward_pre_hooks(source).values():
            if isinstance(hook, InputCheck):
                hook.install(made)
        return made


@dataclass(frozen=True)
class _Calls(Iterable[tuple[Any, ...]]):
    joined: JoinedPrograms
    batches: Iterable[Any]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return map(self.joined.call, self.batches)


def join_programs(programs: Programs) -> JoinedPrograms:
    """Make one program of several.

    Args:
        programs: what `pt2q.prepare_pt2e` made of several programs of one model, by name, as they
            are run one after the other; they are not changed.
    """
    graph, nodes = Graph(), {}
    memo: dict[Node, Node] = {}
    root, names = nn.Module(), {name: _Names(name) for name in programs}
    taken: dict[str, Any] = {}
    for name, node in in_order(programs):
        target = node.target
        if node.op in ("get_attr", "call_module"):
            target = names[name].of(str(target), programs[name], root, taken)
        new = memo[node] = _renamed(graph, node, target, memo, node.name)
        nodes[new.name] = name, node.name
        if node.op == "placeholder":  # the name of an argument, here and there
            names[name].own[new.name], new.target = str(target), new.name
    outputs = [_output(model.graph) for model in programs.values()]
    leaves = [leaf for output in outputs for leaf in pytree.tree_leaves(output.args[0])]
    _finish(graph, outputs[-1], map_arg(tuple(leaves), memo.__getitem__))
    move_metadata([graph], memo)
    record = FlowRecord(stage=Stage.PREPARED)
    _note_state(record, programs, names)
    targets = {name: found.own for name, found in names.items()}
    return JoinedPrograms(QuantGraphModule(root, graph, record=record), programs, nodes, targets)


class _Names:
    """The names of one program's attributes among those of all."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.given: dict[str, str] = {}
        self.own: dict[str, str] = {}

    def of(self, target: str, model: nn.Module, root: nn.Module, taken: dict[str, Any]) -> str:
        """The name for all; what it stands for is put there."""
        if target not in self.given:
            key = _identity(find_attribute(model, target))
            name = target
            while taken.setdefault(name, key) != key:
                name = f"{self.program}_{name.replace('.', '_')}"
            self.given[target], self.own[name] = name, target
            _attach(root, name, model, target)
        return self.given[target]


def _identity(held: Any) -> Any:
    return (place_of(held), held.dtype) if isinstance(held, Tensor) else id(held)


def _attach(root: nn.Module, name: str, model: nn.Module, target: str) -> None:
    """Let a module hold what another one holds, under a name of its own."""
    held = find_attribute(model, target)
    if isinstance(held, Tensor):
        set_constant(root, name, held, persistent=is_persistent(model, target))  # type: ignore[arg-type]
    else:
        root.add_module(name, held)


def _renamed(graph: Graph, node: Node, target: Any, memo: dict[Node, Node], name: str) -> Node:
    args, kwargs = map_arg((node.args, node.kwargs), memo.__getitem__)
    return restored(graph, node.op, target, args, kwargs, name, node.meta)


def _output(graph: Graph) -> Node:
    node: Node = graph.output_node()
    return node


def _finish(graph: Graph, like: Node, result: Any) -> None:
    restored(graph, "output", like.target, (result,), {}, like.name, like.meta)


def _note_state(record: FlowRecord, programs: Programs, names: Mapping[str, _Names]) -> None:
    """The first values of what programs remember, under the names for all."""
    values: dict[str, Tensor] = {}
    for name, model in programs.items():
        kept = model.record.get(KeptState)
        for target, value in ({} if kept is None else kept.values).items():
            if target in names[name].given:
                values[names[name].given[target]] = value
    if values:
        record.put(KeptState(values))
