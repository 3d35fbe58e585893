"""Close what `OpenControlFlow` opened: the weights of bodies, now quantized, are operands again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from pt2q.ir.control_flow import Branching, branchings, graph_modules, placeholders
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import (
    delete_constant,
    find_attribute,
    get_constant,
    holds_tensor,
    is_constant,
)
from pt2q.ir.module import QuantGraphModule

PASS_NAME = "pt2q.control_flow"


@dataclass(frozen=True)
class CloseControlFlow:
    """Hand the constants of bodies back as operands and put torch's operators back."""

    whole_model = True

    def __call__(self, model: QuantGraphModule) -> bool:
        """Close every control-flow operator, innermost first."""
        found = False
        for module in reversed(list(graph_modules(model))):
            emit = Emitter(module, PASS_NAME)
            for call in branchings(module):
                found = True
                _move_out(call, emit)
                call.node.target = call.layout.operator
        return found


def _move_out(call: Branching, emit: Emitter) -> None:
    """Turn the constants of the bodies into operands of the fixed group."""
    stored: list[tuple[str, torch.Tensor, Node]] = []
    for body in call.bodies:
        for node in [n for n in body.graph.nodes if _is_tensor_constant(body, n)]:
            _operand_for(call, body, node, stored, emit)
    for body in call.bodies:
        used = {str(n.target) for n in body.graph.nodes if n.op == "get_attr"}
        for name, _ in [*body.named_parameters(), *body.named_buffers()]:
            if name not in used and not any(name.startswith(f"{u}.") for u in used):
                delete_constant(body, name)


def _is_tensor_constant(body: GraphModule, node: Node) -> bool:
    return is_constant(node) and holds_tensor(body, node)


def _operand_for(
    call: Branching,
    body: GraphModule,
    node: Node,
    stored: list[tuple[str, torch.Tensor, Node]],
    emit: Emitter,
) -> None:
    target, value = str(node.target), get_constant(body, node)
    position = next(
        (i for i, (name, known, _) in enumerate(stored) if name == target and _same(known, value)),
        None,
    )
    if position is None:
        position = len(stored)
        stored.append((target, value, _add_operand(call, target, value, node, emit)))
    first = len(call.operands) - len(stored)
    inner = placeholders(body)[first + position]
    inner.meta = {**node.meta, **inner.meta}
    node.replace_all_uses_with(inner)
    body.graph.erase_node(node)


def _same(known: torch.Tensor, value: torch.Tensor) -> bool:
    if known is value:
        return True
    return known.shape == value.shape and known.dtype == value.dtype and torch.equal(known, value)


def _add_operand(
    call: Branching, target: str, value: torch.Tensor, source: Node, emit: Emitter
) -> Node:
    """A constant of the owner, and a placeholder for it at the end of each body's inputs."""
    name = _name_in(target, value, emit)
    operand = emit.before(call.node, source).read(name)
    for body in call.bodies:
        known = placeholders(body)
        following = known[-1].next if known else next(iter(body.graph.nodes))
        inner = Emitter(body, PASS_NAME).before(following, source)
        new = inner.input(name.replace(".", "_"))
        if any(new.target == other.name for other in known):
            new.target = new.name  # generated code would overwrite the argument before it is read
    call.set_group(call.layout.fixed, [*call.group(call.layout.fixed), operand])
    return operand


def _name_in(target: str, value: torch.Tensor, emit: Emitter) -> str:
    """Where the owner keeps a constant: where it has it already, else under a fresh name."""
    if target in emit.names.taken:
        known = find_attribute(emit.model, target)
        if isinstance(known, torch.Tensor) and _same(known, value):
            return target
    return emit.keep(target, value)
