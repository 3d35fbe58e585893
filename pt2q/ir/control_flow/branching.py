"""Calls of control-flow operators: where each keeps its bodies and operands is a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.control_flow.runners import run_cond, run_map, run_scan, run_while_loop


@dataclass(frozen=True)
class Layout:
    """Where an operator keeps what; positions in its arguments.

    Args:
        operator: torch's operator.
        runner: the function that stands for it in a prepared model.
        bodies: the graphs.
        operands: groups of operands; a body's placeholders are all of them, in order.
        fixed: the group that is the same in every call of a body.
        carried: the group whose values come back as the first results, or None.
        returning: which of ``bodies`` make the results.
    """

    operator: Any
    runner: Callable[..., Any]
    bodies: tuple[int, ...]
    operands: tuple[int, ...]
    fixed: int
    carried: int | None
    returning: tuple[int, ...]


LAYOUTS = (
    Layout(ops.COND, run_cond, (1, 2), (3,), 3, None, (0, 1)),
    Layout(ops.WHILE_LOOP, run_while_loop, (0, 1), (2, 3), 3, 2, (1,)),
    Layout(ops.SCAN, run_scan, (0,), (1, 2, 3), 3, 1, (0,)),
    Layout(ops.MAP, run_map, (0,), (1, 2), 2, None, (0,)),
)
_BY_TARGET = {t: layout for layout in LAYOUTS for t in (layout.operator, layout.runner)}


@dataclass(frozen=True)
class Branching:
    """One call of a control-flow operator, with its bodies.

    Args:
        node: the call.
        layout: how to read it.
        owner: the module whose graph the call is in.
    """

    node: Node
    layout: Layout
    owner: GraphModule

    @property
    def names(self) -> list[str]:
        """The names under which ``owner`` holds the bodies."""
        return [str(self._argument(i).target) for i in self.layout.bodies]

    @property
    def bodies(self) -> list[GraphModule]:
        """The bodies."""
        found = [self.owner.get_submodule(name) for name in self.names]
        assert all(isinstance(body, GraphModule) for body in found)
        return found  # type: ignore[return-value]

    def _argument(self, index: int) -> Any:
        return self.node.args[index]

    def group(self, index: int) -> list[Any]:
        """One group of operands; missing trailing ones are empty."""
        return list(self._argument(index)) if index < len(self.node.args) else []

    @property
    def operands(self) -> list[Any]:
        """All operands, in the order of the placeholders of a body."""
        return [value for index in self.layout.operands for value in self.group(index)]

    def set_group(self, index: int, values: Sequence[Any]) -> None:
        """Replace one group of operands."""
        args = list(self.node.args)
        args[index : index + 1] = [tuple(values)]
        self.node.args = tuple(args)


def branchings(model: GraphModule) -> list[Branching]:
    """The control-flow calls of one graph, not of the graphs inside."""
    found = (
        node
        for target in _BY_TARGET
        for node in model.graph.find_nodes(op="call_function", target=target, sort=False)
    )
    return [Branching(node, _BY_TARGET[node.target], model) for node in sorted(found)]


def named_graph_modules(model: GraphModule) -> Iterator[tuple[str, GraphModule]]:
    """A module ("") and all graph modules its control flow runs, outermost first, each once."""
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        path, at = waiting.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        yield path, at
        inner = [
            pair for call in branchings(at) for pair in zip(call.names, call.bodies, strict=True)
        ]
        waiting.extend((f"{path}{name}.", body) for name, body in reversed(inner))


def graph_modules(model: GraphModule) -> Iterator[GraphModule]:
    """A module and all graph modules its control flow runs, outermost first, each once."""
    return (module for _, module in named_graph_modules(model))


def is_control_flow(node: Node) -> bool:
    """Whether a node runs graphs; these have nodes of their own to look at."""
    return node.op == "call_function" and node.target in _BY_TARGET


def placeholders(body: GraphModule) -> list[Node]:
    """The inputs of a body, in order."""
    return [node for node in body.graph.nodes if node.op == "placeholder"]


def results(body: GraphModule) -> list[Any]:
    """What a body returns, flat."""
    value = body.graph.output_node().args[0]
    return list(value) if isinstance(value, tuple | list) else [value]
